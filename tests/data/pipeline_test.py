"""Order, batches, resuming and exact evaluation."""

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.config import InputError
from conadv_tf.data import augment, pipeline, source


def _numbered(count: int, size: int = 8) -> source.ArraySource:
  """Images of noise whose label is their number."""
  images = np.random.default_rng(count).integers(
      0, 256, (count, size, size, 3), np.uint8)
  return source.ArraySource(images, np.arange(count))


def _order(count: int, batch: int, steps: int, **more: int) -> np.ndarray:
  dataset = pipeline.train_dataset(
      _numbered(count), global_batch_size=batch, num_steps=steps, **more)
  return np.concatenate([label for _, label, _ in dataset.as_numpy_iterator()])


def _concatenated(dataset: tf.data.Dataset) -> np.ndarray:
  return np.concatenate([image for image, _, _ in dataset.as_numpy_iterator()])


@pytest.mark.parametrize('count', [1, 2, 3, 5, 16, 17, 100])
def test_every_epoch_is_a_permutation(count: int) -> None:
  epochs = _order(count, count, 4).reshape(4, count)
  np.testing.assert_array_equal(
      np.sort(epochs, 1), np.tile(np.arange(count), (4, 1)))
  if count >= 16:
    assert len({epoch.tobytes() for epoch in epochs}) == 4


@pytest.mark.parametrize('batch', [1, 7, 10, 13, 25])
def test_epochs_are_laid_end_to_end(batch: int) -> None:
  # 10 examples, also in batches that span two or three epochs.
  got = _order(10, batch, -(-50 // batch))[:50]
  np.testing.assert_array_equal(got, _order(10, 10, 5))


def test_epochs_and_seeds_do_not_repeat_each_other() -> None:
  # With the shuffle's seeds taken as they are, 256 later is the same.
  epochs = _order(40, 40, 600).reshape(600, 40)
  assert len({epoch.tobytes() for epoch in epochs}) == 600
  seeds = {_order(40, 40, 1, seed=s).tobytes() for s in (0, 1, 256, 65536)}
  assert len(seeds) == 4


def test_order_is_uniform() -> None:
  epochs = _order(32, 800, 10, seed=3).reshape(250, 32)
  # How often each example has each place: 31 * 31 = 961 degrees of freedom,
  # so chi-square is 961 +- 44.
  counts = np.stack([np.bincount(row, minlength=32) for row in epochs.T])
  chi_square = ((counts - 250 / 32) ** 2 / (250 / 32)).sum()
  assert 780 < chi_square < 1140
  # The step between neighbours is 1 .. 31 (mod 32), 250 +- 16 times each.
  steps = np.bincount(
      ((epochs[:, 1:] - epochs[:, :-1]) % 32).ravel(), minlength=32)
  assert steps[0] == 0
  assert abs(steps[1:] - 250).max() < 80


def test_elements_are_static_and_images_raw() -> None:
  data = _numbered(10)
  dataset = pipeline.train_dataset(
      data, global_batch_size=6, micro_batches=2, num_steps=3)
  image, label, weight = dataset.element_spec
  assert (image.shape, image.dtype) == ((3, 8, 8, 3), tf.uint8)
  assert (label.shape, label.dtype) == ((3,), tf.int32)
  assert (weight.shape, weight.dtype) == ((3,), tf.float32)
  assert dataset.cardinality() == 6
  raw = data.read(tf.range(10, dtype=tf.int64))[0].numpy()
  for image, label, weight in dataset.as_numpy_iterator():
    np.testing.assert_array_equal(image, raw[label])
    np.testing.assert_array_equal(weight, 1.0)


@pytest.mark.parametrize('name', ['none', 'crop_flip'])
def test_micro_batches_and_resumed_runs_see_the_same_images(name: str) -> None:
  data = _numbered(10, 16)
  # 4 steps of 12: from the second element on, positions pass epoch ends.
  whole = _concatenated(pipeline.train_dataset(
      data, global_batch_size=12, seed=5, augment=name, num_steps=4))
  for micro_batches in (2, 3, 12):
    got = _concatenated(pipeline.train_dataset(
        data, global_batch_size=12, micro_batches=micro_batches, seed=5,
        augment=name, num_steps=4))
    np.testing.assert_array_equal(got, whole)
  for start in (1, 3):
    got = _concatenated(pipeline.train_dataset(
        data, global_batch_size=12, micro_batches=2, seed=5, augment=name,
        start_step=start, num_steps=4 - start))
    np.testing.assert_array_equal(got, whole[start * 12:])


@pytest.mark.parametrize('name', [
    'randaugment', pytest.param('autoaugment', marks=pytest.mark.slow)])
def test_policies_resume_bit_for_bit(name: str) -> None:
  data = _numbered(10, 16)
  whole, late = (
      _concatenated(pipeline.train_dataset(
          data, global_batch_size=12, micro_batches=micro_batches, seed=5,
          augment=name, start_step=start, num_steps=4 - start))
      for micro_batches, start in ((1, 0), (2, 2)))
  np.testing.assert_array_equal(whole[24:], late)


def test_augmentation_differs_by_epoch_and_seed_not_by_batch_size() -> None:
  data = _numbered(20, 16)
  def epochs(batch: int, seed: int) -> np.ndarray:
    # Four epochs, each sorted by example.
    images, labels = (np.concatenate(part) for part in list(zip(
        *pipeline.train_dataset(
            data, global_batch_size=batch, seed=seed, augment='crop_flip',
            num_steps=80 // batch), strict=True))[:2])
    images = images.reshape(4, 20, -1)
    order = labels.reshape(4, 20).argsort(1)
    return np.take_along_axis(images, order[..., None], 1)
  first = epochs(20, 0)
  np.testing.assert_array_equal(first, epochs(16, 0))
  same = (first[1:] == first[:-1]).all(2).mean()
  # Two draws agree once in 162.
  assert same < 0.1
  assert (first == epochs(20, 1)).all(2).mean() < 0.1


def test_works_inside_a_strategy() -> None:
  strategy = tf.distribute.OneDeviceStrategy('/cpu:0')
  dataset = pipeline.train_dataset(
      _numbered(10), global_batch_size=5, num_steps=2)
  labels = [batch[1].numpy() for batch in
            strategy.experimental_distribute_dataset(dataset)]
  np.testing.assert_array_equal(np.concatenate(labels), _order(10, 5, 2))


@pytest.mark.parametrize('batch', [1, 7, 20, 23])
def test_evaluation_sees_each_example_once(batch: int) -> None:
  data = _numbered(20)
  dataset = pipeline.evaluation_dataset(data, batch)
  assert dataset.cardinality() == -(-20 // batch)
  assert dataset.element_spec[0].shape == (batch, 8, 8, 3)
  images, labels, weights = (
      np.concatenate(part) for part in zip(
          *dataset.as_numpy_iterator(), strict=True))
  np.testing.assert_array_equal(labels[weights == 1], np.arange(20))
  np.testing.assert_array_equal(labels[weights == 0], 19)
  assert set(weights) <= {0.0, 1.0}
  np.testing.assert_array_equal(
      images[:20], data.read(tf.range(20, dtype=tf.int64))[0])


@pytest.mark.parametrize('change, message', [
    ({'global_batch_size': 0}, 'must be at least 1'),
    ({'micro_batches': 0}, 'must be at least 1'),
    ({'micro_batches': 3}, 'not divisible by runtime.micro_batches=3'),
    ({'start_step': -1}, 'must not be negative'),
    ({'augment': 'mixup'}, 'known are none, crop_flip, autoaugment'),
])
def test_refuses(change: dict, message: str) -> None:
  with pytest.raises(InputError, match=message):
    pipeline.train_dataset(
        _numbered(4), **{'global_batch_size': 8, 'num_steps': 1, **change})


def test_refuses_what_policies_cannot_take() -> None:
  data = source.ArraySource(np.zeros((2, 8, 8, 4), np.uint8), np.zeros(2, int))
  with pytest.raises(InputError, match='need 1 or 3 channels'):
    pipeline.train_dataset(
        data, global_batch_size=2, augment='randaugment', num_steps=1)
  with pytest.raises(InputError, match='batch_size=0'):
    pipeline.evaluation_dataset(data, 0)


def test_names_match_the_config() -> None:
  for name in augment.NAMES:
    assert augment.words(name) % 4 == 0
