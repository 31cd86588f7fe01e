"""Runs: train in a directory, resume there, restore from it, export."""

import logging
import time
from typing import Any

import tensorflow as tf

from conadv_tf import config as config_lib
from conadv_tf import description, methods
from conadv_tf import experiment as experiments
from conadv_tf.evaluation import serving
from conadv_tf.layers import routing
from conadv_tf.training import (
  averaging,
  callbacks,
  checkpoint,
  mlperf_log,
  perturbation,
  run_directory,
  stopping,
  warm_start,
)

_PICTURES = 8


def restore(
    model_dir: str
) -> tuple[experiments.Experiment, checkpoint.Checkpoint]:
  """Rebuilds a run's experiment with the weights that are its result.

  They are those of its newest checkpoint, or of its best evaluation where it
  has `evaluation.patience`, and averaged where the optimizer averages.

  Raises:
    InputError: if `model_dir` holds no run or no intact checkpoint.
  """
  directory = run_directory.RunDirectory(model_dir)
  config = directory.saved_config()
  if config is None:
    raise config_lib.InputError(
        f"model_dir {model_dir} holds no run (no params.yaml); train first")
  result = stopping.result_checkpoint(directory, config.evaluation)
  if result is None:
    raise config_lib.InputError(
        f"model_dir {model_dir} holds no checkpoint yet; train first")
  experiment = experiments.build(config)
  checkpoint.restore(experiment.trainer, result.state, weights_only=True)
  return experiment, result


def run(config: config_lib.ExperimentConfig, model_dir: str, *,
        evaluates: bool = True, quiet: bool = False) -> dict[str, Any]:
  """Trains, or continues training, in `model_dir`.

  Args:
    config: loaded, not resolved.
    model_dir: the run's directory.
    evaluates: whether to evaluate during training; the end always is.
    quiet: prints nothing but warnings.

  Returns:
    The content of results.json.

  Raises:
    InputError: for anything the user can mend; nothing was overwritten.
  """
  directory = run_directory.RunDirectory(model_dir, config.checkpoint.keep)
  with directory.locked():
    return _run(config, directory, evaluates, quiet)


def _run(config: config_lib.ExperimentConfig,
         directory: run_directory.RunDirectory, evaluates: bool,
         quiet: bool) -> dict[str, Any]:
  begin = time.time()
  saved = directory.saved_config() if directory.has_begun() else None
  directory.check(config)
  run_directory.keep_virtual_replicas(saved, config)
  config_lib.check_batch(config)  # before the data are loaded
  mlperf_log.check(config)
  _warn(config, evaluates)
  latest = directory.checkpoints.latest() if saved else None
  experiment = experiments.build(config)
  config = experiment.config
  results = directory.results()
  if results is not None and latest is not None and (
      results.get("step") == latest.step
      and _ends(config, directory, latest.step)):
    if not quiet:
      print(f"finished already: {directory.file('results.json')}")
    return results
  step, seconds = _begin(experiment, latest)
  log = _open_log(experiment, directory, step, evaluates)
  directory.open(config)
  if not quiet:
    print(description.describe(experiment), flush=True)
  if step:
    logging.warning("resuming at update %d of %d", step,
                    config.derived.total_steps)
  directory.cut_metrics(step)
  trains = not _ends(config, directory, step)
  if log:
    log.open(step, trains, begin)
  try:
    if trains:
      directory.remove_results()
      with experiments.naming_unreadable_images(experiment.splits):
        _fit(experiment, directory, step, seconds, evaluates, quiet, log)
    return _finish(experiment, directory, log)
  finally:
    if log:
      log.close()


def _warn(config: config_lib.ExperimentConfig, evaluates: bool) -> None:
  for key in config_lib.unused_keys(config):
    logging.warning("%s is set but not used by this configuration", key)
  if stopping.is_possible(config.evaluation) and not evaluates:
    logging.warning("evaluation.target_accuracy and evaluation.patience stop "
                    "nothing: mode train evaluates at the end only")


def _ends(config: config_lib.ExperimentConfig,
          directory: run_directory.RunDirectory, step: int) -> bool:
  """Whether a run at update `step` has no update left to make."""
  return step >= config.derived.total_steps or stopping.reason(
      config.evaluation, directory.metrics(), step) is not None


def _begin(experiment: experiments.Experiment,
           latest: checkpoint.Checkpoint | None) -> tuple[int, float]:
  """Puts initial or saved weights in place; returns (updates, seconds)."""
  if latest is None:
    initial = experiment.config.model.initial_weights
    if initial is not None:
      warm_start.load(experiment.trainer, initial)
    return 0, 0.0
  _check_data(experiment.config, latest)
  checkpoint.restore(experiment.trainer, latest.state)
  return latest.step, latest.extra["seconds"]


def _open_log(experiment: experiments.Experiment,
              directory: run_directory.RunDirectory, step: int,
              evaluates: bool) -> mlperf_log.MlperfLog | None:
  """Checks an MLPerf log where one is asked for; writes nothing."""
  if not experiment.config.mlperf.log:
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


def _fit(experiment: experiments.Experiment,
         directory: run_directory.RunDirectory, step: int, seconds: float,
         evaluates: bool, quiet: bool,
         log: mlperf_log.MlperfLog | None) -> None:
  config = experiment.config
  options = config.evaluation

  def evaluate() -> dict[str, float]:
    with averaging.averaged_weights(experiment.trainer):
      return experiment.evaluate(options.attacks,
                                 train_examples=options.train_examples)

  if log:
    log.start_run()
  callback = callbacks.RunCallback(
      config, directory, evaluate, _pictures(experiment), start_step=step,
      seconds=seconds, quiet=quiet, evaluates=evaluates,
      learning_rate=lambda s: float(experiment.schedule(s)), log=log)
  chain = tf.keras.callbacks.CallbackList(
      [callback], add_history=True, model=experiment.trainer)
  # Keras would warn that evaluating and saving take longer than an update.
  chain._check_timing = False  # pylint: disable=protected-access
  experiment.trainer.fit(
      experiment.train_dataset(step), epochs=1, verbose=0,
      steps_per_epoch=config.derived.total_steps - step, callbacks=chain)


def _pictures(experiment: experiments.Experiment
              ) -> callbacks.Pictures | None:
  """Makes the same few training images adversarial whenever it is called."""
  if isinstance(experiment.trainer.method, methods.Vanilla):
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
  if step < config.derived.total_steps:
    results["stopped"] = stopping.reason(config.evaluation, records, step)
  best = stopping.best_step(config.evaluation, records)
  if best is not None:
    results["best_step"] = best
  if log:
    log.stop_run(step, results["validation/accuracy"])
  directory.write_results(results)
  return results


def export(experiment: experiments.Experiment, step: int, output_dir: str,
           branch: str = routing.CLEAN) -> None:
  """Writes a SavedModel of one branch with its model card.

  Args:
    experiment: restored.
    step: updates behind its weights.
    output_dir: new, or an earlier export.
    branch: that is merged.

  Raises:
    InputError: if there is no such branch or the directory is foreign.
  """
  figures = experiment.evaluate(branch=branch)
  config = experiment.config.as_dict()
  train = experiment.splits.train
  try:
    model = experiment.trainer.merge(branch)
  except ValueError as error:
    raise config_lib.InputError(error) from error
  serving.export(
      model, output_dir, class_names=train.class_names,
      image_shape=train.image_shape, outputs=experiment.outputs,
      card={"step": step, "branch": branch, "config": config,
            "metrics": {f"validation/{k}": v for k, v in figures.items()}})
