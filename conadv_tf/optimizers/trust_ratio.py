"""The layer-wise trust ratio of LARS."""

import tensorflow as tf


def trust_ratio(
    w: tf.Tensor,
    g: tf.Tensor,
    weight_decay: float,
    eeta: float,
    epsilon: float,
) -> tf.Tensor:
  """Returns eeta * |w| / (|g| + weight_decay * |w| + epsilon).

  Args:
    w: weights of one layer.
    g: their gradient, without weight decay.
    weight_decay: coefficient of the L2 penalty's gradient.
    eeta: trust coefficient.
    epsilon: added to the denominator.

  Returns:
    A scalar; 1 where |w| or |g| is 0. At least float32: squares of float16
    weights overflow.
  """
  w, g = tf.convert_to_tensor(w), tf.convert_to_tensor(g)
  dtype = tf.float64 if w.dtype == tf.float64 else tf.float32
  w_norm = tf.norm(tf.cast(w, dtype))
  g_norm = tf.norm(tf.cast(g, dtype))
  ratio = tf.math.divide_no_nan(
      eeta * w_norm, g_norm + weight_decay * w_norm + epsilon)
  is_scaled = tf.logical_and(w_norm > 0, g_norm > 0)
  return tf.where(is_scaled, ratio, tf.ones_like(ratio))
