"""Labelled and unlabelled rows side by side, and as one pool."""

import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.config import DataConfig, InputError
from conadv_tf.data import encoded, pipeline, source, unlabelled

# Labelled examples are 0..9, the others 100..106: the first pixel says which.
_LABELLED, _OTHERS = 10, 7


def _images(first: int, count: int, size: int = 8) -> np.ndarray:
  images = np.random.default_rng(first).integers(
      0, 256, (count, size, size, 3), np.uint8)
  images[:, 0, 0, 0] = first + np.arange(count)
  return images


def _file(folder: pathlib.Path, **arrays: np.ndarray) -> str:
  path = folder / 'more.npz'
  np.savez(path, **arrays)
  return str(path)


def _labelled(kind: str = 'array') -> source.Source:
  labels = np.arange(_LABELLED)
  if kind == 'array':
    return source.ArraySource(_images(0, _LABELLED), labels, num_classes=10)
  return encoded.IndexedSource(
      [tf.io.encode_png(x).numpy() for x in _images(0, _LABELLED)], labels,
      image_size=8, num_classes=10)


def _splits(folder: pathlib.Path, fraction: float | None = 0.5,
            kind: str = 'array', **data: Any) -> source.Splits:
  train = _labelled(kind)
  path = _file(folder, x_train=_images(100, _OTHERS),
               y_train=np.arange(_OTHERS))
  return unlabelled.add(source.Splits(train, train), DataConfig(
      unlabelled_path=path, unlabelled_fraction=fraction, **data))


def _batches(splits: source.Splits, fraction: float | None = 0.5,
             **more: Any) -> tuple[np.ndarray, np.ndarray]:
  """Images and labels of every row, in the order of the elements."""
  options = dict(global_batch_size=24, num_steps=3, seed=5, **more)
  images, labels, weights = zip(*unlabelled.train_dataset(
      splits, fraction, **options).as_numpy_iterator())
  assert all((weight == 1).all() for weight in weights)
  return np.concatenate(images), np.concatenate(labels)


@pytest.mark.parametrize('kind', ['array', 'encoded'])
def test_every_virtual_replica_has_its_rows_of_both(
    tmp_path: pathlib.Path, kind: str) -> None:
  splits = _splits(tmp_path, kind=kind)
  images, labels = _batches(splits, 0.4, micro_batches=2, replicas=2)
  # 12 slices of 6 rows, of which round(0.4 * 6) = 2 are unlabelled.
  slices = labels.reshape(12, 6)
  assert (slices[:, :4] >= 0).all() and (slices[:, 4:] == -1).all()
  # Labelled rows are those of a run without the others, at its batch.
  alone = pipeline.train_dataset(
      splits.train, global_batch_size=16, num_steps=3, seed=5)
  expected, expected_labels, _ = map(np.concatenate, zip(
      *alone.as_numpy_iterator()))
  np.testing.assert_array_equal(slices[:, :4].ravel(), expected_labels)
  by_slice = images.reshape(12, 6, 8, 8, 3)
  np.testing.assert_array_equal(
      by_slice[:, :4].reshape(-1, 8, 8, 3), expected)
  # The others come in permutations of their own.
  drawn = by_slice[:, 4:, 0, 0, 0].ravel()
  for epoch in (drawn[:7], drawn[7:14], drawn[14:21]):
    np.testing.assert_array_equal(np.sort(epoch), 100 + np.arange(_OTHERS))
  assert not np.array_equal(drawn[:7], drawn[7:14])


def test_arrangements_and_resumed_runs_see_the_same_slices(
    tmp_path: pathlib.Path) -> None:
  splits = _splits(tmp_path)
  more = {'augment': 'crop_flip'}
  images, labels = _batches(splits, micro_batches=4, **more)
  for micro_batches, replicas in ((2, 2), (1, 4)):
    got = _batches(splits, micro_batches=micro_batches, replicas=replicas,
                   **more)
    np.testing.assert_array_equal(got[0], images)
    np.testing.assert_array_equal(got[1], labels)
  # Two input pipelines have every second slice each.
  for index in range(2):
    got = _batches(splits, micro_batches=2,
                   shard=encoded.Shard(index, 2), **more)
    np.testing.assert_array_equal(
        got[0].reshape(6, 6, 8, 8, 3),
        images.reshape(12, 6, 8, 8, 3)[index::2])
  late = unlabelled.train_dataset(
      splits, 0.5, global_batch_size=24, micro_batches=4, seed=5, start_step=2,
      num_steps=1, augment='crop_flip')
  np.testing.assert_array_equal(
      np.concatenate([image for image, _, _ in late.as_numpy_iterator()]),
      images[48:])


def test_augmentation_is_alike_and_of_its_own(tmp_path: pathlib.Path) -> None:
  """With the same examples on both sides, only the keys differ."""
  train = _labelled()
  splits = source.Splits(train, train, unlabelled.WithoutLabels(train))
  plain, augmented = (
      _batches(splits, augment=name)[0].reshape(3, 2, 12, -1)
      for name in ('none', 'crop_flip'))
  moved = (plain != augmented).any(-1)
  # One draw in 18 leaves an image as it is: 34 +- 1.4 of 36 are moved.
  assert moved[:, 0].sum() > 28 and moved[:, 1].sum() > 28
  assert not np.array_equal(plain[:, 0], plain[:, 1])


def test_a_pool_is_one_training_set(tmp_path: pathlib.Path) -> None:
  splits = _splits(tmp_path, None)
  assert splits.num_training == 17 and splits.train.num_examples == 10
  images, labels = _batches(splits, None)
  for epoch in range(4):  # of 17 rows
    part = slice(17 * epoch, 17 * (epoch + 1))
    np.testing.assert_array_equal(
        np.sort(images[part, 0, 0, 0]),
        [*range(10), *range(100, 107)])
    np.testing.assert_array_equal(np.sort(labels[part]),
                                  [-1] * 7 + list(range(10)))
  np.testing.assert_array_equal(
      labels, np.where(images[:, 0, 0, 0] < 100, images[:, 0, 0, 0], -1))


def test_pseudo_labels_are_labels(tmp_path: pathlib.Path) -> None:
  splits = _splits(tmp_path, pseudo_labels=True)
  images, labels = _batches(splits, micro_batches=2)
  np.testing.assert_array_equal(labels, images[:, 0, 0, 0] % 100)
  # Mixing comes last, over rows of both kinds.
  mixed = next(iter(unlabelled.train_dataset(
      splits, 0.5, global_batch_size=24, num_steps=1, mixup=1.0)))[1].numpy()
  assert mixed.shape == (24, 10)
  np.testing.assert_allclose(mixed.sum(1), 1.0, atol=1e-6)
  assert ((mixed > 0).sum(1) == 2).any()


def test_off_is_the_pipeline_alone(tmp_path: pathlib.Path) -> None:
  splits = _splits(tmp_path, 0.0)
  assert splits.unlabelled is None and splits.num_training == 10
  ours, plain = (
      list(make.as_numpy_iterator()) for make in (
          unlabelled.train_dataset(splits, 0.0, global_batch_size=8, seed=3,
                                   num_steps=2, augment='crop_flip'),
          pipeline.train_dataset(splits.train, global_batch_size=8, seed=3,
                                 num_steps=2, augment='crop_flip')))
  for one, other in zip(ours, plain, strict=True):
    for x, y in zip(one, other, strict=True):
      np.testing.assert_array_equal(x, y)


def test_images_are_resized_to_the_size_asked_for(
    tmp_path: pathlib.Path) -> None:
  splits = unlabelled.add(
      source.Splits(*[source.resize(_labelled(), 16)] * 2), DataConfig(
          unlabelled_fraction=0.5, image_size=16, unlabelled_path=_file(
              tmp_path, x_train=_images(100, 3, size=12))))
  images, _ = _batches(splits)
  assert images.shape == (72, 16, 16, 3)


@pytest.mark.parametrize('arrays, options, message', [
    ({'x_train': np.zeros((3, 9, 9, 3), np.uint8)}, {},
     r'have the shape \(9, 9, 3\), those of the training set \(8, 8, 3\)'),
    ({'x_train': np.zeros((3, 8, 8), np.uint8)}, {}, r'shape \(8, 8, 1\)'),
    ({'x_train': np.zeros((3, 8, 8, 3))}, {}, 'images are float64'),
    ({'images': np.zeros(3)}, {}, 'no x_train; the keys found are images'),
    ({'x_train': np.zeros((3, 8, 8, 3), np.uint8)}, {'pseudo_labels': True},
     'no y_train'),
    ({'x_train': np.zeros((1, 8, 8, 3), np.uint8),
      'y_train': np.array([10])}, {'pseudo_labels': True},
     'label 0 is 10, outside 0 .. 9'),
])
def test_refuses(tmp_path: pathlib.Path, arrays: dict, options: dict,
                 message: str) -> None:
  train = _labelled()
  with pytest.raises(InputError, match=message) as error:
    unlabelled.add(source.Splits(train, train), DataConfig(
        unlabelled_fraction=0.5, unlabelled_path=_file(tmp_path, **arrays),
        **options))
  assert '\n' not in str(error.value) and 'more.npz' in str(error.value)
