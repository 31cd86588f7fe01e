"""Steps that ours are compared with: other libraries' and hand-written ones.

All have the model, batch, optimizer, loss and metrics of our rows.

* `keras`, `sam`: plain Keras's `fit`, and that of its
  `SharpnessAwareMinimization`, which calls the model for inference, so never
  with batch statistics.
* `nsl`, `nsl_random_start`: `AdversarialRegularization` of
  neural-structured-learning with the signed step of our radius. It has no
  split batch normalisation. Its images come as float32: it differentiates to
  what the pipeline hands it.
* `floor_vanilla`, `floor_conadv`: a `tf.function` without a trainer.
* `weight_copy`: what lag 2 does more than lag 1.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from conadv_tf.layers import network as networks
from conadv_tf.layers import routing
from conadv_tf.training import lagged
from tools import benchmark_rows
from tools.benchmark_rows import Row

_RADIUS = 4.0  # of our rows' attack, in pixels


def keras(model: tf.keras.Model, data: tf.data.Dataset) -> Row:
  """Plain Keras."""
  return benchmark_rows.fit_row(model, data)


def sam(model: tf.keras.Model, data: tf.data.Dataset) -> Row:
  """Keras's sharpness-aware minimisation."""
  return benchmark_rows.fit_row(
      tf.keras.models.experimental.SharpnessAwareMinimization(model), data)


def nsl(model: tf.keras.Model, data: tf.data.Dataset) -> Row:
  """FGSM: it reuses the clean forward pass for the attack."""
  return _nsl(model, data, random_init=False)


def nsl_random_start(model: tf.keras.Model, data: tf.data.Dataset) -> Row:
  """FGSM from a random point of the ball, with a forward pass of its own."""
  return _nsl(model, data, random_init=True)


def _nsl(model: tf.keras.Model, data: tf.data.Dataset,
         random_init: bool) -> Row:
  import neural_structured_learning as library
  image_key, = model.input_names
  config = library.configs.make_adv_reg_config(
      multiplier=1.0, adv_step_size=_RADIUS, adv_grad_norm="infinity",
      # By feature: plain numbers would be ignored.
      clip_value_min={image_key: 0.0}, clip_value_max={image_key: 255.0},
      pgd_epsilon=_RADIUS if random_init else None, random_init=random_init)
  image, label = next(iter(data))  # the pipeline's only element
  named = {image_key: tf.cast(image, tf.float32), "label": label}
  return benchmark_rows.fit_row(
      library.keras.AdversarialRegularization(
          model, label_keys=["label"], adv_config=config),
      tf.data.Dataset.from_tensors(named).repeat().with_options(
          data.options()))


def floor_vanilla(model: tf.keras.Model, data: tf.data.Dataset) -> Row:
  """Plain Keras layers, a tape and an optimizer in a `tf.function`."""
  optimizer, loss = benchmark_rows.optimizer(), benchmark_rows.loss()
  optimizer.build(model.trainable_variables)
  mean, accuracy = _metrics()

  @tf.function
  def step(iterator: Any) -> dict[str, tf.Tensor]:
    image, label = next(iterator)
    with tf.GradientTape() as tape:
      logits = model(tf.cast(image, tf.float32), training=True)
      value = loss(label, logits)
    gradients = tape.gradient(value, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables))
    mean.update_state(value)
    accuracy.update_state(label, logits)
    return {"loss": mean.result(), "accuracy": accuracy.result()}

  return benchmark_rows.row(step, data)


def floor_conadv(model: tf.keras.Model, data: tf.data.Dataset) -> Row:
  """Lag-1 ConAdv without a trainer: attack, training pass and update."""
  network = networks.convert(model)
  optimizer, loss = benchmark_rows.optimizer(), benchmark_rows.loss()
  variables = network.trainable_variables
  optimizer.build(variables)
  mean, accuracy = _metrics()
  image, label = next(iter(data))
  held = tf.Variable(image), tf.Variable(label), tf.Variable(
      tf.cast(image, tf.float32))
  rows = image.shape[0]
  segments = (("clean", rows), ("adversarial", rows))

  def attack(image: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
    clean = tf.cast(image, tf.float32)
    noise = tf.random.uniform(clean.shape, -_RADIUS, _RADIUS)
    start = tf.clip_by_value(clean + noise, 0., 255.)
    with tf.GradientTape() as tape:
      tape.watch(start)
      value = loss(label, network.logits(
          start, (("adversarial", rows),), routing.Mode.PROBE))
    moved = start + _RADIUS * tf.sign(tape.gradient(value, start))
    return tf.clip_by_value(
        clean + tf.clip_by_value(moved - clean, -_RADIUS, _RADIUS), 0., 255.)

  @tf.function
  def step(iterator: Any) -> dict[str, tf.Tensor]:
    image, label = next(iterator)
    adversarial = attack(image, label)
    with tf.GradientTape() as tape:
      both = tf.concat([tf.cast(held[0], tf.float32), held[2]], axis=0)
      logits, statistics = network.logits(both, segments, routing.Mode.TRAIN)
      value = loss(tf.concat([held[1], held[1]], axis=0), logits)
    gradients = tape.gradient(value, variables)
    accuracy.update_state(held[1], logits[:rows])
    mean.update_state(value)
    network.update_statistics(statistics, segments)
    optimizer.apply_gradients(zip(gradients, variables))
    for variable, new in zip(held, (image, label, adversarial)):
      variable.assign(new)
    return {"loss": mean.result(), "accuracy": accuracy.result()}

  return benchmark_rows.row(step, data)


def weight_copy(model: tf.keras.Model, data: tf.data.Dataset) -> Row:
  """Shifts one set of lagged weights, and trains nothing."""
  network = networks.convert(model)
  copies = lagged.LaggedWeights(network, 1)

  @tf.function
  def step(iterator: Any) -> dict[str, tf.Tensor]:
    del iterator
    copies.shift(network)
    return {"first": tf.reshape(copies.sets[0][-1], [-1])[0]}

  return benchmark_rows.row(step, data)


def _metrics() -> tuple[tf.keras.metrics.Metric, tf.keras.metrics.Metric]:
  return (tf.keras.metrics.Mean("loss"),
          tf.keras.metrics.SparseCategoricalAccuracy("accuracy"))


PEERS: dict[str, Callable[[tf.keras.Model, tf.data.Dataset], Row]] = {
    peer.__name__: peer for peer in (
        keras, floor_vanilla, floor_conadv, nsl, nsl_random_start, sam,
        weight_copy)}
