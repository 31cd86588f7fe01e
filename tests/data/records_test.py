"""Streams of TFRecord files: every example once an epoch, exact resume."""

import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.config import InputError
from conadv_tf.data import (
  encoded,
  pipeline,
  record_index,
  records,
  tfrecord,
)
from tests import record_files

KEY = randomness.make_key(5, randomness.ORDER)
WHOLE = encoded.Shard()
COUNTS = (7, 3, 5, 6)  # 21 records


def _source(folder: pathlib.Path, shuffle_buffer: int = 8,
            limit: int = 0, num_classes: int = 3) -> records.RecordSource:
  names = sorted(n for n in os.listdir(folder) if n.startswith('train'))
  return records.RecordSource(
      record_index.count(str(folder), names, record_index.Index()),
      lambda record: tfrecord.parse(record, 1), num_classes=num_classes,
      image_size=8, shuffle_buffer=shuffle_buffer,
      bad=encoded.BadExamples(limit, 'there'), where='there')


def _train(source: records.RecordSource, start: int, count: int,
           shard: encoded.Shard = WHOLE, key: randomness.Key = KEY,
           deterministic: bool = True, input_shards: int = 1) -> list[str]:
  dataset = source.training_examples(
      key, start, count, shard, input_shards, deterministic)
  return [e.content.decode() for e in dataset.as_numpy_iterator()]


def _evaluation(source: records.RecordSource) -> list[encoded.Example]:
  return list(source.evaluation_examples().as_numpy_iterator())


def test_epochs_are_permutations_of_their_own(tmp_path: pathlib.Path) -> None:
  names = record_files.numbered(tmp_path, 'train', COUNTS)
  source = _source(tmp_path)
  assert source.num_examples == 21
  seen = _train(source, 0, 63)
  epochs = [seen[i:i + 21] for i in (0, 21, 42)]
  for epoch in epochs:
    assert sorted(epoch) == sorted(names)
  assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
  assert _train(source, 0, 21, key=KEY + 1) != epochs[0]


def test_one_file_is_shuffled_anew_every_epoch(
    tmp_path: pathlib.Path) -> None:
  names = record_files.numbered(tmp_path, 'train', (12,))
  seen = _train(_source(tmp_path), 0, 24)
  assert sorted(seen[:12]) == sorted(seen[12:]) == sorted(names)
  assert names != seen[:12] != seen[12:] != names


def test_order_is_a_function_of_key_and_position(
    tmp_path: pathlib.Path) -> None:
  record_files.numbered(tmp_path, 'train', COUNTS)
  whole = _train(_source(tmp_path), 0, 63)
  tf.random.set_seed(77)
  source = _source(tmp_path)
  # Within an epoch, at its last example, at a border, and over one.
  for start, count in ((0, 63), (4, 9), (20, 1), (21, 5), (30, 30)):
    assert _train(source, start, count) == whole[start:start + count]
  assert _train(source, 5, 0) == []


def test_a_buffer_of_one_keeps_the_order_of_the_files(
    tmp_path: pathlib.Path) -> None:
  names = record_files.numbered(tmp_path, 'train', COUNTS)
  seen = _train(_source(tmp_path, shuffle_buffer=1), 0, 21)
  assert sorted(seen) == sorted(names)
  bounds = np.cumsum((0,) + COUNTS)
  for first, last in zip(bounds, bounds[1:]):
    own = [int(name) for name in seen if first <= int(name) < last]
    assert own == sorted(own)


def test_without_determinism_it_is_still_every_example_once(
    tmp_path: pathlib.Path) -> None:
  names = record_files.numbered(tmp_path, 'train', COUNTS)
  seen = _train(_source(tmp_path), 0, 42, deterministic=False)
  assert sorted(seen[:21]) == sorted(seen[21:]) == sorted(names)


@pytest.mark.parametrize('count', [
    2, pytest.param(4, marks=pytest.mark.slow)])
def test_each_stream_has_files_and_rows_of_its_own(
    tmp_path: pathlib.Path, count: int) -> None:
  record_files.numbered(tmp_path, 'train', COUNTS)
  source = _source(tmp_path)
  bounds = np.cumsum((0,) + COUNTS)
  batches = np.array(_train(
      source, 0, 30, encoded.Shard(rows=8), input_shards=count),
                     int).reshape(30, count, 8 // count)
  for number in range(count):
    own = sorted(i for file in range(number, len(COUNTS), count)
                 for i in range(bounds[file], bounds[file + 1]))
    seen = batches[:, number].ravel()
    size = len(own)
    assert sorted(seen[:size]) == sorted(seen[size:2 * size]) == own
    # The epochs that are whole; few records can come as before once.
    epochs = seen[:len(seen) // size * size].reshape(-1, size)
    assert len(np.unique(epochs, axis=0)) > 1


# Batches of 12 are cut differently, into micro batches too; some pipelines
# need parts of two streams.
@pytest.mark.parametrize('input_shards', [
    2, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 4))])
def test_any_pipelines_and_micro_batches_see_the_same(
    tmp_path: pathlib.Path, input_shards: int) -> None:
  record_files.numbered(tmp_path, 'train', COUNTS)
  source = _source(tmp_path)
  whole = np.array(_train(source, 0, 8, encoded.Shard(rows=12),
                          input_shards=input_shards)).reshape(8, 12)
  others = ((3, 1), (2, 2)) if input_shards == 2 else ()
  for count, elements in ((1, 4), (2, 1), (4, 1), *others):
    seen = np.full_like(whole[3:], '')
    for index in range(count):
      shard = encoded.Shard(
          index, count, 12 // count // elements, elements)
      # From the middle of an epoch on.
      seen[:, shard.own()] = np.array(_train(
          source, 3, 5, shard, input_shards=input_shards)).reshape(5, -1)
    np.testing.assert_array_equal(seen, whole[3:])


def test_pipelines_that_share_a_stream_agree_without_determinism(
    tmp_path: pathlib.Path) -> None:
  names = record_files.numbered(tmp_path, 'train', COUNTS)
  source = _source(tmp_path)
  parts = [_train(source, 0, 7, encoded.Shard(i, 3), deterministic=False)
           for i in range(3)]
  assert sorted(sum(parts, [])) == sorted(names)


def test_streams_must_fit_files_and_batches(tmp_path: pathlib.Path) -> None:
  record_files.numbered(tmp_path, 'train', (4, 4))
  source = _source(tmp_path)
  with pytest.raises(InputError, match='input_shards=3: the 2 files of there'):
    _train(source, 0, 1, encoded.Shard(rows=3), input_shards=3)
  for count in (0, 3):
    with pytest.raises(InputError, match=f'input_shards={count}: must be at '
                       'least 1 and divide data.global_batch_size=8'):
      _train(source, 0, 1, encoded.Shard(1, 2, 2, 2), input_shards=count)


def test_what_an_example_holds(tmp_path: pathlib.Path) -> None:
  path = record_files.write(tmp_path / 'train.tfrecord', [
      record_files.example(b'x', 2, 'a.JPEG', [(.1, .2, .3, .4), (0, 0, 1, 1)]),
      record_files.example(b'y', 1)])
  with_boxes, plain = _evaluation(_source(tmp_path))
  assert (with_boxes.content, with_boxes.label) == (b'x', 1)
  assert with_boxes.name.decode() == f'{path} record 0 (a.JPEG)'
  np.testing.assert_array_equal(
      with_boxes.boxes, np.float32([(.1, .2, .3, .4), (0, 0, 1, 1)]))
  assert (plain.content, plain.label) == (b'y', 0)
  assert plain.name.decode() == f'{path} record 1'
  assert plain.boxes.shape == (0, 4) and plain.boxes.dtype == np.float32


def test_a_damaged_payload_costs_the_rest_of_its_file(
    tmp_path: pathlib.Path) -> None:
  record_files.numbered(tmp_path, 'train', COUNTS)
  path = tmp_path / 'train-00002-of-00004'
  length = (path.stat().st_size - 5 * record_files.FRAME) // 5
  # In the payload of record 2 of 5; records 12 and 13 of all are before it.
  record_files.flip_bit(path, 2 * (length + record_files.FRAME) + 20)
  source = _source(tmp_path)
  assert source.num_examples == 21
  found = _evaluation(source)
  bad = sorted(e.name.decode() for e in found if not e.content)
  assert bad == [f'{path} record {k}' for k in (2, 3, 4)]
  good = sorted(int(e.content) for e in found if e.content)
  assert good == [i for i in range(21) if i not in (12, 13, 14)]
  assert all(e.label == -1 for e in found if not e.content)
  # Positions do not shift: the second epoch is as long as the first.
  seen = _train(source, 0, 42)
  assert sorted(seen[:21]) == sorted(seen[21:]) == sorted(
      [''] * 3 + [str(i) for i in good])
  assert _train(source, 25, 10) == seen[25:35]


def test_records_that_cannot_be_parsed(tmp_path: pathlib.Path) -> None:
  wrong_type = tf.train.Example(features=tf.train.Features(feature={
      'image/encoded': tf.train.Feature(
          int64_list=tf.train.Int64List(value=[1]))})).SerializeToString()
  uneven = tf.train.Example.FromString(record_files.example(
      b'u', 1, boxes=[(0, 0, 1, 1)]))
  uneven.features.feature['image/object/bbox/xmin'].float_list.value.append(1)
  path = record_files.write(tmp_path / 'train.tfrecord', [
      record_files.example(b'a', 1), b'no example at all', wrong_type,
      record_files.example(b'b', 2), record_files.example(None, 1),
      record_files.example(b'c', None), uneven.SerializeToString(),
      record_files.example(b'd', 3)])
  found = _evaluation(_source(tmp_path))
  contents = {e.name.decode().removeprefix(f'{path} record '): (
      e.content, int(e.label)) for e in found}
  assert contents == {
      '0': (b'a', 0), '1': (b'', -1), '2': (b'', -1), '3': (b'b', 1),
      '4': (b'', 0), '5': (b'c', -1), '6': (b'', -1), '7': (b'd', 2)}


def test_labels_never_wrap_into_the_range() -> None:
  numbers = np.array([1, 3, 0, 4, -2**63, 2**32 + 1, 2**31, 2**63 - 1])
  found = [int(records.label(tf.constant(n), 1)) for n in numbers]
  assert found == [0, 2, -1, 3, -1, -1, 2**31 - 1, -1]


def test_damaged_files_are_counted_when_they_are_opened(
    tmp_path: pathlib.Path) -> None:
  record_files.numbered(tmp_path, 'train', COUNTS)
  cut = tmp_path / 'train-00000-of-00004'
  os.truncate(cut, cut.stat().st_size - 3)
  (tmp_path / 'train-00001-of-00004').write_bytes(b'')
  with pytest.raises(InputError) as error:
    _source(tmp_path, limit=1)
  assert f'{cut}: is truncated after 6 records' in str(error.value)
  assert '00001-of-00004: is empty' in str(error.value)
  source = _source(tmp_path, limit=2)
  assert len(source.bad.names) == 2
  assert source.num_examples == 6 + 5 + 6
  assert sorted(_train(source, 0, 17)) == sorted(
      str(i) for i in range(21) if i not in (6, 7, 8, 9))


def test_a_file_that_has_gone_is_an_error(tmp_path: pathlib.Path) -> None:
  record_files.numbered(tmp_path, 'train', COUNTS)
  source = _source(tmp_path)
  source.check()
  (tmp_path / 'train-00001-of-00004').unlink()
  with pytest.raises(tf.errors.NotFoundError, match='00001-of-00004'):
    _evaluation(source)
  with pytest.raises(InputError, match='00001-of-00004: has gone or changed'):
    source.check()


def test_in_memory_is_the_same_split(tmp_path: pathlib.Path) -> None:
  names = record_files.numbered(tmp_path, 'train', COUNTS)
  record_files.write(tmp_path / 'train.tfrecord', [
      record_files.example(b'21', 2, 'x', [(.1, .2, .3, .4)]), b'no example'])
  stream = _source(tmp_path, limit=1)
  held = stream.in_memory()
  assert isinstance(held, encoded.IndexedSource)
  assert held.bad is stream.bad and held.image_shape == (8, 8, 3)
  assert held.bad.names == {f'{tmp_path / "train.tfrecord"} record 1':
                            'it is empty, or its record is damaged'}
  found = {e.name: e for e in held.evaluation_examples().as_numpy_iterator()}
  for example in _evaluation(stream):
    other = found.pop(example.name)
    assert (example.content, example.label) == (other.content, other.label)
    np.testing.assert_array_equal(example.boxes, other.boxes)
  assert not found
  half = held.subset(np.arange(4))
  assert len(list(half.evaluation_examples())) == 4
  assert len(names) == 21


def test_refuses(tmp_path: pathlib.Path) -> None:
  (tmp_path / 'train.tfrecord').write_bytes(b'')
  with pytest.raises(InputError, match='hold no records'):
    _source(tmp_path, limit=1)
  record_files.numbered(tmp_path, 'train', (3,))
  with pytest.raises(InputError, match='2 of 3 examples cannot be picked'):
    _source(tmp_path, limit=1).subset(np.arange(2))


def test_draws_of_a_stream(tmp_path: pathlib.Path) -> None:
  """Record i is a grey of 20 i, so every image says which one it is."""
  for shard in range(2):
    record_files.write(tmp_path / f'train-{shard:05d}-of-00002', [
        record_files.example(record_files.jpeg(20 * i), i + 1)
        for i in range(5 * shard, 5 * shard + 5)])
  source = _source(tmp_path, num_classes=10)
  drawn = []
  for number in range(2):
    image, label, weight = pipeline.drawn_dataset(
        source, 5, seed=0, number=number).get_single_element()
    np.testing.assert_allclose(
        image.numpy().mean((1, 2, 3)), 20 * label.numpy(), atol=2)
    np.testing.assert_array_equal(weight, 1.0)
    drawn += label.numpy().tolist()
  assert sorted(drawn) == list(range(10)) != drawn
