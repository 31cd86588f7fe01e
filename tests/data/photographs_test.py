"""1,000 photographs of which 25 are broken, as a folder and as records.

CONADV_DATA names a directory with imagenette224.zip, a subset of Imagenette
with train/<class>/*.JPEG and val/<class>/*.JPEG; without it nothing runs.
"""

import os
import pathlib
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.config import DataConfig, InputError
from conadv_tf.data import image_folder, pipeline, source, tfrecord
from tests import record_files

_DATA = os.environ.get('CONADV_DATA', '')
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.path.exists(os.path.join(_DATA, 'imagenette224.zip')),
        reason='CONADV_DATA names no directory with imagenette224.zip')]
_COUNT, _BAD, _BATCH = 1000, 25, 50


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """1,000 training images, 25 of them broken in three ways."""
  path = tmp_path_factory.mktemp('photographs')
  with zipfile.ZipFile(os.path.join(_DATA, 'imagenette224.zip')) as archive:
    names = sorted(n for n in archive.namelist() if n.endswith('.JPEG'))
    train = [n for n in names if n.startswith('train/')][::2][:_COUNT]
    archive.extractall(path, train + [n for n in names if n[:4] == 'val/'][::9])
  for number, name in enumerate(train[::_COUNT // _BAD][:_BAD]):
    content = (path / name).read_bytes()
    (path / name).write_bytes(
        [content[:len(content) * 2 // 3], b'', b'<html>404</html>'][number % 3])
  return path


def _check(splits: source.Splits) -> None:
  """One epoch: 975 rows count, exactly the 25 are named."""
  train = splits.train
  assert train.num_examples == _COUNT
  weights = np.concatenate([weight for _, _, weight in pipeline.train_dataset(
      train, global_batch_size=_BATCH,
      num_steps=_COUNT // _BATCH).as_numpy_iterator()])
  assert weights.sum() == _COUNT - _BAD
  assert len(train.bad.names) == _BAD
  train.check()  # 25 are allowed
  whole = [w for *_, w in pipeline.evaluation_dataset(splits.train, 64)]
  assert float(tf.add_n([tf.reduce_sum(w) for w in whole])) == _COUNT - _BAD


def _config(name: str, path: pathlib.Path, limit: int) -> DataConfig:
  return DataConfig(name=name, path=str(path), image_size=64, num_classes=10,
                    preprocessing='imagenet', cache=False,
                    max_bad_examples=limit)


def test_a_folder(folder: pathlib.Path) -> None:
  _check(image_folder.load(_config('image_folder', folder, _BAD)))
  with pytest.raises((InputError, tf.errors.OpError)):
    splits = image_folder.load(_config('image_folder', folder, _BAD - 1))
    for _ in pipeline.evaluation_dataset(splits.train, 64):
      pass
  with pytest.raises(InputError, match='25 bad examples, more than .*=24'):
    splits.train.check()


def test_records(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
  classes = sorted(p.name for p in (folder / 'train').iterdir())
  for split, shards in (('train', 4), ('val', 1)):
    files = sorted((folder / split).glob('*/*.JPEG'))
    payloads = [record_files.example(
        f.read_bytes(), classes.index(f.parent.name) + 1, f.name)
        for f in files]
    for shard in range(shards):
      name = 'validation' if split == 'val' else split
      record_files.write(tmp_path / f'{name}-{shard:05d}-of-{shards:05d}',
                         payloads[shard::shards])
  _check(tfrecord.load(_config('tfrecord', tmp_path, _BAD)))
