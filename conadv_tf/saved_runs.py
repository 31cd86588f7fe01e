"""What a run left: restore it, export it."""

from conadv_tf import config as config_lib
from conadv_tf import experiment as experiments
from conadv_tf.data import glue, tokenizer
from conadv_tf.evaluation import serving, text_serving
from conadv_tf.layers import routing
from conadv_tf.training import checkpoint, run_directory, stopping


def restore(
    model_dir: str, data_path: str | None = None
) -> tuple[experiments.Experiment, checkpoint.Checkpoint]:
  """Rebuilds a run's experiment with the weights that are its result.

  They are those of its newest checkpoint, or of its best evaluation where it
  has `evaluation.patience`, and averaged where the optimizer averages. What
  was trained on a TPU or by several workers comes back on one device: figures
  of evaluation do not depend on that.

  Args:
    model_dir: the run's directory.
    data_path: other data of the same kind in place of `data.path`, whose
      validation split is then evaluated; None means the run's own.

  Raises:
    InputError: if `model_dir` holds no run or no intact checkpoint, or its
      data have no path.
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
  if data_path is not None:
    if config.data.path is None:
      raise config_lib.InputError(
          f"--data_path={data_path}: data.name={config.data.name} of this run "
          "has no path; leave it out")
    config.data.path = data_path
  runtime = config.runtime
  if runtime.strategy in ("multi_worker_mirrored", "tpu"):
    runtime.micro_batches *= config_lib.training_replicas(runtime)
    runtime.strategy, runtime.num_replicas = "one_device", 1
    runtime.placement = "together"
    config.bn.group_size = 1  # of training, and no figure depends on it
  experiment = experiments.build(config)
  checkpoint.restore(experiment.trainer, result.state, weights_only=True)
  return experiment, result


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
  config, train = experiment.config, experiment.splits.train
  try:
    model = experiment.trainer.merge(branch)
  except ValueError as error:
    raise config_lib.InputError(error) from error
  common = dict(
      class_names=train.class_names, outputs=experiment.outputs,
      card={"step": step, "branch": branch, "config": config.as_dict(),
            "metrics": {f"validation/{k}": v for k, v in figures.items()}})
  if not config_lib.is_text(config):
    serving.export(model, output_dir, image_shape=train.image_shape, **common)
    return
  text = config.text
  words = tokenizer.load(text.vocabulary, config.model.initial_weights,
                         text.lower_case, text.sequence_length)
  text_serving.export(
      model, output_dir, length=text.sequence_length,
      tokenizer=words if words.is_in_graph else None,
      columns=glue.TASKS[text.task].columns, **common)
