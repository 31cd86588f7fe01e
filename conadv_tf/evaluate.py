"""Evaluates a run: `conadv-evaluate --model_dir=DIR --attacks=pgd20`.

--curvature adds the top eigenvalue of the Hessian (docs/curvature.md).
"""

import json
import sys
from typing import Any

from absl import flags

from conadv_tf import command_line

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Directory of the run.")
_ATTACKS = flags.DEFINE_list(
    "attacks", [], "Attacks for robust accuracy: fgsm, pgd<k>, each with an "
    "optional @radius in 1/255 (default: the radius of the run).")
_BRANCH = flags.DEFINE_enum(
    "branch", "clean", ["clean", "augmented", "adversarial"],
    "Whose batch normalisation attacks and predicts.")
_TRAIN_EXAMPLES = flags.DEFINE_integer(
    "train_examples", None, "Training examples for the generalisation gap, "
    "rounded up to whole batches; default all, 0 leaves the gap out.",
    lower_bound=0)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")
_CURVATURE = flags.DEFINE_bool(
    "curvature", False, "Whether to estimate the top eigenvalue of the "
    "Hessian of the mean training loss.")
_EXAMPLES = flags.DEFINE_integer(
    "curvature_examples", 128, "Random training examples, not augmented.",
    lower_bound=1)
_LAST_LAYERS = flags.DEFINE_integer(
    "curvature_last_layers", 0, "Of the weights of so many last layers alone; "
    "0 means all.", lower_bound=0)
_ITERATIONS = flags.DEFINE_integer(
    "curvature_iterations", 100, "Most Hessian products of an estimate.",
    lower_bound=1)
_TOLERANCE = flags.DEFINE_float(
    "curvature_tolerance", 1e-4, "Relative change of the eigenvalue at which "
    "an estimate ends.", lower_bound=0)
_EIGENVALUES = flags.DEFINE_integer(
    "curvature_eigenvalues", 0, "Adds so many of largest magnitude, by "
    "Lanczos.", lower_bound=0)


def main() -> None:
  """Loads the newest checkpoint and evaluates every validation example."""
  # Imported late: --help must not wait for TensorFlow.
  with command_line.one_line_errors():
    from conadv_tf import config, runs
    from conadv_tf.analysis import curvature
    if not _MODEL_DIR.value:
      raise config.InputError("--model_dir is missing; name a run's directory")
    if _OUTPUT.value:
      command_line.check_output(_OUTPUT.value)
    _check_curvature()
    experiment, checkpoint = runs.restore(_MODEL_DIR.value)
    if _CURVATURE.value:  # what cannot be must not cost an evaluation
      experiment.curvature.check(**_options())
    limit = _TRAIN_EXAMPLES.value
    if limit is None:
      limit = experiment.splits.train.num_examples
    figures = experiment.evaluate(_ATTACKS.value, _BRANCH.value, limit)
    report = {"step": checkpoint.step, "branch": _BRANCH.value}
    report.update({f"validation/{k}": v for k, v in figures.items()})
    failure = None
    if _CURVATURE.value:
      try:
        report.update(_curvature(experiment))
      except curvature.NotFinite as error:
        failure = error
        report["curvature/problem"] = str(error)
    text = json.dumps(report, indent=2)
    print(text)
    if _OUTPUT.value:
      with open(_OUTPUT.value, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    if failure:
      raise failure


def _check_curvature() -> None:
  """Refuses flags that would say nothing."""
  from conadv_tf import config
  for flag in (_EXAMPLES, _LAST_LAYERS, _ITERATIONS, _TOLERANCE, _EIGENVALUES):
    if flag.present and not _CURVATURE.value:
      raise config.InputError(f"--{flag.name} needs --curvature")


def _options() -> dict[str, Any]:
  """What the flags say of the estimate."""
  return {"examples": _EXAMPLES.value, "last_layers": _LAST_LAYERS.value,
          "iterations": _ITERATIONS.value, "tolerance": _TOLERANCE.value,
          "eigenvalues": _EIGENVALUES.value}


def _curvature(experiment: Any) -> dict[str, Any]:
  """The report's figures; says the most important ones on stderr."""
  figures = experiment.curvature(**_options())
  print(
      f"curvature: top Hessian eigenvalue {figures['top_eigenvalue']:.6g} "
      f"({'converged' if figures['converged'] else 'NOT converged'} in "
      f"{figures['iterations']} products), {figures['examples']} training "
      f"examples, {figures['parameters']:,} weights of {figures['layers']} "
      "layers", file=sys.stderr)
  return {f"curvature/{key}": value for key, value in figures.items()}


def run() -> None:
  """Console script."""
  command_line.start(main)


if __name__ == "__main__":
  run()
