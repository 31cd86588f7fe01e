"""Random numbers that depend on their key alone.

Every draw in this package (attack noise, dropout masks, augmentation) is a
pure function of an integer key, so that a resumed run, another arrangement of
replicas and an XLA-compiled step all see the same numbers. Floats are built
here from integer bits, because TensorFlow's own float draws differ between
XLA and the plain runtime while the bits do not.
"""

import math

import tensorflow as tf

Key = tf.Tensor  # int32 [2]

# First fold of every key, so that two uses never share a stream.
ATTACK_NOISE = 1
ATTACK_TARGET = 2
DROPOUT = 3
SMOOTHING = 4
ORDER = 16
AUGMENTATION = 17
MIXING = 18
CURVATURE = 19
COMPRESSION = 40
COMPRESSED_SUM = 41
CERTIFICATION = 20


def make_key(seed: int, purpose: int, *data: tf.Tensor | int) -> Key:
  """Derives a key from the run's seed, a purpose and any integers.

  Args:
    seed: the run's seed.
    purpose: one of this module's constants.
    *data: integers (Python or scalar tensors), for instance the batch index
      and the virtual replica.

  Returns:
    int32 [2].
  """
  key = tf.constant([seed & 0x7fffffff, purpose], tf.int32)
  return fold(key, *data)


def fold(key: Key, *data: tf.Tensor | int) -> Key:
  """Mixes integers into a key; the order matters. Returns int32 [2]."""
  for value in data:
    key = tf.random.experimental.stateless_fold_in(
        key, tf.cast(value, tf.int32), alg="philox")
  return key


def uniform(key: Key, shape: tf.Tensor | list[int]) -> tf.Tensor:
  """Draws float32 numbers uniform on [0, 1) with 24 random bits each."""
  bits = tf.random.stateless_uniform(
      shape, seed=key, minval=None, maxval=None, dtype=tf.uint32,
      alg="philox")
  return unit_floats(bits)


def unit_floats(bits: tf.Tensor) -> tf.Tensor:
  """Maps uint32 bits to float32 numbers on [0, 1), 24 bits each."""
  # int32, since XLA and some CPU kernels lack casts from uint32.
  high = tf.bitcast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)),
                    tf.int32)
  return tf.cast(high, tf.float32) * 2.0**-24


def normal(key: Key, shape: tf.Tensor | list[int]) -> tf.Tensor:
  """Draws standard normal float32 numbers (Box-Muller)."""
  # 1 - u lies in (0, 1], where the logarithm is finite.
  radius = tf.sqrt(-2.0 * tf.math.log(1.0 - uniform(fold(key, 0), shape)))
  return radius * tf.cos(2.0 * math.pi * uniform(fold(key, 1), shape))


def integer(key: Key, shape: tf.Tensor | list[int], limit: int) -> tf.Tensor:
  """Draws int32 numbers uniform on 0 .. limit-1."""
  return tf.cast(uniform(key, shape) * float(limit), tf.int32)
