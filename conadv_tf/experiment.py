"""Assembles an experiment from its configuration."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import functools
import math
from typing import Any

import tensorflow as tf

from conadv_tf import components
from conadv_tf import config as config_lib
from conadv_tf.analysis import curvature as curvature_lib
from conadv_tf.analysis import run_curvature
from conadv_tf.data import pipeline, unlabelled
from conadv_tf.data import source as sources
from conadv_tf.distribute import strategies
from conadv_tf.evaluation import attack_names, certified, clean, robust, text
from conadv_tf.layers import routing
from conadv_tf.models import user
from conadv_tf.objectives import per_example
from conadv_tf.training import growing, placement, stopping
from conadv_tf.training import trainer as trainers

# Images come as uint8 and models hold their own normalisation.
PIXEL_RANGE = (0.0, 255.0)

@contextlib.contextmanager
def naming_unreadable_images(splits: sources.Splits) -> Iterator[None]:
  """Turns TensorFlow's error about bad images into an InputError."""
  try:
    yield
  except tf.errors.OpError:
    for split in (splits.train, splits.validation):
      split.check()
    raise


@contextlib.contextmanager
def _precision(policy: str) -> Iterator[None]:
  """Keras's global policy, put back afterwards."""
  previous = tf.keras.mixed_precision.global_policy()
  tf.keras.mixed_precision.set_global_policy(policy)
  try:
    yield
  finally:
    tf.keras.mixed_precision.set_global_policy(previous)


@dataclasses.dataclass
class Experiment:
  """Everything that a run is made of.

  Attributes:
    config: resolved and locked.
    splits: training and validation data.
    strategy: the distribution strategy.
    trainer: compiled.
    schedule: learning rate of an update's index, where the batch does not
      grow.
    outputs: what the model ends in, "logits" or "probabilities".
    between_batches: called before every batch of an evaluation.
  """

  config: config_lib.ExperimentConfig
  splits: sources.Splits
  strategy: tf.distribute.Strategy
  trainer: trainers.Trainer
  schedule: components.Schedule
  outputs: str
  between_batches: Callable[[], None] = lambda: None
  _iterators: dict[str, Iterator] = dataclasses.field(default_factory=dict)
  _evaluators: dict[tuple[str, str], clean.Evaluator] = dataclasses.field(
      default_factory=dict)

  @functools.cached_property
  def loss(self) -> per_example.PerExampleLoss:
    """The loss without label smoothing, for evaluation."""
    return per_example.per_example_loss(
        _loss(self.outputs, self.splits.train.num_classes))

  def train_dataset(self, start_step: int) -> tf.distribute.DistributedDataset:
    """Micro batches from update `start_step` to the end of the run.

    Every input pipeline (of a worker, of a TPU host) reads the rows of its
    own replicas.
    """
    data, derived = self.config.data, self.config.derived
    runtime, method = self.config.runtime, self.trainer.method
    # What a resumed run holds is made again from the batch before.
    start_step -= method.behind(start_step) if start_step else 0
    steps = derived.total_steps - start_step + method.lookahead

    replicas = config_lib.training_replicas(runtime)
    roles = self.trainer.roles

    def of_pipeline(shard: pipeline.Shard) -> tf.data.Dataset:
      part = pipeline.Shard(*roles.part(shard.index, shard.count)
                            ) if roles else shard
      dataset = self.smoothed(unlabelled.train_dataset(
          self.splits, data.unlabelled_fraction,
          global_batch_size=data.global_batch_size,
          micro_batches=runtime.micro_batches, seed=self.config.seed,
          augment=data.augment, start_step=start_step, num_steps=steps,
          shard=part, input_shards=data.input_shards,
          deterministic=data.deterministic,
          streams=1 + method.augments, mixup=data.mixup,
          cutmix=data.cutmix, replicas=replicas // part.count))
      return roles.arrange(
          dataset, shard.index, shard.count) if roles else dataset

    return self._shared(of_pipeline, derived.replica_batch_size * (
        roles.group_size if roles else 1))

  def _shared(self, of_pipeline: Callable[[pipeline.Shard], tf.data.Dataset],
              rows: int) -> tf.distribute.DistributedDataset:
    """Elements of `rows` examples for each replica; goes on for ever."""
    def make(ctx: tf.distribute.InputContext) -> tf.data.Dataset:
      shard = pipeline.Shard(ctx.input_pipeline_id, ctx.num_input_pipelines)
      # The end would cost workers an all-reduce an element to agree on.
      return of_pipeline(shard).rebatch(rows, drop_remainder=True).repeat()

    return self.strategy.distribute_datasets_from_function(make)

  def smoothed(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Puts labels into the form that the training loss takes."""
    if not has_soft_labels(self.config):
      return dataset
    smoothing = self.config.objective.label_smoothing
    classes = self.splits.train.num_classes

    def smooth(image: tf.Tensor, label: tf.Tensor,
               weight: tf.Tensor) -> tuple[tf.Tensor, ...]:
      if label.dtype.is_integer:
        label = tf.one_hot(label, classes)
      label = label * (1.0 - smoothing) + smoothing / classes
      return image, label, weight

    return dataset.map(smooth, num_parallel_calls=1)

  def evaluator(self, branch: str, attack: str = "") -> clean.Evaluator:
    """Clean or robust figures through a branch; each is traced once."""
    if (branch, attack) not in self._evaluators:
      self._evaluators[branch, attack] = self._make_evaluator(branch, attack)
    return self._evaluators[branch, attack]

  def _make_evaluator(self, branch: str, attack: str) -> clean.Evaluator:
    network, config = self.trainer.network, self.config
    if config_lib.is_text(config):
      if attack:
        raise config_lib.InputError(
            f"{attack}: changes pixels, and the data of this run are "
            "sentences; evaluate without attacks")
      return text.TextEvaluator(
          network, self.loss, components.metrics(config), self.strategy,
          branch)
    if attack:
      return robust.RobustEvaluator(
          network, self.loss,
          robust.named_attack(attack, attack_names.run_radius(config.attack)),
          self.strategy, branch, config.seed, PIXEL_RANGE)
    return clean.Evaluator(network, self.loss, self.strategy, branch)

  def estimate(self, number: int) -> growing.Estimate:
    """The largest eigenvalue that lets the batch grow.

    Args:
      number: of estimates before, which chooses the examples.
    """
    try:
      found = self.curvature(**self._curvature_options(), number=number)
    except curvature_lib.NotFinite as error:
      return growing.Estimate(math.nan, problem=str(error))
    return growing.Estimate(found["top_eigenvalue"], found["iterations"])

  def check_estimates(self) -> None:
    """Refuses to begin what the first estimate in training would end.

    Raises:
      InputError: if there is no such block, or no second derivative.
    """
    if config_lib.curvature_is_measured(self.config):
      self.curvature.check(**self._curvature_options())

  def _curvature_options(self) -> dict[str, Any]:
    options = self.config.curvature
    return {name: getattr(options, name) for name in (
        "examples", "last_layers", "iterations", "tolerance")}

  def evaluation_dataset(self, split: str) -> tf.data.Dataset:
    """Every example of "train" (not augmented) or "validation" once."""
    return pipeline.evaluation_dataset(
        getattr(self.splits, split), self.config.evaluation.batch_size)

  def evaluate(self, attack_names: Sequence[str] = (),
               branch: str = routing.CLEAN,
               train_examples: int = 0) -> dict[str, float]:
    """Validation figures, without a prefix.

    Args:
      attack_names: robust accuracies to add, for instance "pgd20".
      branch: whose batch normalisation predicts.
      train_examples: for the generalisation gap, a fixed random subset; 0
        leaves it out.
    """
    with naming_unreadable_images(self.splits):
      return self._evaluate(attack_names, branch, train_examples)

  def _evaluate(self, attack_names: Sequence[str], branch: str,
                train_examples: int) -> dict[str, float]:
    # Before the first pass: what cannot be must not cost an evaluation.
    sample = _sample(self.splits.train, train_examples)
    robust_evaluators = {
        name: self.evaluator(branch, name) for name in attack_names}
    validation = self.splits.validation
    figures = self.figures(self.evaluator(branch), validation, "validation")
    if sample:
      train = self.figures(
          self.evaluator(branch), sample, f"train {train_examples}")
      figures["generalization_gap"] = clean.generalisation_gap(
          train, figures, components.metrics(self.config)[0])
    for name, evaluator in robust_evaluators.items():
      figures[f"robust_accuracy_{name}"] = self.figures(
          evaluator, validation, "validation")["accuracy"]
    return figures

  def certificates(self, smoothing: certified.Smoothing, branch: str,
                   after: int = -1) -> Iterator[certified.Certificate]:
    """Certifies every `skip`-th validation image, in order.

    Args:
      smoothing: sigma, a share of the pixel range, and how surely.
      branch: whose batch normalisation predicts.
      after: position of the last image that is known.
    """
    if config_lib.is_text(self.config):
      raise config_lib.InputError(
          "--certify adds noise to pixels, and the data of this run are "
          "sentences; leave it out")
    certifier = certified.Certifier(
        self.trainer.network, smoothing, self.strategy, branch,
        self.config.seed, PIXEL_RANGE)
    first = after // smoothing.skip + 1
    images = pipeline.evaluation_dataset(self.splits.validation, 1).shard(
        smoothing.skip, 0).skip(first)
    with naming_unreadable_images(self.splits):
      for number, (image, label, weight) in enumerate(images, first):
        if weight[0] > 0:
          yield certifier(image[0], int(label[0]), number * smoothing.skip)

  @functools.cached_property
  def curvature(self) -> run_curvature.RunCurvature:
    """Estimates Hessian eigenvalues on training examples, when called."""
    return run_curvature.RunCurvature(
        self.trainer.network, per_example.per_example_loss(_loss(
            self.outputs, self.splits.train.num_classes,
            has_soft_labels(self.config))), self._drawn,
        available=self.splits.train.num_examples,
        rows=(self.config.derived.replica_batch_size
              * self.strategy.num_replicas_in_sync), seed=self.config.seed)

  def _drawn(self, count: int, number: int) -> tuple[tf.Tensor, ...]:
    """Images, labels of the training loss and weights of a random draw."""
    with naming_unreadable_images(self.splits), tf.device("CPU:0"):
      return self.smoothed(pipeline.drawn_dataset(
          self.splits.train, count, seed=self.config.seed, number=number)
      ).get_single_element()

  def figures(self, evaluator: clean.Evaluator, source: sources.Source,
              key: str, between: Callable[[], None] | None = None
              ) -> dict[str, float]:
    """Evaluates every example of a source, shared out like training's.

    Args:
      evaluator: clean or robust.
      source: of which each example counts once.
      key: of the iterator, which begins again where it ends and is kept: the
        end of one can take long, see `loop.Loop.run`.
      between: called before every batch in place of `between_batches`.
    """
    replicas = self.strategy.num_replicas_in_sync
    rows = -(-self.config.evaluation.batch_size // replicas)
    batch = rows * replicas

    def of_pipeline(shard: pipeline.Shard) -> tf.data.Dataset:
      return clean.with_positions(
          pipeline.evaluation_dataset(source, batch, shard), batch,
          shard.index * (batch // shard.count))

    iterator = self._iterators.pop(key, None) or iter(
        self._shared(of_pipeline, rows))
    figures = evaluator(
        iterator, -(-source.num_examples // batch),
        between or self.between_batches)
    self._iterators[key] = iterator  # not where it was left half way
    return figures


def _sample(source: sources.Source, count: int) -> sources.Source | None:
  """A fixed random part of at most `count` examples; None for 0."""
  if not count:
    return None
  return sources.truncate(source, min(count, source.num_examples))


def has_soft_labels(config: config_lib.ExperimentConfig) -> bool:
  """Whether training labels are probabilities."""
  data = config.data
  return bool(config.objective.label_smoothing or data.mixup or data.cutmix)


def _loss(outputs: str, num_classes: int, soft: bool = False
          ) -> tf.keras.losses.Loss:
  """Cross entropy, of one output the squared error."""
  if num_classes == 1:
    return tf.keras.losses.MeanSquaredError()
  kind = (tf.keras.losses.CategoricalCrossentropy if soft
          else tf.keras.losses.SparseCategoricalCrossentropy)
  return kind(from_logits=outputs == "logits")


def _trainer_type(runtime: config_lib.RuntimeConfig
                  ) -> Callable[..., trainers.Trainer]:
  if runtime.placement == "together":
    return trainers.Trainer
  return functools.partial(placement.TrainerWithAttackers,
                           attack_replicas=runtime.attack_replicas)


def build(config: config_lib.ExperimentConfig,
          splits: sources.Splits | None = None,
          machines: strategies.Machines = strategies.ALONE
          ) -> Experiment:
  """Builds everything; nothing is written.

  Args:
    config: loaded; resolved here, from the size of the training set.
    splits: data that is loaded already.
    machines: that take part besides this process.

  Raises:
    InputError: if the configuration or the data are not usable.
  """
  components.check_names(config)
  config = components.with_sizes(config, config)
  strategy = strategies.connect(config.runtime, machines)
  splits = splits or components.load_data(config)
  config = config_lib.resolve(config, splits.num_training)
  shape, classes = splits.train.image_shape, splits.train.num_classes
  stopping.check(config.evaluation, classes, components.metrics(config))
  _sample(splits.train, config.evaluation.train_examples)  # a stream refuses
  runtime = config.runtime
  tf.keras.utils.set_random_seed(config.seed)
  if runtime.deterministic:
    tf.config.experimental.enable_op_determinism()
  schedule = components.SCHEDULES[config.schedule.name](
      config.schedule, config.derived)
  with _precision(runtime.precision), strategy.scope():
    model = components.build_model(config.model, shape, classes)
    model.length_buckets = tuple(config.text.length_buckets)
    try:
      trainer = _trainer_type(runtime)(
          model, components.METHODS[config.method.name](config),
          components.attack(config.attack),
          pixel_range=PIXEL_RANGE, seed=config.seed,
          micro_batches=runtime.micro_batches,
          deterministic=runtime.deterministic,
          reduce_dtype=runtime.reduce_dtype,
          reduce_pack_mib=runtime.reduce_pack_mib,
          bn_group_size=config.bn.group_size,
          skip_nonfinite=runtime.on_nan == "skip_step",
          training_pass=runtime.training_pass,
          grows=config_lib.batch_changes(config),
          compression=components.compression(config.compression))
      outputs = user.outputs(model, shape)
      config_lib.check_outputs(config, outputs)
      trainer.compile(
          components.OPTIMIZERS[config.optimizer.name](
              config.optimizer, growing.rate(
                  schedule, trainer.step_counter, trainer.growing)),
          _loss(outputs, classes, has_soft_labels(config)),
          # Of rows that have a label.
          weighted_metrics=[m for m in components.metrics(config)
                            if m == "accuracy"],
          jit_compile=runtime.jit_compile or None,
          steps_per_execution=runtime.steps_per_execution)
    except ValueError as error:
      raise config_lib.InputError(error) from error
  return Experiment(config, splits, strategy, trainer, schedule, outputs)
