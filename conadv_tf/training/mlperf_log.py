"""The log that MLPerf Training asks for, at `model_dir/mlperf.log`.

Keys and checks: `mlperf_logging.compliance_checker`, ruleset 4.0.0, the last
with ResNet; order: the reference (mlcommons/training, resnet-tf2); meaning:
mlcommons/training_policies, training_rules.adoc.

  cache_clear, init_start, submission_*, the hyperparameters, init_stop,
  run_start,
  block_start, [updates] eval_start, eval_stop, eval_accuracy, block_stop, ...
  run_stop, run_final

Epochs are those of `evaluation`: a block reaches from one evaluation to the
next and `epoch_num` counts completed epochs. `step` in the metadata is ours:
updates made so far. Nothing runs on the device for the log; events are written
where the host evaluates anyway.

A log tells of one run, however often that was interrupted. A resumed run cuts
the log back to its checkpoint, like `metrics.jsonl`, and goes on in the same
file: there is one `run_start`, and the time to the end has the pauses in it.
An interrupted run has no `run_stop`, and a finished one that goes on, with
another target, loses it. A log can neither begin in the middle nor miss an
evaluation, and its head is true throughout; a run that would make it so is
refused.

`run_stop` says "success" where the last evaluation reaches
`evaluation.target_accuracy`, or the benchmark's own 0.759 where that is null,
else "aborted".

Not checked here: that the run obeys the rules. An adversarial method, for one,
is no closed submission.
"""

import json
import logging
import math
import os
import re
from typing import Any

from conadv_tf import config as config_lib

TARGET_ACCURACY = 0.759  # ResNet's, top 1
_PACKAGE = "mlperf-logging==4.1.68"
_TOKEN = ":::MLLOG "
_ENDS = ("run_stop", "run_final")
_RUN_START = "run_start"


def check(config: config_lib.ExperimentConfig) -> None:
  """Raises InputError if a log is asked for that cannot be written."""
  if not config.mlperf.log:
    return
  try:
    import mlperf_logging  # noqa: F401
  except ImportError as error:
    raise config_lib.InputError(
        f"mlperf.log: the package is not installed; pip install {_PACKAGE}"
    ) from error
  if config.mlperf.division == "closed" and (
      config.optimizer.name not in ("lars", "sgd")
      or config.schedule.name != "polynomial"):
    raise config_lib.InputError(
        "mlperf.division: closed takes optimizer.name lars or sgd and "
        f"schedule.name polynomial, got {config.optimizer.name} and "
        f"{config.schedule.name}; set mlperf.division=open")


def head(config: config_lib.ExperimentConfig, eval_samples: int
         ) -> dict[str, Any]:
  """What stands between `init_start` and `init_stop`.

  Args:
    config: resolved.
    eval_samples: validation examples.
  """
  mlperf, derived, runtime = config.mlperf, config.derived, config.runtime
  return {
      "submission_benchmark": "resnet",
      "submission_division": mlperf.division,
      "submission_org": mlperf.organization,
      "submission_platform": mlperf.platform,
      "submission_status": mlperf.status,
      "seed": config.seed,
      "global_batch_size": config.data.global_batch_size,
      "train_samples": derived.num_examples,
      "eval_samples": eval_samples,
      "model_bn_span": derived.replica_batch_size * (
          config.bn.group_size or runtime.num_replicas),
      "gradient_accumulation_steps": runtime.micro_batches,
      **_optimizer(config),
  }


def _optimizer(config: config_lib.ExperimentConfig) -> dict[str, Any]:
  """The optimizer's and the schedule's part of the head.

  The reference's decay is of train_steps - warmup_steps + 1 steps; without
  `schedule.convention: mlperf` ours is one shorter.
  """
  optimizer, schedule, derived = (
      config.optimizer, config.schedule, config.derived)
  name = optimizer.name
  key = f"{name}_opt_" if name in ("lars", "sgd") else "opt_"
  values: dict[str, Any] = {"opt_name": name}
  if name == "lars":
    values["lars_epsilon"] = optimizer.epsilon or 0.0
  values[f"{key}base_learning_rate"] = schedule.peak_lr
  # SGD's own checks ask for this one under the common name.
  warmup = "opt_" if name == "sgd" else key
  values[f"{warmup}learning_rate_warmup_epochs"] = schedule.warmup_epochs
  if schedule.name == "polynomial":
    values[f"{key}end_learning_rate"] = schedule.end_lr
    values[f"{key}learning_rate_decay_poly_power"] = schedule.power
    values[f"{key}learning_rate_decay_steps"] = (
        derived.decay_steps - derived.warmup_steps
        + (schedule.convention == "mlperf"))
  if name != "adamw":
    values[f"{key}momentum"] = optimizer.momentum
  values[f"{key}weight_decay"] = optimizer.weight_decay
  return values


class MlperfLog:
  """One run's log; every method writes at once."""

  def __init__(self, path: str, config: config_lib.ExperimentConfig,
               eval_samples: int, evaluates: bool = True):
    """Writes nothing.

    Args:
      path: of the log.
      config: resolved.
      eval_samples: validation examples.
      evaluates: whether the run evaluates before its end as well.
    """
    self._path = path
    self._config = config
    self._head = head(config, eval_samples)
    self._evaluates = evaluates
    self._logger: Any = None

  # ---- The file.

  def _lines(self) -> list[tuple[str, dict[str, Any]]]:
    """(line, event) of the file; what a kill has torn is left out."""
    if not os.path.exists(self._path):
      return []
    read = []
    with open(self._path, encoding="utf-8") as file:
      for line in file:
        try:
          read.append((line, json.loads(line.removeprefix(_TOKEN))))
        except json.JSONDecodeError:
          logging.warning("%s: dropping a damaged line", self._path)
    return read

  def check(self, step: int, evaluated: list[int]) -> None:
    """Raises InputError unless a run at update `step` can go on with the log.

    Args:
      step: updates behind the checkpoint that the run goes on from.
      evaluated: updates of its evaluations so far.
    """
    if not step:
      return
    before = [event for _, event in self._lines() if _at(event) <= step]
    values = {event["key"]: event["value"] for event in before}
    problem = ""
    if _RUN_START not in values:
      problem = "has no beginning (the run was started without mlperf.log)"
    elif [_at(e) for e in before if e["key"] == "eval_accuracy"] != evaluated:
      problem = "misses evaluations of this run"
    else:
      changed = [f"{key}: {json.dumps(values.get(key))} -> {json.dumps(value)}"
                 for key, value in self._head.items()
                 if values.get(key) != value]
      if changed:
        problem = "has another head (" + ", ".join(changed) + ")"
    if problem:
      raise config_lib.InputError(
          f"mlperf.log: {self._path} {problem}; set mlperf.log=false, or use "
          "another model_dir")

  def open(self, step: int, trains: bool, init_start: float) -> None:
    """Starts the log, or cuts it back to update `step` and goes on.

    Args:
      step: updates made so far; 0 starts anew.
      trains: whether updates follow; then an earlier end is taken back.
      init_start: when the process began with the run, seconds of `time.time`.
    """
    from mlperf_logging.mllog import mllog

    kept = [line for line, event in self._lines()
            if 0 < step >= _at(event)
            and not (trains and event["key"] in _ENDS)
            # A block that nothing will follow was begun before a kill.
            and (trains or event["key"] != "block_start"
                 or _at(event) < step)]
    temporary = self._path + ".tmp"
    with open(temporary, "w", encoding="utf-8") as file:
      file.writelines(kept)
    os.replace(temporary, self._path)
    # Not mllog's shared logger: it would print, and log to earlier files too.
    logger = logging.Logger("conadv_tf.mlperf", logging.INFO)
    logger.addHandler(logging.FileHandler(self._path, encoding="utf-8"))
    package = os.path.dirname(os.path.dirname(os.path.dirname(
        os.path.abspath(__file__))))
    self._logger = mllog.MLLogger(logger, root_dir=re.escape(package))
    if not step:
      start = int(init_start * 1000)
      self._logger.event("cache_clear", self._config.mlperf.cache_cleared,
                         {"step": 0}, time_ms=start)
      self._logger.start("init_start", None, {"step": 0}, time_ms=start)
      for key, value in self._head.items():
        self._logger.event(key, value, {"step": 0})

  def close(self) -> None:
    """Closes the file."""
    for handler in self._logger.logger.handlers:
      handler.close()

  # ---- Events.

  def start_run(self) -> None:
    """Before the first training image is read; once in the run's life.

    With `data.cache` the images were read while the data were loaded, before
    this; the rules want otherwise, and `config.mlperf_rules` says so.
    """
    if not any(event["key"] == _RUN_START for _, event in self._lines()):
      self._logger.end("init_stop", None, {"step": 0})
      self._logger.start(_RUN_START, None, {"step": 0})

  def start_block(self, step: int) -> None:
    """A block of epochs begins after update `step`, unless one is open."""
    if self._block():
      return
    first = self._epochs(step)
    self._logger.start("block_start", None, {
        "first_epoch_num": _whole(first + 1),
        "epoch_count": _whole(self._next_evaluation(first) - first),
        "step": step})

  def start_evaluation(self, step: int) -> None:
    """An evaluation begins."""
    self._logger.start("eval_start", None, self._epoch_metadata(step))

  def stop_evaluation(self, step: int, accuracy: float,
                      examples: float) -> None:
    """An evaluation ends, and with it its block of epochs.

    Raises:
      InputError: if `examples` is not what the head says: broken images are
        left out of the accuracy.
    """
    stated = self._head["eval_samples"]
    if examples != stated:
      raise config_lib.InputError(
          f"mlperf.log: {examples:.0f} of {stated} validation examples could "
          "be used; mend the others, or set mlperf.log=false")
    metadata = self._epoch_metadata(step)
    self._logger.end("eval_stop", None, metadata)
    self._logger.event("eval_accuracy", accuracy, metadata)
    block = self._block()
    self._logger.end("block_stop", None, {
        "first_epoch_num": block["first_epoch_num"],
        "epoch_count": block["epoch_count"], "step": step})

  def stop_run(self, step: int, accuracy: float) -> None:
    """The run ends, after an evaluation; unless the log says so already."""
    if any(event["key"] == _ENDS[-1] for _, event in self._lines()):
      return
    target = self._config.evaluation.target_accuracy
    if target is None:
      target = TARGET_ACCURACY
    status = "success" if accuracy >= target else "aborted"
    self._logger.end("run_stop", None, {"status": status, "step": step})
    self._logger.event("run_final", None, {"step": step})

  def _block(self) -> dict[str, Any] | None:
    """Metadata of the block that is open, if one is."""
    for _, event in reversed(self._lines()):
      if event["key"] in ("block_start", "block_stop"):
        return event["metadata"] if event["key"] == "block_start" else None
    return None

  # ---- Epochs.

  def _epochs(self, step: int) -> float:
    """Epochs completed after update `step`.

    The last update may come a little before its epoch ends.
    """
    derived = self._config.derived
    if step >= derived.total_steps:
      return self._config.schedule.epochs
    return math.floor(step / derived.steps_per_epoch + 1e-9)

  def _next_evaluation(self, epochs: float) -> float:
    """The epoch after which the evaluation after `epochs` comes."""
    options, last = self._config.evaluation, self._config.schedule.epochs
    if not self._evaluates:
      return last
    if epochs < options.offset_epochs:
      return min(options.offset_epochs, last)
    done = (epochs - options.offset_epochs) // options.every_epochs
    return min(options.offset_epochs + (done + 1) * options.every_epochs, last)

  def _epoch_metadata(self, step: int) -> dict[str, Any]:
    return {"epoch_num": _whole(self._epochs(step)), "step": step}


def _at(event: dict[str, Any]) -> int:
  return event["metadata"]["step"]


def _whole(epochs: float) -> float | int:
  """Whole numbers as the checker's own tools print them."""
  return int(epochs) if epochs == int(epochs) else epochs
