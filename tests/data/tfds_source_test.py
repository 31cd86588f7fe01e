"""Builders of TensorFlow Datasets, prepared on the spot."""

from collections.abc import Iterator
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from conadv_tf import randomness
from conadv_tf.config import DataConfig, InputError
from conadv_tf.data import encoded, pipeline, records, source, tfds_source


class _Tiny(tfds.core.GeneratorBasedBuilder):
  """7 training and 4 other images whose pixels are their label."""

  VERSION = tfds.core.Version('1.0.0')
  SHAPE = (4, 4, 1)
  HELD_OUT = 'test'

  def _features(self) -> dict:
    return {'image': tfds.features.Image(shape=self.SHAPE),
            'label': tfds.features.ClassLabel(names=['a', 'b', 'c'])}

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
        features=tfds.features.FeaturesDict(self._features()))

  def _split_generators(self, manager: object) -> dict:
    return {'train': self._generate_examples(7),
            self.HELD_OUT: self._generate_examples(4)}

  def _generate_examples(self, count: int) -> Iterator[tuple[int, dict]]:
    for i in range(count):
      height, width, channels = self.SHAPE
      shape = (height or 5 + i, width or 6, channels)
      yield i, {'image': np.full(shape, i % 3, np.uint8), 'label': i % 3}


class ConadvFixed(_Tiny):
  """Grey images of one shape."""


class ConadvVarying(_Tiny):
  """Colour images of several heights; has a validation split."""
  SHAPE = (None, None, 3)
  HELD_OUT = 'validation'


class ConadvPlainLabel(_Tiny):
  """Labels are integers without a number of classes."""

  def _features(self) -> dict:
    return {**super()._features(),
            'label': tfds.features.Scalar(dtype=np.int64)}


class ConadvNoLabel(_Tiny):
  """No labels."""

  def _features(self) -> dict:
    return {'image': super()._features()['image']}

  def _generate_examples(self, count: int) -> Iterator[tuple[int, dict]]:
    for i, example in super()._generate_examples(count):
      del example['label']
      yield i, example


class ConadvNoHeldOut(_Tiny):
  """No split to evaluate on."""
  HELD_OUT = 'extra'


class ConadvMore(ConadvVarying):
  """Has more training images in a split of their own, as SVHN has."""

  def _split_generators(self, manager: object) -> dict:
    return {**super()._split_generators(manager),
            'extra': self._generate_examples(9)}


class ConadvBroken(_Tiny):
  """Cannot be prepared."""

  def _split_generators(self, manager: object) -> dict:
    raise ConnectionError('the server is away\nand a second line')


def _load(path: pathlib.Path, name: str, **more: object) -> source.Splits:
  return tfds_source.load(
      DataConfig(name='tfds', builder=name, path=str(path), **more))


def _all(data: source.Source) -> tuple[np.ndarray, np.ndarray]:
  (images, labels, weights), = pipeline.evaluation_dataset(
      data, data.num_examples).as_numpy_iterator()
  assert (weights == 1).all()
  return images, labels


def test_fixed_shape_is_held_decoded(tmp_path: pathlib.Path) -> None:
  splits = _load(tmp_path, 'conadv_fixed:1.*.*')
  assert isinstance(splits.train, source.ArraySource)
  assert splits.train.image_shape == (4, 4, 1)
  assert splits.train.class_names == ('a', 'b', 'c')
  images, labels = _all(splits.train)
  assert sorted(labels) == [0, 0, 0, 1, 1, 2, 2]
  assert (images == labels[:, None, None, None]).all()
  assert splits.validation.num_examples == 4
  assert _load(tmp_path, 'conadv_fixed', num_examples=5).train.num_examples == 5


@pytest.mark.parametrize('cache', [True, False])
def test_another_split_to_train_on(
    tmp_path: pathlib.Path, cache: bool) -> None:
  splits = _load(tmp_path, 'conadv_more', train_split='extra', image_size=8,
                 cache=cache, train_examples=9)
  assert (splits.train.num_examples, splits.validation.num_examples) == (9, 4)
  with pytest.raises(InputError, match=r'=7: conadv_more \(extra'):
    _load(tmp_path, 'conadv_more', train_split='extra', image_size=8,
          cache=cache, train_examples=7)
  with pytest.raises(InputError, match=r'need more \(data.train_split\) and'):
    _load(tmp_path, 'conadv_more', train_split='more', image_size=8)


def test_prepared_data_need_no_preparation(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  first = _all(_load(tmp_path, 'conadv_fixed').train)
  def fail(*_: object, **__: object) -> None:
    raise AssertionError('prepared data were prepared again')
  monkeypatch.setattr(
      tfds.core.DatasetBuilder, 'download_and_prepare', fail)
  second = _all(_load(tmp_path, 'conadv_fixed').train)
  np.testing.assert_array_equal(first[0], second[0])
  np.testing.assert_array_equal(first[1], second[1])


def test_another_size_of_a_fixed_shape_is_resized(
    tmp_path: pathlib.Path) -> None:
  train = _load(tmp_path, 'conadv_fixed', image_size=9).train
  assert isinstance(train, encoded.IndexedSource)
  images, labels = _all(train)
  assert images.shape == (7, 9, 9, 1)
  assert (images == labels[:, None, None, None]).all()


def test_varying_shapes_are_held_encoded(tmp_path: pathlib.Path) -> None:
  with pytest.raises(InputError, match='image_size is null'):
    _load(tmp_path, 'conadv_varying')
  splits = _load(tmp_path, 'conadv_varying', image_size=8)
  assert isinstance(splits.train, encoded.IndexedSource)
  images, labels = _all(splits.train)
  assert images.shape == (7, 8, 8, 3)
  # Label images are lossless PNG, and flat, so resizing keeps them.
  assert (images == labels[:, None, None, None]).all()
  assert splits.validation.num_examples == 4
  splits.train.check()


def test_plain_labels_need_the_number_of_classes(
    tmp_path: pathlib.Path) -> None:
  with pytest.raises(InputError, match='num_classes is null'):
    _load(tmp_path, 'conadv_plain_label')
  train = _load(tmp_path, 'conadv_plain_label', num_classes=3).train
  assert (train.num_classes, train.class_names) == (3, None)
  with pytest.raises(InputError, match='is 2, outside 0 .. 1'):
    _load(tmp_path, 'conadv_plain_label', num_classes=2)


def test_refuses(tmp_path: pathlib.Path) -> None:
  with pytest.raises(InputError, match='data.builder is null'):
    tfds_source.load(DataConfig(name='tfds'))
  with pytest.raises(InputError, match='its features are image; need'):
    _load(tmp_path, 'conadv_no_label')
  with pytest.raises(InputError, match='splits are .*train; need|train, extra'):
    _load(tmp_path, 'conadv_no_held_out')
  with pytest.raises(InputError) as error:
    _load(tmp_path, 'conadv_broken')
  assert 'data.builder=conadv_broken' in str(error.value)
  assert str(tmp_path) in str(error.value)
  assert 'the server is away' in str(error.value)
  assert 'second line' not in str(error.value)
  with pytest.raises(InputError, match='cannot be loaded'):
    _load(tmp_path, 'conadv_unknown')
  with pytest.raises(InputError, match='cannot be loaded'):
    _load(tmp_path, 'conadv_fixed:9.9.9')


class ConadvNamed(ConadvVarying):
  """Has names of files, as imagenet2012 has, and grows more files."""
  VERSION = tfds.core.Version('5.1.0')

  def _features(self) -> dict:
    return {**super()._features(), 'file_name': tfds.features.Text()}

  def _generate_examples(self, count: int) -> Iterator[tuple[int, dict]]:
    for i, example in super()._generate_examples(count):
      yield i, {**example, 'file_name': f'{i}.JPEG'}


def _prepared_in_shards(
    path: pathlib.Path, name: str, shards: int) -> pathlib.Path:
  """Prepares a builder in several files; returns where they are."""
  builder = tfds.builder(name, data_dir=path)
  builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(num_shards=shards))
  return pathlib.Path(builder.data_dir)


def _stream(split: source.Source, start: int, count: int) -> list:
  assert isinstance(split, records.RecordSource)
  return list(split.training_examples(
      randomness.make_key(1, randomness.ORDER), start, count,
      encoded.Shard(), 1, True).as_numpy_iterator())


def test_without_a_cache_images_are_streamed(tmp_path: pathlib.Path) -> None:
  folder = _prepared_in_shards(tmp_path, 'conadv_named', 3)
  assert len(list(folder.glob('*-train.tfrecord*'))) == 3
  splits = _load(tmp_path, 'conadv_named', image_size=8, cache=False,
                 shuffle_buffer=3, train_examples=7, validation_examples=4)
  train = splits.train
  assert (train.num_examples, train.num_classes) == (7, 3)
  assert train.image_shape == (8, 8, 3)
  assert train.class_names == ('a', 'b', 'c')
  seen = _stream(train, 0, 21)
  names = [re.search(r'record \d+ \((.*)\)', e.name.decode())[1] for e in seen]
  for epoch in (names[:7], names[7:14], names[14:]):
    assert sorted(epoch) == [f'{i}.JPEG' for i in range(7)]
  assert names[:7] != names[7:14]
  for example, name in zip(seen, names):
    number = int(name.removesuffix('.JPEG'))
    # Encoded as prepared: a PNG of the label's colour, 5 + i pixels high.
    image = tf.io.decode_image(example.content).numpy()
    assert image.shape == (5 + number, 6, 3)
    assert (image == number % 3).all() and example.label == number % 3
  for start, count in ((5, 4), (7, 7), (20, 1)):
    assert [e.name for e in _stream(train, start, count)] == [
        e.name for e in seen[start:start + count]]
  held_out = splits.validation.evaluation_examples()
  assert len({e.name for e in held_out.as_numpy_iterator()}) == 4


def test_damaged_prepared_files(tmp_path: pathlib.Path) -> None:
  folder = _prepared_in_shards(tmp_path, 'conadv_varying', 2)
  path = sorted(folder.glob('*-train.tfrecord*'))[0]
  content = path.read_bytes()
  path.write_bytes(content[:-5])
  split = _load(
      tmp_path, 'conadv_varying', image_size=8, cache=False).train
  seen = _stream(split, 0, 7)
  bad = [e.name.decode() for e in seen if not e.content]
  assert len(bad) == 1 and bad[0].startswith(f'{path} record ')
  path.unlink()
  with pytest.raises(InputError, match='is missing; prepare conadv_varying'):
    _load(tmp_path, 'conadv_varying', image_size=8, cache=False)


def test_stated_numbers_and_parts_of_streams(tmp_path: pathlib.Path) -> None:
  for cache in (True, False):
    with pytest.raises(InputError, match=r'data.validation_examples=50000: '
                       r'conadv_varying \(validation\) has 4'):
      _load(tmp_path, 'conadv_varying', image_size=8, cache=cache,
            validation_examples=50000)
  with pytest.raises(InputError, match='3 of 7 .* set data.cache=true'):
    _load(tmp_path, 'conadv_varying', image_size=8, cache=False,
          num_examples=3)


def test_cropping_needs_encoded_images(tmp_path: pathlib.Path) -> None:
  with pytest.raises(InputError, match='image_size is null.* or are cropped'):
    _load(tmp_path, 'conadv_fixed', preprocessing='imagenet')
  train = _load(tmp_path, 'conadv_fixed', image_size=4,
                preprocessing='imagenet').train
  assert isinstance(train, encoded.IndexedSource)
  assert train.preprocessing == 'imagenet'
