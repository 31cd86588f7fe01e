"""Sentences without the padding that a whole batch ends in."""

from collections.abc import Sequence

import tensorflow as tf


def length(mask: tf.Tensor, buckets: Sequence[int]) -> tf.Tensor:
  """The smallest bucket that holds a batch's longest sentence.

  Args:
    mask: float32 [b, L, 1], 1 for real tokens, 0 for padding.
    buckets: lengths below L, rising.

  Returns:
    int32 scalar, one of the buckets or L.
  """
  places = tf.range(1.0, mask.shape[1] + 1.0)[:, None]
  longest = tf.cast(tf.reduce_max(mask * places), tf.int32)
  lengths = tf.constant([*buckets, mask.shape[1]])
  return tf.reduce_min(tf.where(lengths >= longest, lengths, mask.shape[1]))
