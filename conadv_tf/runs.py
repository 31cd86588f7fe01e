"""Runs: train in a directory, and resume there."""

import dataclasses
import logging
import time
from typing import Any

import tensorflow as tf

from conadv_tf import components, description
from conadv_tf import config as config_lib
from conadv_tf import experiment as experiments
from conadv_tf.distribute import agreement, cluster, strategies, watchdog
from conadv_tf.training import (
  averaging,
  callbacks,
  checkpoint,
  growing,
  guards,
  interruption,
  mlperf_log,
  perturbation,
  profiling,
  run_directory,
  stopping,
  warm_start,
)

_PICTURES = 8
_SMALLEST_RADIUS = 0.25  # in 1/255; who writes less means a share of the range
# The latest experiment: its iterators take long to end (see `loop.Loop.run`),
# which a process that is about to exit need not wait for.
_latest: list[experiments.Experiment] = []


def run(config: config_lib.ExperimentConfig, model_dir: str, *,
        evaluates: bool = True, quiet: bool = False,
        machines: strategies.Machines = strategies.ALONE,
        peer_timeout: float = 300.0,
        profile_steps: tuple[int, int] | None = None,
        profiler_port: int | None = None) -> dict[str, Any]:
  """Trains, or continues training, in `model_dir`.

  With several workers each of them calls this; worker 0 writes.

  Args:
    config: loaded, not resolved.
    model_dir: the run's directory; all workers see the same one.
    evaluates: whether to evaluate during training; the end always is.
    quiet: prints nothing but warnings.
    machines: that take part besides this process.
    peer_timeout: seconds to wait for the other workers at the start.
    profile_steps: first and last update to profile, counted from 1.
    profiler_port: where profiles of worker 0 can be captured from outside.

  Returns:
    The content of results.json.

  Raises:
    InputError: for anything the user can mend; nothing was overwritten.
    exits.Stop: where the run ends early for another reason.
  """
  directory = run_directory.RunDirectory(
      model_dir, config.checkpoint.keep, machines.is_chief)
  # TensorBoard looks for profiles where events are, which is below the run.
  profiler = profile_steps and profiling.StepProfiler(
      directory.file("train"), *profile_steps)
  with directory.locked():
    session = _Session(
        directory, evaluates, quiet or not machines.is_chief, machines,
        watchdog.Watchdog(config.runtime.stall_seconds),
        profiler if machines.is_chief else None)
    config = components.with_sizes(
        config, directory.saved_config() if directory.has_begun() else None)
    token = agreement.digest([config.as_dict(), model_dir, evaluates])
    saved = _check(config, session)
    if config.runtime.strategy == "multi_worker_mirrored":
      with interruption.Interruption():
        cluster.meet(machines.cluster, token, peer_timeout)
    # Before any thread starts, which could take the signal instead.
    with interruption.kept_back() as deliver, session.watch as watch:
      strategies.connect(config.runtime, machines)
      watch.tick("loading data, building the model")
      if profiler_port and machines.is_chief:
        profiling.serve(profiler_port)
      # After the strategy, whose own handlers would swallow signals.
      with (interruption.Interruption() as stop,
            agreement.naming_lost_peers(machines)):
        deliver()
        return _run(config, session, saved, stop)


@dataclasses.dataclass
class _Session:
  """What the functions of one call of `run` share."""

  directory: run_directory.RunDirectory
  evaluates: bool
  quiet: bool
  machines: strategies.Machines
  watch: watchdog.Watchdog
  profiler: profiling.StepProfiler | None
  begin: float = dataclasses.field(default_factory=time.time)


def _check(config: config_lib.ExperimentConfig, session: _Session
           ) -> config_lib.ExperimentConfig | None:
  """Checks what needs neither devices nor data; returns the run's config."""
  directory, runtime = session.directory, config.runtime
  saved = directory.saved_config() if directory.has_begun() else None
  directory.check(config)
  strategies.check_machines(runtime.strategy, session.machines)
  if session.machines.tpu:  # only the TPU knows how many cores it has
    strategies.connect(runtime, session.machines)
  strategies.plan(runtime, session.machines)
  run_directory.keep_virtual_replicas(saved, config)
  config_lib.check_batch(config)
  mlperf_log.check(config)
  if directory.writes:
    _warn(config, session.evaluates)
  return saved


def _run(config: config_lib.ExperimentConfig, session: _Session,
         saved: config_lib.ExperimentConfig | None,
         stop: interruption.Interruption) -> dict[str, Any]:
  directory, quiet = session.directory, session.quiet
  latest = directory.checkpoints.latest() if saved else None
  experiment = experiments.build(config, machines=session.machines)
  _latest[:] = [experiment]
  config = experiment.config
  guard = guards.Guard(agreement.Agreement(experiment.strategy),
                       session.watch, stop)
  results, pending = directory.results(), _pending(latest, directory)
  step = latest.step if latest else 0
  splits = experiment.splits
  guard.agree([
      step, results, pending,
      [record for record in directory.metrics() if record["step"] <= step],
      [[split.num_examples, split.num_classes, list(split.image_shape)]
       for split in (splits.train, splits.validation)]])
  if results is not None and latest is not None and (
      results.get("step") == latest.step
      and _ends(config, directory, latest)):
    if not quiet:
      print(f"finished already: {directory.file('results.json')}")
    return results
  step, seconds = _begin(experiment, latest)
  log = _open_log(experiment, directory, step, session.evaluates)
  if directory.writes:
    _warn_of_sizes(config)
  session.watch.tick("first Hessian product: tracing and compiling")
  experiment.check_estimates()
  directory.open(config)
  if not quiet:
    print(description.describe(experiment), flush=True)
  if step and directory.writes:
    logging.warning("resuming at update %d of %d", step,
                    config.derived.total_steps)
  elif saved and directory.writes:
    logging.warning("%s has no checkpoint: starting again, without its records",
                    directory.path)
  directory.cut_records(step)
  session.watch.tick("first update: tracing and compiling")
  trains = not _ends(config, directory, latest) or pending is not None
  if log:
    log.open(step, trains, session.begin)
  try:
    if trains:
      directory.remove_results()
      stop.deferred = True
      with experiments.naming_unreadable_images(experiment.splits):
        _fit(experiment, session, latest, seconds, pending, log, guard)
      stop.deferred = False
    results = _finish(experiment, directory, log)
    guard.any(False)  # a worker that left early would fail the others
    return results
  finally:
    if log:
      log.close()


def _pending(latest: checkpoint.Checkpoint | None,
             directory: run_directory.RunDirectory
             ) -> dict[str, float] | None:
  """Training's figures where the checkpoint's evaluation is still to make."""
  if latest is None or "pending" not in latest.extra:
    return None
  made = any(r["step"] == latest.step for r in directory.metrics())
  return None if made else latest.extra["pending"]


def _warn(config: config_lib.ExperimentConfig, evaluates: bool) -> None:
  for key in config_lib.unused_keys(config):
    logging.warning("%s is set but not used by this configuration", key)
  if stopping.is_possible(config.evaluation) and not evaluates:
    logging.warning("evaluation.target_accuracy and evaluation.patience stop "
                    "nothing: mode train evaluates at the end only")


def _warn_of_sizes(config: config_lib.ExperimentConfig) -> None:
  """Says what is legal, and hardly meant."""
  batch, examples = config.data.global_batch_size, config.derived.num_examples
  if batch > examples:
    logging.warning(
        "data.global_batch_size=%d is more than the %d training examples: "
        "a batch holds some of them more than once", batch, examples)
  radius = config.attack.radius
  if config_lib.attacks_images(config) and 0 < radius < _SMALLEST_RADIUS:
    logging.warning(
        "attack.radius=%g is in 1/255 of the pixel range, so less than any "
        "pixel can show; %g of the range is attack.radius=%g", radius, radius,
        255 * radius)


def _ends(config: config_lib.ExperimentConfig,
          directory: run_directory.RunDirectory,
          latest: checkpoint.Checkpoint | None) -> bool:
  """Whether a run has no update left to make."""
  if latest is None:
    return False
  after = latest.step + growing.saved_ratio(latest.extra)
  return after > config.derived.total_steps or stopping.reason(
      config.evaluation, directory.metrics(), latest.step) is not None


def _begin(experiment: experiments.Experiment,
           latest: checkpoint.Checkpoint | None) -> tuple[int, float]:
  """Puts initial or saved weights in place; returns (updates, seconds)."""
  if latest is None:
    model = experiment.config.model
    if model.initial_weights is not None:
      warm_start.load(experiment.trainer, model.initial_weights,
                      model.replace_head)
    return 0, 0.0
  _check_data(experiment.config, latest)
  checkpoint.restore(experiment.trainer, latest.state)
  return latest.step, latest.extra["seconds"]


def _open_log(experiment: experiments.Experiment,
              directory: run_directory.RunDirectory, step: int,
              evaluates: bool) -> mlperf_log.MlperfLog | None:
  """Checks an MLPerf log where one is asked for; writes nothing."""
  if not experiment.config.mlperf.log or not directory.writes:
    return None
  log = mlperf_log.MlperfLog(
      directory.file("mlperf.log"), experiment.config,
      experiment.splits.validation.num_examples, evaluates)
  log.check(step, [
      r["step"] for r in directory.metrics() if r["step"] <= step])
  return log


def _check_data(config: config_lib.ExperimentConfig,
                latest: checkpoint.Checkpoint) -> None:
  """Raises InputError if the training set has changed since."""
  before, now = latest.extra["num_examples"], config.derived.num_examples
  if before != now:
    raise config_lib.InputError(
        f"data: the run was started with {before} training examples and there "
        f"are {now} now; restore the data, or use another model_dir")


def _fit(experiment: experiments.Experiment, session: _Session,
         latest: checkpoint.Checkpoint | None, seconds: float,
         pending: dict[str, float] | None,
         log: mlperf_log.MlperfLog | None, guard: guards.Guard) -> None:
  config = experiment.config
  options, step = config.evaluation, latest.step if latest else 0
  experiment.between_batches = guard.between_batches

  def evaluate() -> dict[str, float]:
    with averaging.averaged_weights(experiment.trainer):
      return experiment.evaluate(options.attacks,
                                 train_examples=options.train_examples)

  if log:
    log.start_run()
  callback = callbacks.RunCallback(
      config, session.directory, evaluate, _pictures(experiment),
      start_step=step, seconds=seconds, quiet=session.quiet,
      evaluates=session.evaluates,
      learning_rate=lambda s: float(experiment.schedule(s)),
      driver=_driver(experiment, latest), log=log, guard=guard,
      profiler=session.profiler)
  chain = tf.keras.callbacks.CallbackList(
      [callback], add_history=True, model=experiment.trainer)
  # Keras would warn that evaluating and saving take longer than an update.
  chain._check_timing = False  # pylint: disable=protected-access
  try:
    if pending is not None:
      callback.complete(pending)
    if not _ends(config, session.directory, latest):
      # Keras counts a shorter first execution as a whole one.
      counted = step - step % config.runtime.steps_per_execution
      experiment.trainer.fit(
          experiment.train_dataset(step), epochs=1, verbose=0,
          steps_per_epoch=config.derived.total_steps - counted,
          callbacks=chain)
  finally:
    callback.close()


def _driver(experiment: experiments.Experiment,
            latest: checkpoint.Checkpoint | None) -> growing.Driver:
  """What lets the batch grow, from where the run is."""
  config = experiment.config
  every = config.derived.steps_per_epoch
  if config.curvature.every_samples:
    every = config.curvature.every_samples / config.data.global_batch_size
  driver = growing.Driver(
      components.growth(config), experiment.trainer.growing,
      total=config.derived.total_steps, updates=latest.step if latest else 0,
      every=every, estimate=experiment.estimate,
      monitors=config.curvature.monitor)
  if latest and "growth" in latest.extra:  # early checkpoints have none
    driver.restore(latest.extra["growth"])
  return driver


def _pictures(experiment: experiments.Experiment
              ) -> callbacks.Pictures | None:
  """Makes the same few training images adversarial whenever it is called."""
  if not experiment.trainer.method.attacks:
    return None
  images, labels, _ = next(iter(
      experiment.smoothed(experiment.evaluation_dataset("train"))))
  images, labels = images[:_PICTURES], labels[:_PICTURES]
  perturb = perturbation.Perturb(experiment.trainer)
  return lambda: (images, perturb(images, labels))


def _finish(experiment: experiments.Experiment,
            directory: run_directory.RunDirectory,
            log: mlperf_log.MlperfLog | None) -> dict[str, Any]:
  """Writes results.json from the record of the last update.

  A run that stopped early says why in `stopped`; one with patience names the
  update that evaluation and export take in `best_step`.
  """
  config, records = experiment.config, directory.metrics()
  step = int(experiment.trainer.step_counter.numpy())
  if not records or records[-1]["step"] != step:
    raise config_lib.InputError(
        f"{directory.file('metrics.jsonl')} has lost its record of update "
        f"{step}; delete the newest checkpoint to make it again")
  results = dict(records[-1])
  reason = stopping.reason(config.evaluation, records, step)
  if reason and step < config.derived.total_steps:
    results["stopped"] = reason
  best = stopping.best_step(config.evaluation, records)
  if best is not None:
    results["best_step"] = best
  if log:
    log.stop_run(step, results["validation/accuracy"])
  directory.write_results(results)
  return results
