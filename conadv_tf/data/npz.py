"""Arrays in a NumPy .npz file."""

from collections.abc import Sequence
import zipfile
import zlib

import numpy as np
import tensorflow as tf

from conadv_tf.config import DataConfig, InputError
from conadv_tf.data import checks, source

_KEYS = ('x_train', 'y_train', 'x_test', 'y_test')


def load(data: DataConfig) -> source.Splits:
  """Loads x_train, y_train, x_test and y_test.

  Args:
    data: `path` is the file; image_size, where given, is the side in pixels
      of the squares that images are resized to;
      num_classes null means the largest training label plus 1.

  Returns:
    The two splits; images uint8 [h, w, c].

  Raises:
    InputError: no such file, not an .npz file, a key missing, or arrays that
      are not uint8 images with integer labels.
  """
  if not data.path:
    raise InputError('data.path is null; data.name=npz needs the .npz file.')
  arrays = read(data.path, _KEYS)
  where = {split: f'{data.path} ({split})' for split in ('train', 'test')}
  images = {
      split: checks.check_images(arrays[f'x_{split}'], name)
      for split, name in where.items()}
  labels = {'train': checks.check_labels(
      arrays['y_train'], where['train'], data.num_classes)}
  num_classes = data.num_classes or 1 + int(labels['train'].max())
  labels['test'] = checks.check_labels(
      arrays['y_test'], where['test'], num_classes)
  train, test = (
      source.ArraySource(
          images[split], labels[split], num_classes=num_classes, where=name)
      for split, name in where.items())
  if train.image_shape != test.image_shape:
    raise InputError(
        f'{data.path}: x_train has images of shape {train.image_shape} but '
        f'x_test of {test.image_shape}; make them equal.')
  return source.Splits(
      source.resize(source.truncate(train, data.num_examples),
                    data.image_size),
      source.resize(test, data.image_size))


def read(path: str, keys: Sequence[str], option: str = 'data.path'
         ) -> dict[str, np.ndarray]:
  """Returns some of a file's arrays.

  Args:
    path: the .npz file.
    keys: of the arrays, all numeric.
    option: what names the file, for messages.

  Raises:
    InputError: no such file, not an .npz file, or a key is missing.
  """
  if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
    raise InputError(f'{option}={path}: no such file; give an .npz file.')
  try:
    with tf.io.gfile.GFile(path, 'rb') as file:
      if file.read(2) != b'PK':  # As every zip file starts.
        raise InputError(
            f'{option}={path}: not an .npz file; write it with np.savez.')
      file.seek(0)
      # Pickled arrays can run any code, so they are never loaded.
      with np.load(file, allow_pickle=False) as archive:
        missing = [key for key in keys if key not in archive.files]
        if missing:
          raise InputError(
              f'{option}={path}: no {", ".join(missing)}; the keys found are '
              f'{", ".join(archive.files) or "none"}, needed are '
              f'{", ".join(keys)}.')
        return {key: _array(archive, key, f'{option}={path}') for key in keys}
  except InputError:
    raise
  except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error,
          NotImplementedError, tf.errors.OpError) as error:
    raise InputError(
        f'{option}={path}: cannot be read ({checks.first_line(error)}); '
        'write it again with np.savez.') from error


def _array(
    archive: np.lib.npyio.NpzFile, key: str, where: str) -> np.ndarray:
  """Returns one numeric array of the file, or raises InputError."""
  try:
    array = archive[key]
  except ValueError as error:
    # Object arrays, and headers that are damaged.
    raise InputError(
        f'{where}: {key} is not a plain numeric array '
        f'({checks.first_line(error)}); store uint8 images and integer '
        'labels.') from error
  if not isinstance(array, np.ndarray) or array.dtype.kind not in 'biufc':
    raise InputError(
        f'{where}: {key} is not a numeric array '
        f'({getattr(array, "dtype", "not an array")}); store uint8 images and '
        'integer labels.')
  return array
