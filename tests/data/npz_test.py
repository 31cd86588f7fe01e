"""Arrays in files, good and bad."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.config import DataConfig, InputError
from conadv_tf.data import npz


def _arrays() -> dict[str, np.ndarray]:
  generator = np.random.default_rng(0)
  return {
      'x_train': generator.integers(0, 256, (6, 4, 4, 3), np.uint8),
      'y_train': np.array([[0], [1], [2], [0], [1], [2]]),
      'x_test': generator.integers(0, 256, (3, 4, 4, 3), np.uint8),
      'y_test': np.array([[0], [1], [2]])}


def _config(path: object, **more: int) -> DataConfig:
  return DataConfig(name='npz', path=str(path), **more)


def _save(folder: pathlib.Path, **changes: np.ndarray) -> pathlib.Path:
  path = folder / 'data.npz'
  np.savez(path, **{**_arrays(), **changes})
  return path


def test_images_are_resized_when_read(tmp_path: pathlib.Path) -> None:
  splits = npz.load(_config(_save(tmp_path), image_size=8))
  assert splits.train.image_shape == splits.validation.image_shape == (8, 8, 3)
  # Twice the size: the middle of four pixels is 1/16, 3/16 and 9/16 of them.
  image = splits.train.read(tf.constant([1], tf.int64))[0][0].numpy()
  square = _arrays()['x_train'][1, :2, :2].astype(float)
  weights = np.array([[9, 3], [3, 1]])[..., None] / 16
  np.testing.assert_allclose(image[1, 1], (square * weights).sum((0, 1)),
                             atol=0.5)
  kept = npz.load(_config(tmp_path / 'data.npz', image_size=4)).train
  np.testing.assert_array_equal(
      kept.read(tf.constant([1], tf.int64))[0][0], _arrays()['x_train'][1])


def test_loads_both_splits(tmp_path: pathlib.Path) -> None:
  splits = npz.load(_config(_save(tmp_path)))
  images, labels = splits.train.read(tf.constant([5, 0], tf.int64))
  np.testing.assert_array_equal(images, _arrays()['x_train'][[5, 0]])
  np.testing.assert_array_equal(labels, [2, 0])
  assert splits.train.num_classes == splits.validation.num_classes == 3
  assert splits.validation.num_examples == 3
  assert npz.load(_config(tmp_path / 'data.npz', num_examples=2, image_size=4,
                          num_classes=7)).train.num_classes == 7


def test_a_class_of_the_test_split_alone_must_be_declared(
    tmp_path: pathlib.Path) -> None:
  path = _save(tmp_path, y_test=np.array([0, 3, 2]))
  assert npz.load(_config(path, num_classes=4)).validation.num_classes == 4


def test_refuses_two_bytes_of_a_zip(tmp_path: pathlib.Path) -> None:
  path = tmp_path / 'data.npz'
  path.write_bytes(b'PK')
  with pytest.raises(InputError, match='cannot be read'):
    npz.load(_config(path))


def test_compressed_grey_files_load(tmp_path: pathlib.Path) -> None:
  arrays = _arrays()
  for key in ('x_train', 'x_test'):
    arrays[key] = arrays[key][..., 0]
  np.savez_compressed(tmp_path / 'grey.npz', **arrays)
  splits = npz.load(_config(tmp_path / 'grey.npz'))
  assert splits.train.image_shape == (4, 4, 1)


@pytest.mark.parametrize('changes, more, message', [
    ({'x_train': np.zeros((6, 4, 4, 3))}, {}, r'\(train\): images are float64'),
    ({'x_train': np.zeros((6, 4), np.uint8)}, {}, r'shape \(6, 4\)'),
    ({'x_train': np.zeros((5, 4, 4, 3), np.uint8)}, {}, '5 images but 6'),
    ({'x_test': np.zeros((3, 4, 5, 3), np.uint8)}, {},
     r'shape \(4, 4, 3\) but x_test of \(4, 5, 3\)'),
    ({'y_test': np.zeros(3, np.float32)}, {}, 'labels are float32'),
    ({'y_train': np.array([0, 0, -3, 0, 0, 0])}, {}, 'label 2 is -3'),
    # The training labels say how many classes there are.
    ({'y_test': np.array([0, 3, 2])}, {},
     r'\(test\): label 1 is 3, outside 0 .. 2'),
    ({}, {'num_classes': 2}, r'\(train\): label 2 is 2, outside 0 .. 1'),
    ({'x_test': np.zeros((0, 4, 4, 3), np.uint8),
      'y_test': np.zeros(0, int)}, {}, r'\(test\): has no examples'),
    ({'y_train': np.array(['cat'] * 6)}, {}, 'y_train is not a numeric array'),
    ({'y_train': np.array([{}] * 6)}, {}, 'y_train is not a plain numeric'),
])
def test_refuses_arrays(
    tmp_path: pathlib.Path, changes: dict, more: dict, message: str) -> None:
  with pytest.raises(InputError, match=message) as error:
    npz.load(_config(_save(tmp_path, **changes), **more))
  assert '\n' not in str(error.value)
  assert 'data.npz' in str(error.value)


def test_refuses_files(tmp_path: pathlib.Path) -> None:
  with pytest.raises(InputError, match='data.path is null'):
    npz.load(DataConfig(name='npz'))
  with pytest.raises(InputError, match='no such file'):
    npz.load(_config(tmp_path / 'gone.npz'))
  with pytest.raises(InputError, match='no such file'):
    npz.load(_config(tmp_path))
  text = tmp_path / 'text.npz'
  text.write_text('not a zip')
  with pytest.raises(InputError, match='not an .npz file'):
    npz.load(_config(text))
  np.savez(tmp_path / 'other.npz', images=np.zeros(3), y_test=np.zeros(3))
  with pytest.raises(InputError) as error:
    npz.load(_config(tmp_path / 'other.npz'))
  assert 'no x_train, y_train, x_test; the keys found are images, y_test' in (
      str(error.value))


def test_refuses_a_damaged_file(tmp_path: pathlib.Path) -> None:
  path = _save(tmp_path)
  content = bytearray(path.read_bytes())
  # Inside the pixels of x_train: the zip directory is whole, the CRC is not.
  content[200] ^= 255
  path.write_bytes(content)
  with pytest.raises(InputError, match='cannot be read'):
    npz.load(_config(path))
