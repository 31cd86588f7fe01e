"""The embedded data set."""

import numpy as np
import pytest
from sklearn import datasets
import tensorflow as tf

from conadv_tf.config import DataConfig, InputError
from conadv_tf.data import digits, source


def _all(data: source.Source) -> tuple[np.ndarray, np.ndarray]:
  images, labels = data.read(tf.range(data.num_examples, dtype=tf.int64))
  return images.numpy(), labels.numpy()


def test_every_digit_is_in_one_split() -> None:
  splits = digits.load(DataConfig())
  assert splits.train.num_examples == 1442
  assert splits.validation.num_examples == 355
  assert splits.train.image_shape == (8, 8, 1)
  assert splits.train.class_names == tuple('0123456789')
  images, labels = (
      np.concatenate(parts) for parts in zip(
          _all(splits.train), _all(splits.validation), strict=True))
  bunch = datasets.load_digits()
  # 0..16 to 0..255: 16 -> 255, 8 -> 127.5, which rounds to 128.
  expected = np.round(bunch.images * 15.9375).astype(np.uint8)
  assert sorted(map(bytes, images)) == sorted(map(bytes, expected))
  np.testing.assert_array_equal(
      np.bincount(labels), np.bincount(bunch.target))
  assert images.max() == 255


def test_split_is_stratified() -> None:
  splits = digits.load(DataConfig())
  train = np.bincount(_all(splits.train)[1])
  validation = np.bincount(_all(splits.validation)[1])
  np.testing.assert_array_equal(validation, (train + validation) // 5)


def test_truncation_and_refusals() -> None:
  splits = digits.load(DataConfig(num_examples=64, image_size=8))
  assert splits.train.num_examples == 64
  assert splits.validation.num_examples == 355
  with pytest.raises(InputError, match='image_size=28'):
    digits.load(DataConfig(image_size=28))
  with pytest.raises(InputError, match='label .* outside 0 .. 4'):
    digits.load(DataConfig(num_classes=5))
  with pytest.raises(InputError, match='num_examples=2000'):
    digits.load(DataConfig(num_examples=2000))
