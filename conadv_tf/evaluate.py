"""Evaluates a run: `conadv-evaluate --model_dir=DIR --attacks=pgd20`."""

import json

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


def main() -> None:
  """Loads the newest checkpoint and evaluates every validation example."""
  # Imported late: --help must not wait for TensorFlow.
  with command_line.one_line_errors():
    from conadv_tf import config, runs
    if not _MODEL_DIR.value:
      raise config.InputError("--model_dir is missing; name a run's directory")
    if _OUTPUT.value:
      command_line.check_output(_OUTPUT.value)
    experiment, checkpoint = runs.restore(_MODEL_DIR.value)
    limit = _TRAIN_EXAMPLES.value
    if limit is None:
      limit = experiment.splits.train.num_examples
    figures = experiment.evaluate(_ATTACKS.value, _BRANCH.value, limit)
    report = {"step": checkpoint.step, "branch": _BRANCH.value}
    report.update({f"validation/{k}": v for k, v in figures.items()})
    text = json.dumps(report, indent=2)
    print(text)
    if _OUTPUT.value:
      with open(_OUTPUT.value, "w", encoding="utf-8") as file:
        file.write(text + "\n")


def run() -> None:
  """Console script."""
  command_line.start(main)


if __name__ == "__main__":
  run()
