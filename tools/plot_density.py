"""Draws spectral densities of Hessians: `python -m tools.plot_density`.

    python -m tools.plot_density --model_dir=RUN [--model_dir=RUN ...]
        [--steps=80] [--starts=1] [--examples=128] [--last_layers=0]
        --output=FILE.png
    python -m tools.plot_density --evaluation=FILE.json [...] --output=FILE.png

Stochastic Lanczos quadrature: --steps products from each of --starts random
starts (docs/curvature.md). Of a run the Hessian is that of its newest
checkpoint. --evaluation takes what `conadv-evaluate --curvature
--curvature_eigenvalues=K --output=FILE.json` wrote: one start, and as many
products as that needed.

Both may be repeated and mixed; each is a line of the picture.
"""

import json
from typing import Any

from absl import flags

from conadv_tf import command_line

_MODEL_DIR = flags.DEFINE_multi_string(
    "model_dir", [], "Directory of a run; may be repeated.")
_EVALUATION = flags.DEFINE_multi_string(
    "evaluation", [], "JSON file of an evaluation; may be repeated.")
_STEPS = flags.DEFINE_integer(
    "steps", 80, "Products from each start.", lower_bound=1)
_STARTS = flags.DEFINE_integer(
    "starts", 1, "Random starts to average over.", lower_bound=1)
_EXAMPLES = flags.DEFINE_integer(
    "examples", 128, "Random training examples.", lower_bound=1)
_LAST_LAYERS = flags.DEFINE_integer(
    "last_layers", 0, "Of the weights of so many last layers; 0 means all.",
    lower_bound=0)
_SIGMA = flags.DEFINE_float(
    "sigma", None, "Width of an eigenvalue's Gaussian; by default 1/100 of "
    "what the spectrum spans.")
_OUTPUT = flags.DEFINE_string("output", None, "PNG file.", required=True)
_POINTS = 2000
_MARGIN = 4.0  # widths beyond the outermost eigenvalues
_LOWEST = 1e-7  # of the densest place: what is less is noise of the start


def main() -> None:
  """Draws the picture."""
  with command_line.one_line_errors():
    from conadv_tf import config
    if not _MODEL_DIR.value and not _EVALUATION.value:
      raise config.InputError("name a run by --model_dir, or a file by "
                              "--evaluation")
    if _SIGMA.value is not None and not _SIGMA.value > 0:
      raise config.InputError(f"--sigma={_SIGMA.value}: must be above 0")
    command_line.check_output(_OUTPUT.value)
    lines = [(path, _read(path)) for path in _EVALUATION.value]
    lines += [(path, _estimate(path)) for path in _MODEL_DIR.value]
    try:
      _figure(lines).savefig(_OUTPUT.value, dpi=100)
    except (OSError, ValueError) as error:
      raise config.InputError(f"--output={_OUTPUT.value}: {error}") from error


def _read(path: str) -> list[Any]:
  """The spectrum of an evaluation's JSON file."""
  import numpy as np

  from conadv_tf import config
  from conadv_tf.analysis import curvature
  try:
    with open(path, encoding="utf-8") as file:
      report = json.load(file)
    values, weights = (np.array(report[f"curvature/ritz_{name}"], float)
                       for name in ("values", "weights"))
  except (OSError, ValueError, TypeError) as error:
    raise config.InputError(f"--evaluation={path}: {error}") from error
  except KeyError as error:
    raise config.InputError(
        f"--evaluation={path} has no {error}; evaluate with --curvature "
        "--curvature_eigenvalues=K") from error
  return [curvature.Spectrum(values, weights, np.zeros(len(values)))]


def _estimate(model_dir: str) -> list[Any]:
  """One spectrum for each start."""
  from conadv_tf import saved_runs
  from conadv_tf.analysis import curvature
  experiment, _ = saved_runs.restore(model_dir)
  matrix, product = experiment.curvature.hessian(
      _EXAMPLES.value, _LAST_LAYERS.value)
  return [curvature.lanczos(product, matrix.size, seed=seed,
                            steps=_STEPS.value)
          for seed in range(_STARTS.value)]


def _figure(lines: list[tuple[str, list[Any]]]) -> Any:
  import matplotlib
  matplotlib.use("Agg")
  from matplotlib import pyplot
  import numpy as np

  from conadv_tf.analysis import curvature
  figure, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
  highest = 0.0
  for number, (label, spectra) in enumerate(lines):
    values = np.concatenate([spectrum.values for spectrum in spectra])
    # A matrix with one eigenvalue spans nothing.
    sigma = _SIGMA.value or (np.ptp(values) or abs(values[0]) or 1.0) / 100
    grid = np.linspace(values.min() - _MARGIN * sigma,
                       values.max() + _MARGIN * sigma, _POINTS)
    drawn = curvature.density(spectra, grid, sigma)
    highest = max(highest, drawn.max())
    axis.plot(grid, drawn, color=f"C{number}", label=(
        f"{label}: {values.min():.4g} to {values.max():.4g}"))
  axis.set_yscale("log")
  axis.set_ylim(_LOWEST * highest, 2 * highest)
  axis.set(xlabel="eigenvalue of the Hessian", ylabel="density",
           title="Spectral density")
  axis.grid(alpha=0.3)
  figure.legend(loc="outside lower center", frameon=False)
  return figure


if __name__ == "__main__":
  command_line.start(main)
