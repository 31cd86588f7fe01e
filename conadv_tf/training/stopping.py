"""When a run stops before its last update, and which of its weights count.

Everything follows from `metrics.jsonl`, whose lines a resumed run shares with
an unbroken one, so that both stop at the same update.
"""

from collections.abc import Sequence
import math
from typing import Any

from conadv_tf import config as config_lib
from conadv_tf.training import checkpoint, run_directory

TARGET_ACCURACY = "target_accuracy"
PATIENCE = "patience"
_LOWER_IS_BETTER = ("loss", "generalization_gap")

Record = dict[str, Any]


def check(options: config_lib.EvaluationConfig, num_classes: int,
          metrics: Sequence[str] = ("accuracy",)) -> None:
  """Raises InputError if `monitor` is no figure of these evaluations.

  Args:
    options: of the evaluations.
    num_classes: of the model; the top 5 say nothing about 5 or fewer.
    metrics: figures besides the loss.
  """
  if options.patience is None:
    return
  known = [*metrics, "loss"]
  if num_classes > 5:
    known.append("top_5_accuracy")
  if options.train_examples:
    known.append("generalization_gap")
  known += [f"robust_accuracy_{name}" for name in options.attacks]
  if options.monitor in known:
    return
  hint = ""
  if options.monitor == "generalization_gap":
    hint = "; it needs evaluation.train_examples"
  elif options.monitor.startswith("robust_accuracy_"):
    hint = "; name its attack in evaluation.attacks"
  raise config_lib.InputError(
      f"evaluation.monitor: {options.monitor!r} is no figure of this run's "
      f"evaluations, which are {', '.join(known)}{hint}")


def is_possible(options: config_lib.EvaluationConfig) -> bool:
  """Whether an evaluation may stop the run."""
  return options.target_accuracy is not None or options.patience is not None


def reason(options: config_lib.EvaluationConfig, records: Sequence[Record],
           step: int) -> str | None:
  """Why the run stops after update `step`, if it does.

  It stops after the evaluation that reaches `target_accuracy`, and after
  `patience` evaluations in a row of which none was better than the best
  before (as Keras's `EarlyStopping` with `min_delta=0`).

  Args:
    options: of the evaluations; those of a resumed run may be new.
    records: of metrics.jsonl, in order.
    step: updates made. Where the last record is of another update, nothing
      is known about these weights and nothing stops.

  Returns:
    TARGET_ACCURACY, PATIENCE or None.
  """
  if not records or records[-1]["step"] != step:
    return None
  target = options.target_accuracy
  if target is not None and records[-1]["validation/accuracy"] >= target:
    return TARGET_ACCURACY
  if options.patience is not None:
    best = best_step(options, records)
    since = sum(best is None or at > best
                for at, _ in _monitored(options, records))
    if since >= options.patience:
      return PATIENCE
  return None


def best_step(options: config_lib.EvaluationConfig,
              records: Sequence[Record]) -> int | None:
  """The update with the best `monitor`, the first among equals.

  None where `patience` is off: then the newest weights are the run's result.
  """
  if options.patience is None:
    return None
  sign = -1.0 if options.monitor in _LOWER_IS_BETTER else 1.0
  best, best_value = None, None
  for step, value in _monitored(options, records):
    if not math.isnan(value) and (
        best_value is None or sign * value > best_value):
      best, best_value = step, sign * value
  return best


def _monitored(options: config_lib.EvaluationConfig,
               records: Sequence[Record]) -> list[tuple[int, float]]:
  """(update, value); evaluations before `monitor` was asked for have none."""
  key = f"validation/{options.monitor}"
  return [(r["step"], r[key]) for r in records if key in r]


def result_checkpoint(
    directory: run_directory.RunDirectory,
    options: config_lib.EvaluationConfig) -> checkpoint.Checkpoint | None:
  """The weights to evaluate, export and start from; None where none are.

  They are those of the best evaluation where the run has `patience`, else the
  newest.
  """
  return directory.checkpoints.latest(
      prefer=best_step(options, directory.metrics()))
