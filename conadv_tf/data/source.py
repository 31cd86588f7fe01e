"""Image classification data with random access.

Random access is what makes the pipeline a function of the step: any batch can
be made without having made those before it.
"""

import abc
from collections.abc import Sequence
import dataclasses

import numpy as np
import tensorflow as tf

from conadv_tf.config import InputError
from conadv_tf.data import checks

_PARALLEL_DECODES = 16


class Source(abc.ABC):
  """Labelled images that can be read in any order.

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
  def read(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Reads examples; usable inside `tf.data` maps and functions.

    Args:
      indices: int64 [b], each in 0 .. num_examples-1; b is static.

    Returns:
      Images, uint8 [b, height, width, channels], and labels, int32 [b].
    """

  def check(self, indices: Sequence[int] | None = None) -> None:
    """Raises InputError for an image that cannot be read; None means all."""
    del indices


class ArraySource(Source):
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


class EncodedSource(Source):
  """JPEG, PNG, GIF (first frame) or BMP images, decoded when they are read."""

  def __init__(
      self, contents: Sequence[bytes | str], labels: np.ndarray, *,
      image_size: int, channels: int = 3, num_classes: int | None = None,
      class_names: Sequence[str] | None = None, from_files: bool = False,
      names: Sequence[str] | None = None,
      where: str = 'the images') -> None:
    """Takes encoded images, or the paths of the files that hold them.

    Args:
      contents: encoded bytes, or paths if `from_files`.
      labels: integers [n].
      image_size: pixels; every image is resized to this square (bilinear,
        rounded, the aspect ratio is not kept).
      channels: 3 (RGB) or 1 (grey).
      num_classes: number of classes; None means the largest label plus 1.
      class_names: one per class.
      from_files: whether `contents` are paths.
      names: what to call each image in an error; default: the paths, or the
        number of the example.
      where: what the images are, for error messages.

    Raises:
      InputError: empty; numbers differ; label out of range; size below 1.
    """
    if image_size < 1:
      raise InputError(f'data.image_size={image_size}: must be at least 1.')
    labels = checks.check_labels(labels, where, num_classes)
    if len(contents) != len(labels):
      raise InputError(
          f'{where}: {len(contents)} images but {len(labels)} labels; they '
          'must be equal in number.')
    self.num_examples = len(contents)
    self.num_classes = num_classes or int(labels.max()) + 1
    self.image_shape = (image_size, image_size, channels)
    self.class_names = tuple(class_names) if class_names else None
    self._from_files = from_files
    self._names = contents if names is None and from_files else names
    self._where = where
    with tf.device('CPU:0'):
      self._contents = tf.constant(list(contents), tf.string)
      self._labels = tf.constant(labels.astype(np.int32))

  def read(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """See the base class."""
    images = tf.map_fn(
        self._decode, tf.gather(self._contents, indices),
        fn_output_signature=tf.TensorSpec(self.image_shape, tf.uint8),
        parallel_iterations=_PARALLEL_DECODES)
    images.set_shape(indices.shape + self.image_shape)
    return images, tf.gather(self._labels, indices)

  def check(self, indices: Sequence[int] | None = None) -> None:
    """Decodes images one by one, to name the first that cannot be read.

    A graph can only say that some image is broken; whoever meets
    `tf.errors.InvalidArgumentError` or `NotFoundError` while reading calls
    this to learn which.

    Args:
      indices: examples to try; None means all.

    Raises:
      InputError: an image is missing or cannot be decoded.
    """
    for i in range(self.num_examples) if indices is None else indices:
      try:
        self._decode(self._contents[i])
      except tf.errors.OpError as error:
        name = f'{self._where}, example {i}'
        if self._names is not None:
          name = self._names[i]
        raise InputError(
            f'{name}: cannot be read as a JPEG, PNG, GIF or BMP image '
            f'({checks.first_line(error)}); replace or remove it.') from error

  def _decode(self, content: tf.Tensor) -> tf.Tensor:
    """Decodes one image: string [] to uint8 `image_shape`."""
    if self._from_files:
      content = tf.io.read_file(content)
    size, _, channels = self.image_shape
    image = tf.io.decode_image(
        content, channels=channels, expand_animations=False)
    image.set_shape([None, None, channels])
    image = tf.image.resize(image, [size, size])
    return tf.cast(tf.round(image), tf.uint8)


class SubsetSource(Source):
  """Some of another source's examples."""

  def __init__(self, source: Source, indices: np.ndarray) -> None:
    """Takes a source and the int64 [n] indices to keep, in order."""
    self.num_examples = len(indices)
    self.num_classes = source.num_classes
    self.image_shape = source.image_shape
    self.class_names = source.class_names
    self.source = source
    self._kept = indices
    with tf.device('CPU:0'):
      self._indices = tf.constant(indices, tf.int64)

  def check(self, indices: Sequence[int] | None = None) -> None:
    """See the base class."""
    self.source.check(
        self._kept if indices is None else self._kept[list(indices)])

  def read(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """See the base class."""
    return self.source.read(tf.gather(self._indices, indices))


@dataclasses.dataclass(frozen=True)
class Splits:
  """What is trained on and what is evaluated.

  Raises:
    InputError: the two differ in image shape or number of classes.
  """
  train: Source
  validation: Source

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
  return SubsetSource(source, np.sort(order[:num_examples]))
