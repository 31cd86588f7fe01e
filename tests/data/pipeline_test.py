"""Order, batches, resuming and exact evaluation."""

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.config import InputError
from conadv_tf.data import augment, encoded, pipeline, source


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


@pytest.mark.slow
@pytest.mark.parametrize('name', ['randaugment', 'autoaugment'])
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


def _encoded(count: int = 7, **more: object) -> encoded.IndexedSource:
  """The images of `_numbered` as PNG files."""
  arrays = _numbered(count, 16).read(tf.range(count, dtype=tf.int64))[0]
  return encoded.IndexedSource(
      [tf.io.encode_png(array).numpy() for array in arrays],
      np.arange(count), image_size=16, **more)


@pytest.mark.parametrize('name', ['none', 'crop_flip'])
def test_encoded_images_are_treated_like_arrays(name: str) -> None:
  options = dict(global_batch_size=4, micro_batches=2, seed=5, augment=name,
                 num_steps=4)
  for ours, expected in zip(
      pipeline.train_dataset(_encoded(), **options),
      pipeline.train_dataset(_numbered(7, 16), **options), strict=True):
    for x, y in zip(ours, expected, strict=True):
      np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize('deterministic', [True, False])
def test_encoded_images_resume_bit_for_bit(deterministic: bool) -> None:
  data = _encoded(preprocessing='imagenet')
  def run(start: int) -> list[tuple]:
    return list(pipeline.train_dataset(
        data, global_batch_size=6, micro_batches=2, seed=5, start_step=start,
        num_steps=4 - start, deterministic=deterministic).as_numpy_iterator())
  whole, late = run(0), run(2)
  assert len(whole) == 8
  for (image, label, _), (expected, its_label, _) in zip(
      late, whole[4:], strict=True):
    rows, its_rows = (
        [(y, x.tobytes()) for x, y in zip(*pair, strict=True)]
        for pair in ((image, label), (expected, its_label)))
    if not deterministic:  # The same rows in another order.
      rows, its_rows = sorted(rows), sorted(its_rows)
    assert rows == its_rows


@pytest.mark.parametrize('is_encoded, shards', [
    (True, 2), (False, 2), (False, 3),
    pytest.param(True, 3, marks=pytest.mark.slow)])
def test_input_pipelines_together_are_one(
    shards: int, is_encoded: bool) -> None:
  data = (_encoded(preprocessing='imagenet') if is_encoded
          else _numbered(7, 16))
  options = dict(global_batch_size=12, micro_batches=2, num_steps=3,
                 augment='none' if is_encoded else 'crop_flip')
  parts = [list(pipeline.train_dataset(
      data, shard=encoded.Shard(i, shards), **options))
           for i in range(shards)]
  for together, whole in zip(
      zip(*parts, strict=True), pipeline.train_dataset(data, **options),
      strict=True):
    for part, expected in zip(zip(*together, strict=True), whole, strict=True):
      np.testing.assert_array_equal(np.concatenate(part), expected)


def test_pipelines_without_examples_are_padded() -> None:
  # One example for two pipelines, which both need one element.
  for i, weights in enumerate(([1, 0], [0, 0])):
    (image, _, weight), = pipeline.evaluation_dataset(
        _encoded(1), 4, encoded.Shard(i, 2))
    assert image.shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(weight, weights)


def test_rows_must_divide_among_pipelines() -> None:
  shard = encoded.Shard(0, 3)
  with pytest.raises(InputError, match='4 rows do not divide among 3 input'):
    pipeline.train_dataset(
        _numbered(4), global_batch_size=8, micro_batches=2, num_steps=1,
        shard=shard)
  with pytest.raises(InputError, match='evaluation.batch_size: 4 rows'):
    pipeline.evaluation_dataset(_numbered(4), 4, shard)


def test_rows_must_divide_among_replicas() -> None:
  with pytest.raises(InputError, match='4 rows .* among its 3 replicas'):
    pipeline.train_dataset(
        _numbered(4), global_batch_size=8, micro_batches=2, num_steps=1,
        replicas=3)


@pytest.mark.parametrize('preprocessing', ['imagenet', 'resize', None])
def test_two_streams_share_crop_and_flip(
    preprocessing: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
  # A policy that is quick to trace, and that flips and crops commute with.
  monkeypatch.setattr(
      augment, 'policy', lambda name, image, bits: image // 2)
  data = (_numbered(7, 16) if preprocessing is None
          else _encoded(preprocessing=preprocessing))
  options = dict(global_batch_size=7, num_steps=1)
  plain = 'none' if preprocessing == 'imagenet' else 'crop_flip'
  (images, label, _), = pipeline.train_dataset(
      data, augment='randaugment', streams=2, **options)
  (alone, _, _), = pipeline.train_dataset(
      data, augment='randaugment', **options)
  assert set(images) == {'image', 'augmented'}
  assert images['image'].numpy().any()
  np.testing.assert_array_equal(images['augmented'], images['image'] // 2)
  np.testing.assert_array_equal(images['augmented'], alone)
  # Keys differ, since policies take more words, but not the examples.
  (_, expected, _), = pipeline.train_dataset(data, augment=plain, **options)
  np.testing.assert_array_equal(label, expected)


def test_refuses_augmentation_that_does_not_fit() -> None:
  options = dict(global_batch_size=2, num_steps=1)
  with pytest.raises(InputError, match='imagenet crops and flips already'):
    pipeline.train_dataset(_encoded(2, preprocessing='imagenet'),
                           augment='crop_flip', **options)
  for name in ('none', 'crop_flip'):
    with pytest.raises(InputError, match='bn_branches=3 .* to one of autoaug'):
      pipeline.train_dataset(
          _numbered(2), augment=name, streams=2, **options)


def test_mixing_is_off_by_default_and_a_function_of_the_step() -> None:
  options = dict(global_batch_size=6, micro_batches=2, num_steps=3)
  off, on = (list(pipeline.train_dataset(_numbered(7), mixup=alpha, **options))
             for alpha in (0.0, 1.0))
  assert off[0][1].dtype == tf.int32
  assert (on[0][1].dtype, on[0][1].shape) == (tf.float32, (3, 7))
  for _, label, _ in on:
    np.testing.assert_allclose(np.sum(label, 1), 1, atol=1e-6)
  late = pipeline.train_dataset(
      _numbered(7), mixup=1.0, start_step=2,
      **{**options, 'num_steps': 1})
  for got, expected in zip(late, on[4:], strict=True):
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


def test_draws_are_random_examples_as_they_are() -> None:
  data = _numbered(10)
  raw = data.read(tf.range(10, dtype=tf.int64))[0].numpy()

  def drawn(number: int, seed: int = 0, count: int = 4) -> np.ndarray:
    image, label, weight = pipeline.drawn_dataset(
        data, count, seed=seed, number=number).get_single_element()
    np.testing.assert_array_equal(image, raw[label])
    np.testing.assert_array_equal(weight, 1.0)
    return label.numpy()

  # Parts of one permutation after another.
  order = np.concatenate([drawn(number) for number in range(5)])
  np.testing.assert_array_equal(np.sort(order[:10]), np.arange(10))
  np.testing.assert_array_equal(np.sort(order[10:]), np.arange(10))
  np.testing.assert_array_equal(drawn(3), order[12:16])
  assert (drawn(0, seed=1, count=10) != order[:10]).any()
  assert (order[:10] != _order(10, 10, 1)).any()  # training's
  with pytest.raises(InputError, match='at least 1'):
    drawn(0, count=0)
