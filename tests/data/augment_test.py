"""What augmentation does to pixels, given the random words."""

from collections.abc import Callable
import functools

import numpy as np
from official.vision.ops import augment as library
import pytest
import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.config import InputError
from conadv_tf.data import augment


def _words(value: float, name: str, rows: int = 1) -> tf.Tensor:
  """Words that all become (about) the float `value`."""
  return tf.fill(
      [rows, augment.words(name)], tf.constant(int(value * 2**32), tf.uint32))


def _images(count: int, size: int, channels: int = 3) -> np.ndarray:
  return np.random.default_rng(size).integers(
      0, 256, (count, size, size, channels), np.uint8)


def _uniform_words(rows: int, name: str) -> np.ndarray:
  return np.random.default_rng(1).integers(
      0, 2**32, (rows, augment.words(name)), np.uint32)


def test_uniform_has_24_bits_and_stays_below_one() -> None:
  bits = tf.constant([0, 255, 256, 2**31, 2**32 - 1], tf.uint32)
  np.testing.assert_array_equal(
      randomness.unit_floats(bits), np.float32([0, 0, 2**-24, 0.5, 1 - 2**-24]))


@pytest.mark.parametrize('size, pad', [(8, 1), (15, 1), (16, 4), (32, 4)])
def test_crop_flip_by_hand(size: int, pad: int) -> None:
  image = _images(1, size)
  # Words near 1 pick the last corner and no flip: the content moves up left.
  got = augment.crop_flip(image, _words(0.999, 'crop_flip'))[0]
  expected = np.zeros_like(image[0])
  expected[:-pad, :-pad] = image[0, pad:, pad:]
  np.testing.assert_array_equal(got, expected)
  # Words of 0 pick the first corner and flip: down right, then mirrored.
  got = augment.crop_flip(image, _words(0, 'crop_flip'))[0]
  expected = np.zeros_like(image[0])
  expected[pad:, pad:] = image[0, :-pad, :-pad]
  np.testing.assert_array_equal(got, expected[:, ::-1])


def test_crop_flip_is_uniform_over_its_162_outcomes() -> None:
  rows = 16200
  # Every pixel is unique, so the one at the centre tells the outcome and its
  # right neighbour the direction.
  image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  got = augment.apply(
      'crop_flip', tf.repeat(image, rows, 0),
      tf.constant(_uniform_words(rows, 'crop_flip'))).numpy()
  assert got.shape == (rows, 16, 16, 1)
  outcomes, counts = np.unique(
      got[:, 8, 7:9, 0], axis=0, return_counts=True)
  assert len(outcomes) == 162
  # 100 each; chi-square with 161 degrees of freedom: 161 +- 18.
  chi_square = ((counts - 100) ** 2 / 100).sum()
  assert 100 < chi_square < 230


def test_none_returns_the_very_images() -> None:
  images = _images(3, 8)
  assert augment.words('none') == 0
  assert augment.apply('none', images, tf.zeros([3, 0], tf.uint32)) is images


@functools.cache
def _library(name: str, size: int, channels: int) -> Callable:
  """The library's part alone; traced once, which takes seconds."""
  return tf.function(functools.partial(augment._policies, name)
                     ).get_concrete_function(
      tf.TensorSpec([None, size, size, channels], tf.uint8),
      tf.TensorSpec([None, augment.words(name) - 4], tf.uint32))


def _plain(name: str, images: np.ndarray, value: float) -> np.ndarray:
  """Runs it with the same number for every draw."""
  bits = _words(value, name, len(images))[:, 4:]
  run = _library(name, *images.shape[2:])
  return run(tf.constant(images), bits).numpy()


@pytest.mark.parametrize('value, expected', [
    # 0.265 * 17 = 4.5: Posterize in both layers, to 4 bits at magnitude 10.
    (0.265, lambda x: x // 16 * 16),
    # 0.03 * 17 = 0.5: AutoContrast twice.
    (0.03, lambda x: library.autocontrast(library.autocontrast(x))),
    # 0.97 * 17 = 16.5: past the last operation, no change.
    (0.97, lambda x: x),
])
def test_randaugment_does_what_the_draws_say(
    value: float, expected: Callable) -> None:
  images = _images(2, 32) // 2 + 30
  got = _plain('randaugment', images, value)
  for result, image in zip(got, images, strict=True):
    np.testing.assert_array_equal(result, expected(image))


def test_autoaugment_does_what_the_draws_say() -> None:
  # 0.62 * 25 = 15.5: Equalize with probability 0.2 (0.62 + 0.2 < 1: no),
  # AutoContrast with 0.6 (yes).
  images = _images(2, 32) // 2 + 30
  got = _plain('autoaugment', images, 0.62)
  for result, image in zip(got, images, strict=True):
    np.testing.assert_array_equal(result, library.autocontrast(image))


def test_grey_images_stay_grey() -> None:
  images = _images(2, 8, 1)
  np.testing.assert_array_equal(
      _plain('randaugment', images, 0.265), images // 16 * 16)


@pytest.mark.parametrize('name', ['autoaugment', 'randaugment'])
def test_policies_are_sane(name: str) -> None:
  rows = 300
  images = np.repeat(_images(1, 32) // 2 + 50, rows, 0)
  run = _library(name, 32, 3)
  bits = tf.constant(_uniform_words(rows, name)[:, 4:])
  got = run(tf.constant(images), bits).numpy()
  assert (got.shape, got.dtype) == (images.shape, np.uint8)
  # Neither all left alone nor all alike, and not all grey or black.
  unchanged = (got == images).all((1, 2, 3)).mean()
  assert 0 <= unchanged < 0.3
  assert len({image.tobytes() for image in got}) > 50
  assert 60 < np.median(got.mean((1, 2, 3))) < 190
  # Distances are scaled to the image: translation fills less than half of it
  # with the library's grey in all but the rarest cases.
  assert ((got == 128).mean((1, 2, 3)) < 0.5).mean() > 0.9
  # Rows depend on their own words alone.
  part = run(tf.constant(images[40:43]), bits[40:43]).numpy()
  np.testing.assert_array_equal(part, got[40:43])


@pytest.mark.parametrize('name, size', [
    ('autoaugment', 32), ('randaugment', 32),
    pytest.param('autoaugment', 80, marks=pytest.mark.slow)])
def test_no_stateful_draw_is_left(name: str, size: int) -> None:
  graph = _library(name, size, 3).graph.as_graph_def()
  operations = {node.op for node in graph.node} | {
      node.op for function in graph.library.function
      for node in function.node_def}
  assert not {name for name in operations if name.startswith((
      'Random', 'Multinomial', 'TruncatedNormal', 'StatefulUniform',
      'ParameterizedTruncatedNormal'))}
  assert library.tf is tf


def test_other_draws_are_errors_and_the_library_is_restored() -> None:
  with pytest.raises(AttributeError):
    with augment._keyed_draws(library, tf.zeros([2])):
      library.tf.random.normal([])
  assert library.tf is tf
  with pytest.raises(NotImplementedError, match='only 1 scalars'):
    with augment._keyed_draws(library, tf.zeros([1])):
      library.tf.random.uniform([])
      library.tf.random.uniform([])
  with pytest.raises(NotImplementedError, match='scalars'):
    with augment._keyed_draws(library, tf.zeros([2])):
      library.tf.random.uniform([2])
  assert library.tf is tf


def test_refuses() -> None:
  with pytest.raises(InputError, match='data.augment=cutmix: unknown'):
    augment.words('cutmix')
  with pytest.raises(InputError, match='2 x 2 x 3; need'):
    augment.apply(
        'randaugment', tf.zeros([1, 2, 2, 3], tf.uint8),
        _words(0, 'randaugment'))


@pytest.mark.parametrize('name', ['crop_flip', 'randaugment'])
def test_one_image_is_treated_like_one_of_a_batch(
    name: str, monkeypatch: pytest.MonkeyPatch) -> None:
  # The policy itself is the same code for both.
  monkeypatch.setattr(augment, 'policy', lambda name, image, bits: (
      image + tf.bitcast(bits[0], tf.uint8)[0]))
  images, words = _images(3, 16), _uniform_words(3, name)
  batch = augment.apply(name, tf.constant(images), tf.constant(words))
  for image, row, expected in zip(images, words, batch, strict=True):
    got = augment.apply(name, tf.constant(image), tf.constant(row))
    np.testing.assert_array_equal(got, expected)
