"""From a folder of images to TFRecords and their index."""

import itertools
import json
import pathlib
import types

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.config import DataConfig, InputError
from conadv_tf.data import tfrecord
from tests import commands, record_files
from tools import tfrecord_conversion

_KEYS = {
    'image/height': 'int64_list', 'image/width': 'int64_list',
    'image/colorspace': 'bytes_list', 'image/channels': 'int64_list',
    'image/class/label': 'int64_list', 'image/class/synset': 'bytes_list',
    'image/class/text': 'bytes_list', 'image/object/bbox/xmin': 'float_list',
    'image/object/bbox/xmax': 'float_list',
    'image/object/bbox/ymin': 'float_list',
    'image/object/bbox/ymax': 'float_list',
    'image/object/bbox/label': 'int64_list', 'image/format': 'bytes_list',
    'image/filename': 'bytes_list', 'image/encoded': 'bytes_list'}


def _folder(path: pathlib.Path, train: int = 6) -> pathlib.Path:
  """`train` images of each of 3 classes, and 2 of two of them."""
  for split, classes, count in (
      ('train', 'abc', train), ('val', 'ac', 2)):
    for name in classes:
      (path / split / name).mkdir(parents=True)
      for i in range(count):
        value = 40 * 'abc'.index(name) + i
        (path / split / name / f'{split}_{name}{i}.JPEG').write_bytes(
            record_files.jpeg(value))
  return path


def _convert(source: pathlib.Path, output: pathlib.Path, train: int | None = 3,
             validation: int | None = 2, max_bad: int = 0) -> None:
  tfrecord_conversion.convert(
      str(source), str(output), threads=3, max_bad=max_bad,
      shards={'train': train, 'validation': validation})


def _examples(path: pathlib.Path) -> dict[str, tf.train.Example]:
  """Examples of all files, by filename."""
  found = {}
  for file in sorted(path.glob('*-of-*')):
    for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
      example = tf.train.Example.FromString(record)
      name = example.features.feature['image/filename'].bytes_list.value[0]
      assert name.decode() not in found
      found[name.decode()] = example
  return found


def _value(example: tf.train.Example, key: str) -> list:
  return list(getattr(example.features.feature[key], _KEYS[key]).value)


def test_all_keys_of_the_usual_converter(tmp_path: pathlib.Path) -> None:
  source = _folder(tmp_path / 'in')
  _convert(source, tmp_path / 'out')
  examples = _examples(tmp_path / 'out')
  assert len(examples) == 18 + 4
  for example in examples.values():
    assert {key: feature.WhichOneof('kind') for key, feature
            in example.features.feature.items()} == _KEYS
  example = examples['train_c4.JPEG']
  assert {key: _value(example, key) for key in _KEYS
          if key != 'image/encoded'} == {
      'image/height': [10], 'image/width': [8], 'image/colorspace': [b'RGB'],
      'image/channels': [3], 'image/class/label': [3],
      'image/class/synset': [b'c'], 'image/class/text': [b'c'],
      'image/object/bbox/xmin': [], 'image/object/bbox/xmax': [],
      'image/object/bbox/ymin': [], 'image/object/bbox/ymax': [],
      'image/object/bbox/label': [], 'image/format': [b'JPEG'],
      'image/filename': [b'train_c4.JPEG']}
  assert _value(example, 'image/encoded') == [
      (source / 'train/c/train_c4.JPEG').read_bytes()]


def test_shards_index_and_loading(tmp_path: pathlib.Path) -> None:
  source, output = _folder(tmp_path / 'in'), tmp_path / 'out'
  _convert(source, output, train=4)
  index = json.loads((output / 'index.json').read_text())
  assert index['class_names'] == ['a', 'b', 'c']
  assert index['made_from'] == str(source)
  assert sorted(index['files']) == sorted(
      p.name for p in output.iterdir() if p.name != 'index.json')
  assert [index['files'][f'train-{i:05d}-of-00004'][0]
          for i in range(4)] == [5, 5, 4, 4]
  for name, (_, size) in index['files'].items():
    assert (output / name).stat().st_size == size
  splits = tfrecord.load(DataConfig(
      name='tfrecord', path=str(output), image_size=8, cache=False))
  assert (splits.train.num_examples, splits.validation.num_examples) == (18, 4)
  assert splits.train.class_names == ('a', 'b', 'c')
  labels = [int(e.label) for e in splits.train.evaluation_examples()]
  assert sorted(labels) == [0] * 6 + [1] * 6 + [2] * 6
  assert labels != sorted(labels)


def test_the_same_input_gives_the_same_files(tmp_path: pathlib.Path) -> None:
  source = _folder(tmp_path / 'in')
  for name in ('one', 'two'):
    _convert(source, tmp_path / name)
  for path in (tmp_path / 'one').iterdir():
    assert path.read_bytes() == (tmp_path / 'two' / path.name).read_bytes()


def test_default_numbers_of_files(tmp_path: pathlib.Path) -> None:
  source = _folder(tmp_path / 'in')
  _convert(source, tmp_path / 'out', train=None, validation=None)
  names = [p.name for p in (tmp_path / 'out').glob('*-of-*')]
  assert {name[-5:] for name in names if name.startswith('train')} == {'00016'}
  assert {name[-5:] for name in names if name.startswith('val')} == {'00004'}


def test_other_kinds_become_rgb_jpegs(tmp_path: pathlib.Path) -> None:
  source = _folder(tmp_path / 'in')
  grey = record_files.jpeg(90, mode='L')
  for name, content in (
      ('cmyk.JPEG', record_files.jpeg(90, mode='CMYK')),
      ('png.JPEG', record_files.jpeg(90, kind='PNG')),
      ('alpha.png', record_files.jpeg(90, mode='RGBA', kind='PNG')),
      ('x.bmp', record_files.jpeg(90, kind='BMP')),
      ('grey.JPEG', grey)):
    (source / 'train/a' / name).write_bytes(content)
  _convert(source, tmp_path / 'out')
  examples = _examples(tmp_path / 'out')
  for name in ('cmyk.JPEG', 'png.JPEG', 'alpha.png', 'x.bmp'):
    content, = _value(examples[name], 'image/encoded')
    np.testing.assert_array_equal(
        tf.io.extract_jpeg_shape(content), [10, 8, 3])
    pixels = tf.io.decode_jpeg(content).numpy().astype(int)
    assert abs(pixels - 90).max() <= 2, name
    assert _value(examples[name], 'image/height') == [10]
    assert _value(examples[name], 'image/width') == [8]
  # Decoded to three channels by whoever reads it, as ImageNet's own are.
  assert _value(examples['grey.JPEG'], 'image/encoded') == [grey]


def _spoil(source: pathlib.Path) -> list[str]:
  folder = source / 'train/b'
  whole = record_files.jpeg(50, size=(64, 64))
  for name, content in (
      ('cut.JPEG', whole[:-40]), ('empty.JPEG', b''), ('text.JPEG', b'words'),
      ('notes.txt', b'words'), ('palette.bmp', record_files.jpeg(
          5, mode='P', kind='BMP'))):
    (folder / name).write_bytes(content)
  (folder / '.hidden').write_bytes(b'')
  (folder / 'sub.JPEG').mkdir()
  return ['cut.JPEG', 'empty.JPEG', 'text.JPEG', 'notes.txt', 'palette.bmp',
          'sub.JPEG']


def test_bad_files_up_to_a_limit(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
  source, output = _folder(tmp_path / 'in'), tmp_path / 'out'
  names = _spoil(source)
  with pytest.raises(InputError, match='more than --max_bad=0 files cannot be '
                     'used; .*/train/b/'):
    _convert(source, output)
  assert list(output.iterdir()) == []
  with pytest.raises(InputError, match='more than --max_bad=5'):
    _convert(source, output, max_bad=5)
  capsys.readouterr()
  _convert(source, output, max_bad=6)
  printed = capsys.readouterr().out
  lines = [line for line in printed.splitlines() if 'left out' in line]
  assert len(lines) == 6
  for name in names:
    assert any(f'/train/b/{name} ' in line for line in lines), name
  assert 'empty.JPEG is empty' in printed
  assert 'notes.txt is no image by its name' in printed
  assert 'train: 18 images of 3 classes in 3 files' in printed
  assert len(_examples(output)) == 22


def test_only_its_own_output_is_overwritten(tmp_path: pathlib.Path) -> None:
  source, output = _folder(tmp_path / 'in'), tmp_path / 'out'
  _convert(source, output, train=4)
  (output / '.making-train-00000-of-00009').write_bytes(b'from a killed run')
  _convert(source, output, train=2)
  assert sorted(p.name for p in output.iterdir()) == [
      'index.json', 'train-00000-of-00002', 'train-00001-of-00002',
      'validation-00000-of-00002', 'validation-00001-of-00002']
  # A failed attempt leaves the old files as they are.
  before = commands.digest(output)
  (source / 'train/a/bad.JPEG').write_bytes(b'')
  with pytest.raises(InputError, match='max_bad=0'):
    _convert(source, output)
  with pytest.raises(InputError, match='train_shards=99.*only 19 train'):
    _convert(source, output, train=99)
  assert commands.digest(output) == before
  (source / 'train/a/bad.JPEG').unlink()
  (output / 'mine.txt').write_text('precious')
  with pytest.raises(InputError, match='holds mine.txt, which was not made'):
    _convert(source, output)
  (output / 'mine.txt').unlink()
  # An index alone does not make files of others its own.
  (output / 'index.json').unlink()
  tfrecord_conversion.write_index(str(output))
  with pytest.raises(InputError, match='which was not made by this tool'):
    _convert(source, output)


def test_progress(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture) -> None:
  # Each look at the clock is 15 seconds later: a line at every second file.
  monkeypatch.setattr(tfrecord_conversion, 'time', types.SimpleNamespace(
      monotonic=itertools.count(0, 15).__next__))
  _convert(_folder(tmp_path / 'in'), tmp_path / 'out')
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == '2 of 22 files, 0 files/s, 5:00 left'
  assert lines[10] == '22 of 22 files, 0 files/s, 0:00 left'
  assert lines[11] == '22 files in 345.0 s, 0 files/s.'


def test_index_only(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
  record_files.numbered(tmp_path, 'train', (5, 4, 3))
  record_files.numbered(tmp_path, 'validation', (2, 3))
  cut = tmp_path / 'train-00002-of-00003'
  cut.write_bytes(cut.read_bytes()[:-1])
  tfrecord_conversion.write_index(str(tmp_path))
  out, err = capsys.readouterr()
  assert 'train: 11 records in 3 files.' in out
  assert 'validation: 5 records in 2 files.' in out
  assert err == f'{cut}: is truncated after 2 records.\n'
  index = json.loads((tmp_path / 'index.json').read_text())
  assert {name: count for name, (count, _) in index['files'].items()} == {
      'train-00000-of-00003': 5, 'train-00001-of-00003': 4,
      'validation-00000-of-00002': 2, 'validation-00001-of-00002': 3}
  assert index['class_names'] is None
  # Training hears of the damage again.
  with pytest.raises(InputError, match='is truncated after 2 records'):
    tfrecord.load(DataConfig(name='tfrecord', path=str(tmp_path), image_size=8,
                             num_classes=3, cache=False))


def test_index_only_keeps_what_a_damaged_file_had(
    tmp_path: pathlib.Path) -> None:
  record_files.numbered(tmp_path, 'train', (5,))
  record_files.numbered(tmp_path, 'validation', (2,))
  tfrecord_conversion.write_index(str(tmp_path))
  cut = tmp_path / 'train-00000-of-00001'
  cut.write_bytes(cut.read_bytes()[:-1])
  tfrecord_conversion.write_index(str(tmp_path))
  index = json.loads((tmp_path / 'index.json').read_text())
  assert index['files'][cut.name][0] == 5
  with pytest.raises(InputError, match='record 4: its file is truncated after'):
    tfrecord.load(DataConfig(name='tfrecord', path=str(tmp_path), image_size=8,
                             num_classes=3, cache=False))


def test_the_command(tmp_path: pathlib.Path) -> None:
  module = 'tools.make_tfrecords'
  assert '--input is missing' in commands.run(module).refusal()
  assert '--path is missing' in commands.run(module, '--index_only').refusal()
  source = _folder(tmp_path / 'in')
  flags = [f'--input={source}', f'--output={tmp_path / "out"}']
  message = commands.run(module, *flags, '--path=x').refusal()
  assert '--path has no use here' in message
  done = commands.run(module, *flags, '--train_shards=2', '--threads=1')
  assert done.code == 0, done.err
  assert '22 files in ' in done.out
  assert 'train: 18 images of 3 classes in 2 files' in done.out
  message = commands.run(
      module, f'--input={tmp_path / "no"}', flags[1]).refusal()
  assert 'does not exist' in message
