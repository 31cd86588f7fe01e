"""1,000 JPEGs of which 25 are broken, from the folder to the batches."""

from collections.abc import Iterator
import io
import pathlib

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from conadv_tf.config import DataConfig, InputError
from conadv_tf.data import pipeline, record_index, source, tfrecord
from tests import record_files

_COUNT, _BAD = 1000, 25
_CLASSES = 5
_BATCH = 50


def _payloads() -> Iterator[tuple[bytes, str]]:
  """Yields serialised examples, and what is wrong with each or ''.

  Labels are 1 .. 5; the red channel of an image is about 40 times its label.
  """
  kinds = ['truncated', 'empty', 'text']
  generator = np.random.default_rng(0)
  bad = set(generator.permutation(_COUNT)[:_BAD])
  for i in range(_COUNT):
    label = i % _CLASSES + 1
    pixels = generator.integers(0, 256, (12, 16, 3), np.uint8)
    pixels[..., 0] = 40 * label
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'JPEG', quality=90)
    content, kind = file.getvalue(), ''
    if i in bad:
      kind = kinds[i % 3]
      content = {'truncated': content[:len(content) // 2], 'empty': b'',
                 'text': b'404 not found'}[kind]
    yield record_files.example(content, label, f'{i}.JPEG'), kind


def _write(folder: pathlib.Path) -> dict[str, str]:
  """Writes 10 training files and 1 other; returns what is wrong, by name."""
  payloads, wrong = [], {}
  for i, (payload, kind) in enumerate(_payloads()):
    payloads.append(payload)
    if kind:
      file = folder / f'train-{i // 100:05d}-of-00010'
      wrong[f'{file} record {i % 100} ({i}.JPEG)'] = kind
  for shard in range(10):
    record_files.write(folder / f'train-{shard:05d}-of-00010',
                       payloads[100 * shard:100 * (shard + 1)])
  record_files.write(folder / 'validation.tfrecord', [
      record_files.example(record_files.jpeg(90), 1)])
  assert len(wrong) == _BAD and set(wrong.values()) == {
      'truncated', 'empty', 'text'}
  return wrong


def _load(folder: pathlib.Path, **more: object) -> source.Splits:
  return tfrecord.load(DataConfig(**{**dict(
      name='tfrecord', path=str(folder), image_size=8, num_classes=_CLASSES,
      shuffle_buffer=300, max_bad_examples=_BAD, cache=False), **more}))


def _train(splits: source.Splits, steps: int = _COUNT // _BATCH,
           start: int = 0) -> list:
  return list(pipeline.train_dataset(
      splits.train, global_batch_size=_BATCH, seed=3, start_step=start,
      num_steps=steps).as_numpy_iterator())


def _check_rows(batches: list) -> tuple[int, int]:
  """Checks what the rows show; returns how many count and how many not."""
  images, labels, weights = (np.concatenate(part) for part in zip(*batches))
  # The colour belongs to the label in every row: a bad one is a whole copy.
  red = images[..., 0].astype(float).mean(axis=(1, 2))
  assert abs(red - 40 * (labels + 1)).max() < 12
  assert set(weights) <= {0.0, 1.0}
  return int(weights.sum()), int((1 - weights).sum())


@pytest.fixture(scope='module')
def broken(tmp_path_factory: pytest.TempPathFactory
           ) -> tuple[pathlib.Path, dict[str, str]]:
  folder = tmp_path_factory.mktemp('broken')
  return folder, _write(folder)


@pytest.mark.parametrize('cache', [
    True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_epoch(
    broken: tuple[pathlib.Path, dict[str, str]], cache: bool) -> None:
  folder, wrong = broken
  splits = _load(folder, cache=cache)
  batches = _train(splits)
  assert len(batches) == 20
  assert _check_rows(batches) == (_COUNT - _BAD, _BAD)
  assert set(splits.train.bad.names) == set(wrong)
  for name, reason in splits.train.bad.names.items():
    assert ('empty' in reason) == (wrong[name] == 'empty'), (name, reason)
  splits.train.check()
  # A resumed run sees the same, bit for bit, and counts nothing twice.
  for seen, again in zip(batches[13:15], _train(splits, 2, 13)):
    for a, b in zip(seen, again):
      np.testing.assert_array_equal(a, b)
  assert len(splits.train.bad.names) == _BAD


def test_evaluation_counts_the_others(
    broken: tuple[pathlib.Path, dict[str, str]]) -> None:
  folder, wrong = broken
  train = _load(folder).train
  batches = list(pipeline.evaluation_dataset(train, 64).as_numpy_iterator())
  assert len(batches) == 16
  assert _check_rows(batches) == (_COUNT - _BAD, 16 * 64 - _COUNT + _BAD)
  assert set(train.bad.names) == set(wrong)


@pytest.mark.parametrize('limit', [0, _BAD - 1])
def test_over_the_limit(
    broken: tuple[pathlib.Path, dict[str, str]], limit: int) -> None:
  folder, wrong = broken
  train = _load(folder, max_bad_examples=limit).train
  with pytest.raises(tf.errors.OpError):
    _train(source.Splits(train, train))
  with pytest.raises(InputError) as error:
    train.check()
  message = str(error.value)
  assert 'data.max_bad_examples' in message and '\n' not in message
  named = sum(name in message for name in wrong)
  if limit:
    assert named == 5
    assert f'{_BAD} bad examples' in message
  else:  # Elements made at the same time can each find one before all stops.
    assert 1 <= named <= 5


def test_labels_out_of_range(tmp_path: pathlib.Path) -> None:
  # 0 is the converter's background; 1 .. 5 are the classes.
  labels = [0, 1, 2, 3, 4, 5, 6, 5]
  for split in ('train', 'validation'):
    record_files.write(tmp_path / f'{split}.tfrecord', [
        record_files.example(record_files.jpeg(40 * label), label)
        for label in labels])
  splits = _load(tmp_path, max_bad_examples=2)
  (_, found, weights), = pipeline.evaluation_dataset(
      splits.validation, 8).as_numpy_iterator()
  np.testing.assert_array_equal(weights, [0, 1, 1, 1, 1, 1, 0, 1])
  np.testing.assert_array_equal(found[weights == 1], [0, 1, 2, 3, 4, 4])
  where = f'{tmp_path / "validation.tfrecord"} record '
  assert splits.validation.bad.names == {
      where + '0': 'its label is -1, outside 0 .. 4',
      where + '6': 'its label is 5, outside 0 .. 4'}
  strict = _load(tmp_path, max_bad_examples=1)
  with pytest.raises(tf.errors.OpError):
    list(pipeline.evaluation_dataset(strict.validation, 8))
  with pytest.raises(InputError, match='2 bad examples, more than '
                     'data.max_bad_examples=1.*record 0.*record 6'):
    strict.validation.check()


def test_a_truncated_record_file(tmp_path: pathlib.Path) -> None:
  for split in ('train', 'validation'):
    record_files.write(tmp_path / f'{split}.tfrecord', [
        record_files.example(record_files.jpeg(40 * (i % 5 + 1)), i % 5 + 1)
        for i in range(20)])
  path = tmp_path / 'train.tfrecord'
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(InputError, match='is truncated after 19 records'):
    _load(tmp_path, max_bad_examples=0)
  splits = _load(tmp_path, max_bad_examples=1)
  assert splits.train.num_examples == 19
  (_, _, weights), = pipeline.train_dataset(
      splits.train, global_batch_size=19, num_steps=1).as_numpy_iterator()
  assert weights.sum() == 19


def test_records_that_a_truncated_file_has_lost_count_one_by_one(
    tmp_path: pathlib.Path) -> None:
  payload = record_files.example(record_files.jpeg(40), 1)
  for split in ('train', 'validation'):
    record_files.write(tmp_path / f'{split}.tfrecord', [payload] * 20)
  path = tmp_path / 'train.tfrecord'
  size = path.stat().st_size
  record_index.Index({'train.tfrecord': (20, size)}).write(str(tmp_path))
  path.write_bytes(path.read_bytes()[:size * 15 // 20 - 1])  # 14 are whole
  options = dict(train_examples=20, max_bad_examples=6)
  splits = _load(tmp_path, **options)
  (_, _, weights), = pipeline.train_dataset(
      splits.train, global_batch_size=20, num_steps=1).as_numpy_iterator()
  assert weights.sum() == 14
  assert len(splits.train.bad.names) == 6
  with pytest.raises(InputError, match='6 bad examples, more than .*=5'):
    _load(tmp_path, **{**options, 'max_bad_examples': 5})
