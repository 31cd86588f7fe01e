"""Batches as a function of (seed, step).

Nothing here has a state: position g of the whole run (step * batch + row)
alone says which example stands there and how it is augmented. So a run
resumed at step s sees bit for bit what an unbroken run sees.

Neither does it matter how many elements make a batch and how many input
pipelines, each with rows of its own, make an element: only mixing, and what
stands in the rows of bad examples, depend on how many rows a replica has.
"""

from collections.abc import Callable
import dataclasses

import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.config import InputError
from conadv_tf.data import augment as augmentation
from conadv_tf.data import decode, encoded, mix, positions, tolerant
from conadv_tf.data.encoded import EncodedSource, Example, Shard
from conadv_tf.data.source import DecodedSource, Source
from conadv_tf.data.tolerant import Batch, Images

_ONE = Shard()


def train_dataset(
    source: Source, *, global_batch_size: int, micro_batches: int = 1,
    seed: int = 0, augment: str = 'none', start_step: int = 0,
    num_steps: int, shard: Shard = _ONE, input_shards: int = 1,
    deterministic: bool = True, streams: int = 1, mixup: float = 0.0,
    cutmix: float = 0.0, replicas: int = 1, part: int = 0
) -> tf.data.Dataset:
  """Returns the training batches of `num_steps` steps.

  Epochs' permutations are laid end to end and cut into batches: every example
  is seen once an epoch, and a batch may be larger than the training set.

  Args:
    source: the training set.
    global_batch_size: clean examples per step, B.
    micro_batches: elements per step, k; divides B.
    seed: the run's seed.
    augment: one of `augment.NAMES`.
    start_step: the step of the first batch.
    num_steps: how many steps.
    shard: which of P input pipelines (`index` and `count`).
    input_shards: S of `records.RecordSource`, on which the order of a stream
      depends, so that a run keeps it; other sources ignore it.
    deterministic: whether the rows of encoded images keep their order; if not,
      slow ones are overtaken, and no run can be repeated exactly.
    streams: 2 for images as {"image": without, "augmented": with the policy
      `augment`}; both have the same crop and flip.
    mixup: alpha of `mix.mix_batch`; 0 is off, as for `cutmix`.
    cutmix: alpha.
    replicas: parts of this pipeline's elements, one for each of its own
      replicas, that are not mixed with, nor mended from, each other.
    part: of a run's sources; each has an order and an augmentation of its own.

  Returns:
    num_steps * k elements (image uint8 [b, h, w, c], label int32 [b] or, mixed,
    float32 [b, classes], weight float32 [b]: 0 for bad examples, else 1),
    statically shaped, b = B/k/P. Element e of step t holds the b rows of
    global batch t that begin at row e*B/k + shard.index*b.

  Raises:
    InputError: numbers that do not divide, or an augmentation that is unknown
      or does not fit images or streams.
  """
  _check_batches(global_batch_size, micro_batches, start_step, num_steps)
  shard = _training_shard(shard, global_batch_size, micro_batches, replicas)
  _check_streams(source, augment, streams)
  order, words = _keys(seed, part)
  first, count = start_step * micro_batches, num_steps * micro_batches
  if isinstance(source, EncodedSource):
    examples = source.training_examples(
        order, start_step, num_steps, shard, input_shards, deterministic)
    elements = _encoded_training(source, examples, words, augment, streams,
                                 first, count, shard, deterministic, replicas)
  else:
    elements = _decoded_training(
        source, order, words, augment, streams, first, count, shard)
  if mixup or cutmix:
    elements = mixed(elements, seed, first, shard, mixup, cutmix,
                     source.num_classes, replicas)
  return ahead(elements)


def evaluation_dataset(
    source: Source, batch_size: int, shard: Shard = _ONE) -> tf.data.Dataset:
  """Returns every example once, in order.

  Args:
    source: any split.
    batch_size: rows per element over all input pipelines.
    shard: which of P input pipelines, each of which has examples of its own.

  Returns:
    ceil(N / batch_size) elements, of N examples in all, for every pipeline:
    (image uint8 [b, h, w, c], label int32 [b], weight float32 [b]), statically
    shaped, b = batch_size / P. Row r of element e of pipeline i holds example
    e * batch_size + i * b + r of the one order that the source has. Rows after
    the last example have weight 0 and hold a copy of another (or zeros), as
    do those of bad examples; all others have weight 1.

  Raises:
    InputError: batch_size below 1, or P does not divide it.
  """
  if batch_size < 1:
    raise InputError(
        f'evaluation.batch_size={batch_size}: must be at least 1.')
  rows = _rows(batch_size, shard, 'evaluation.batch_size')
  shard = dataclasses.replace(shard, rows=rows, elements=1)
  if isinstance(source, EncodedSource):
    return _encoded_evaluation(source, shard)
  last = source.num_examples - 1

  def element(number: tf.Tensor) -> Batch:
    start = shard.position(number * rows)
    indices = start + tf.range(rows, dtype=tf.int64)
    images, labels = source.read(tf.minimum(indices, last))
    return images, labels, tf.cast(indices <= last, tf.float32)

  return ahead(_mapped(
      tf.data.Dataset.range(-(-source.num_examples // batch_size)), element))


def drawn_dataset(
    source: Source, count: int, *, seed: int, number: int) -> tf.data.Dataset:
  """Returns one element of random examples as evaluation sees them.

  Draws 0, 1, ... of a seed cut an order of its own, permutation after
  permutation of all examples, into parts of `count`, as training's batches
  are cut; training's order has nothing to do with it.

  Args:
    source: any split; of a stream the shuffle buffer is filled, and what
      stands before the draw is read.
    count: examples of a draw, at least 1.
    seed: the run's seed.
    number: which draw.

  Returns:
    (image uint8 [count, h, w, c], label int32 [count], weight float32
    [count]), without augmentation; bad examples have weight 0.

  Raises:
    InputError: count below 1.
  """
  if count < 1:
    raise InputError(f'{count} examples were to be drawn; at least 1 can.')
  with tf.device('CPU:0'):
    key = randomness.make_key(seed, randomness.CURVATURE)
  if isinstance(source, EncodedSource):
    examples = source.training_examples(
        key, number, 1, Shard(rows=count), 1, True)
    return ahead(_undistorted(source, examples, count))

  def element(first: tf.Tensor) -> Batch:
    images, labels = source.read(positions.shuffled(
        key, first + tf.range(count, dtype=tf.int64), source.num_examples))
    return images, labels, tf.ones([count])

  return ahead(_mapped(
      tf.data.Dataset.from_tensors(tf.constant(number * count, tf.int64)),
      element))


def ahead(elements: tf.data.Dataset) -> tf.data.Dataset:
  """Makes elements before they are asked for."""
  options = tf.data.Options()
  # The end of an iterator waits for its tuning thread, which sleeps for up to
  # a minute and may miss the call (TensorFlow 2.15). Without it a map takes
  # all cores.
  options.autotune.enabled = False
  return elements.prefetch(tf.data.AUTOTUNE).with_options(options)


def _keys(seed: int, part: int) -> list[randomness.Key]:
  """Returns the keys of order and augmentation."""
  with tf.device('CPU:0'):
    keys = [randomness.make_key(seed, purpose) for purpose in (
        randomness.ORDER, randomness.AUGMENTATION)]
    return [randomness.fold(key, part) for key in keys] if part else keys


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


def _training_shard(
    shard: Shard, global_batch_size: int, micro_batches: int, replicas: int
) -> Shard:
  """Returns the shard with its rows; raises InputError if they do not fit."""
  rows = _rows(global_batch_size // micro_batches, shard,
               'data.global_batch_size / runtime.micro_batches')
  if rows % replicas:
    raise InputError(
        f'data.global_batch_size={global_batch_size}: {rows} rows of an input '
        f'pipeline do not divide among its {replicas} replicas; change it to '
        'a multiple.')
  return dataclasses.replace(shard, rows=rows, elements=micro_batches)


def _check_streams(source: Source, augment: str, streams: int) -> None:
  """Raises InputError for augmentation that fits source or streams not."""
  augmentation.check(augment, source.image_shape)
  if (isinstance(source, EncodedSource) and augment == 'crop_flip'
      and source.preprocessing == 'imagenet'):
    raise InputError(
        'data.augment=crop_flip: data.preprocessing=imagenet crops and flips '
        'already; set data.augment=none.')
  if streams == 2 and augment not in augmentation.POLICIES:
    raise InputError(
        f'data.augment={augment}: method.bn_branches=3 and '
        'method.augmented_stream train on an augmented stream; set it to one '
        f'of {", ".join(augmentation.POLICIES)}.')


def _rows(total: int, shard: Shard, what: str) -> int:
  """Returns one input pipeline's part of `total` rows."""
  if total % shard.count:
    raise InputError(
        f'{what}: {total} rows do not divide among {shard.count} input '
        'pipelines; change it to a multiple.')
  return total // shard.count


def _mapped(
    elements: tf.data.Dataset, element: Callable[..., Batch]
) -> tf.data.Dataset:
  """Makes elements in parallel, in order."""
  # No code here or in the augmentation library branches on tensors in plain
  # Python, and converting the library's takes longer than tracing it.
  return elements.map(
      tf.autograph.experimental.do_not_convert(element),
      num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _decoded_training(
    source: DecodedSource, order: randomness.Key, key: randomness.Key,
    augment: str, streams: int, first: int, count: int, shard: Shard
) -> tf.data.Dataset:
  """Elements first .. first+count-1 of a source with random access."""
  rows, words = shard.rows, augmentation.words(augment)

  def element(number: tf.Tensor) -> Batch:
    start = shard.position(number * rows)
    images, labels = source.read(positions.shuffled(
        order, start + tf.range(rows, dtype=tf.int64), source.num_examples))
    if words:
      # Given the seed, a position and the pair (epoch, example) determine
      # each other, so this keys by (seed, epoch, example).
      images = _streams(
          augment, images, positions.bits(key, start, rows, words), streams)
    return images, labels, tf.ones([rows])

  return _mapped(tf.data.Dataset.range(first, first + count), element)


def _streams(
    augment: str, images: tf.Tensor, bits: tf.Tensor, streams: int) -> Images:
  """Augments, and with two streams also only crops and flips."""
  augmented = augmentation.apply(augment, images, bits)
  if streams == 1:
    return augmented
  return {'image': augmentation.apply('crop_flip', images, bits),
          'augmented': augmented}


def _encoded_training(
    source: EncodedSource, examples: tf.data.Dataset, key: randomness.Key,
    augment: str, streams: int, first: int, count: int, shard: Shard,
    deterministic: bool, replicas: int) -> tf.data.Dataset:
  """Elements first .. first+count-1, of the examples of encoded images."""
  size, _, channels = source.image_shape
  start = first * shard.rows

  def resized(content: tf.Tensor, boxes: tf.Tensor, bits: tf.Tensor) -> Images:
    del boxes
    image = decode.whole(content, size, channels)
    return _streams(augment, image, bits, streams)

  def cropped(content: tf.Tensor, boxes: tf.Tensor, bits: tf.Tensor) -> Images:
    image = decode.distorted(
        content, boxes, bits[:decode.WORDS], size, channels)
    if augment == 'none':
      return image
    augmented = augmentation.policy(augment, image, bits[decode.WORDS:])
    return augmented if streams == 1 else {
        'image': image, 'augmented': augmented}

  is_cropped = source.preprocessing == 'imagenet'
  words = augmentation.words(augment) or decode.WORDS
  make = cropped if is_cropped else resized

  def draw(number: tf.Tensor) -> tf.Tensor:
    return positions.bits(
        key, shard.position(start + number * shard.rows), shard.rows, words)

  def images(bits: tf.Tensor, example: Example) -> Images:
    return make(source.content(example), example.boxes, bits)

  elements = tolerant.batches(
      source, examples, images, draw, shard.rows, deterministic, replicas)
  return elements.apply(tf.data.experimental.assert_cardinality(count))


def mixed(
    elements: tf.data.Dataset, seed: int, first: int, shard: Shard,
    mixup: float, cutmix: float, num_classes: int, replicas: int
) -> tf.data.Dataset:
  """Mixes each of a pipeline's replicas by its number in the whole run.

  Args:
    elements: of a pipeline, those of `train_dataset` without mixing.
    seed: the run's seed.
    first: number of the first element in the whole run.
    shard: which pipeline.
    mixup: see `train_dataset`, as the rest.
    cutmix: alpha.
    num_classes: of the probabilities that labels become.
    replicas: of this pipeline.
  """
  with tf.device('CPU:0'):
    key = randomness.make_key(seed, randomness.MIXING)

  def element(number: tf.Tensor, batch: Batch) -> Batch:
    return mix.mix_batch(
        *batch, key, number * shard.count + shard.index, mixup, cutmix,
        num_classes, replicas)

  return _mapped(elements.enumerate(first), element)


def _undistorted(source: EncodedSource, examples: tf.data.Dataset, rows: int
                 ) -> tf.data.Dataset:
  """Elements of `rows` encoded examples as evaluation decodes them."""
  size, _, channels = source.image_shape
  make = decode.central if source.preprocessing == 'imagenet' else decode.whole

  def images(drawn: tf.Tensor, example: Example) -> tf.Tensor:
    del drawn
    return make(source.content(example), size, channels)

  return tolerant.batches(
      source, examples, images, lambda number: tf.zeros([rows, 1]), rows)


def _encoded_evaluation(
    source: EncodedSource, shard: Shard) -> tf.data.Dataset:
  """Each encoded image of a shard once, see `evaluation_dataset`."""
  examples = encoded.selected(source.evaluation_examples(), shard.own())
  elements = _undistorted(source, examples, shard.rows)
  blank = tf.data.Dataset.from_tensors(tf.nest.map_structure(
      lambda spec: tf.zeros(spec.shape, spec.dtype), elements.element_spec))
  count = -(-source.num_examples // shard.batch)
  # Elements that begin before the last example.
  filled = len(range(
      shard.index * shard.rows, source.num_examples, shard.batch))
  elements = elements.concatenate(blank.repeat(count - filled))
  return ahead(elements.apply(
      tf.data.experimental.assert_cardinality(count)))
