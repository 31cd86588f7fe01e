"""Encoded images: where they come from, and what becomes of broken ones."""

import abc
from collections.abc import Callable, Sequence
import copy
import dataclasses
import threading
from typing import NamedTuple

from absl import logging
import numpy as np
import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.config import InputError
from conadv_tf.data import checks, positions
from conadv_tf.data.source import Source

_NAMED = 5  # Bad examples that an error names.
_WHOLE_IMAGE = [[0.0, 0.0, 1.0, 1.0]]
_CHUNK = 64  # Examples looked up at a time.

# No code here branches on tensors in plain Python.
_as_it_is = tf.autograph.experimental.do_not_convert


class Example(NamedTuple):
  """One encoded, labelled image, inside tf.data.

  Attributes:
    content: string [], JPEG, PNG, GIF or BMP bytes; anything else is a bad
      example, as is b"".
    label: int32 [], from 0; outside 0 .. num_classes-1 is a bad example.
    boxes: float32 [n, 4], ymin xmin ymax xmax in 0..1; n may be 0.
    name: string [], what messages call it: a path, or "FILE record K".
  """
  content: tf.Tensor
  label: tf.Tensor
  boxes: tf.Tensor
  name: tf.Tensor


@dataclasses.dataclass(frozen=True)
class Shard:
  """What one input pipeline of several yields, for instance one per host.

  Attributes:
    index: which one, 0 .. count-1.
    count: how many there are, P.
    rows: how many consecutive rows of every element each yields, b.
    elements: how many elements make a global batch, k.
  """
  index: int = 0
  count: int = 1
  rows: int = 1
  elements: int = 1

  @property
  def batch(self) -> int:
    """Rows of a global batch, B = k * P * b."""
    return self.elements * self.count * self.rows

  def own(self) -> np.ndarray:
    """Which rows of a global batch this shard yields, bool [B]."""
    return np.arange(self.batch) // self.rows % self.count == self.index

  def position(self, own: tf.Tensor) -> tf.Tensor:
    """Position in the run, int64, of this shard's own position `own`."""
    if self.count == 1:
      return own  # saves work for every image
    return ((own // self.rows) * self.count + self.index) * self.rows + (
        own % self.rows)


class BadExamples:
  """Images of one split that cannot be used, up to a limit; thread-safe.

  Each process counts what its own input pipelines decode, so that with
  several processes the limit is one for each of them.

  Attributes:
    names: reason of each, by name, in the order they were met.
  """

  def __init__(self, limit: int, where: str) -> None:
    """Takes `data.max_bad_examples` and what the split is, for messages."""
    self.names: dict[str, str] = {}
    self._limit = limit
    self._where = where
    self._lock = threading.Lock()

  def add(self, name: str, reason: str) -> None:
    """Counts an example once, however often it is met, and logs it."""
    with self._lock:
      if name in self.names:
        return
      self.names[name] = reason
    if self._limit:
      logging.warning('%s: %s; it is left out (bad example %d, '
                      'data.max_bad_examples=%d).', name, reason,
                      len(self.names), self._limit)

  def check(self) -> None:
    """Raises InputError if there are more than the limit."""
    with self._lock:
      found = list(self.names.items())
    if len(found) <= self._limit:
      return
    named = '; '.join(f'{name}: {reason}' for name, reason in found[:_NAMED])
    if len(found) == 1:
      raise InputError(
          f'{named}; replace or remove it, or allow for some by '
          'data.max_bad_examples.')
    raise InputError(
        f'{self._where}: {len(found)} bad examples, more than '
        f'data.max_bad_examples={self._limit}; replace or remove them, or '
        f'raise it. {named}{"; ..." if len(found) > _NAMED else ""}')


class EncodedSource(Source):
  """Encoded images, decoded one by one by the pipeline.

  Attributes:
    preprocessing: "resize" (the whole image is resized to a square) or
      "imagenet" (random windows in training, the centre in evaluation).
    bad: what could not be used so far.
    empty: why an example without content is bad.
  """

  empty = 'it is empty'
  preprocessing: str
  bad: BadExamples

  @abc.abstractmethod
  def training_examples(
      self, key: randomness.Key, first: int, count: int, shard: Shard,
      input_shards: int, deterministic: bool) -> tf.data.Dataset:
    """Returns this shard's rows of some batches of an endless run.

    Epochs are permutations, keyed by (key, epoch). The example in a row of a
    batch is a function of (key, batch, row, B, input_shards) alone; it does
    not depend on what the batch is divided into, k and P.

    Args:
      key: of the order.
      first: number of the first batch.
      count: how many batches.
      shard: which rows of each.
      input_shards: how many parts the files of a stream are divided into;
        sources with random access ignore it.
      deterministic: whether the order must be exactly this.

    Returns:
      A dataset of `count * k * b` elements `Example`.
    """

  @abc.abstractmethod
  def evaluation_examples(self) -> tf.data.Dataset:
    """Returns each `Example` once, in a fixed order."""

  def content(self, example: Example) -> tf.Tensor:
    """Returns the encoded bytes, string []; runs where they are decoded."""
    return example.content

  def check(self) -> None:
    """Raises InputError if more bad examples were met than are allowed."""
    self.bad.check()


class IndexedSource(EncodedSource):
  """Encoded images in memory or in files of their own: any order is free.

  An epoch is one permutation of all examples, and B does not change it.
  """

  def __init__(
      self, contents: Sequence[bytes | str], labels: np.ndarray, *,
      image_size: int, channels: int = 3, num_classes: int | None = None,
      class_names: Sequence[str] | None = None, from_files: bool = False,
      names: Sequence[str] | None = None,
      boxes: Sequence[np.ndarray] | None = None,
      preprocessing: str = 'resize', bad: BadExamples | None = None,
      where: str = 'the images') -> None:
    """Takes encoded images, or the paths of the files that hold them.

    Args:
      contents: encoded bytes, or paths if `from_files`.
      labels: integers [n].
      image_size: pixels; every image becomes this square.
      channels: 3 (RGB) or 1 (grey).
      num_classes: number of classes; None means the largest label plus 1.
        Examples with other labels are bad ones.
      class_names: one per class.
      from_files: whether `contents` are paths.
      names: what to call each image in messages; default: the paths, or
        `where` and the number of the example.
      boxes: float32 [k, 4] for each image, see `Example`.
      preprocessing: see the class `EncodedSource`.
      bad: where bad examples are counted; by default none are allowed.
      where: what the images are, for messages.

    Raises:
      InputError: empty; numbers differ; size below 1; more bad labels than
        bad examples are allowed.
    """
    if image_size < 1:
      raise InputError(f'data.image_size={image_size}: must be at least 1.')
    labels = checks.check_label_array(labels, where, num_classes)
    if len(contents) != len(labels):
      raise InputError(
          f'{where}: {len(contents)} images but {len(labels)} labels; they '
          'must be equal in number.')
    self.num_examples = len(contents)
    self.num_classes = num_classes or max(1, int(labels.max()) + 1)
    self.image_shape = (image_size, image_size, channels)
    self.class_names = tuple(class_names) if class_names else None
    self.preprocessing = preprocessing
    self.bad = bad or BadExamples(0, where)
    self._from_files = from_files
    if names is None:
      names = contents if from_files else [
          f'{where}, example {i}' for i in range(len(contents))]
    labels = self._checked_labels(labels, names)
    # Tensors made here are captured by the map functions, where a NumPy array
    # would become a constant of the graph, which cannot exceed 2 GB.
    with tf.device('CPU:0'):
      self._contents = tf.constant(list(contents), tf.string)
      self._labels = tf.constant(labels)
      self._names = tf.constant(list(names), tf.string)
      self._boxes = None if boxes is None else tf.constant(
          [np.asarray(b, '<f4').tobytes() for b in boxes], tf.string)
      self._kept = tf.range(self.num_examples, dtype=tf.int64)

  def _checked_labels(
      self, labels: np.ndarray, names: Sequence[bytes | str]) -> np.ndarray:
    """Counts labels out of range; returns int32 [n] with -1 for those."""
    outside = (labels < 0) | (labels >= self.num_classes)
    for i in np.flatnonzero(outside):
      self.bad.add(tf.compat.as_str_any(names[i]), checks.label_reason(
          int(labels[i]), self.num_classes))
    self.bad.check()
    # Not cast as they are, since a large one would wrap into the range.
    return np.where(outside, -1, labels).astype(np.int32)

  def subset(self, indices: np.ndarray) -> 'IndexedSource':
    """See the base class."""
    part = copy.copy(self)
    part.num_examples = len(indices)
    with tf.device('CPU:0'):
      part._kept = tf.gather(self._kept, indices)
    return part

  def training_examples(
      self, key: randomness.Key, first: int, count: int, shard: Shard,
      input_shards: int, deterministic: bool) -> tf.data.Dataset:
    """See the base class."""
    del input_shards, deterministic  # The order costs nothing.
    rows = shard.elements * shard.rows

    def chosen(own: tf.Tensor) -> tf.Tensor:
      return positions.shuffled(
          key, shard.position(own), self.num_examples)

    return self._examples(first * rows, count * rows, chosen)

  def evaluation_examples(self) -> tf.data.Dataset:
    """See the base class."""
    return self._examples(
        0, self.num_examples,
        lambda own: tf.minimum(own, self.num_examples - 1))

  def content(self, example: Example) -> tf.Tensor:
    """See the base class."""
    if self._from_files:
      return tf.io.read_file(example.content)
    return example.content

  def _examples(
      self, start: int, count: int,
      chosen: Callable[[tf.Tensor], tf.Tensor]) -> tf.data.Dataset:
    """Looks up `count` examples, in chunks since each lookup costs time."""

    def chunk(first: tf.Tensor) -> Example:
      own = first + tf.range(_CHUNK, dtype=tf.int64)
      rows = tf.gather(self._kept, chosen(own))
      # One box, of the whole image, means the same as none, and `unbatch`
      # crashes on slices without elements.
      boxes = (tf.tile([_WHOLE_IMAGE], [_CHUNK, 1, 1]) if self._boxes is None
               else tf.gather(self._boxes, rows))
      return Example(tf.gather(self._contents, rows),
                     tf.gather(self._labels, rows), boxes,
                     tf.gather(self._names, rows))

    examples = tf.data.Dataset.range(start, start + count, _CHUNK).map(
        chunk).unbatch().take(count)
    if self._boxes is None:
      return examples
    return examples.map(lambda example: example._replace(
        boxes=tf.reshape(tf.io.decode_raw(example.boxes, tf.float32),
                         [-1, 4])))


def selected(examples: tf.data.Dataset, wanted: np.ndarray) -> tf.data.Dataset:
  """Keeps, of every n consecutive examples, those `wanted`, bool [n]."""
  if wanted.all():
    return examples
  marked = tf.data.Dataset.zip((
      tf.data.Dataset.from_tensor_slices(wanted).repeat(), examples))
  return marked.filter(_as_it_is(lambda is_wanted, _: is_wanted)).map(
      _as_it_is(lambda _, example: example))
