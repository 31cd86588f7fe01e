"""Runs: train in a directory, resume there, restore from it, export."""

import logging
from typing import Any

import tensorflow as tf

from conadv_tf import config as config_lib
from conadv_tf import description, methods
from conadv_tf import experiment as experiments
from conadv_tf.evaluation import serving
from conadv_tf.layers import routing
from conadv_tf.training import (
  callbacks,
  checkpoint,
  perturbation,
  run_directory,
)

_PICTURES = 8


def restore(
    model_dir: str
) -> tuple[experiments.Experiment, checkpoint.Checkpoint]:
  """Rebuilds a run's experiment with the weights of its newest checkpoint.

  Raises:
    InputError: if `model_dir` holds no run or no intact checkpoint.
  """
  directory = run_directory.RunDirectory(model_dir)
  config = directory.saved_config()
  if config is None:
    raise config_lib.InputError(
        f"model_dir {model_dir} holds no run (no params.yaml); train first")
  latest = directory.checkpoints.latest()
  if latest is None:
    raise config_lib.InputError(
        f"model_dir {model_dir} holds no checkpoint yet; train first")
  experiment = experiments.build(config)
  checkpoint.restore(experiment.trainer, latest.state, weights_only=True)
  return experiment, latest


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
  saved = directory.saved_config()
  directory.check(config)
  run_directory.keep_virtual_replicas(saved, config)
  config_lib.check_batch(config)  # before the data are loaded
  for key in config_lib.unused_keys(config):
    logging.warning("%s is set but not used by this configuration", key)
  latest = directory.checkpoints.latest() if saved else None
  experiment = experiments.build(config)
  config = experiment.config
  results = directory.results()
  total = config.derived.total_steps
  if results is not None and latest is not None and latest.step >= total:
    if not quiet:
      print(f"finished already: {directory.file('results.json')}")
    return results
  if latest is not None:
    _check_data(config, latest)
  step, seconds = 0, 0.0
  if latest is not None:
    checkpoint.restore(experiment.trainer, latest.state)
    step, seconds = latest.step, latest.extra["seconds"]
  directory.open(config)
  if not quiet:
    print(description.describe(experiment), flush=True)
  if step:
    logging.warning("resuming at update %d of %d", step, total)
  directory.cut_metrics(step)
  if step < total:
    with experiments.naming_unreadable_images(experiment.splits):
      _fit(experiment, directory, step, seconds, evaluates, quiet)
  return _finish(experiment, directory)


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
         evaluates: bool, quiet: bool) -> None:
  config = experiment.config
  options = config.evaluation
  callback = callbacks.RunCallback(
      config, directory,
      lambda: experiment.evaluate(options.attacks,
                                  train_examples=options.train_examples),
      _pictures(experiment), start_step=step, seconds=seconds, quiet=quiet,
      evaluates=evaluates,
      learning_rate=lambda s: float(experiment.schedule(s)))
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
            directory: run_directory.RunDirectory) -> dict[str, Any]:
  """Writes results.json from the record of the last update."""
  records = directory.metrics()
  total = experiment.config.derived.total_steps
  if not records or records[-1]["step"] != total:
    raise config_lib.InputError(
        f"{directory.file('metrics.jsonl')} has lost its record of update "
        f"{total}; delete the newest checkpoint to make it again")
  directory.write_results(records[-1])
  return records[-1]


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
