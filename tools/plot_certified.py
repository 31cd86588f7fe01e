"""Draws certified accuracy by radius: `python -m tools.plot_certified`.

    python -m tools.plot_certified --images=FILE.certified.tsv [--images=...]
        --output=FILE.png

Every file is what `conadv-evaluate --certify --output=FILE.json` wrote; each
is a curve of the picture: the share of its images that are predicted rightly
with a certified l2 radius of at least r. A dotted line stands where the curve
must end whatever the network: at the radius of full agreement. The table at
the radii of the DAT paper's Table 2 goes to stdout.
"""

import dataclasses
import os
from typing import Any

from absl import flags

from conadv_tf import command_line

_IMAGES = flags.DEFINE_multi_string(
    "images", [], "TSV file of certificates; may be repeated.")
_OUTPUT = flags.DEFINE_string("output", None, "PNG file.", required=True)


def main() -> None:
  """Draws the picture and prints the table."""
  with command_line.one_line_errors():
    from conadv_tf import config
    if not _IMAGES.value:
      raise config.InputError("name a file of certificates by --images")
    command_line.check_output(_OUTPUT.value)
    curves = [(_name(path), *_read(path)) for path in _IMAGES.value]
    print(_table(curves))
    try:
      _figure(curves).savefig(_OUTPUT.value, dpi=100)
    except (OSError, ValueError) as error:
      raise config.InputError(f"--output={_OUTPUT.value}: {error}") from error


def _name(path: str) -> str:
  return os.path.basename(path).removesuffix(".certified.tsv")


def _read(path: str) -> tuple[Any, list[Any]]:
  """Settings and certificates of a file that has some."""
  from conadv_tf import config
  from conadv_tf.evaluation import certified, certified_file
  settings, certificates = certified_file.read(path)
  if not certificates:
    raise config.InputError(f"--images={path} has no certificate yet")
  return certified.Smoothing(**{
      field.name: settings[field.name]
      for field in dataclasses.fields(certified.Smoothing)}), certificates


def _table(curves: list[tuple[str, Any, list[Any]]]) -> str:
  from conadv_tf.evaluation import certified
  from tools import figures
  return figures.table(
      ["", "sigma", "n", "images", *(f"r {r:g}" for r in certified.RADII)],
      [[name, f"{smoothing.sigma:g}", f"{smoothing.n:,}",
        str(len(certificates)),
        *(f"{certified.accuracy_at(certificates, r):.3f}"
          for r in certified.RADII)]
       for name, smoothing, certificates in curves])


def _figure(curves: list[tuple[str, Any, list[Any]]]) -> Any:
  import matplotlib
  matplotlib.use("Agg")
  from matplotlib import pyplot
  import numpy as np

  from conadv_tf.evaluation import certified
  figure, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
  for number, (name, smoothing, certificates) in enumerate(curves):
    radii = np.linspace(0, 1.05 * smoothing.largest_radius, 1000)
    axis.plot(radii, [certified.accuracy_at(certificates, r) for r in radii],
              color=f"C{number}", label=(
                  f"{name}: sigma {smoothing.sigma:g}, n {smoothing.n:,}, "
                  f"{len(certificates)} images"))
    axis.axvline(smoothing.largest_radius, color=f"C{number}", linestyle=":")
  axis.set(xlabel="l2 radius, pixels 0..1", ylabel="certified accuracy",
           title="Certified accuracy by radius", ylim=(0, 1), xlim=(0, None))
  axis.grid(alpha=0.3)
  figure.legend(loc="outside lower center", frameon=False)
  return figure


if __name__ == "__main__":
  command_line.start(main)
