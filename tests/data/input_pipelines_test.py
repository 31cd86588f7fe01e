"""Several input pipelines together give what one gives, bit for bit."""

from collections.abc import Iterator
import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.data import (
    augment,
    decode,
    encoded,
    pipeline,
    record_index,
    records,
    source,
    tfrecord,
)
from tests import record_files

COUNTS = (7, 3, 6, 5)  # Records of the files, 21 in all.
BAD = (4, 12)  # Records that are no images.
BATCH = 8
Batch = tuple[Any, np.ndarray, np.ndarray]


def _jpeg(number: int) -> bytes:
  """Noise that no other number has."""
  pixels = np.random.default_rng(number).integers(0, 256, (9, 11, 3), np.uint8)
  return tf.io.encode_jpeg(pixels).numpy()


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('records')
  bounds = np.cumsum((0,) + COUNTS)
  for file, (start, end) in enumerate(zip(bounds, bounds[1:])):
    record_files.write(path / f'train-{file:05d}-of-00004', [
        record_files.example(b'?' if i in BAD else _jpeg(i), i + 1, str(i))
        for i in range(start, end)])
  return path


def _records(folder: pathlib.Path) -> records.RecordSource:
  """The 21 records; the label of each is its number."""
  names = sorted(path.name for path in folder.iterdir())
  return records.RecordSource(
      record_index.count(str(folder), names, record_index.Index()),
      lambda record: tfrecord.parse(record, 1), num_classes=21, image_size=8,
      preprocessing='imagenet', shuffle_buffer=4,
      bad=encoded.BadExamples(len(BAD), 'there'))


def _of_kind(kind: str, folder: pathlib.Path) -> source.Source:
  """The same number of examples from each kind of source."""
  if kind == 'records':
    return _records(folder)
  if kind == 'indexed':
    return encoded.IndexedSource(
        [b'?' if i in BAD else _jpeg(i) for i in range(21)], np.arange(21),
        image_size=8, bad=encoded.BadExamples(len(BAD), 'there'))
  images = np.random.default_rng(0).integers(0, 256, (21, 8, 8, 3), np.uint8)
  return source.ArraySource(images, np.arange(21))


def _joined(parts: list[Iterator[Batch]]) -> list[Batch]:
  """Puts the elements of all pipelines together, rows in their order."""
  return [tf.nest.map_structure(lambda *xs: np.concatenate(xs), *elements)
          for elements in zip(*parts, strict=True)]


def _train(data: source.Source, count: int = 1, **options: Any) -> list[Batch]:
  """Elements of `count` pipelines together."""
  return _joined([pipeline.train_dataset(
      data, global_batch_size=BATCH, seed=5, shard=encoded.Shard(i, count),
      **options).as_numpy_iterator() for i in range(count)])


def _rows(batches: list[Batch]) -> Any:
  """Lays the elements of a run end to end."""
  return tf.nest.map_structure(lambda *xs: np.concatenate(xs), *batches)


def _assert_equal(got: Any, expected: Any) -> None:
  tf.nest.assert_same_structure(got, expected)
  for x, y in zip(tf.nest.flatten(got), tf.nest.flatten(expected)):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize('input_shards', [
    pytest.param(1, marks=pytest.mark.slow), 2,
    pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_pipelines_trains_on_the_same(
    folder: pathlib.Path, input_shards: int) -> None:
  data = _records(folder)
  options = dict(num_steps=4, input_shards=input_shards)
  # Four virtual replicas, since rows of bad examples are copies inside one.
  whole = _rows(_train(data, replicas=4, **options))
  assert 0 in whole[2] and len(np.unique(whole[1])) > 12
  for count, replicas in ((2, 2), (4, 1)):
    _assert_equal(
        _rows(_train(data, count, replicas=replicas, **options)), whole)
  # With half the replicas and two micro batches, from the middle of an epoch.
  late = _train(data, replicas=2, num_steps=2, start_step=2, micro_batches=2,
                input_shards=input_shards)
  _assert_equal(_rows(late), tuple(x[2 * BATCH:] for x in whole))


@pytest.mark.parametrize('kind', ['decoded', 'indexed'])
def test_sources_with_random_access_ignore_input_shards(
    folder: pathlib.Path, kind: str) -> None:
  data = _of_kind(kind, folder)
  _assert_equal(_rows(_train(data, num_steps=2, input_shards=7)),
                _rows(_train(data, num_steps=2)))


@pytest.mark.parametrize('kind, cutmix, arrangements', [
    ('decoded', 0.0, [(2, 2, 1)]),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ('decoded', 0.0, [(2, 1, 2)]),
        ('records', 1.0, [(2, 2, 1), (2, 1, 2)])))])
def test_pipelines_mix_like_one(
    folder: pathlib.Path, kind: str, cutmix: float,
    arrangements: list[tuple[int, int, int]]) -> None:
  data = _of_kind(kind, folder)
  options = dict(num_steps=2, mixup=0.4, cutmix=cutmix)
  whole = _rows(_train(data, replicas=4, **options))
  assert ((whole[1] > 0).sum(1) == 2).any()
  for count, replicas, micro_batches in arrangements:
    _assert_equal(_rows(_train(
        data, count, replicas=replicas, micro_batches=micro_batches,
        **options)), whole)


def test_a_pipeline_decodes_and_reports_only_its_own_rows(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  central, seen = decode.central, []

  def counted(content: tf.Tensor, size: int, channels: int) -> tf.Tensor:
    def note(content: bytes) -> np.int64:
      seen.append(content)
      return np.int64(0)
    with tf.control_dependencies([
        tf.numpy_function(note, [content], tf.int64)]):
      return central(content, size, channels)

  monkeypatch.setattr(decode, 'central', counted)
  names, decoded = [], []
  for index in range(2):
    data = _records(folder)
    seen.clear()
    list(pipeline.evaluation_dataset(data, 4, encoded.Shard(index, 2)))
    names.append(set(data.bad.names))
    decoded.append(sorted(seen))
  contents = [_jpeg(i) for i in range(21) if i not in BAD] + [b'?'] * len(BAD)
  assert sorted(decoded[0] + decoded[1]) == sorted(contents)
  # Elements of 4 rows, of which 2 are the first's: 11 of 21.
  assert [len(part) for part in decoded] == [11, 10]
  assert not names[0] & names[1]
  assert sorted(int(name.split('(')[1][:-1]) for name in names[0] | names[1]
                ) == list(BAD)


@pytest.mark.parametrize('kind', [
    'records', 'decoded', pytest.param('indexed', marks=pytest.mark.slow)])
def test_evaluation_rows_stand_where_one_pipeline_has_them(
    folder: pathlib.Path, kind: str) -> None:
  data = _of_kind(kind, folder)
  bad = () if kind == 'decoded' else BAD
  if kind == 'records':
    order = [int(e.label) for e in data.evaluation_examples()]
    assert sorted(order) == list(range(21))
  else:
    order = list(range(21))
  good = np.array([i not in bad for i in order] + [False] * 3)
  images = []
  # 21 = 3 * 6 + 3: of two or three pipelines, the last element of the last
  # one holds no example.
  for count in (1, 2, 3):
    datasets = [pipeline.evaluation_dataset(data, 6, encoded.Shard(i, count))
                for i in range(count)]
    for dataset in datasets:
      assert dataset.cardinality() == 4
      assert dataset.element_spec[0].shape == (6 // count, 8, 8, 3)
    image, label, weight = _rows(_joined(
        [dataset.as_numpy_iterator() for dataset in datasets]))
    np.testing.assert_array_equal(weight, good)
    np.testing.assert_array_equal(label[good], np.array(order)[good[:21]])
    images.append(image[good])
  assert len({image.tobytes() for image in images[0]}) == good.sum()
  np.testing.assert_array_equal(images[1], images[0])
  np.testing.assert_array_equal(images[2], images[0])


def test_elements_can_be_cut_for_replicas(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(
      augment, 'policy', lambda name, image, bits: image // 2)
  dataset = pipeline.train_dataset(
      _of_kind('decoded', folder), global_batch_size=24, micro_batches=2,
      num_steps=2, shard=encoded.Shard(1, 2), augment='randaugment', streams=2)
  for drop_remainder in (False, True):
    cut = dataset.rebatch(3, drop_remainder)
    image, label, weight = cut.element_spec
    assert set(image) == {'image', 'augmented'}
    for spec in image.values():
      assert (spec.shape, spec.dtype) == ((3, 8, 8, 3), tf.uint8)
    assert label.shape == weight.shape == (3,)
    whole = _rows(list(dataset.as_numpy_iterator()))
    _assert_equal(_rows(list(cut.as_numpy_iterator())), whole)
    assert len(whole[1]) == 24
    again = cut.repeat()
    assert again.element_spec == cut.element_spec
    assert len(list(again.take(9))) == 9


def test_replicas_get_the_rows_of_the_global_batch_in_order(
    folder: pathlib.Path, mirrored: tf.distribute.Strategy) -> None:
  data = _of_kind('decoded', folder)

  def make(context: tf.distribute.InputContext) -> tf.data.Dataset:
    shard = encoded.Shard(
        context.input_pipeline_id, context.num_input_pipelines)
    return pipeline.train_dataset(
        data, global_batch_size=BATCH, micro_batches=2, num_steps=3, seed=5,
        shard=shard).rebatch(2, drop_remainder=True).repeat()

  elements = iter(mirrored.distribute_datasets_from_function(make))
  seen = np.concatenate([
      np.concatenate(mirrored.experimental_local_results(next(elements)[1]))
      for _ in range(6)])
  np.testing.assert_array_equal(seen, _rows(_train(data, num_steps=3))[1])
