"""Folders of image files."""

import pathlib

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from conadv_tf.config import DataConfig, InputError
from conadv_tf.data import image_folder, pipeline, source


def _write(path: pathlib.Path, value: int, mode: str = 'RGB') -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', (12, 10), (value,) * 3).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
  """Classes ant (2 training images), bee (3) and cat (1)."""
  _write(tmp_path / 'train/ant/a.jpg', 10)
  _write(tmp_path / 'train/ant/b.PNG', 20, 'L')
  _write(tmp_path / 'train/bee/a.jpeg', 30, 'L')
  _write(tmp_path / 'train/bee/b.gif', 40)
  _write(tmp_path / 'train/bee/c.bmp', 50)
  _write(tmp_path / 'train/cat/x.png', 60, 'RGBA')
  _write(tmp_path / 'val/bee/a.png', 70)
  _write(tmp_path / 'val/cat/a.jpg', 80)
  (tmp_path / 'train/.hidden').mkdir()
  (tmp_path / 'train/ant/.DS_Store').write_text('x')
  return tmp_path


def _read_all(data: source.Source) -> np.ndarray:
  """Labels of the rows that count; raises what the training loop would."""
  try:
    batches = list(pipeline.evaluation_dataset(data, 4))
  except tf.errors.OpError:
    data.check()
    raise
  labels, weights = (np.concatenate([b[i] for b in batches]) for i in (1, 2))
  return labels[weights > 0]


def _config(path: object, **more: object) -> DataConfig:
  return DataConfig(
      **{'name': 'image_folder', 'path': str(path), 'image_size': 6, **more})


@pytest.mark.parametrize('cache', [True, False])
def test_reads_every_kind_of_file(folder: pathlib.Path, cache: bool) -> None:
  splits = image_folder.load(_config(folder, cache=cache))
  assert splits.train.class_names == ('ant', 'bee', 'cat')
  assert splits.train.image_shape == (6, 6, 3)
  batch = list(pipeline.evaluation_dataset(splits.train, 4))
  images = np.concatenate([image for image, _, _ in batch])[:6]
  labels = np.concatenate([label for _, label, _ in batch])[:6]
  expected = np.array([10, 20, 30, 40, 50, 60])[:, None, None, None]
  np.testing.assert_allclose(images, np.broadcast_to(
      expected, images.shape), atol=1)
  np.testing.assert_array_equal(labels, [0, 0, 1, 1, 1, 2])
  np.testing.assert_array_equal(_read_all(splits.validation), [1, 2])


def test_cache_survives_the_files_and_no_cache_does_not(
    folder: pathlib.Path) -> None:
  held = image_folder.load(_config(folder)).train
  read = image_folder.load(_config(folder, cache=False)).train
  (folder / 'train/ant/a.jpg').unlink()
  assert len(_read_all(held)) == 6
  with pytest.raises(InputError, match='a.jpg: cannot be read'):
    _read_all(read)


def test_large_splits_are_not_cached(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(image_folder, '_CACHE_LIMIT', 100)
  data = image_folder.load(_config(folder)).train
  (folder / 'train/ant/a.jpg').unlink()
  with pytest.raises(InputError, match='a.jpg: cannot be read'):
    _read_all(data)


def test_truncates_the_training_set(folder: pathlib.Path) -> None:
  splits = image_folder.load(_config(folder, num_examples=3, num_classes=3))
  assert splits.train.num_examples == 3
  assert len(_read_all(splits.train)) == 3
  assert splits.validation.num_examples == 2


@pytest.mark.parametrize('more, message', [
    ({'path': None}, 'data.path is null'),
    ({'image_size': None}, 'data.image_size is null'),
    ({'num_classes': 5}, 'num_classes=5: .* has 3 class folders'),
    ({'num_examples': 7}, 'num_examples=7'),
    ({'train_examples': 7}, 'train_examples=7: .*train has 6 examples'),
    ({'validation_examples': 1}, 'validation_examples=1: .*val has 2'),
])
def test_refuses_configs(
    folder: pathlib.Path, more: dict, message: str) -> None:
  config = _config(folder)
  config.override(more)
  with pytest.raises(InputError, match=message):
    image_folder.load(config)


def test_refuses_folders(folder: pathlib.Path) -> None:
  with pytest.raises(InputError, match='gone: no folder train in it .*exist'):
    image_folder.load(_config(folder / 'gone'))
  with pytest.raises(InputError, match=r'no folder train .*ant, bee, cat'):
    image_folder.load(_config(folder / 'train'))
  (folder / 'val').rename(folder / 'other')
  with pytest.raises(InputError, match='validation or val or test'):
    image_folder.load(_config(folder))
  (folder / 'test').mkdir()
  with pytest.raises(InputError, match='test: has no class folders'):
    image_folder.load(_config(folder))
  (folder / 'test/ant').mkdir()
  with pytest.raises(InputError, match='test: holds no images'):
    image_folder.load(_config(folder))
  (folder / 'test/wasp').mkdir()
  with pytest.raises(InputError, match='class wasp is not in'):
    image_folder.load(_config(folder))


def test_names_classes_without_images(
    folder: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
  for name in ('dog', 'eel'):
    (folder / 'train' / name).mkdir()
  splits = image_folder.load(_config(folder))
  assert splits.train.num_classes == 5
  assert [record.getMessage() for record in caplog.records] == [
      f'{folder}/train: no images of 2 of 5 classes (dog, eel)',
      f'{folder}/val: no images of 3 of 5 classes (ant, dog, eel)']
  for name in ('dog', 'eel'):
    (folder / 'train' / name).rmdir()
  (folder / 'val/bee/a.png').rename(folder / 'val/bee.png')
  caplog.clear()
  image_folder.load(_config(folder))
  assert 'val: no images of 2 of 3 classes (ant, bee)' in caplog.text
  assert 'train' not in caplog.text.replace(str(folder), '')


@pytest.mark.parametrize('name, content, message', [
    ('a.png', b'', 'a.png: the file is empty'),
    ('notes.txt', b'x', 'notes.txt: not an image by its name'),
    ('b.jpg', b'GARBAGE', 'b.jpg: the content is not a JPEG'),
])
def test_refuses_files(
    folder: pathlib.Path, name: str, content: bytes, message: str) -> None:
  (folder / 'train/cat' / name).write_bytes(content)
  with pytest.raises(InputError, match=message):
    image_folder.load(_config(folder))


@pytest.mark.parametrize('cache', [True, False])
def test_refuses_bmp_with_a_palette(folder: pathlib.Path, cache: bool) -> None:
  _write(folder / 'train/cat/p.bmp', 90, 'P')
  with pytest.raises(InputError, match='p.bmp: only BMP files of 24 bits'):
    image_folder.load(_config(folder, cache=cache))


@pytest.mark.parametrize('cache', [True, False])
def test_counts_bad_files_up_to_the_limit(
    folder: pathlib.Path, cache: bool) -> None:
  (folder / 'train/ant/0.png').write_bytes(b'')
  (folder / 'train/ant/notes.txt').write_text('x')
  (folder / 'train/bee/d.jpg').write_bytes(b'GARBAGE')
  _write(folder / 'train/cat/p.bmp', 90, 'P')
  train = image_folder.load(
      _config(folder, cache=cache, max_bad_examples=4)).train
  np.testing.assert_array_equal(_read_all(train), [0, 0, 1, 1, 1, 2])
  # The one that is no image by its name is not an example at all.
  assert train.num_examples == 9
  assert {pathlib.Path(name).name for name in train.bad.names} == {
      '0.png', 'notes.txt', 'd.jpg', 'p.bmp'}
  with pytest.raises(InputError, match='4 bad examples, more than '
                     'data.max_bad_examples=3; .*train/ant/0.png: the file'):
    _read_all(image_folder.load(
        _config(folder, cache=cache, max_bad_examples=3)).train)


def test_preprocessing_is_passed_on(folder: pathlib.Path) -> None:
  train = image_folder.load(_config(folder, preprocessing='imagenet')).train
  assert train.preprocessing == 'imagenet'
  assert len(_read_all(train)) == 6
