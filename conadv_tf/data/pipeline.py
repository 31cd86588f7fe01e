"""Batches as a function of (seed, step).

Nothing here has a state: position g of the whole run (step * batch + row)
alone says which example stands there and how it is augmented. So a run
resumed at step s sees bit for bit what an unbroken run sees.
"""

from collections.abc import Callable

import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.config import InputError
from conadv_tf.data import augment as augmentation
from conadv_tf.data.source import Source

_Batch = tuple[tf.Tensor, tf.Tensor, tf.Tensor]  # Image, label, weight.

_PHILOX = 1
_WORDS_PER_COUNT = 4  # Philox makes 128 bits for each value of its counter.
_SHUFFLE_ROUNDS = 12


def train_dataset(
    source: Source, *, global_batch_size: int, micro_batches: int = 1,
    seed: int = 0, augment: str = 'none', start_step: int = 0,
    num_steps: int) -> tf.data.Dataset:
  """Returns the training batches of `num_steps` steps.

  The permutations of all epochs are laid end to end and cut into batches, so
  every example is seen exactly once an epoch and remainders are carried
  over. The batch may be larger than the training set.

  Args:
    source: the training set.
    global_batch_size: clean examples per step, B.
    micro_batches: elements per step, k; divides B.
    seed: the run's seed.
    augment: one of `augment.NAMES`.
    start_step: the step of the first batch.
    num_steps: how many steps.

  Returns:
    num_steps * k elements (image uint8 [B/k, h, w, c], label int32 [B/k],
    weight float32 [B/k], all 1), statically shaped. Element e of step t
    holds rows e*B/k to (e+1)*B/k of global batch t.

  Raises:
    InputError: B or k below 1, k does not divide B, a negative step, or an
      augmentation that is unknown or does not fit the images.
  """
  _check_batches(global_batch_size, micro_batches, start_step, num_steps)
  rows = global_batch_size // micro_batches
  augmentation.check(augment, source.image_shape)
  words = augmentation.words(augment)
  with tf.device('CPU:0'):
    order_key = randomness.make_key(seed, randomness.ORDER)
    augmentation_key = randomness.make_key(seed, randomness.AUGMENTATION)

  def element(number: tf.Tensor) -> _Batch:
    first = number * rows
    images, labels = source.read(
        _examples(order_key, first, rows, source.num_examples))
    if words:
      # Given the seed, a position and the pair (epoch, example) determine
      # each other, so this keys by (seed, epoch, example).
      bits = _bits(augmentation_key, first, rows, words)
      images = augmentation.apply(augment, images, bits)
    return images, labels, tf.ones([rows])

  elements = tf.data.Dataset.range(
      start_step * micro_batches, (start_step + num_steps) * micro_batches)
  return _mapped(elements, element)


def evaluation_dataset(source: Source, batch_size: int) -> tf.data.Dataset:
  """Returns every example once, in order.

  Args:
    source: any split.
    batch_size: rows per element, b.

  Returns:
    ceil(n / b) elements (image uint8 [b, h, w, c], label int32 [b], weight
    float32 [b]), statically shaped. Rows after the last example repeat it
    with weight 0; all others have weight 1.

  Raises:
    InputError: batch_size below 1.
  """
  if batch_size < 1:
    raise InputError(
        f'evaluation.batch_size={batch_size}: must be at least 1.')
  last = source.num_examples - 1

  def element(number: tf.Tensor) -> _Batch:
    rows = number * batch_size + tf.range(batch_size, dtype=tf.int64)
    images, labels = source.read(tf.minimum(rows, last))
    return images, labels, tf.cast(rows <= last, tf.float32)

  return _mapped(tf.data.Dataset.range(last // batch_size + 1), element)


def _check_batches(
    global_batch_size: int, micro_batches: int, start_step: int,
    num_steps: int) -> None:
  """Raises InputError for sizes that make no batches."""
  if min(global_batch_size, micro_batches) < 1:
    raise InputError(
        f'data.global_batch_size={global_batch_size} and '
        f'runtime.micro_batches={micro_batches}: must be at least 1.')
  if global_batch_size % micro_batches:
    raise InputError(
        f'data.global_batch_size={global_batch_size}: not divisible by '
        f'runtime.micro_batches={micro_batches}; change one of them.')
  if min(start_step, num_steps) < 0:
    raise InputError(
        f'start_step={start_step}, num_steps={num_steps}: must not be '
        'negative.')


def _mapped(
    elements: tf.data.Dataset, element: Callable[[tf.Tensor], _Batch]
) -> tf.data.Dataset:
  """Makes elements in parallel, in order, ahead of their use."""
  # No code here or in the augmentation library branches on tensors in plain
  # Python, and converting the library's takes longer than tracing it.
  return elements.map(
      tf.autograph.experimental.do_not_convert(element),
      num_parallel_calls=tf.data.AUTOTUNE, deterministic=True,
  ).prefetch(tf.data.AUTOTUNE)


def _examples(
    key: randomness.Key, first: tf.Tensor, rows: int, num_examples: int
) -> tf.Tensor:
  """Returns the examples, int64 [rows], at positions first, first+1, ...

  Position g is place g % n in the permutation of epoch g // n.
  """
  positions = first + tf.range(rows, dtype=tf.int64)
  epochs = positions // num_examples
  most_epochs = (rows + num_examples - 2) // num_examples + 1
  # The shuffle reads only the low byte of each of its three seed words: fed
  # with (seed, epoch) themselves, epochs 256 apart would repeat each other.
  keys = _bits(key, epochs[0], most_epochs, _WORDS_PER_COUNT)[:, :3]
  # Through the raw op, since the public function takes two seed words and
  # makes 4 rounds, which leaves neighbours visibly related.
  return tf.raw_ops.RandomIndexShuffle(
      index=positions % num_examples, seed=tf.gather(keys, epochs - epochs[0]),
      max_index=tf.fill([rows], tf.constant(num_examples - 1, tf.int64)),
      rounds=_SHUFFLE_ROUNDS)


def _bits(
    key: randomness.Key, first: tf.Tensor, rows: int, words: int
) -> tf.Tensor:
  """Returns uint32 [rows, words]: row i depends on key and first+i alone.

  Philox is a function of a key and a counter; giving each position its own
  range of counts draws all rows in one op.
  """
  counts = words // _WORDS_PER_COUNT
  philox_key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=key)
  start = counter[0] + tf.cast(first * counts, tf.uint64)
  bits = tf.raw_ops.StatelessRandomUniformFullIntV2(
      shape=[rows, words], key=philox_key,
      counter=tf.stack([start, counter[1]]), alg=_PHILOX, dtype=tf.uint32)
  return tf.ensure_shape(bits, [rows, words])
