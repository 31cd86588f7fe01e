"""The Keras model that trains another one with a method of this package."""

import functools
from typing import Any

import tensorflow as tf

from conadv_tf.attacks import gradient as gradient_attacks
from conadv_tf.distribute import held_state
from conadv_tf.distribute import strategies
from conadv_tf.layers import network as networks
from conadv_tf.layers import routing
from conadv_tf.methods import method as methods
from conadv_tf.methods import vanilla
from conadv_tf.objectives import per_example
from conadv_tf.training import feeding
from conadv_tf.training import reduction


class Trainer(tf.keras.Model):
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
    step_counter: int64 variable, weight updates so far.
  """

  def __init__(self, model: tf.keras.Model,
               method: methods.Method | None = None,
               attack: gradient_attacks.Pgd | None = None, *,
               pixel_range: tuple[float, float] = (0.0, 1.0), seed: int = 0,
               micro_batches: int = 1, deterministic: bool = False,
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
      name: of the Keras model.

    Raises:
      ValueError: if an argument is out of range or the model cannot be
        converted (the message names the layer).
    """
    low, high = pixel_range
    if not low < high:
      raise ValueError(f"pixel_range must rise, got {pixel_range}")
    if micro_batches < 1:
      raise ValueError(f"micro_batches must be >= 1, got {micro_batches}")
    with model.distribute_strategy.scope():
      super().__init__(name=name)
      self.method = method or vanilla.Vanilla()
      self.attack = self.method.default_attack(attack or gradient_attacks.Pgd())
      self.pixel_range = (float(low), float(high))
      self.seed = seed
      self.micro_batches = micro_batches
      self.deterministic = deterministic
      self.network = networks.Network(model, self.method.branches)
      self.step_counter = tf.Variable(
          0, dtype=tf.int64, trainable=False, name="step",
          aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
      self._make_lagged_copies()
      self._packing = None
      self._accumulator = None
      self._held = None
      self._element_spec = None
      self._primed = False
      self._fed = False
      # Weights that made the held adversaries, kept only for checkpoints.
      self.snapshot_next = False
      self._snapshot: list[Any] = []
      self._restored: list[Any] = []
    self.built = True

  def _make_lagged_copies(self) -> None:
    """Weight sets of age lagged_copies .. 1, the oldest a whole network."""
    self.lagged_network = None
    self._younger: list[list[tf.Variable]] = []
    if self.method.lagged_copies:
      self.lagged_network = self.network.copy()
      self._younger = [
          [tf.Variable(v.read_value(), trainable=False, name=f"lagged_{age}",
                       synchronization=v.synchronization,
                       aggregation=v.aggregation)
           for v in self.network.variables]
          for age in range(self.method.lagged_copies - 1, 0, -1)]

  def _start_lagged_copies(self) -> None:
    """Before the first update every older weight set is theta_0."""
    if self.lagged_network and self.step_counter.numpy() == 0:
      for copies in self.lagged_sets():
        for target, source in zip(copies, self.network.variables):
          target.assign(networks.read(source))

  # ---- What Keras asks of a model.

  def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
    """Clean branch, moving statistics, whatever `training` says."""
    del training
    segments = ((routing.CLEAN, -1),)  # all rows; one segment is not cut
    return self.network.logits(inputs, segments, routing.Mode.EVAL)

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
    with self.distribute_strategy.scope():
      super().compile(optimizer=optimizer, loss=loss, metrics=metrics,
                      **kwargs)
      if not isinstance(self.optimizer, tf.keras.optimizers.Optimizer):
        raise ValueError(
            f"{type(self.optimizer).__name__} is not a "
            "tf.keras.optimizers.Optimizer; legacy optimizers are not "
            "supported")
      self.optimizer.build(self.network.trainable_variables)
      self._means = {"loss": tf.keras.metrics.Mean("loss")}
    replicas = self.distribute_strategy.num_replicas_in_sync
    if self.jit_compile and replicas > 1 and not (
        tf.config.list_physical_devices("GPU")):
      raise ValueError("jit_compile works on one CPU replica only; XLA cannot "
                       "reach the variables of other logical CPUs")

  @property
  def metrics(self) -> list[tf.keras.metrics.Metric]:
    """Loss, compiled metrics, then the method's terms."""
    if not self._is_compiled:
      return []
    means = list(self._means.values())
    return means[:1] + self.compiled_metrics.metrics + means[1:]

  @property
  def trainable_weights(self) -> list[tf.Variable]:
    """The network's, the other branches' gamma and beta last."""
    return self.network.trainable_variables

  @property
  def non_trainable_weights(self) -> list[tf.Variable]:
    """The network's other variables: moving statistics of all branches."""
    trainable = {id(v) for v in self.network.trainable_variables}
    return [v for v in self.network.variables if id(v) not in trainable]

  def fit(self, x: Any = None, y: Any = None,
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
      **kwargs: of `tf.keras.Model.fit`.

    Raises:
      ValueError: if the cardinality is unknown and `steps_per_epoch` is not
        given, or batches do not divide among the replicas.
    """
    feed = feeding.prepare(
        x, y, lookahead=self.method.lookahead,
        micro_batches=self.micro_batches, pixel_range=self.pixel_range,
        replicas=self.distribute_strategy.num_replicas_in_sync, options=kwargs)
    self._prepare_state(feed.dataset.element_spec)
    self._start_lagged_copies()
    self._primed = False
    self._fed = True
    try:
      return super().fit(feed.dataset, steps_per_epoch=feed.steps_per_epoch,
                         **feed.options)
    finally:
      self._fed = False

  def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
    """Refused: one batch is not enough for methods that look ahead."""
    raise NotImplementedError("use fit; with steps_per_epoch=1 it makes one "
                              "update")

  def test_step(self, data: Any) -> dict[str, tf.Tensor]:
    """Clean loss and compiled metrics, weighted by `sample_weight`."""
    x, y, weight = tf.keras.utils.unpack_x_y_sample_weight(data)
    outputs = self(x, training=False)
    values = self._per_example_loss(y, outputs)
    self._means["loss"].update_state(values, weight)
    self.compiled_metrics.update_state(y, outputs, weight)
    shown = [self._means["loss"]] + self.compiled_metrics.metrics
    return {m.name: m.result() for m in shown}

  def merge(self, branch: str = routing.CLEAN) -> tf.keras.Model:
    """A plain Keras model with one branch's weights."""
    return self.network.merge(branch)

  def save(self, *args: Any, **kwargs: Any) -> None:
    """Saves the merged model, as `tf.keras.Model.save` does."""
    self.merge().save(*args, **kwargs)

  def save_weights(self, *args: Any, **kwargs: Any) -> Any:
    """Saves the merged model's weights."""
    return self.merge().save_weights(*args, **kwargs)

  def load_weights(self, *args: Any, **kwargs: Any) -> None:
    """Loads the merged model's weights; every branch starts from them."""
    model = self.merge()
    model.load_weights(*args, **kwargs)
    self.network.assign(
        networks.Network(model, self.network.branches).variables)

  def get_config(self) -> dict[str, Any]:
    """Refused: what is saved is the merged model."""
    raise NotImplementedError("save() writes the merged model")

  # ---- One replica's work.

  def _context(self, element: tf.Tensor, ahead: int,
               attack_network: networks.Network) -> methods.Context:
    replica = tf.distribute.get_replica_context()
    step = tf.cast(self.step_counter.read_value(), tf.int32)
    scale = isinstance(self.optimizer,
                       tf.keras.mixed_precision.LossScaleOptimizer)
    options = dict(scale_loss=self.optimizer.get_scaled_loss,
                   unscale=self.optimizer.get_unscaled_gradients
                   ) if scale else {}
    return methods.Context(
        network=self.network, attack_network=attack_network,
        attack=self.attack, loss=self._per_example_loss, seed=self.seed,
        step=step, batch_index=step + ahead,
        virtual_replica=(element * replica.num_replicas_in_sync
                         + tf.cast(replica.replica_id_in_sync_group,
                                   tf.int32)),
        pixel_range=self.pixel_range, **options)

  def _batch(self, data: Any) -> methods.Batch:
    x, y, weight = tf.keras.utils.unpack_x_y_sample_weight(data)
    rows = self._element_spec[0].shape[0]
    x = tf.ensure_shape(x, [rows] + x.shape[1:])
    y = tf.ensure_shape(y, [rows] + y.shape[1:])
    weight = tf.ones([rows]) if weight is None else tf.reshape(
        tf.cast(weight, tf.float32), [rows])
    return methods.Batch(x, y, weight)

  def train_step(self, data: Any, element: tf.Tensor) -> methods.StepResult:
    """One virtual replica's share of an update; assigns held state only.

    Args:
      data: (x, y[, weight]) of this replica.
      element: index of the micro batch, int32 scalar.
    """
    batch = self._batch(data)
    ctx = self._context(element, self.method.lookahead,
                        self.lagged_network or self.network)
    held = self._held.read(element) if self._held else ()
    result = self.method.step(ctx, batch, held)
    if self._held:
      self._held.write(element, result.held)
    self._update_metrics(result)
    return result

  def _prime_step(self, data: Any, element: tf.Tensor) -> None:
    # Batch t, for update t, with the weights that its attack asks for; see
    # `restore_held`.
    ctx = self._context(element, 0, self.lagged_network or self.network)
    self._held.write(element, self.method.prime(ctx, self._batch(data)))

  def _update_metrics(self, result: methods.StepResult) -> None:
    weight = tf.reduce_sum(result.batch.weight)
    for name, value in result.terms.items():
      self._means[name].update_state(value, weight)
    self.compiled_metrics.update_state(
        result.batch.label, result.outputs, result.batch.weight)

  # ---- One update.

  def _contribution(self, result: methods.StepResult) -> tf.Tensor:
    return self._packing.pack(result.gradients, result.statistics,
                              tf.reduce_mean(result.batch.weight))

  def _accumulate(self, data: Any, element: tf.Tensor) -> None:
    result = self.train_step(data, element)
    self._accumulator.assign_add(self._contribution(result))

  def _apply_accumulated(self) -> None:
    total = self._accumulator.read_value()
    self._apply(*self._reduce(total))
    self._accumulator.assign(tf.zeros_like(total))

  def _whole_step(self, data: Any) -> None:
    """An update of one micro batch: no accumulator."""
    result = self.train_step(data, tf.constant(0))
    replica = tf.distribute.get_replica_context()
    if replica.num_replicas_in_sync == 1:
      self._apply(result.gradients, result.statistics)
    else:
      self._apply(*self._reduce(self._contribution(result)))

  def _reduce(self, total: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
    replica = tf.distribute.get_replica_context()
    if replica.num_replicas_in_sync > 1:
      with tf.name_scope("allreduce"):
        total = replica.all_reduce(tf.distribute.ReduceOp.SUM, total)
    return self._packing.unpack(total)

  def _apply(self, gradients: list[tf.Tensor],
             statistics: tf.Tensor) -> None:
    """Shifts lagged copies, then moves statistics and weights."""
    if self.lagged_network:
      sets = self.lagged_sets() + [self.network.variables]
      for older, younger in zip(sets, sets[1:]):
        strategies.copy_variables(older, younger)
    rows = self._element_spec[0].shape[0]
    variables = self.network.trainable_variables
    with tf.name_scope("apply"):
      self._means["gradient_norm"].update_state(
          tf.linalg.global_norm(gradients))
      if "trust_ratio" in self._means:
        ratios = self.optimizer.trust_ratios(gradients, variables)
        self._means["trust_ratio"].update_state(tf.reduce_mean(ratios))
      self.network.update_statistics(statistics, self.method.segments(rows))
      self.optimizer.apply_gradients(zip(gradients, variables),
                                     skip_gradients_aggregation=True)

  # ---- The loop.

  def _prepare_state(self, spec: Any) -> None:
    """Creates what depends on the shape of a micro batch, once."""
    strategy = self.distribute_strategy
    replicas = strategy.num_replicas_in_sync
    spec = tf.nest.map_structure(
        lambda s: tf.TensorSpec([s.shape[0] // replicas] + s.shape[1:],
                                s.dtype), spec)
    if self._element_spec == spec:
      return
    self._element_spec = spec
    self.train_function = None
    rows = spec[0].shape[0]
    segments = self.method.segments(rows)
    shapes = [v.shape for v in self.network.trainable_variables]
    self._packing = reduction.Packing(
        shapes, self.network.statistics_size(segments), self.deterministic)
    with strategy.scope():
      for name in self._term_names(spec[1]):
        self._means.setdefault(name, tf.keras.metrics.Mean(name))
      if self.micro_batches > 1:
        self._accumulator = tf.Variable(
            tf.zeros([self._packing.size], self._packing.dtype),
            trainable=False, name="accumulator",
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM)
      if self.method.lookahead:
        batch = methods.Batch(spec[0], spec[1], tf.TensorSpec([rows]))
        self._held = held_state.HeldState(
            self.method.held_spec(batch), self.micro_batches)

  def _term_names(self, label: tf.TensorSpec) -> list[str]:
    """Means to show: the method's terms, then those of the update."""
    names = list(self.method.terms) + ["gradient_norm"]
    outputs = tf.TensorSpec(self.network.output_shape)
    if not per_example.is_classification(label, outputs):
      names = [n for n in names if not n.endswith("accuracy")]
    if hasattr(self.optimizer, "trust_ratios"):
      names.append("trust_ratio")
    return names

  def make_train_function(self, force: bool = False) -> Any:
    """The function that Keras's `fit` calls once per execution."""
    if not self._fed:
      raise NotImplementedError("train through fit()")
    if self.train_function is not None and not force:
      return self.train_function
    strategy = self.distribute_strategy
    k = self.micro_batches

    def compiled(function: Any) -> Any:
      # A whole update on one device; with k > 1 each of its parts.
      if self.jit_compile:
        return tf.function(function, jit_compile=True, autograph=False)
      return function

    whole, accumulate, apply = (compiled(f) for f in (
        self._whole_step, self._accumulate, self._apply_accumulated))
    prime = compiled(self._prime_step)

    def for_each_element(body: Any, iterator: Any) -> None:
      def loop(element: tf.Tensor) -> tf.Tensor:
        strategy.run(body, args=(next(iterator), element))
        return element + 1
      if k == 1:
        loop(tf.constant(0))
      else:
        tf.while_loop(lambda e: e < k, loop, (tf.constant(0),),
                      parallel_iterations=1)

    def update(iterator: Any) -> None:
      if k == 1:
        strategy.run(whole, args=(next(iterator),))
      else:
        for_each_element(accumulate, iterator)
        strategy.run(apply)
      self.step_counter.assign_add(1)

    def results() -> dict[str, tf.Tensor]:
      return {m.name: m.result() for m in self.metrics}

    def one(iterator: Any) -> dict[str, tf.Tensor]:
      update(iterator)
      return results()

    def many(iterator: Any, count: tf.Tensor) -> dict[str, tf.Tensor]:
      def loop(i: tf.Tensor) -> tf.Tensor:
        update(iterator)
        return i + 1
      tf.while_loop(lambda i: i < count, loop, (tf.constant(0),),
                    parallel_iterations=1)
      return results()

    if not self.run_eagerly:
      one = tf.function(one, autograph=False)
      many = tf.function(many, autograph=False)
    self._one, self._many = one, many
    self._prime = tf.function(
        lambda iterator: for_each_element(prime, iterator), autograph=False)
    self.train_function = self._execute
    return self._execute

  def _execute(self, iterator: Any) -> dict[str, tf.Tensor]:
    """Runs `steps_per_execution` updates, priming where that is due."""
    if self.method.lookahead and not self._primed:
      self._prime_held(iterator)
    count = int(self._steps_per_execution.numpy())
    takes_snapshot = self.snapshot_next and self.method.lookahead
    self.snapshot_next = False
    if not takes_snapshot:
      return self._run(iterator, count)
    # A checkpoint follows: keep the weights that the last attack used.
    if count > 1:
      self._run(iterator, count - 1)
    self._snapshot = self.attack_weights()
    return self._run(iterator, 1)

  def _run(self, iterator: Any, count: int) -> dict[str, tf.Tensor]:
    if count == 1:
      return self._one(iterator)
    return self._many(iterator, tf.constant(count))

  # ---- Held state across checkpoints.

  def attack_weights(self) -> list[Any]:
    """Values of the weights that the next attack uses, on the host."""
    network = self.lagged_network or self.network
    return [networks.read(v) for v in network.variables]

  def lagged_sets(self) -> list[list[tf.Variable]]:
    """The older weight sets, oldest first; [] where there are none."""
    if not self.lagged_network:
      return []
    return [self.lagged_network.variables] + self._younger

  @property
  def snapshot(self) -> list[Any]:
    """What made the held adversaries; [] unless `snapshot_next` was set."""
    return self._snapshot

  def perturb(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Adversarial copies of a batch under the current weights, to look at.

    Args:
      images: [b, h, w, c] in the pixel range.
      labels: as in training.

    Returns:
      float32 [b, h, w, c].
    """
    results = self._perturb(tf.convert_to_tensor(images),
                            tf.convert_to_tensor(labels))
    return self.distribute_strategy.experimental_local_results(results)[0]

  @functools.cached_property
  def _perturb(self) -> Any:
    def attack(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
      rows = images.shape[0]
      ctx = self._context(tf.constant(0), 0, self.network)
      batch = methods.Batch(images, labels, tf.ones([rows]))
      return methods.make_adversary(ctx, batch, rows)

    return tf.function(
        lambda *args: self.distribute_strategy.run(attack, args=args),
        autograph=False)

  def restore_snapshot(self, values: list[Any]) -> None:
    """Makes the next priming attack with these weights, once."""
    self._restored = values

  def _prime_held(self, iterator: Any) -> None:
    """Makes the adversaries of the first batch that will be trained on.

    After a checkpoint they must come from the weights of `lag` updates ago,
    which are put in place for the duration of this call.
    """
    network = self.lagged_network or self.network
    if not self._restored:
      self._prime(iterator)
    else:
      current = [networks.read(v) for v in network.variables]
      network.assign(self._restored)
      self._prime(iterator)
      network.assign(current)
      self._restored = []
    self._primed = True
