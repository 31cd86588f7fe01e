"""Windows, geometry and colours of decoded images."""

import io

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.data import decode, encoded, pipeline, positions


def _smooth(height: int, width: int, channels: int = 3) -> np.ndarray:
  """Gradients and waves that JPEG keeps within a few units."""
  y, x = np.mgrid[:height, :width]
  planes = [128 + 100 * np.sin(y / 17 + x / 23 + c) for c in range(channels)]
  return np.stack(planes, -1).astype(np.uint8)


def _encode(image: np.ndarray | Image.Image, kind: str = 'JPEG') -> bytes:
  file = io.BytesIO()
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image.squeeze())
  image.save(file, kind, **({'quality': 95} if kind == 'JPEG' else {}))
  return file.getvalue()


def _bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """NumPy twin of resizing, with half-pixel centres and no antialiasing."""
  for axis, size in enumerate((height, width)):
    old = image.shape[axis]
    at = np.clip((np.arange(size) + .5) * old / size - .5, 0, old - 1)
    low = np.floor(at).astype(int)
    share = (at - low).reshape([-1 if i == axis else 1 for i in range(3)])
    image = (np.take(image, low, axis) * (1 - share)
             + np.take(image, np.minimum(low + 1, old - 1), axis) * share)
  return image


def _bits(number: int) -> tf.Tensor:
  key = randomness.make_key(0, randomness.AUGMENTATION)
  return positions.bits(key, tf.constant(number, tf.int64), 1, 4)[0]


@pytest.mark.parametrize('kind', ['PNG', 'GIF', 'BMP', 'JPEG'])
def test_whole_decodes_every_kind(kind: str) -> None:
  # Flat colours, which JPEG and a GIF palette keep within rounding.
  array = np.full((8, 8, 3), [200, 100, 50], np.uint8)
  image = decode.whole(tf.constant(_encode(array, kind)), 8, 3)
  np.testing.assert_allclose(image, array, atol=2)


def test_whole_is_bilinear_and_rounded() -> None:
  # Half the size: with half-pixel centres each pixel is a 2 x 2 mean.
  array = np.array([[0, 10, 4, 5], [20, 31, 5, 5]] * 2, np.uint8)
  image = decode.whole(tf.constant(_encode(array, 'PNG')), 2, 1)
  # Means 15.25 and 4.75.
  np.testing.assert_array_equal(image[..., 0], [[15, 5], [15, 5]])


@pytest.mark.parametrize('height, width, size, resized', [
    (50, 70, 28, (32, 44)), (91, 40, 28, (72, 32)), (33, 33, 28, (32, 32)),
    (300, 333, 224, (256, 284))])
def test_central_is_the_references_geometry(
    height: int, width: int, size: int, resized: tuple[int, int]) -> None:
  array = _smooth(height, width)
  got = decode.central(tf.constant(_encode(array, 'PNG')), size, 3)
  top, left = ((r - size) // 2 for r in resized)
  expected = _bilinear(array, *resized)[top:top + size, left:left + size]
  assert got.shape == (size, size, 3)
  np.testing.assert_allclose(got, expected, atol=0.51)


def test_short_sides() -> None:
  assert [decode.short_side(s) for s in (224, 64, 160, 32)] == [
      256, 73, 183, 37]


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_distorted_is_the_window_of_the_stateless_op(kind: str) -> None:
  array = _smooth(60, 80)
  content = tf.constant(_encode(array, kind))
  boxes = tf.constant([[0.1, 0.2, 0.7, 0.9]])
  flips = 0
  for number in range(6):
    bits = _bits(number)
    # By its definition, with the reference's numbers.
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        [60, 80, 3], boxes[None], tf.bitcast(bits[:2], tf.int32),
        min_object_covered=0.1, aspect_ratio_range=(0.75, 1.33),
        area_range=(0.05, 1.0), max_attempts=100,
        use_image_if_no_bounding_boxes=True)
    (top, left, _), (rows, columns, _) = begin.numpy(), extent.numpy()
    # Decoded whole by an independent decoder.
    crop = np.asarray(Image.open(io.BytesIO(content.numpy())))[
        top:top + rows, left:left + columns]
    expected = _bilinear(crop, 32, 32)
    if randomness.unit_floats(bits[2]) < 0.5:
      expected, flips = expected[:, ::-1], flips + 1
    got = decode.distorted(content, boxes, bits, 32, 3).numpy()
    np.testing.assert_allclose(got, expected, atol=6 if kind == 'JPEG' else .51)
  assert 0 < flips < 6


def test_windows_have_the_references_range() -> None:
  none = tf.zeros([0, 4])
  sizes = np.array([decode.window([100, 120, 3], none, _bits(number))
                    for number in range(200)])
  areas = sizes[:, 2] * sizes[:, 3] / 12000
  ratios = sizes[:, 3] / sizes[:, 2]
  # The op rounds to whole pixels.
  assert 0.04 < areas.min() < 0.12 and 0.85 < areas.max() <= 1
  assert 0.7 < ratios.min() < 0.85 and 1.2 < ratios.max() < 1.4
  assert len({tuple(s) for s in sizes}) > 150
  # No box means the whole image, and so does the box of the whole image.
  everything = tf.constant([[0., 0., 1., 1.]])
  for number in range(5):
    np.testing.assert_array_equal(
        decode.window([100, 120, 3], everything, _bits(number)),
        decode.window([100, 120, 3], none, _bits(number)))


@pytest.mark.parametrize('mode, channels', [
    ('L', 3), ('CMYK', 3), ('RGB', 3), ('RGB', 1)])
def test_colours_agree_with_another_decoder(mode: str, channels: int) -> None:
  picture = Image.fromarray(_smooth(48, 48)).convert(mode)
  content = _encode(picture)
  expected = np.asarray(Image.open(io.BytesIO(content)).convert(
      'L' if channels == 1 else 'RGB')).reshape(48, 48, channels)
  got = decode.whole(tf.constant(content), 48, channels)
  # Two ways from CMYK to RGB, and two JPEG decoders.
  np.testing.assert_allclose(got, expected, atol=6)
  window = decode.distorted(tf.constant(content), tf.zeros([0, 4]), _bits(0),
                            48, channels)
  assert abs(window.numpy().mean() - expected.mean()) < 40


def test_a_truncated_jpeg_is_found_wherever_the_window_lies() -> None:
  content = _encode(np.random.default_rng(0).integers(
      0, 256, (64, 64, 3), np.uint8))
  for number in range(5):
    with pytest.raises(tf.errors.InvalidArgumentError):
      decode.distorted(tf.constant(content[:-100]), tf.zeros([0, 4]),
                       _bits(number), 8, 3)
    # Padding behind the end is no damage.
    decode.distorted(tf.constant(content + b'\0\0'), tf.zeros([0, 4]),
                     _bits(number), 8, 3)


def test_changed_bytes_inside_are_not_noticed() -> None:
  """What the module says cannot be detected."""
  content = bytearray(_encode(_smooth(64, 64)))
  middle = len(content) // 2
  content[middle:middle + 20] = bytes(range(20))
  decode.whole(tf.constant(bytes(content)), 64, 3)


def test_pipeline_uses_each_examples_own_words() -> None:
  array = _smooth(40, 50)
  data = encoded.IndexedSource(
      [_encode(array, 'PNG')] * 7, np.arange(7), image_size=16,
      preprocessing='imagenet')
  key = randomness.make_key(3, randomness.AUGMENTATION)
  (images, _, _), = pipeline.train_dataset(
      data, global_batch_size=4, seed=3, start_step=2, num_steps=1)
  for row in range(4):
    bits = positions.bits(key, tf.constant(8 + row, tf.int64), 1, 4)[0]
    np.testing.assert_array_equal(images[row], decode.distorted(
        tf.constant(_encode(array, 'PNG')), tf.zeros([0, 4]), bits, 16, 3))
