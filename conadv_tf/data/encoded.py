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
  """One input pipeline of several, for instance one per host.

  Attributes:
    index: which one, 0 .. count-1.
    count: how many there are, P.
    rows: how many consecutive rows of a run's examples each takes in turn.
  """
  index: int = 0
  count: int = 1
  rows: int = 1

  def position(self, own: tf.Tensor) -> tf.Tensor:
    """Position in the run, int64, of this shard's own position `own`."""
    if self.count == 1:
      return own  # saves work for every image
    return ((own // self.rows) * self.count + self.index) * self.rows + (
        own % self.rows)


class BadExamples:
  """Images of one split that cannot be used, up to a limit; thread-safe.

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
      self, key: randomness.Key, start: int, count: int, shard: Shard,
      deterministic: bool) -> tf.data.Dataset:
    """Returns part of this shard's endless sequence of epochs.

    Every epoch is a permutation, keyed by (key, epoch); element i is a
    function of (key, start + i) alone.

    Args:
      key: of the order.
      start: position, among the shard's own, of the first element.
      count: how many elements.
      shard: which input pipeline of how many.
      deterministic: whether the order must be exactly this.

    Returns:
      A dataset of `count` elements `Example`.
    """

  @abc.abstractmethod
  def evaluation_examples(self, shard: Shard) -> tf.data.Dataset:
    """Returns each `Example` of the shard once, in a fixed order."""

  @abc.abstractmethod
  def shard_size(self, shard: Shard) -> int:
    """Returns how many examples `evaluation_examples` has."""

  def content(self, example: Example) -> tf.Tensor:
    """Returns the encoded bytes, string []; runs where they are decoded."""
    return example.content

  def check(self) -> None:
    """Raises InputError if more bad examples were met than are allowed."""
    self.bad.check()


class IndexedSource(EncodedSource):
  """Encoded images in memory or in files of their own: any order is free.

  Order and augmentation do not depend on the number of shards: what they
  yield, put together, is what one pipeline yields.
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
      self, key: randomness.Key, start: int, count: int, shard: Shard,
      deterministic: bool) -> tf.data.Dataset:
    """See the base class."""
    del deterministic  # The order costs nothing.

    def chosen(own: tf.Tensor) -> tf.Tensor:
      return positions.shuffled(
          key, shard.position(own), self.num_examples)

    return self._examples(start, count, chosen)

  def evaluation_examples(self, shard: Shard) -> tf.data.Dataset:
    """See the base class."""
    return self._examples(
        0, self.shard_size(shard),
        lambda own: tf.minimum(own * shard.count + shard.index,
                               self.num_examples - 1))

  def shard_size(self, shard: Shard) -> int:
    """See the base class."""
    return len(range(shard.index, self.num_examples, shard.count))

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
