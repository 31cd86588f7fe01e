"""Encoded images streamed from TFRecord files, too many for memory."""

from collections.abc import Callable, Sequence

from absl import logging
import numpy as np
import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.config import InputError
from conadv_tf.data import encoded
from conadv_tf.data.encoded import Example
from conadv_tf.data.record_index import RecordFile

_CYCLE = 10  # Files read at a time, as in the MLPerf reference.
_READ_BYTES = 8 * 2**20  # At a time; remote storage is slow to start.
_MAX_LABEL = 2**31 - 1
_GIB = 2**30

# No code here branches on tensors in plain Python, and converting it takes
# longer than tracing it.
_as_it_is = tf.autograph.experimental.do_not_convert

Parse = Callable[[tf.Tensor], Example]


class RecordSource(encoded.EncodedSource):
  """Examples of TFRecord files, in epochs that are never held in memory.

  The files are divided among `input_shards` streams, S, and stream s yields
  rows s*B/S to (s+1)*B/S of every global batch. An epoch of a stream goes
  through all of its files, in an order of its own, several at a time, and
  then through a shuffle buffer; every example comes exactly once. To start at
  position p of a stream of n examples, the first p % n records of its epoch
  p // n are read and dropped, without decoding their images.

  An input pipeline reads every stream that it needs rows of, and drops the
  other pipelines' rows of it before they are decoded. So what a run sees
  depends on S, but on neither k nor P. With S = k * P, of k elements a batch
  and P pipelines, each pipeline reads only files of its own.

  Each stream has a buffer of encoded images: 10,000 of ImageNet's are 1.1 GB.

  A record whose payload is damaged, or that cannot be parsed, becomes an
  example without content, so that no other one changes its place. TensorFlow
  cannot read on behind a damaged payload: it costs the rest of its file.

  Attributes:
    bytes: of all files together.
  """

  empty = 'it is empty, or its record is damaged'

  def __init__(
      self, files: Sequence[RecordFile], parse: Parse, *, num_classes: int,
      image_size: int, channels: int = 3,
      class_names: Sequence[str] | None = None, preprocessing: str = 'resize',
      shuffle_buffer: int = 10000, bad: encoded.BadExamples | None = None,
      where: str = 'the records') -> None:
    """Takes the files of a split; nothing is read yet.

    Args:
      files: with the number of records that each is to yield.
      parse: makes an `Example` of a record, string []; its `name` is what
        the record itself is called, or b"". It may raise.
      num_classes: how many classes there are.
      image_size: pixels; every image becomes this square.
      channels: 3 (RGB) or 1 (grey).
      class_names: one per class.
      preprocessing: see `EncodedSource`.
      shuffle_buffer: examples to draw the next one from, in each stream; 1
        leaves the order to the files.
      bad: where bad examples are counted; by default none are allowed.
      where: what the files are, for messages.

    Raises:
      InputError: no records; size below 1; more damaged files than bad
        examples are allowed.
    """
    if image_size < 1:
      raise InputError(f'data.image_size={image_size}: must be at least 1.')
    self.bad = bad or encoded.BadExamples(0, where)
    for file in files:
      for number in range(file.records - file.lost, file.records):
        self.bad.add(f'{file.path} record {number}', f'its file {file.damage}')
      if file.damage and not file.lost:
        self.bad.add(file.path, file.damage)
    self.bad.check()
    self._files = [file for file in files if file.records]
    if not self._files:
      raise InputError(f'{where}: its files hold no records.')
    self.num_examples = sum(file.records for file in self._files)
    self.bytes = sum(file.size for file in self._files)
    self.num_classes = num_classes
    self.image_shape = (image_size, image_size, channels)
    self.class_names = tuple(class_names) if class_names else None
    self.preprocessing = preprocessing
    self._parse = parse
    self._shuffle_buffer = shuffle_buffer
    self._where = where

  def subset(self, indices: np.ndarray) -> 'RecordSource':
    """Raises InputError: streams have no random access."""
    raise InputError(
        f'{self._where}: {len(indices)} of {self.num_examples} examples cannot '
        'be picked from a stream; set data.cache=true, or leave '
        'data.num_examples null and evaluation.train_examples 0.')

  def training_examples(
      self, key: randomness.Key, first: int, count: int, shard: encoded.Shard,
      input_shards: int, deterministic: bool) -> tf.data.Dataset:
    """See the base class.

    Raises:
      InputError: input_shards below 1, more than there are files, or no
        divisor of B.
    """
    self._check_input_shards(input_shards, shard.batch)
    share, own = shard.batch // input_shards, shard.own()
    numbers, turns = np.unique(
        np.flatnonzero(own) // share, return_inverse=True)
    streams = []
    for number in numbers:
      wanted = own[number * share:(number + 1) * share]
      # Pipelines that share a stream must agree on its order.
      streams.append(encoded.selected(self._stream(
          self._files[number::input_shards], key, first * share, count * share,
          deterministic or not wanted.all()), wanted))
    if len(streams) == 1:
      return streams[0]
    return tf.data.Dataset.choose_from_datasets(
        streams, tf.data.Dataset.from_tensor_slices(
            turns.astype(np.int64)).repeat(count))

  def _check_input_shards(self, input_shards: int, batch: int) -> None:
    """Raises InputError unless batches and files can be divided so."""
    if input_shards < 1 or batch % input_shards:
      raise InputError(
          f'data.input_shards={input_shards}: must be at least 1 and divide '
          f'data.global_batch_size={batch}.')
    if len(self._files) < input_shards:
      raise InputError(
          f'data.input_shards={input_shards}: the {len(self._files)} files of '
          f'{self._where} cannot be divided into so many parts; lower it, or '
          'make more files.')

  def _stream(
      self, files: Sequence[RecordFile], key: randomness.Key, start: int,
      count: int, deterministic: bool) -> tf.data.Dataset:
    """Returns `count` examples of the epochs of some files from `start` on."""
    paths = [file.path for file in files]
    records = [file.records for file in files]
    size = sum(records)
    first = start // size

    @_as_it_is
    def epoch(number: tf.Tensor) -> tf.data.Dataset:
      own = randomness.fold(key, number)
      order = tf.random.experimental.stateless_shuffle(
          tf.range(len(paths)), randomness.fold(own, 0), alg='philox')
      examples = _shuffled(
          self._read(tf.gather(paths, order), tf.gather(records, order),
                     deterministic),
          self._shuffle_buffer, randomness.fold(own, 1))
      return examples.skip(tf.where(
          number == first, tf.constant(start % size, tf.int64), 0))

    epochs = tf.data.Dataset.range(first, (start + count - 1) // size + 1)
    return epochs.flat_map(epoch).take(count)

  def evaluation_examples(self) -> tf.data.Dataset:
    """See the base class."""
    return self._read(
        [file.path for file in self._files],
        [file.records for file in self._files], deterministic=True)

  def check(self) -> None:
    """See the base class; also if a file has gone or changed."""
    super().check()
    for file in self._files:
      if (not tf.io.gfile.exists(file.path)
          or tf.io.gfile.stat(file.path).length != file.size):
        raise InputError(f'{file.path}: has gone or changed since the start; '
                         'bring it back and start again.')

  def in_memory(self) -> encoded.IndexedSource:
    """Reads all files; returns the same split with random access.

    While it is made, the encoded images are in memory twice.
    """
    examples = list(self.evaluation_examples().as_numpy_iterator())
    logging.info(
        '%s: %d encoded images, %.2f GiB, are held in memory.', self._where,
        len(examples), sum(len(e.content) for e in examples) / _GIB)
    names = [e.name.decode(errors='replace') for e in examples]
    for name, example in zip(names, examples):
      if not example.content:
        self.bad.add(name, self.empty)
    size, _, channels = self.image_shape
    held = encoded.IndexedSource(
        [e.content for e in examples], np.array([e.label for e in examples]),
        image_size=size, channels=channels, num_classes=self.num_classes,
        class_names=self.class_names, names=names,
        boxes=[e.boxes for e in examples], preprocessing=self.preprocessing,
        bad=self.bad, where=self._where)
    held.empty = self.empty
    return held

  def _read(
      self, paths: Sequence[str] | tf.Tensor,
      records: Sequence[int] | tf.Tensor, deterministic: bool
  ) -> tf.data.Dataset:
    """Reads files side by side."""
    files = tf.data.Dataset.from_tensor_slices(
        (tf.convert_to_tensor(paths), tf.cast(records, tf.int64)))
    return files.interleave(
        _as_it_is(self._read_file), cycle_length=_CYCLE,
        num_parallel_calls=tf.data.AUTOTUNE, deterministic=deterministic)

  def _read_file(self, path: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
    """Returns exactly `count` examples of a file."""

    def example(number: tf.Tensor, record: tf.Tensor) -> Example:
      parsed = self._parse(record)
      return parsed._replace(name=_name(path, number, parsed.name))

    def lost(number: tf.Tensor, record: tf.Tensor) -> tf.data.Dataset:
      # One element, without content, if parsing fails; else none.
      parsed = tf.data.Dataset.from_tensors((number, record)).map(
          example).ignore_errors().map(lambda _: True)
      failed = parsed.concatenate(
          tf.data.Dataset.from_tensors(False)).take(1).filter(
              tf.math.logical_not)
      return failed.map(lambda _: _without_content(_name(path, number, '')))

    records = tf.data.TFRecordDataset(path, buffer_size=_READ_BYTES)
    # In place of what is behind a damaged payload: examples without features.
    records = records.ignore_errors().concatenate(
        tf.data.Dataset.from_tensors('').repeat()).take(count).enumerate()
    parsed = records.map(example).ignore_errors()
    # The file is read again only where something is missing.
    examples = parsed.concatenate(records.flat_map(lost)).take(count)
    # A file that has gone must raise, and not be ignored as damage.
    probe = tf.data.FixedLengthRecordDataset(path, 1, buffer_size=1024)
    return probe.take(1).skip(1).map(_without_content).concatenate(examples)


def label(number: tf.Tensor, offset: int = 0) -> tf.Tensor:
  """Returns int64 [] `number - offset` as int32, -1 where that has no room."""
  number -= offset
  fits = (number >= 0) & (number <= _MAX_LABEL)
  return tf.cast(tf.where(fits, number, -1), tf.int32)


def _name(path: tf.Tensor, number: tf.Tensor, own: tf.Tensor) -> tf.Tensor:
  """Returns "FILE record K (own name)"; the first record is record 0."""
  place = tf.strings.join([path, ' record ', tf.strings.as_string(number)])
  # The own name alone need not be unique, and does not say which file.
  return tf.where(tf.strings.length(own) > 0,
                  tf.strings.join([place, ' (', own, ')']), place)


def _without_content(name: tf.Tensor) -> Example:
  return Example(tf.constant(b''), tf.constant(-1), tf.zeros([0, 4]), name)


def _shuffled(
    examples: tf.data.Dataset, buffer_size: int, key: randomness.Key
) -> tf.data.Dataset:
  """Shuffles by a key.

  `Dataset.shuffle` mixes the process's global seed into its own, and takes no
  seed that is a tensor; its op does as told.
  """
  specs = tf.nest.flatten(examples.element_spec)
  # Two zeros would mean a random seed.
  seeds = tf.cast(key, tf.int64) | 1
  shuffled = tf.raw_ops.ShuffleDataset(
      input_dataset=tf.data.experimental.to_variant(examples),
      buffer_size=buffer_size, seed=seeds[0], seed2=seeds[1],
      output_types=[spec.dtype for spec in specs],
      output_shapes=[spec.shape for spec in specs],
      reshuffle_each_iteration=False)
  return tf.data.experimental.from_variant(shuffled, examples.element_spec)
