"""Orders and random words as functions of a key and a position.

Position g of a run is row g of all its training examples laid end to end;
n examples make epoch g // n and place g % n of it.
"""

import tensorflow as tf

from conadv_tf import randomness

_PHILOX = 1
_WORDS_PER_COUNT = 4  # Philox makes 128 bits for each value of its counter.
_SHUFFLE_ROUNDS = 12


def shuffled(
    key: randomness.Key, positions: tf.Tensor, num_examples: int) -> tf.Tensor:
  """Returns which example stands at each position.

  Position g is place g % n in the permutation of epoch g // n.

  Args:
    key: of the order.
    positions: int64 [b], rising; b is static.
    num_examples: n.

  Returns:
    int64 [b], each in 0 .. n-1.
  """
  rows = positions.shape[0]
  epochs = positions // num_examples
  # The shuffle reads only the low byte of each of its three seed words: fed
  # with (seed, epoch) themselves, epochs 256 apart would repeat each other.
  keys = bits(key, epochs[0], epochs[-1] - epochs[0] + 1, _WORDS_PER_COUNT)
  # Through the raw op, since the public function takes two seed words and
  # makes 4 rounds, which leaves neighbours visibly related.
  return tf.raw_ops.RandomIndexShuffle(
      index=positions % num_examples,
      seed=tf.gather(keys[:, :3], epochs - epochs[0]),
      max_index=tf.fill([rows], tf.constant(num_examples - 1, tf.int64)),
      rounds=_SHUFFLE_ROUNDS)


def bits(
    key: randomness.Key, first: tf.Tensor, rows: int | tf.Tensor,
    words: int
) -> tf.Tensor:
  """Draws random words for consecutive positions.

  Philox is a function of a key and a counter; giving each position its own
  range of counts draws all rows in one op.

  Args:
    key: of the use.
    first: int64 [], the position of the first row.
    rows: how many positions.
    words: how many words each has, a multiple of 4.

  Returns:
    uint32 [rows, words]: row i depends on key and first + i alone.
  """
  counts = words // _WORDS_PER_COUNT
  philox_key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=key)
  start = counter[0] + tf.cast(first * counts, tf.uint64)
  drawn = tf.raw_ops.StatelessRandomUniformFullIntV2(
      shape=[rows, words], key=philox_key,
      counter=tf.stack([start, counter[1]]), alg=_PHILOX, dtype=tf.uint32)
  return tf.ensure_shape(
      drawn, [rows if isinstance(rows, int) else None, words])
