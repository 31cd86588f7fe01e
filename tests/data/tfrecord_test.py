"""Directories of TFRecords: which files, how many records, what they are."""

import json
import os
import pathlib

from absl import logging
import numpy as np
import pytest

from conadv_tf.config import DataConfig, InputError
from conadv_tf.data import encoded, record_index, records, source, tfrecord
from tests import record_files


def _load(folder: pathlib.Path, **more: object) -> source.Splits:
  settings = dict(name='tfrecord', path=str(folder), image_size=8,
                  num_classes=3, cache=False)
  return tfrecord.load(DataConfig(**{**settings, **more}))


def _data(folder: pathlib.Path) -> pathlib.Path:
  """12 training records in 3 files and 5 others in 2."""
  record_files.numbered(folder, 'train', (5, 4, 3))
  record_files.numbered(folder, 'validation', (2, 3))
  return folder


def test_finds_splits_labels_and_names(tmp_path: pathlib.Path) -> None:
  splits = _load(_data(tmp_path))
  assert isinstance(splits.train, records.RecordSource)
  assert (splits.train.num_examples, splits.validation.num_examples) == (12, 5)
  assert splits.train.image_shape == (8, 8, 3)
  assert (splits.train.num_classes, splits.train.class_names) == (3, None)
  found = {int(e.content): int(e.label) for e in
           splits.train.evaluation_examples()}
  assert found == {i: i % 3 for i in range(12)}
  splits = _load(tmp_path, label_offset=0, num_classes=4)
  found = {int(e.content): int(e.label) for e in
           splits.validation.evaluation_examples()}
  assert found == {i: i % 3 + 1 for i in range(5)}


def test_held_in_memory(tmp_path: pathlib.Path) -> None:
  splits = _load(_data(tmp_path), cache=True, num_examples=7)
  assert isinstance(splits.train, encoded.IndexedSource)
  assert (splits.train.num_examples, splits.validation.num_examples) == (7, 5)


def test_more_than_the_memory(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(os, 'sysconf', lambda name: 10)
  with pytest.raises(InputError, match='do not fit .* data.cache=false'):
    _load(_data(tmp_path), cache=True)
  assert _load(tmp_path).train.num_examples == 12


@pytest.mark.parametrize('name, split', [
    ('train-00007-of-01024', 'train'),
    ('train.tfrecord', 'train'),
    ('train_03.tfrecords', 'train'),
    ('train.tfrecord-00000-of-00010', 'train'),
    ('train-00000-of-00010.tfrecord', 'train'),
    ('validation-00000-of-00128', 'validation'),
    ('val-00000-of-00128', 'validation'),
    ('val.tfrecord', 'validation'),
    ('validation1.tfrecord', 'validation'),
    ('training.tfrecord', ''),
    ('trainer-00000-of-00001', ''),
    ('values.tfrecord', ''),
    ('.making-train-00000-of-00001', ''),
    ('train-00000-of-00001.tmp.gz', ''),
    ('train.tfrecord.gz', ''),
    ('index.json', ''),
])
def test_names_of_files(tmp_path: pathlib.Path, name: str, split: str) -> None:
  (tmp_path / name).write_bytes(b'')
  for each in tfrecord.SPLITS:
    if each == split:
      assert tfrecord.split_files(
          str(tmp_path), each, record_index.Index(), partial=True) == [name]
    else:
      with pytest.raises(InputError, match=f'no {each} files in it'):
        tfrecord.split_files(str(tmp_path), each, record_index.Index())


def test_missing_files_are_missed(tmp_path: pathlib.Path) -> None:
  _data(tmp_path)
  (tmp_path / 'train-00001-of-00003').unlink()
  with pytest.raises(InputError, match='1 of 3 train files are missing, for '
                     'instance train-00001-of-00003; bring them, or set '
                     'data.train_examples'):
    _load(tmp_path)
  assert _load(tmp_path, train_examples=8).train.num_examples == 8
  with pytest.raises(InputError, match='train_examples=12: .* has 8 examples'):
    _load(tmp_path, train_examples=12)


def test_two_sets_of_files(tmp_path: pathlib.Path) -> None:
  record_files.numbered(_data(tmp_path), 'train', (5, 4))
  with pytest.raises(InputError, match='2 sets of train files.*keep one'):
    _load(tmp_path)


def test_stated_numbers(tmp_path: pathlib.Path) -> None:
  _data(tmp_path)
  _load(tmp_path, train_examples=12, validation_examples=5)
  with pytest.raises(InputError, match='data.validation_examples=50000: '
                     r'.*\(validation\) has 5 examples'):
    _load(tmp_path, validation_examples=50000)


def test_refuses(tmp_path: pathlib.Path) -> None:
  with pytest.raises(InputError, match='data.path is null'):
    tfrecord.load(DataConfig(name='tfrecord'))
  with pytest.raises(InputError, match='data.image_size is null'):
    _load(tmp_path, image_size=None)
  with pytest.raises(InputError, match='num_classes is null.*1000 for Imag'):
    _load(tmp_path, num_classes=None)
  with pytest.raises(InputError, match='no such directory'):
    _load(tmp_path / 'absent')
  with pytest.raises(InputError, match='no train files in it'):
    _load(tmp_path)
  record_files.numbered(tmp_path, 'train', (2,))
  with pytest.raises(InputError, match='no validation files in it'):
    _load(tmp_path)
  record_files.numbered(tmp_path, 'validation', (2,))
  with pytest.raises(InputError, match='1 of 2 examples .*data.cache=true'):
    _load(tmp_path, num_examples=1)
  (tmp_path / 'index.json').write_text('{"files": {"a": [1]}}')
  with pytest.raises(InputError, match='index.json: cannot be used.*remove'):
    _load(tmp_path)


def test_the_index_is_believed_where_sizes_are_right(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  _data(tmp_path)
  files = {path.name: (record_index.scan(str(path)).records,
                       path.stat().st_size) for path in tmp_path.iterdir()}
  record_index.Index(files, ('a', 'b', 'c')).write(str(tmp_path))
  assert json.loads((tmp_path / 'index.json').read_text())['files'][
      'train-00000-of-00003'][0] == 5
  with monkeypatch.context() as patch:
    patch.setattr(record_index, 'scan', None)
    splits = _load(tmp_path, num_classes=None)
  assert (splits.train.num_examples, splits.validation.num_examples) == (12, 5)
  assert splits.train.class_names == ('a', 'b', 'c')
  with pytest.raises(InputError, match='num_classes=4: .* has 3 classes'):
    _load(tmp_path, num_classes=4)
  # A file that was cut short later is counted again.
  path = tmp_path / 'train-00000-of-00003'
  os.truncate(path, path.stat().st_size - 1)
  with pytest.raises(InputError, match='is truncated after 4 records'):
    _load(tmp_path)
  splits = _load(tmp_path, max_bad_examples=1)
  assert splits.train.num_examples == 12
  assert list(splits.train.bad.names) == [f'{path} record 4']
  path.unlink()
  with pytest.raises(InputError, match='1 of 3 train files are missing'):
    _load(tmp_path)


def test_slow_counting_says_how_to_avoid_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  _data(tmp_path)
  lines = []
  monkeypatch.setattr(logging, 'log', lambda level, text, *values: lines.append(
      (level, text % values)))
  _load(tmp_path)
  monkeypatch.setattr(record_index, '_SLOW', -1)
  _load(tmp_path)
  assert [level for level, _ in lines] == [logging.INFO] * 2 + [
      logging.WARNING] * 2
  assert 'counting the records of 3 files took' in lines[0][1]
  assert f'--index_only --path={tmp_path}' in lines[0][1]


def test_scanning_the_framing(tmp_path: pathlib.Path) -> None:
  sizes = np.array([0, 1, 300, 70000])
  path = record_files.write(tmp_path / 'a', [b'x' * n for n in sizes])
  total = path.stat().st_size
  assert total == sizes.sum() + 4 * record_files.FRAME
  assert record_index.scan(str(path))[:4] == (str(path), 4, total, '')
  # Bits of a payload are the reader's affair, of a length they are ours.
  record_files.flip_bit(path, total - 100)
  assert record_index.scan(str(path))[1:4] == (4, total, '')
  start = sizes[:2].sum() + 2 * record_files.FRAME
  for offset in (start, start + 7, start + 8):
    record_files.flip_bit(path, offset)
    assert record_index.scan(str(path)).damage == 'is damaged after 2 records'
    record_files.flip_bit(path, offset)
  for size, intact in ((total - 1, 3), (start + 11, 2), (start, 2)):
    os.truncate(path, size)
    found = record_index.scan(str(path))
    assert found.records == intact
    assert found.damage == (
        '' if size == start else f'is truncated after {intact} records')
  path.write_bytes(b'')
  assert record_index.scan(str(path))[1:4] == (0, 0, 'is empty')
  path.write_bytes(b'\x1f\x8b' + bytes(range(60)))
  assert record_index.scan(str(path)).damage == (
      'is no TFRecord file, or a compressed one')
