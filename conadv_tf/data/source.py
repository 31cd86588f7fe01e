"""Image classification data, held in memory or encoded elsewhere."""

import abc
from collections.abc import Sequence
import dataclasses

import numpy as np
import tensorflow as tf

from conadv_tf.config import InputError
from conadv_tf.data import checks, decode


class Source(abc.ABC):
  """Labelled images of one split.

  Attributes:
    num_examples: how many examples there are, at least 1.
    num_classes: labels lie in 0 .. num_classes-1.
    image_shape: (height, width, channels) of every image.
    class_names: one name per class, or None.
  """

  num_examples: int
  num_classes: int
  image_shape: tuple[int, int, int]
  class_names: tuple[str, ...] | None

  @abc.abstractmethod
  def subset(self, indices: np.ndarray) -> 'Source':
    """Returns the examples with these numbers, int64 [n], rising.

    Raises:
      InputError: the source cannot do that.
    """

  def check(self) -> None:
    """Raises InputError if what was read so far cannot be trained on."""
    return


class DecodedSource(Source):
  """Images that can be read in any order."""

  @abc.abstractmethod
  def read(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Reads examples; usable inside `tf.data` maps and functions.

    Args:
      indices: int64 [b], each in 0 .. num_examples-1; b is static.

    Returns:
      Images, uint8 [b, height, width, channels], and labels, int32 [b].
    """

  def subset(self, indices: np.ndarray) -> 'DecodedSource':
    """See the base class."""
    return SubsetSource(self, indices)


class ArraySource(DecodedSource):
  """Images and labels held in memory."""

  def __init__(
      self, images: np.ndarray, labels: np.ndarray, *,
      num_classes: int | None = None,
      class_names: Sequence[str] | None = None,
      image_size: int | None = None, where: str = 'the arrays') -> None:
    """Checks and takes the arrays.

    Args:
      images: uint8 [n, h, w, c] or [n, h, w] (greyscale).
      labels: integers [n] or [n, 1].
      num_classes: number of classes; None means the largest label plus 1.
      class_names: one per class.
      image_size: where given, images must be square and of this size.
      where: what the arrays are, for error messages.

    Raises:
      InputError: wrong type, rank, size or length; label out of range.
    """
    images = checks.check_images(images, where, image_size)
    labels = checks.check_labels(labels, where, num_classes)
    if len(images) != len(labels):
      raise InputError(
          f'{where}: {len(images)} images but {len(labels)} labels; they must '
          'be equal in number.')
    self.num_examples = len(images)
    self.num_classes = num_classes or int(labels.max()) + 1
    self.image_shape = tuple(images.shape[1:])
    self.class_names = tuple(class_names) if class_names else None
    # Tensors made here are captured by the map functions. A NumPy array would
    # become a constant of the graph, which cannot exceed 2 GB.
    with tf.device('CPU:0'):
      self._images = tf.constant(images)
      self._labels = tf.constant(labels.astype(np.int32))

  def read(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """See the base class."""
    return tf.gather(self._images, indices), tf.gather(self._labels, indices)


class SubsetSource(DecodedSource):
  """Some of another source's examples."""

  def __init__(self, source: DecodedSource, indices: np.ndarray) -> None:
    """Takes a source and the int64 [n] indices to keep, in order."""
    self.num_examples = len(indices)
    self.num_classes = source.num_classes
    self.image_shape = source.image_shape
    self.class_names = source.class_names
    self.source = source
    with tf.device('CPU:0'):
      self._indices = tf.constant(indices, tf.int64)

  def read(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """See the base class."""
    return self.source.read(tf.gather(self._indices, indices))


class ResizedSource(DecodedSource):
  """Another source's images as squares of another size, made when read."""

  def __init__(self, source: DecodedSource, image_size: int) -> None:
    """Takes a source and the side of the squares, in pixels."""
    self.num_examples = source.num_examples
    self.num_classes = source.num_classes
    self.image_shape = (image_size, image_size, source.image_shape[-1])
    self.class_names = source.class_names
    self.source = source

  def read(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """See the base class; bilinear, rounded."""
    images, labels = self.source.read(indices)
    return decode.resized(images, self.image_shape[:2]), labels


def resize(source: DecodedSource, image_size: int | None) -> DecodedSource:
  """Returns the source, or where its images have another size a resized one.

  Args:
    source: any.
    image_size: `data.image_size`, pixels; null keeps the images as they are.
  """
  if image_size is None or source.image_shape[:2] == (image_size, image_size):
    return source
  return ResizedSource(source, image_size)


@dataclasses.dataclass(frozen=True)
class Splits:
  """What is trained on and what is evaluated.

  Attributes:
    train: labelled.
    validation: labelled.
    unlabelled: images that are trained on as well, see `unlabelled.py`.
    is_pooled: whether these are part of the training set like all others.

  Raises:
    InputError: the first two differ in image shape or number of classes.
  """
  train: Source
  validation: Source
  unlabelled: Source | None = None
  is_pooled: bool = False

  @property
  def num_training(self) -> int:
    """Examples of an epoch."""
    return self.train.num_examples + (
        self.unlabelled.num_examples if self.is_pooled else 0)

  def __post_init__(self) -> None:
    for key in ('image_shape', 'num_classes'):
      train, validation = getattr(self.train, key), getattr(
          self.validation, key)
      if train != validation:
        raise InputError(
            f'{key} differs between the training set ({train}) and the '
            f'validation set ({validation}); make them equal.')


def truncate(source: Source, num_examples: int | None) -> Source:
  """Keeps a fixed random subset, which does not depend on the run's seed.

  Random and not the first ones, since many data sets are sorted by class.

  Args:
    source: the whole training set.
    num_examples: how many to keep; None keeps all.

  Returns:
    The source, or a subset of it in the original order.

  Raises:
    InputError: not in 1 .. source.num_examples.
  """
  if num_examples is None or num_examples == source.num_examples:
    return source
  if not 1 <= num_examples <= source.num_examples:
    raise InputError(
        f'data.num_examples={num_examples}: must lie in 1 .. '
        f'{source.num_examples}, the size of the training set.')
  order = np.random.default_rng(0).permutation(source.num_examples)
  return source.subset(np.sort(order[:num_examples]))
