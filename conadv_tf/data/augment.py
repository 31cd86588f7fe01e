"""Random changes of training images, as pure functions of random bits.

Each example brings a row of random words, so what happens to it depends on
those alone: not on its neighbours, its batch or the thread that works on it.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import threading
import types
from typing import Any

import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.config import InputError

POLICIES = ('autoaugment', 'randaugment')  # Of the library.
NAMES = ('none', 'crop_flip', *POLICIES)

_CROP_WORDS = 4
_LIBRARY_WORDS = 124  # Its policies draw 40 to 70 numbers.
_SMALL = 64  # Pixels; up to here the CIFAR recipe, above ImageNet's.
_IMAGENET_SIZE = 224  # Where the library's distances, in pixels, come from.
_PARALLEL_IMAGES = 16
_LIBRARY_LOCK = threading.Lock()


def words(name: str) -> int:
  """Returns how many random words an example needs, a multiple of 4.

  Raises:
    InputError: no augmentation has this name.
  """
  if name not in NAMES:
    raise InputError(
        f'data.augment={name}: unknown; known are {", ".join(NAMES)}.')
  if name == 'none':
    return 0
  return _CROP_WORDS + (_LIBRARY_WORDS if name != 'crop_flip' else 0)


def check(name: str, shape: Sequence[int]) -> None:
  """Checks that images of shape (h, w, c) can be augmented this way.

  Raises:
    InputError: unknown name; channels other than 1 or 3, or images below
      3 pixels, with a library policy.
  """
  if words(name) <= _CROP_WORDS:
    return
  height, width, channels = shape
  if channels not in (1, 3) or min(height, width) < 3:
    raise InputError(
        f'data.augment={name}: images are {height} x {width} x {channels}; '
        'need 1 or 3 channels and at least 3 pixels.')


def apply(name: str, images: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
  """Augments a batch, or one image.

  Args:
    name: one of NAMES. Policies are followed by `crop_flip`, as in the CIFAR
      recipes.
    images: uint8 [b, h, w, c] or [h, w, c], statically shaped.
    bits: uint32 [b, words(name)] or [words(name)], uniform.

  Returns:
    uint8, shape of `images`.

  Raises:
    InputError: see `check`.
  """
  check(name, images.shape[-3:])
  if name == 'none':
    return images
  if images.shape.rank == 3:
    if name != 'crop_flip':
      images = policy(name, images, bits[_CROP_WORDS:])
    return crop_flip(images[None], bits[None, :_CROP_WORDS])[0]
  if name != 'crop_flip':
    images = _policies(name, images, bits[:, _CROP_WORDS:])
  return crop_flip(images, bits[:, :_CROP_WORDS])


def crop_flip(images: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
  """Shifts by up to 4 pixels over zeros and flips every second image.

  Images below 16 pixels are shifted by up to 1 pixel.

  Args:
    images: [b, h, w, c] of any type.
    bits: uint32 [b, >= 3].

  Returns:
    Type and shape of `images`.
  """
  _, height, width, _ = images.shape
  pad = 4 if min(height, width) >= 16 else 1
  draws = randomness.unit_floats(bits)
  corner = tf.cast(draws[:, :2] * float(2 * pad + 1), tf.int32)
  padded = tf.pad(images, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
  rows = corner[:, :1] + tf.range(height)
  columns = tf.where(
      draws[:, 2:3] < 0.5, tf.range(width)[::-1], tf.range(width))
  columns += corner[:, 1:]
  padded = tf.gather(padded, rows, axis=1, batch_dims=1)
  return tf.gather(padded, columns, axis=2, batch_dims=1)


def policy(name: str, image: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
  """Applies a policy of the Model Garden to one image.

  Args:
    name: one of POLICIES.
    image: uint8 [h, w, c], c = 1 or 3, statically shaped.
    bits: uint32 [words(name) - 4], uniform.

  Returns:
    uint8, shape of `image`.
  """
  height, width, channels = image.shape
  from official.vision.ops import augment as library  # Slow to import.
  distort = _augmenter(name, min(height, width), library).distort
  # Its operations are written for RGB.
  colour = tf.repeat(image, 3, axis=-1) if channels == 1 else image
  with _keyed_draws(library, randomness.unit_floats(bits)):
    result = tf.ensure_shape(distort(colour), [height, width, 3])
  if channels == 1:
    grey = tf.reduce_mean(tf.cast(result, tf.float32), -1, keepdims=True)
    result = tf.cast(tf.round(grey), tf.uint8)
  return result


def _policies(name: str, images: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
  """Applies `policy` to each image of a batch."""
  result = tf.map_fn(
      lambda pair: policy(name, *pair), (images, bits),
      fn_output_signature=tf.TensorSpec(images.shape[1:], tf.uint8),
      parallel_iterations=_PARALLEL_IMAGES)
  result.set_shape(images.shape)
  return result


def _augmenter(name: str, size: int, library: types.ModuleType) -> Any:
  """Returns the library's augmenter for images of `size` pixels.

  Distances in pixels are for 224 pixels by default (10 of 32 in the CIFAR
  policy's paper); they are scaled, or small images would be pushed out of
  the frame.
  """
  scale = size / _IMAGENET_SIZE
  if name == 'randaugment':
    return library.RandAugment(
        cutout_const=40 * scale, translate_const=100 * scale)
  if size <= _SMALL:
    return library.AutoAugment(
        'reduced_cifar10', translate_const=size * 10 / 32)
  return library.AutoAugment(
      'v0', cutout_const=100 * scale, translate_const=250 * scale)


@contextlib.contextmanager
def _keyed_draws(
    library: types.ModuleType, numbers: tf.Tensor) -> Iterator[None]:
  """Makes the library's random draws a function of the example.

  The library calls `tf.random.uniform`, whose result depends on everything
  drawn before it in the process, so no run could be resumed or repeated.
  While its operations are traced, the name `tf` inside that one module is
  replaced by a stand-in whose n-th draw is the example's n-th number. Only
  `random` differs from TensorFlow, and any other draw is an error.

  Args:
    library: the module whose draws are replaced.
    numbers: float32 [n], uniform on [0, 1).

  Yields:
    Nothing; the replacement lasts for the block.
  """
  with _LIBRARY_LOCK:
    original = library.tf
    library.tf = _StandIn(original, types.SimpleNamespace(
        uniform=_numbered_uniform(numbers)))
    try:
      yield
    finally:
      library.tf = original


class _StandIn:
  """A module with another `random`."""

  def __init__(self, module: Any, random: types.SimpleNamespace) -> None:
    self._module = module
    self.random = random

  def __getattr__(self, name: str) -> Any:
    return getattr(self._module, name)


def _numbered_uniform(numbers: tf.Tensor) -> Callable[..., tf.Tensor]:
  """Returns a scalar `tf.random.uniform` that uses up `numbers`."""
  used = 0

  def draw(
      shape: list[int], minval: Any = 0, maxval: Any = None,
      dtype: tf.DType = tf.float32) -> tf.Tensor:
    nonlocal used
    if list(shape) or used == numbers.shape[0]:
      raise NotImplementedError(
          f'Draw {used} of shape {shape}: only {numbers.shape[0]} scalars are '
          'provided for.')
    number = numbers[used]
    used += 1
    low = tf.cast(minval, tf.float32)
    high = tf.cast(1 if maxval is None else maxval, tf.float32)
    return tf.cast(low + number * (high - low), dtype)

  return draw
