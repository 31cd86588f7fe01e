"""Sources in memory, and every check of them."""

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.config import InputError
from conadv_tf.data import source


def _images(count: int = 5) -> np.ndarray:
  return np.random.default_rng(0).integers(
      0, 256, (count, 4, 6, 3), dtype=np.uint8)


def test_array_reads_in_any_order_inside_a_graph() -> None:
  images, labels = _images(), np.array([3, 0, 1, 2, 0], np.int64)
  data = source.ArraySource(images, labels, class_names=list('abcd'))
  read = tf.function(data.read)
  got, got_labels = read(tf.constant([4, 0, 4], tf.int64))
  np.testing.assert_array_equal(got, images[[4, 0, 4]])
  np.testing.assert_array_equal(got_labels, [0, 3, 0])
  assert (got.dtype, got_labels.dtype) == (tf.uint8, tf.int32)
  assert (data.num_examples, data.num_classes) == (5, 4)
  assert data.image_shape == (4, 6, 3)
  assert data.class_names == ('a', 'b', 'c', 'd')


def test_array_is_not_a_constant_of_the_graph() -> None:
  data = source.ArraySource(
      np.zeros((64, 32, 32, 3), np.uint8), np.zeros(64, int))
  read = tf.function(data.read).get_concrete_function(
      tf.TensorSpec([2], tf.int64))
  assert read.graph.as_graph_def().ByteSize() < 10_000


def test_grey_images_and_column_labels_get_their_shape() -> None:
  data = source.ArraySource(_images()[..., 0], np.zeros((5, 1), np.uint8))
  images, labels = data.read(tf.range(5, dtype=tf.int64))
  np.testing.assert_array_equal(images[..., 0], _images()[..., 0])
  assert images.shape == (5, 4, 6, 1)
  assert labels.shape == (5,)


@pytest.mark.parametrize('change, message', [
    ({'images': _images().astype(np.float32)}, 'images are float32'),
    ({'images': _images()[0, 0]}, r'shape \(6, 3\)'),
    ({'images': _images()[:0]}, 'no examples'),
    ({'images': _images()[:4]}, '4 images but 5 labels'),
    ({'labels': np.zeros(5)}, 'labels are float64'),
    ({'labels': np.zeros((5, 2), int)}, r'shape \(5, 2\)'),
    ({'labels': np.zeros(0, int)}, 'no examples'),
    ({'labels': np.array([0, 1, 3, 4, 0])}, 'label 2 is 3, outside 0 .. 2'),
    ({'labels': np.array([0, -1, 0, 0, 0])}, 'label 1 is -1'),
    ({'num_classes': 0}, 'num_classes=0: must be at least 1'),
    ({'image_size': 4}, 'image_size=4: the images of here are 4 x 6'),
])
def test_array_refuses(change: dict, message: str) -> None:
  arguments = {'images': _images(), 'labels': np.array([0, 1, 2, 0, 1]),
               'num_classes': 3, 'where': 'here', **change}
  with pytest.raises(InputError, match=message) as error:
    source.ArraySource(
        arguments.pop('images'), arguments.pop('labels'), **arguments)
  assert '\n' not in str(error.value)


def test_splits_refuse_different_shapes_and_classes() -> None:
  data = source.ArraySource(_images(), np.zeros(5, int), num_classes=3)
  wide = source.ArraySource(
      np.zeros((5, 4, 7, 3), np.uint8), np.zeros(5, int), num_classes=3)
  more = source.ArraySource(_images(), np.zeros(5, int), num_classes=4)
  with pytest.raises(InputError, match='image_shape differs'):
    source.Splits(data, wide)
  with pytest.raises(InputError, match='num_classes differs'):
    source.Splits(data, more)
  assert source.Splits(data, data).train is data


def test_truncate_keeps_a_fixed_subset_in_order() -> None:
  data = source.ArraySource(
      np.zeros((100, 2, 2, 1), np.uint8), np.arange(100))
  assert source.truncate(data, None) is data
  assert source.truncate(data, 100) is data
  kept = source.truncate(data, 40)
  again = source.truncate(data, 40)
  indices = tf.range(40, dtype=tf.int64)
  labels = kept.read(indices)[1].numpy()
  assert (kept.num_examples, kept.num_classes) == (40, 100)
  assert (np.diff(labels) > 0).all()
  # The first 40 would have a mean of 19.5; a sample has 49.5 +- 3.5.
  assert 40 < labels.mean() < 60
  np.testing.assert_array_equal(labels, again.read(indices)[1])
  for count in (0, 101):
    with pytest.raises(InputError, match=f'num_examples={count}: must lie'):
      source.truncate(data, count)
