"""The Keras model that trains another one with a method of this package."""

from typing import Any

import tensorflow as tf

from conadv_tf.attacks import gradient as gradient_attacks
from conadv_tf.distribute import compression as compressions
from conadv_tf.distribute import strategies
from conadv_tf.layers import network as networks
from conadv_tf.methods import method as methods
from conadv_tf.methods import vanilla
from conadv_tf.objectives import per_example
from conadv_tf.training import (
  batches,
  compressed,
  feeding,
  finite,
  growing,
  loop,
  means,
  phases,
  reduction,
  split_model,
  staleness,
)


class Trainer(split_model.SplitModel):
  """Trains any Keras classifier through `fit`, under any strategy.

  `fit`, `evaluate`, `predict`, callbacks and `compile` are Keras's. An update
  uses `micro_batches` consecutive elements of the dataset. Evaluation and
  `predict` run the clean branch with moving statistics; `save` writes the
  merged model, a plain Keras model without custom layers.

  This class is the only place that assigns weights, statistics, held and
  lagged state and counters.

  Attributes:
    network: the converted clone of the model (`layers.network.Network`).
    method: the training method.
    attack: the attack with the method's defaults filled in.
    step_counter: int64 variable, initial batches so far; without growth,
      weight updates.
    growing: how many of them make an update now, or None.
    staleness: earlier weights and held batches.
    phases: updates before the method's delay and after it.
    nonfinite: which updates were not finite.
    compressed: gradients on their way between replicas.
    updates_next: set before an execution of so many updates.
    snapshot_next: set before an execution that a checkpoint follows.
  """

  roles: Any = None  # a subclass's replicas may differ: which do what

  def __init__(self, model: tf.keras.Model,
               method: methods.Method | None = None,
               attack: gradient_attacks.Pgd | None = None, *,
               pixel_range: tuple[float, float] = (0.0, 1.0), seed: int = 0,
               micro_batches: int = 1, deterministic: bool = False,
               reduce_dtype: str = "float32", reduce_pack_mib: float = 8.0,
               bn_group_size: int = 1, skip_nonfinite: bool = False,
               training_pass: str | None = None, grows: bool = False,
               compression: compressions.Compression | None = None,
               name: str = "trainer"):
    """Clones and converts `model`; the original is left alone.

    Args:
      model: a built Keras model, one image input, one output [b, classes].
      method: default `methods.Vanilla()`.
      attack: default `attacks.Pgd()`: radius 4/255, one signed step.
      pixel_range: smallest and largest pixel value of the images that `fit`
        receives. Radii are in 1/255 of its width; adversarial images are
        clipped to it.
      seed: of attack noise and dropout masks.
      micro_batches: dataset elements per update, k.
      deterministic: sums over virtual replicas in float64, so that
        arrangements with the same number of them agree bit for bit.
      reduce_dtype: of gradients on their way between replicas.
      reduce_pack_mib: MiB that replicas sum at a time; 0 means everything.
      bn_group_size: neighbouring replicas that share batch statistics in
        training (never in attacks); 0 means all.
      skip_nonfinite: whether an update whose gradients are not finite
        leaves the weights as they are.
      training_pass: whether clean and adversarial rows go through the
        network "joined", or "separate", side by side; the same but rounding.
        None means the method's usual one.
      grows: whether batch, rate and gamma may change, by `growing`.
      compression: of gradients between replicas; None means none.
      name: of the Keras model.

    Raises:
      ValueError: if an argument is out of range or the model cannot be
        converted (the message names the layer).
    """
    method = method or vanilla.Vanilla()
    _check(pixel_range, micro_batches, method, grows)
    super().__init__(model, method.branches, name, bn_group_size)
    self.training_pass = loop.choose_training_pass(
        training_pass, method, self.network.exchanges_statistics)
    self.method = method
    method.embedding_width = self.network.check_embeddings(
        method.attacks, method.perturbs)
    self.attack = method.default_attack(attack or gradient_attacks.Pgd())
    self.pixel_range = tuple(map(float, pixel_range))
    self.seed = seed
    self.micro_batches = micro_batches
    self.deterministic = deterministic
    self.reduce_dtype = reduce_dtype
    self.reduce_pack_mib = reduce_pack_mib
    with self.distribute_strategy.scope():
      self._create_state(grows, skip_nonfinite, compression)
    self._packing = self._accumulator = None
    self._element_spec, self._fed = None, False
    self.updates_next, self.snapshot_next = None, False

  def _create_state(self, grows: bool, skip_nonfinite: bool,
                    compression: compressions.Compression | None) -> None:
    self.step_counter = strategies.counter("step")
    self.growing = growing.GrowingBatch(self.method.gamma) if grows else None
    self.staleness = staleness.Staleness(
        self.method, self.network, self.step_counter)
    self.phases = phases.Phases(self.method, self.step_counter)
    self.nonfinite = finite.FiniteUpdates(skip_nonfinite)
    self.compressed = compressed.CompressedGradients(
        compression or compressions.Compression(),
        self.network.trainable_variables, self.seed, self.step_counter,
        self.micro_batches)

  # ---- What Keras asks of a model.

  def compile(self, optimizer: Any = "rmsprop", loss: Any = None,
              metrics: Any = None, **kwargs: Any) -> None:
    """Keras's `compile`; also creates the optimizer's slots.

    Args:
      optimizer: a Keras optimizer (not a legacy one) or its name.
      loss: a Keras loss of one output; its reduction is replaced.
      metrics: as in Keras; in training they see the clean outputs.
      **kwargs: of `tf.keras.Model.compile`.

    Raises:
      ValueError: if there is no loss, the optimizer is a legacy one, or
        `jit_compile` is asked for on several CPU replicas.
    """
    self._per_example_loss = per_example.per_example_loss(loss)
    self._element_spec = None  # metrics and loops are made again
    with self.distribute_strategy.scope():
      super().compile(optimizer=optimizer, loss=loss, metrics=metrics,
                      **kwargs)
      if not isinstance(self.optimizer, tf.keras.optimizers.Optimizer):
        raise ValueError(
            f"{type(self.optimizer).__name__} is not a "
            "tf.keras.optimizers.Optimizer; legacy optimizers are not "
            "supported")
      self.optimizer.build(self.network.trainable_variables)
      self._means = means.Means(self.optimizer, self.nonfinite.skip)
    self._scales_loss = isinstance(
        self.optimizer, tf.keras.mixed_precision.LossScaleOptimizer)
    if self.jit_compile:
      strategies.check_jit(self.distribute_strategy.num_replicas_in_sync)

  @property
  def metrics(self) -> list[tf.keras.metrics.Metric]:
    """Loss, compiled metrics, then the method's terms."""
    if not self._is_compiled:
      return []
    return [self._means.loss, *self.compiled_metrics.metrics,
            *self._means.others()]

  def fit(self, x: Any = None, y: Any = None, batch_size: int | None = None,
          **kwargs: Any) -> tf.keras.callbacks.History:
    """Keras's `fit` for a `tf.data.Dataset` of (x, y[, weight]) or arrays.

    Every batch is trained on once an epoch, whatever the lag; a method that
    looks ahead attacks one more batch and discards it. A shorter last batch
    is dropped with a warning. With a repeated dataset and
    `steps_per_epoch=n`, one epoch makes exactly n updates, on batches
    0 to n - 1.

    Args:
      x: dataset, or array [n, h, w, c].
      y: array of labels, where x is an array.
      batch_size: for arrays, default 32.
      **kwargs: of `tf.keras.Model.fit`.

    Raises:
      ValueError: if the cardinality is unknown and `steps_per_epoch` is not
        given, or batches do not divide among the replicas.
    """
    feed = feeding.prepare(
        x, y, lookahead=self.method.lookahead,
        micro_batches=self.micro_batches,
        pixel_range=self.pixel_range if self.method.attacks else None,
        strategy=self.distribute_strategy,
        augments=self.method.augments,
        arrange=self.roles.arrange if self.roles else None,
        options=dict(kwargs, batch_size=batch_size))
    self._prepare_state(feed.spec)
    self.staleness.begin()
    self.phases.begin()
    if self._accumulator is not None:  # an earlier fit may have stopped midway
      self._accumulator.assign(tf.zeros_like(self._accumulator))
    self._fed = True
    try:
      return super().fit(feed.dataset, steps_per_epoch=feed.steps_per_epoch,
                         **feed.options)
    finally:
      self._fed = False

  # ---- One replica's work.

  def context(self, element: tf.Tensor, attack_network: networks.Network, *,
              ahead: int = 0, behind: int | tf.Tensor = 0
              ) -> methods.Context:
    """What a method sees of this replica; in replica context.

    Args:
      element: index of the micro batch.
      attack_network: weights for the attack.
      ahead: the received batch's distance from the one that is trained on.
      behind: updates since the one that is meant.
    """
    replica = tf.distribute.get_replica_context()
    step = tf.cast(self.step_counter.read_value(), tf.int32) - behind
    first = tf.cast(self.staleness.first_step.read_value(), tf.int32)
    options = dict(scale_loss=self.optimizer.get_scaled_loss,
                   unscale=self.optimizer.get_unscaled_gradients
                   ) if self._scales_loss else {}
    return methods.Context(
        network=self.network, attack_network=attack_network,
        attack=self.attack, loss=self._per_example_loss, seed=self.seed,
        step=step, batch_index=step + ahead,
        virtual_replica=(element * replica.num_replicas_in_sync
                         + tf.cast(replica.replica_id_in_sync_group,
                                   tf.int32)),
        pixel_range=self.pixel_range, first=first,
        joined=self.training_pass == "joined",
        is_delayed=self.phases.is_delayed,
        gamma=(self.growing.gamma.read_value() if self.growing
               else self.method.gamma), **options)

  def train_step(self, data: Any, element: tf.Tensor) -> methods.StepResult:
    """One virtual replica's share of an update; assigns held state only.

    Args:
      data: (x, y[, weight]) of this replica.
      element: index of the micro batch, int32 scalar.
    """
    batch = batches.batch(data, self._element_spec)
    ctx = self.context(element, self.staleness.attack_network,
                       ahead=self.method.lookahead)
    result = self.method.step(ctx, batch, self.staleness.read(element))
    self.staleness.write(element, result.held)
    self._means.add_terms(result.terms)
    self.compiled_metrics.update_state(
        result.batch.label, result.outputs,
        result.batch.weight if result.counted is None else result.counted)
    return result

  def _prime_step(self, data: Any, element: tf.Tensor,
                  behind: tf.Tensor) -> None:
    ctx = self.context(element, self.staleness.attack_network, behind=behind)
    self.staleness.write(element, self.method.prime(
        ctx, batches.batch(data, self._element_spec),
        self.staleness.read(element)))

  # ---- One update.

  def _contribution(self, result: methods.StepResult,
                    element: tf.Tensor) -> tf.Tensor:
    return self.compressed.contribution(
        self._packing.pack(result.gradients, result.statistics,
                           tf.reduce_mean(result.batch.weight)),
        element, self.roles.trainers if self.roles else None)

  def _accumulate(self, data: Any, element: tf.Tensor) -> None:
    result = self.train_step(data, element)
    self._accumulator.assign_add(self._contribution(result, element))

  def _apply_accumulated(self) -> None:
    total = self._accumulator.read_value()
    self._apply(*self._reduce(total))
    self._accumulator.assign(tf.zeros_like(total))

  def _whole_step(self, data: Any) -> None:
    """An update of one micro batch: no accumulator."""
    result = self.train_step(data, tf.constant(0))
    # A method that looks ahead trains on held data: without this the update
    # could run although there is no next batch.
    with tf.control_dependencies(tf.nest.flatten(data)):
      gradients = [tf.identity(g) for g in result.gradients]
      replicas = tf.distribute.get_replica_context().num_replicas_in_sync
      self._apply(*(
          (gradients, result.statistics)
          if replicas == 1 and not self.compressed.options.is_on else
          self._reduce(self._contribution(
              result._replace(gradients=gradients), tf.constant(0)))))

  def _reduce(self, total: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
    with tf.name_scope("reduction"):
      total = self._packing.all_reduce(total)
    return self._packing.unpack(total)

  def _apply(self, gradients: list[tf.Tensor], statistics: tf.Tensor) -> None:
    """Shifts lagged copies, then moves statistics and weights."""
    self.staleness.shift()
    rows = batches.image(self._element_spec).shape[0]
    variables = self.network.trainable_variables
    guarded = finite.changed_by_an_update(self.network, self.optimizer)
    with tf.name_scope("update"):
      takes_back = self.nonfinite.skip or self._scales_loss
      before = [v.read_value() for v in guarded] if takes_back else []
      is_expected = self._scales_loss and self.optimizer.loss_scale > 1.0
      self._means.add_update(gradients, variables)
      self.network.update_statistics(
          statistics, self.method.segments(rows),
          self.staleness.idle_branches())
      self.optimizer.apply_gradients(zip(gradients, variables),
                                     skip_gradients_aggregation=True)
      is_finite = self.nonfinite.check(
          gradients, guarded, self.step_counter.read_value(), is_expected)
      if takes_back:
        finite.take_back(is_finite, guarded, before)

  # ---- The loop.

  def _prepare_state(self, spec: Any) -> None:
    """Creates what depends on the shape of a replica's element, once."""
    if self._element_spec == spec:
      return
    self._element_spec = spec
    self.train_function = None
    rows = batches.image(spec).shape[0]
    segments = self.method.segments(rows)
    shapes = [v.shape for v in self.network.trainable_variables]
    self._packing = reduction.Packing(
        shapes, self.network.statistics_size(segments), self.deterministic,
        self.reduce_dtype, self.reduce_pack_mib,
        self.compressed.sum if self.compressed.options.is_on else None)
    with self.distribute_strategy.scope():
      if not self.compiled_metrics.built:  # else the first trace makes them
        self.compiled_metrics.build(
            tf.zeros([rows, *self.network.output_shape[1:]]),
            tf.zeros(spec[1].shape, spec[1].dtype))
      self._means.create(self.method, spec[1],
                         tf.TensorSpec(self.network.output_shape))
      if self.micro_batches > 1 or self.growing:
        self._accumulator = tf.Variable(
            tf.zeros([self._packing.size], self._packing.dtype),
            trainable=False, name="accumulator",
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM)
      self.staleness.create_held(
          self.method.held_spec(batches.batch(spec, spec), self.attack),
          self.micro_batches)

  def make_train_function(self, force: bool = False) -> Any:
    """The function that Keras's `fit` calls once per execution."""
    if not self._fed:
      raise NotImplementedError("train through fit()")
    if self.train_function is not None and not force:
      return self.train_function
    parts = loop.Parts(self._whole_step, self._accumulate,
                       self._apply_accumulated, self._prime_step)
    self._loop = self.phases.make(lambda marked: loop.Loop(
        self.distribute_strategy, self.micro_batches,
        marked.jit_compiled() if self.jit_compile else marked,
        finish=lambda: means.results(self.metrics, self.distribute_strategy),
        counters=(self.step_counter, self._train_counter),
        run_eagerly=self.run_eagerly,
        ratio=self.growing.ratio if self.growing else None), parts)
    self.train_function = self._execute
    return self._execute

  def _execute(self, iterator: Any) -> dict[str, tf.Tensor]:
    """Runs `steps_per_execution` updates, primes where that is due."""
    self.staleness.prime(lambda behind: self.phases.prime(iterator, behind))
    count = self.updates_next or int(self._steps_per_execution.numpy())
    takes_snapshot = self.snapshot_next
    self.updates_next, self.snapshot_next = None, False
    results = self.staleness.execute(
        lambda updates: self.phases.run(iterator, updates), count,
        takes_snapshot)
    if takes_snapshot:
      self.compressed.take_snapshot()
    return results


def _check(pixel_range: tuple[float, float], micro_batches: int,
           method: methods.Method, grows: bool) -> None:
  low, high = pixel_range
  if not low < high:
    raise ValueError(f"pixel_range must rise, got {pixel_range}")
  if micro_batches < 1:
    raise ValueError(f"micro_batches must be >= 1, got {micro_batches}")
  if grows:
    growing.check(method)
