"""Made-up data: repeatable, balanced and learnable."""

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.config import DataConfig, InputError
from conadv_tf.data import source, synthetic


def _all(data: source.Source) -> tuple[np.ndarray, np.ndarray]:
  images, labels = data.read(tf.range(data.num_examples, dtype=tf.int64))
  return images.numpy(), labels.numpy()


def _config(**more: int) -> DataConfig:
  return DataConfig(name='synthetic', **more)


def test_defaults() -> None:
  splits = synthetic.load(_config())
  assert splits.train.num_examples == 1024
  assert splits.validation.num_examples == 256
  assert splits.train.image_shape == (32, 32, 3)
  assert splits.train.num_classes == 10
  labels = _all(splits.train)[1]
  assert np.bincount(labels).tolist() == [103] * 4 + [102] * 6
  # Labels are mixed, not sorted.
  assert len(set(labels[:30])) > 5


def test_same_arguments_same_images() -> None:
  first, second = (
      _all(synthetic.load(_config(image_size=8, num_examples=50)).train)
      for _ in range(2))
  np.testing.assert_array_equal(first[0], second[0])
  np.testing.assert_array_equal(first[1], second[1])


def test_nearest_class_mean_classifies_the_validation_set() -> None:
  splits = synthetic.load(_config(image_size=16, num_examples=500))
  images, labels = _all(splits.train)
  means = np.stack([images[labels == k].mean(0) for k in range(10)])
  # The class mean is the pattern plus the noise's mean; noise is not zero.
  assert 30 < (images - means[labels]).std() < 40
  unseen, answers = _all(splits.validation)
  distance = ((unseen[:, None] - means) ** 2).sum((2, 3, 4))
  assert (distance.argmin(1) == answers).mean() == 1.0


@pytest.mark.parametrize('key', ['image_size', 'num_classes', 'num_examples'])
def test_refuses_numbers_below_one(key: str) -> None:
  with pytest.raises(InputError, match=f'{key}=0: must be at least 1'):
    synthetic.load(_config(**{key: 0}))


def test_tiny_sizes_work() -> None:
  splits = synthetic.load(_config(image_size=1, num_classes=2, num_examples=1))
  assert splits.train.num_examples == splits.validation.num_examples == 1
