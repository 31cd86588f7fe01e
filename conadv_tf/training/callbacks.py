"""What happens between updates: progress, evaluation, records, checkpoints.

A run is one `fit` over all its updates; epochs are positions in it, so that
`total_steps = round(epochs * N / B)` needs no whole number of steps an epoch.
"""

from collections.abc import Callable
import logging
import math
import time
from typing import Any

import tensorflow as tf

from conadv_tf import config as config_lib
from conadv_tf import exits
from conadv_tf.methods import growth
from conadv_tf.training import (
  checkpoint,
  growing,
  guards,
  hyperparameters,
  mlperf_log,
  profiling,
  progress,
  run_directory,
  stopping,
  summaries,
)

# Called with () and returns validation figures, keys without a prefix.
Evaluate = Callable[[], dict[str, float]]
Pictures = Callable[[], tuple[tf.Tensor, tf.Tensor]]


class RunCallback(tf.keras.callbacks.Callback):
  """Drives everything that a run does besides updating weights."""

  # Metrics stay on the device until they are shown.
  _supports_tf_logs = True

  def __init__(self, config: config_lib.ExperimentConfig,
               directory: run_directory.RunDirectory, evaluate: Evaluate,
               pictures: Pictures | None, *, start_step: int,
               seconds: float = 0.0, quiet: bool = False,
               evaluates: bool = True,
               learning_rate: Callable[[int], float] = lambda step: 0.0,
               driver: growing.Driver | None = None,
               log: mlperf_log.MlperfLog | None = None,
               guard: guards.Guard | None = None,
               profiler: profiling.StepProfiler | None = None):
    """Prepares the callback of one `fit`.

    Args:
      config: resolved.
      directory: where the run lives.
      evaluate: computes validation figures with the current weights.
      pictures: makes clean and adversarial images, float [b, h, w, c] in
        the pixel range; None where the method has no attack.
      start_step: updates made before this `fit`; as all steps here, in
        initial batches, of which a grown update takes several.
      seconds: training time of earlier sessions of this run.
      quiet: prints nothing.
      evaluates: whether to evaluate before the end as well.
      learning_rate: of an update's index, without growth.
      driver: of a batch that grows; None where it does not.
      log: told of blocks of epochs and evaluations.
      guard: says when to stop, and is told of everything that moves.
      profiler: of some updates.
    """
    super().__init__()
    self._guard = guard or guards.Guard()
    self._profiler = profiler
    self._config = config
    self._directory = directory
    self._evaluate = evaluate
    self._evaluates = evaluates
    self._pictures = pictures
    self._step = start_step
    self._seconds = seconds
    self._learning_rate = learning_rate
    self._log = log
    self._steps_per_epoch = config.derived.steps_per_epoch
    self._total = config.derived.total_steps
    self._batch_size = config.data.global_batch_size  # the initial one
    self._driver = driver or growing.Driver(
        growth.Growth(), None, total=self._total, updates=start_step)
    self._progress = progress.Progress(self._total, start_step, quiet)
    self._summaries = summaries.Summaries(
        directory.path, directory.writes, hyperparameters.of(config))
    self._checkpointed = time.monotonic()
    # The clock runs while updates run, not while evaluating or saving.
    self._clock = time.monotonic()
    self._clock_step = start_step
    self._compiled = False
    self._will_save = False
    self._count = 0  # updates of the execution that runs
    self._span = 0  # of them, with those before an interruption
    self._stopping = False
    self._nonfinite = 0
    self.speed = 0.0  # clean examples a second since the last record

  # ---- Positions.

  def _epoch(self, step: int) -> float:
    return step / self._steps_per_epoch

  def _place(self, step: int) -> dict[str, float]:
    return {"step": step, "epoch": round(self._epoch(step), 6)}

  def _crossed(self, every: float, step: int, count: int,
               offset: float = 0.0) -> bool:
    """Whether one of the last `count` updates completed offset + n * every.

    Only n >= 0 counts: nothing happens before the offset.
    """
    def done(s: int) -> int:
      return max(
          -1, math.floor((self._epoch(s) - offset) / every + 1e-9))
    return done(step) > done(step - count)

  # ---- Keras's hooks.

  def on_train_begin(self, logs: Any = None) -> None:
    """Starts the clocks."""
    del logs
    self._checkpointed = self._clock = time.monotonic()
    if self._log:
      self._log.start_block(self._step)
    if self._profiler:
      self._profiler.begin(self._step, self._execution()[1] - self._step)

  def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
    """Asks for a snapshot before an execution that a checkpoint follows."""
    del batch, logs
    start, end = self._execution()
    self._record_growth()
    self._count = end - self._step
    minutes = self._config.checkpoint.every_minutes
    overdue = minutes is not None and (
        time.monotonic() - self._checkpointed >= 60 * minutes)
    overdue, self._stopping = self._guard.any(overdue, self._guard.signalled)
    if self._stopping:
      # One update more, since a checkpoint needs the weights before it.
      self._count = self._driver.batch_ratio
    self.model.updates_next = self._count // self._driver.batch_ratio
    step = self._step + self._count
    # Where it is cut short, nothing but saving happens.
    self._span = step - start if step == end else 0
    self._will_save = (
        overdue or self._stopping or self._driver.ends(step) or self._crossed(
            self._config.checkpoint.every_epochs, step, self._span))
    # An evaluation may be interrupted, stop the run, or be its best.
    self.model.snapshot_next = (
        self._will_save or self._evaluation_due(step, self._span))
    if self._profiler:
      self._profiler.before(self._step, self._count)

  def _execution(self) -> tuple[int, int]:
    """Its start and end in an unbroken run; now it may start later."""
    every = self._config.runtime.steps_per_execution
    start = self._step - self._step % every
    length = every * self._driver.before(self._step)
    return start, min(start + length, self._total)

  def _evaluation_due(self, step: int, count: int) -> bool:
    options = self._config.evaluation
    return self._driver.ends(step) or self._evaluates and self._crossed(
        options.every_epochs, step, count, options.offset_epochs)

  def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
    """Records, evaluates, saves and stops where an epoch or the run ends."""
    del batch
    self._step += self._count
    self._guard.tick(f"update {self._step}")
    self._check_finite(self._step, logs)
    self._progress.update(self._step, logs)
    self._grow()
    self._finish_execution(self._step, self._span, logs)
    if self._driver.grows and self._driver.ends(self._step):
      self.model.stop_training = True  # Keras does not know of the growth
    if self._profiler:
      self._profiler.after(self._step - self._count, self._count)

  def _grow(self) -> None:
    """Lets the batch grow, after an estimate where one is due."""
    begin = time.monotonic()
    estimate = self._driver.after(self._step, self._count)
    if estimate is None:
      return
    self._guard.tick("estimate of curvature")
    finite = math.isfinite(estimate.value)
    self._directory.append_curvature({
        **self._place(self._step), **self._driven(self._step),
        "samples": self._step * self._batch_size,
        "value": estimate.value if finite else None,
        "iterations": estimate.iterations})
    if finite:
      self._summaries.scalars(
          "train", self._step, {"eigenvalue": estimate.value})
    self._clock += time.monotonic() - begin

  def _record_growth(self) -> None:
    """Writes down what takes effect with the next update, if it is new."""
    driver = self._driver
    if driver.grows:
      self._directory.record_growth(
          {**self._place(self._step), "updates": driver.updates},
          {"batch_size": driver.batch_ratio * self._batch_size,
           "rate_factor": driver.rate_factor, "gamma": driver.gamma})

  def _driven(self, step: int) -> dict[str, float]:
    """What growth has changed, of the update that ends at `step`."""
    driver = self._driver
    values = {
        "updates": driver.updates,
        "batch_size": driver.batch_ratio * self._batch_size,
        "learning_rate": driver.rate_factor * self._learning_rate(
            step - driver.batch_ratio)}
    return {**values, "gamma": driver.gamma} if driver.grows else values

  def _finish_execution(self, step: int, span: int,
                        logs: dict[str, Any]) -> None:
    evaluates = self._evaluation_due(step, span)
    ends_epoch = self._driver.ends(step) or self._crossed(1.0, step, span)
    if not (self._will_save or evaluates or ends_epoch or not self._compiled):
      return
    # float() waits for the device, so it comes before the clock is read.
    values = {name: float(value) for name, value in logs.items()}
    self._stop_clock(step)
    if ends_epoch or evaluates:
      self._record_training(step, values)
    self._evaluate_and_save(step, values, evaluates)
    if ends_epoch:
      self.model.reset_metrics()
    self._clock, self._clock_step = time.monotonic(), step

  def _evaluate_and_save(self, step: int, values: dict[str, float],
                         evaluates: bool) -> None:
    """Evaluates and saves where that is due; stops where it was asked to."""
    saves, pending = self._will_save, None
    if evaluates and self._stopping and not self._config.mlperf.log:
      pending = values  # no time for it: it is the first thing on resume
    elif evaluates:
      try:
        saves |= self._record_evaluation(step, values)
      except exits.Diverged:
        raise  # nobody wants these weights
      except (exits.Stop, tf.errors.OpError):
        if not self._config.mlperf.log:
          self._save(step, values)
        raise
    # After the record: a run killed in between makes the record again.
    if saves:
      self._save(step, pending)
    if self._stopping:
      raise self._guard.terminated(f"checkpoint of update {step} saved")
    if evaluates and self._log and not self._ends(step):
      self._log.start_block(step)

  def _check_finite(self, step: int, logs: dict[str, Any]) -> None:
    """Stops the run, or counts, where an update was not finite.

    Raises:
      exits.Diverged: that names the update.
    """
    first = int(tf.convert_to_tensor(self.model.nonfinite.first))
    if first < 0:
      return
    if not self.model.nonfinite.skip:
      saved = self._directory.checkpoints.steps()
      good = f"that of update {saved[-1]}" if saved else "none"
      raise exits.Diverged(
          f"update {first + 1} (epoch {self._epoch(first + 1):.4g}) was not "
          f"finite, loss {float(logs['loss']):g}; the last good checkpoint is "
          f"{good}. Lower schedule.peak_lr, or leave such updates out with "
          "runtime.on_nan=skip_step")
    count = int(tf.convert_to_tensor(self.model.nonfinite.count))
    if count > self._nonfinite:
      logging.warning("%d of the updates up to %d were not finite and left the "
                      "weights as they were", count, step)
      self._nonfinite = count

  def _check_figures(self, step: int, loss: float) -> None:
    """Stops a run whose weights are finite and of no use."""
    if math.isfinite(loss):
      return
    if self.model.nonfinite.skip:
      logging.warning("validation loss is %g after update %d", loss, step)
      return
    raise exits.Diverged(
        f"validation loss is {loss:g} after update {step} (epoch "
        f"{self._epoch(step):.4g}): the weights are finite but too large. "
        "Lower schedule.peak_lr")

  def _ends(self, step: int) -> bool:
    return self._driver.ends(step) or self.model.stop_training

  def _stop_clock(self, step: int) -> None:
    elapsed = max(time.monotonic() - self._clock, 1e-9)
    self._seconds += elapsed
    # The first execution traces and compiles; it says little about speed.
    if self._compiled or not self.speed:
      self.speed = ((step - self._clock_step)
                    * self._batch_size / elapsed)
    self._compiled = True

  # ---- Records.

  def _record_training(self, step: int, values: dict[str, float]) -> None:
    scalars = dict(values, **self._driven(step), epoch=self._epoch(step),
                   examples_per_second=self.speed)
    self._summaries.scalars("train", step, scalars)

  def complete(self, values: dict[str, float]) -> None:
    """Makes the evaluation that an interrupted session left.

    Args:
      values: training's figures at that update.
    """
    saves = self._record_evaluation(self._step, values)
    if saves and not self._driver.ends(self._step):
      self._save(self._step)

  def _record_evaluation(self, step: int, values: dict[str, float]) -> bool:
    """Evaluates, and stops the run where that is due.

    Returns:
      Whether this evaluation asks for a checkpoint.
    """
    if self._log:
      self._log.start_evaluation(step)
    figures = self._evaluate()
    self._check_figures(step, figures["loss"])
    if self._log:
      self._log.stop_evaluation(
          step, figures["accuracy"], figures["examples"])
    self._summaries.scalars("validation", step, figures)
    if self._pictures:
      self._summaries.pictures(step, *self._pictures(), self.model.pixel_range)
    record = self._place(step)
    record.update({f"train/{n}": v for n, v in values.items()})
    record.update({f"validation/{n}": v for n, v in figures.items()})
    record.update(self._driven(step))
    record.update(examples_per_second=round(self.speed, 2),
                  seconds=round(self._seconds, 3))
    self._directory.append_metrics(record)
    self._progress.line(progress.summary_line(
        self._epoch(step), self._total, record))
    options, records = self._config.evaluation, self._directory.metrics()
    reason = stopping.reason(options, records, step)
    if reason and not self._driver.ends(step):
      self.model.stop_training = True
      self._progress.line(f"stopping at update {step}: evaluation.{reason}")
    if self._log and self._ends(step):
      self._log.stop_run(step, figures["accuracy"])
    return reason is not None or stopping.best_step(options, records) == step

  def _save(self, step: int,
            pending: dict[str, float] | None = None) -> None:
    """Writes a checkpoint; a full disk stops the run only at its end.

    Args:
      step: updates made.
      pending: training's figures for the evaluation that is still to make.
    """
    self._checkpointed = time.monotonic()
    if not self._directory.writes:
      return
    extra = {"seconds": self._seconds,
             "num_examples": self._config.derived.num_examples,
             "growth": self._driver.state()}
    if pending is not None:
      extra["pending"] = pending
    best = stopping.best_step(
        self._config.evaluation, self._directory.metrics())
    try:
      self._directory.checkpoints.save(
          step, checkpoint.capture(self.model), extra,
          keep=() if best is None else (best,))
    except OSError as error:
      problem = (f"checkpoint of update {step} not saved in "
                 f"{self._directory.checkpoints.directory}: {error.strerror}")
      if self._stopping or self._ends(step):
        raise config_lib.InputError(
            f"{problem}; make room and run the same command") from error
      logging.error("CHECKPOINT NOT SAVED: %s; training goes on", problem)
    self._guard.tick(f"checkpoint of update {step}")

  def on_train_end(self, logs: Any = None) -> None:
    """Flushes TensorBoard's events."""
    del logs
    self.close()

  def close(self) -> None:
    """Ends what may be open, also after an error."""
    self._summaries.close()
    if self._profiler:
      self._profiler.close()
