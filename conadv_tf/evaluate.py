"""Evaluates a run: `conadv-evaluate --model_dir=DIR --attacks=pgd20`.

--curvature adds the top eigenvalue of the Hessian (docs/curvature.md),
--certify --sigma=0.25 certified accuracy by smoothing (docs/smoothing.md).
Attacks, sweeps and --sanity: docs/robustness.md.
"""

import dataclasses
import json
import logging
import os
import sys
from typing import Any

from absl import flags

from conadv_tf import command_line

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Directory of the run.")
_DATA_PATH = flags.DEFINE_string(
    "data_path", None, "Data whose validation split is evaluated in place of "
    "the run's data.path; of the same kind.")
_ATTACKS = flags.DEFINE_list(
    "attacks", [], "Attacks for robust accuracy: fgsm, "
    "pgd<steps>[-<restarts>], noise<draws>, apgd, apgd-dlr, square, "
    "autoattack, each with an optional @radius (default: that of the run), "
    "pgd also with /step_size, in 1/255.")
_RADII = flags.DEFINE_list(
    "radii", [], "Radii in 1/255; every attack is made with each.")
_STEPS = flags.DEFINE_list(
    "steps", [], "Steps; every pgd attack is made with each.")
_SUBSET = flags.DEFINE_integer(
    "subset", None, "Attack so many validation examples, a fixed random "
    "choice; default all.")
_SANITY = flags.DEFINE_bool(
    "sanity", False, "Whether to look for masked gradients with more attacks.")
_BRANCH = flags.DEFINE_enum(
    "branch", "clean", ["clean", "augmented", "adversarial", "both"],
    "Whose batch normalisation attacks and predicts; both: clean, then "
    "adversarial.")
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
_CERTIFY = flags.DEFINE_bool(
    "certify", False, "Whether to certify validation images by randomised "
    "smoothing; they go to a TSV file beside --output.")
_SIGMA = flags.DEFINE_float(
    "sigma", None, "Deviation of the noise as a share of the pixel range, NOT "
    "in 1/255; certified l2 radii have the same unit.")
_N0 = flags.DEFINE_integer(
    "certify_n0", 100, "Noisy copies that choose an image's class.")
_N = flags.DEFINE_integer(
    "certify_n", 100_000, "Noisy copies that bound its probability.")
_ALPHA = flags.DEFINE_float(
    "certify_alpha", 0.001, "Probability that a certificate is wrong.")
_SKIP = flags.DEFINE_integer(
    "certify_skip", 20, "Of so many validation images the first is certified.")
_CERTIFY_BATCH = flags.DEFINE_integer(
    "certify_batch_size", 500, "Noisy copies that a replica classifies at a "
    "time; the noise depends on it.")


def main() -> None:
  """Loads the newest checkpoint and evaluates every validation example."""
  # Imported late: --help must not wait for TensorFlow.
  with command_line.one_line_errors():
    from conadv_tf import config, robustness, saved_runs
    from conadv_tf.analysis import curvature
    if not _MODEL_DIR.value:
      raise config.InputError("--model_dir is missing; name a run's directory")
    if _OUTPUT.value:
      command_line.check_output(_OUTPUT.value)
    _check_curvature()
    smoothing = _smoothing()
    experiment, checkpoint = saved_runs.restore(
        _MODEL_DIR.value, _DATA_PATH.value)
    plan = robustness.plan(
        experiment, _ATTACKS.value, branch=_BRANCH.value,
        radii=command_line.numbers(_RADII, float),
        steps=command_line.numbers(_STEPS, int),
        subset=_SUBSET.value, doubts=_SANITY.value)
    if _CURVATURE.value:  # what cannot be must not cost an evaluation
      experiment.curvature.check(**_options())
    if smoothing:
      settings, known = _known_certificates(experiment, checkpoint, smoothing)
    limit = _TRAIN_EXAMPLES.value
    if limit is None:
      limit = experiment.splits.train.num_examples
    report = {"step": checkpoint.step, "branch": _BRANCH.value}
    for branch in plan.branches:
      prefix = robustness.prefix(plan, branch)
      figures = experiment.evaluate((), branch, limit)
      report.update({f"{prefix}/{k}": v for k, v in figures.items()})
    if plan.attacks:
      # Every attack is a graph of its own, which TensorFlow warns of.
      logging.getLogger("tensorflow").setLevel(logging.ERROR)
      report.update(robustness.measure(experiment, plan))
      print(robustness.table(report), file=sys.stderr)
    if smoothing:
      report.update(_certify(experiment, smoothing, settings, known))
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


def _smoothing() -> Any:
  """What --certify asks for; None without it."""
  from conadv_tf import config
  from conadv_tf.evaluation import certified
  if not _CERTIFY.value:
    for flag in (_SIGMA, _N0, _N, _ALPHA, _SKIP, _CERTIFY_BATCH):
      if flag.present:
        raise config.InputError(f"--{flag.name} needs --certify")
    return None
  if _SIGMA.value is None:
    raise config.InputError("--certify needs --sigma, a share of the pixel "
                            "range: that of training, for instance 0.25")
  if _BRANCH.value == "both":
    raise config.InputError("--certify is of one branch, not of both; leave "
                            "--branch=both out")
  if not _OUTPUT.value:
    raise config.InputError("--certify needs --output=FILE.json: the images "
                            "go to FILE.certified.tsv")
  return certified.Smoothing(_SIGMA.value, _N0.value, _N.value, _ALPHA.value,
                             _SKIP.value, _CERTIFY_BATCH.value)


def _certificates_path() -> str:
  return os.path.splitext(_OUTPUT.value)[0] + ".certified.tsv"


def _known_certificates(experiment: Any, checkpoint: Any, smoothing: Any
                        ) -> tuple[dict[str, Any], list[Any]]:
  """What all certificates depend on, and those of a run that was stopped."""
  from conadv_tf.evaluation import certified_file
  settings = {"step": checkpoint.step, "branch": _BRANCH.value,
              "seed": experiment.config.seed,
              # Another run may have as many updates, other data as many images.
              "weights": certified_file.digest(
                  v.numpy() for v in experiment.trainer.network.variables),
              "data": experiment.config.data.path,
              **dataclasses.asdict(smoothing)}
  return settings, certified_file.known(_certificates_path(), settings)


def _certify(experiment: Any, smoothing: Any, settings: dict[str, Any],
             known: list[Any]) -> dict[str, Any]:
  """The report's figures; the certificates go to their file."""
  from conadv_tf.evaluation import certified, certified_file
  total = -(-experiment.splits.validation.num_examples // smoothing.skip)
  after = known[-1].position if known else -1
  certificates = certified_file.write(
      _certificates_path(), settings, known,
      experiment.certificates(smoothing, _BRANCH.value, after), total)
  figures = certified.figures(certificates, smoothing)
  print(certified.table(figures), file=sys.stderr)
  return {f"certified/{key}": value for key, value in figures.items()}


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
