"""Norm balls around a batch: projection, random starts, gradient directions.

Every function works on float tensors of any shape [b, ...]; norms are taken
over all axes but the first. `radius` is in the units of the tensor.
"""

import tensorflow as tf

from conadv_tf import randomness

LINF = "linf"
L2 = "l2"
_TINY = 1e-12  # keeps x / |x| finite at 0


def unit(pixel_range: tuple[float, float]) -> float:
  """1/255 of the pixel range, in which radii and step sizes are given."""
  low, high = pixel_range
  return (high - low) / 255.0


def l2_norm(x: tf.Tensor) -> tf.Tensor:
  """Per-example Euclidean norm, [b, 1, ...] so that it broadcasts."""
  axes = list(range(1, x.shape.rank))
  return tf.sqrt(tf.reduce_sum(tf.square(x), axis=axes, keepdims=True))


def project(delta: tf.Tensor, radius: float, norm: str) -> tf.Tensor:
  """Maps perturbations [b, ...] to the nearest point of the ball."""
  if norm == LINF:
    return tf.clip_by_value(delta, -radius, radius)
  return delta * tf.minimum(1.0, radius / tf.maximum(l2_norm(delta), _TINY))


def random_point(key: randomness.Key, like: tf.Tensor, radius: float,
                 norm: str) -> tf.Tensor:
  """Draws perturbations uniform in the ball, float32 like `like` [b, ...]."""
  shape = tf.shape(like)
  if norm == LINF:
    return radius * (2.0 * randomness.uniform(key, shape) - 1.0)
  direction = randomness.normal(randomness.fold(key, 0), shape)
  dimension = tf.cast(tf.size(like) // shape[0], tf.float32)
  ones = tf.ones([like.shape.rank - 1], tf.int32)
  u = randomness.uniform(randomness.fold(key, 1),
                         tf.concat([shape[:1], ones], axis=0))
  # In d dimensions the volume within r grows as r**d.
  return (radius * tf.pow(u, 1.0 / dimension) * direction
          / tf.maximum(l2_norm(direction), _TINY))


def direction(gradient: tf.Tensor, kind: str) -> tf.Tensor:
  """The ascent direction: sign(g), g itself, or g / |g|_2 per example."""
  if kind == "sign":
    return tf.sign(gradient)
  if kind == "raw":
    return gradient
  return gradient / tf.maximum(l2_norm(gradient), _TINY)
