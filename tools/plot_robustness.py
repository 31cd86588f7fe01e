"""Draws robust accuracy against radius and steps, as the DAT paper's Figure 3.

    python -m tools.plot_robustness FILE.json [FILE.json ...] --output=FILE.png

Each file is what `conadv-evaluate --radii=... --steps=... --output=FILE.json`
wrote. A curve is one file, branch and kind of attack: on the left over radii
for each number of steps, on the right over steps for each radius. Bars are two
standard errors. Points of one curve differ in that one number alone.
"""

from collections.abc import Sequence
import json
import os
from typing import Any

from absl import flags

from conadv_tf import command_line

_OUTPUT = flags.DEFINE_string("output", None, "PNG file.", required=True)
_AXES = {"radius": "radius in 1/255", "steps": "steps"}


def main(paths: Sequence[str]) -> None:
  """Reads the files and draws them."""
  with command_line.one_line_errors():
    from conadv_tf import config
    from tools import robustness_rows
    command_line.check_output(_OUTPUT.value)
    if not paths:
      raise config.InputError("name one file or more of conadv-evaluate")
    rows = [row for path in paths for row in _read(path)]
    found = {field: robustness_rows.curves(rows, field) for field in _AXES}
    if not any(found.values()):
      raise config.InputError(
          "no two attacks differ in radius or steps alone; evaluate with "
          "--radii=2,4,8 or --steps=10,20,50")
    _draw(found)


def _read(path: str) -> list[dict[str, Any]]:
  from conadv_tf import config
  try:
    with open(path, encoding="utf-8") as file:
      rows = json.load(file)["attacks"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise config.InputError(
        f"{path} is no report of conadv-evaluate with attacks") from error
  name = os.path.splitext(os.path.basename(path))[0]
  return [{**row, "file": name} for row in rows]


def _draw(found: dict[str, dict[str, list[tuple[float, float, float]]]]
          ) -> None:
  import matplotlib
  matplotlib.use("Agg")
  from matplotlib import pyplot
  figure, axes = pyplot.subplots(
      1, 2, figsize=(11, 4), sharey=True, layout="constrained")
  for axis, (field, curves) in zip(axes, found.items(), strict=True):
    for label, points in curves.items():
      x, y, error = zip(*points, strict=True)
      axis.errorbar(x, y, [2 * e for e in error], marker="o", markersize=3,
                    capsize=2, label=label)
    axis.set(xlabel=_AXES[field], ylim=(0, 1))
    axis.grid(alpha=0.3)
    if curves:
      axis.legend(fontsize=7)
  axes[0].set_ylabel("robust accuracy")
  figure.savefig(_OUTPUT.value, dpi=100)


if __name__ == "__main__":
  command_line.start(main, takes_arguments=True)
