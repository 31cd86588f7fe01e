"""Losses of single examples, and the one function that reduces them."""

from collections.abc import Callable

import tensorflow as tf

# (labels, outputs [b, classes]) -> float32 [b]
PerExampleLoss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def per_example_loss(loss: str | tf.keras.losses.Loss | Callable
                     ) -> PerExampleLoss:
  """Turns what `compile(loss=...)` takes into a loss of single examples.

  Args:
    loss: a Keras loss name, function or object; its reduction is ignored.

  Returns:
    A function of labels [b] or [b, classes] and outputs [b, classes] that
    gives float32 [b].

  Raises:
    ValueError: if `loss` is None or unknown to Keras.
  """
  if loss is None:
    raise ValueError("compile() needs a loss")
  loss = tf.keras.losses.get(loss)
  # A Loss object's `call` is the loss before any reduction.
  function = loss.call if isinstance(loss, tf.keras.losses.Loss) else loss

  def call(labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    if labels.shape.rank == 1 and outputs.shape.rank == 2:
      labels = labels[:, None]  # as `compile` does, or [b] meets [b, 1]
    values = tf.cast(function(labels, outputs), tf.float32)
    if values.shape.rank and values.shape.rank > 1:
      values = tf.reduce_mean(values, axis=list(range(1, values.shape.rank)))
    return values

  return call


def weighted_mean(values: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
  """Reduces per-example values; the only reduction of a loss.

  Divides by the sum of weights and not by the number of rows, so that padded
  rows (weight 0) neither count nor dilute. Virtual replicas are later
  averaged in proportion to their weight, which makes this the mean over the
  global batch.

  Args:
    values: float32 [b].
    weight: float32 [b].

  Returns:
    float32 scalar, 0 if all weights are 0.
  """
  total = tf.reduce_sum(weight)
  return tf.math.divide_no_nan(tf.reduce_sum(values * weight), total)


def kl_divergence(p: tf.Tensor, q: tf.Tensor) -> tf.Tensor:
  """KL(softmax(p) || softmax(q)) of each example.

  Args:
    p: logits [b, classes].
    q: logits [b, classes].

  Returns:
    float32 [b], whose gradients are exactly 0 where p equals q.
  """
  return _kl_divergence(tf.cast(p, tf.float32), tf.cast(q, tf.float32))


@tf.custom_gradient
def _kl_divergence(p: tf.Tensor, q: tf.Tensor) -> tuple[tf.Tensor, Callable]:
  log_p, log_q = tf.nn.log_softmax(p), tf.nn.log_softmax(q)
  ratio = log_p - log_q
  values = tf.reduce_sum(tf.exp(log_p) * ratio, axis=-1)

  def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    # Automatic ones leave rounding, which a normalised step would blow up.
    upstream = upstream[:, None]
    to_p = tf.exp(log_p) * (ratio - values[:, None])
    return upstream * to_p, upstream * (tf.exp(log_q) - tf.exp(log_p))

  return values, gradients


def symmetric_kl(p: tf.Tensor, q: tf.Tensor) -> tf.Tensor:
  """KL(p || q) + KL(q || p) of each example, the first of each a constant.

  Not halved. The gradient to q's logits is softmax(q) - softmax(p), to p's
  its negative: both passes move, each towards the other.

  Args:
    p: logits [b, classes].
    q: logits [b, classes].

  Returns:
    float32 [b].
  """
  return (kl_divergence(tf.stop_gradient(p), q)
          + kl_divergence(tf.stop_gradient(q), p))


def squared_error(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
  """Summed squared difference of outputs [b, n], float32 [b]."""
  return tf.reduce_sum(tf.math.squared_difference(
      tf.cast(a, tf.float32), tf.cast(b, tf.float32)), axis=-1)


def is_labelled(labels: tf.Tensor) -> tf.Tensor:
  """Whether an example has a label: classes below 0 are none, float32 [b].

  Args:
    labels: integer [b] or [b, 1]; any others count as labels.
  """
  if not labels.dtype.is_integer or labels.shape.rank == 2 and (
      labels.shape[1] != 1):
    return tf.ones([labels.shape[0]])
  return tf.cast(tf.reshape(labels, [-1]) >= 0, tf.float32)


def is_classification(labels: tf.Tensor | tf.TensorSpec,
                      outputs: tf.Tensor | tf.TensorSpec) -> bool:
  """Whether the shapes are those of a classification.

  Args:
    labels: [b] or [b, 1], or class probabilities [b, classes].
    outputs: [b, classes].
  """
  if outputs.shape.rank != 2 or outputs.shape[1] < 2:
    return False
  return labels.shape.rank == 1 or (
      labels.shape.rank == 2 and labels.shape[1] in (1, outputs.shape[1]))


def is_correct(labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
  """Whether the largest output is the label's class, float32 [b].

  Args:
    labels: integer [b] or [b, 1], or class probabilities [b, classes].
    outputs: [b, classes].
  """
  if labels.shape.rank == 2 and labels.shape[1] == outputs.shape[1]:
    classes = tf.argmax(labels, axis=1, output_type=tf.int32)
  else:
    classes = tf.reshape(tf.cast(labels, tf.int32), [-1])
  predicted = tf.argmax(outputs, axis=1, output_type=tf.int32)
  return tf.cast(predicted == classes, tf.float32)
