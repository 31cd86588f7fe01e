"""Image files in one folder per class."""

from collections.abc import Sequence
import os

from absl import logging
import numpy as np
import tensorflow as tf

from conadv_tf.config import DataConfig, InputError
from conadv_tf.data import checks, encoded, source

TRAIN = ('train',)
VALIDATION = ('validation', 'val', 'test')
EXTENSIONS = ('.jpg', '.jpeg', '.png', '.gif', '.bmp')
_SIGNATURES = (b'\xff\xd8\xff', b'\x89PNG', b'GIF8', b'BM')
_CACHE_LIMIT = 4 * 2**30  # Bytes of encoded images kept in memory.


def load(data: DataConfig) -> source.Splits:
  """Loads `path/train/<class>/*` and `path/validation/<class>/*`.

  The second folder may also be called `val` or `test`. Classes are numbered
  in the order of their sorted names. Images are JPEG, PNG, GIF (first frame)
  or 24-bit BMP; hidden files are ignored.

  Args:
    data: `path` is the folder and `image_size`, in pixels, is required. With
      `cache`, encoded files are held in memory where all of a split's fit
      into 4 GiB; otherwise they are read anew each time. `preprocessing` says
      how images become squares, `max_bad_examples` how many files of a split
      may be unusable.

  Returns:
    Splits of RGB images, uint8 [image_size, image_size, 3].

  Raises:
    InputError: a folder is missing or empty, a validation class is not a
      training class, or more files than allowed are empty or of another kind.
      Files whose content is broken further on are found when they are read.
  """
  if not data.path:
    raise InputError('data.path is null; data.name=image_folder needs the '
                     'folder that holds train/ and validation/.')
  if data.image_size is None:
    raise InputError('data.image_size is null; data.name=image_folder needs '
                     'the size, in pixels, that images are resized to.')
  train, validation = (
      split_folder(data.path, names) for names in (TRAIN, VALIDATION))
  classes = class_folders(train)
  if data.num_classes not in (None, len(classes)):
    raise InputError(
        f'data.num_classes={data.num_classes}: {train} has {len(classes)} '
        'class folders; leave it null.')
  extra = sorted(set(class_folders(validation)) - set(classes))
  if extra:
    raise InputError(
        f'{validation}: class {extra[0]} is not in {train}; add it there or '
        'remove it here.')
  made = []
  for folder, split, stated in (
      (train, 'train', data.train_examples),
      (validation, 'validation', data.validation_examples)):
    made.append(_make(folder, classes, data))
    checks.check_count(split, stated, made[-1].num_examples, folder)
  return source.Splits(source.truncate(made[0], data.num_examples), made[1])


def _make(
    folder: str, classes: Sequence[str], data: DataConfig
) -> encoded.IndexedSource:
  """Makes the source of one split."""
  bad = encoded.BadExamples(data.max_bad_examples, folder)
  paths, labels, total = [], [], 0
  present = set(class_folders(folder))
  for label, name in enumerate(classes):
    if name not in present:
      continue
    for path in _image_files(os.path.join(folder, name), bad):
      size = tf.io.gfile.stat(path).length
      if not size:
        bad.add(path, 'the file is empty')
      paths.append(path)
      labels.append(label)
      total += size
  bad.check()
  if not paths:
    raise InputError(f'{folder}: holds no images; put them into '
                     f'{folder}/<class>/.')
  cache = data.cache
  if cache and total > _CACHE_LIMIT:
    logging.info('%s: %.1f GiB of images are read from the files each time, '
                 'since data.cache holds at most %.0f GiB.', folder,
                 total / 2**30, _CACHE_LIMIT / 2**30)
    cache = False
  contents = [_read(path) for path in paths] if cache else paths
  for path, content in zip(paths, contents, strict=True):
    # Without a cache only BMP files are opened here: a palette would be
    # decoded to wrong colours without an error.
    if path not in bad.names and (cache or path.lower().endswith('.bmp')):
      _check_signature(path, content if cache else _read(path, 32), bad)
  # Their rows stay, so that the order does not depend on `data.cache`.
  labels = [-1 if path in bad.names else label
            for path, label in zip(paths, labels, strict=True)]
  _warn_of_empty_classes(folder, classes, labels)
  return encoded.IndexedSource(
      contents, np.array(labels), image_size=data.image_size,
      num_classes=len(classes), class_names=classes, from_files=not cache,
      names=paths, preprocessing=data.preprocessing, bad=bad, where=folder)


def _warn_of_empty_classes(folder: str, classes: Sequence[str],
                           labels: Sequence[int]) -> None:
  """A class without images counts as one all the same."""
  held = set(labels)
  empty = [name for label, name in enumerate(classes) if label not in held]
  if empty:
    logging.warning('%s: no images of %d of %d classes (%s)', folder,
                    len(empty), len(classes),
                    ', '.join(empty[:5]) + ', ...' * (len(empty) > 5))


def split_folder(path: str, names: Sequence[str]) -> str:
  """Returns the folder of a split, under any of its names."""
  for name in names:
    folder = os.path.join(path, name)
    if tf.io.gfile.isdir(folder):
      return folder
  found = 'the folder does not exist'
  if tf.io.gfile.isdir(path):
    found = f'found: {", ".join(list_names(path)[:10]) or "nothing"}'
  raise InputError(
      f'data.path={path}: no folder {" or ".join(names)} in it ({found}).')


def class_folders(folder: str) -> list[str]:
  """Returns the sorted class folders, or raises InputError for none."""
  names = [name for name in list_names(folder)
           if tf.io.gfile.isdir(os.path.join(folder, name))]
  if not names:
    raise InputError(f'{folder}: has no class folders; put images into '
                     f'{folder}/<class>/.')
  return names


def _image_files(folder: str, bad: encoded.BadExamples) -> list[str]:
  """Returns the sorted paths of a class; counts strangers as bad."""
  paths = [os.path.join(folder, name) for name in list_names(folder)]
  images = [path for path in paths if path.lower().endswith(EXTENSIONS)]
  for path in sorted(set(paths) - set(images)):
    bad.add(path, f'not an image by its name ({", ".join(EXTENSIONS)})')
  return images


def list_names(folder: str) -> list[str]:
  """Returns sorted names without hidden ones (gfile may end folders in /)."""
  names = (name.rstrip('/') for name in tf.io.gfile.listdir(folder))
  return sorted(name for name in names if not name.startswith('.'))


def _read(path: str, limit: int = -1) -> bytes:
  """Returns the (first) bytes of a file, or raises InputError."""
  try:
    with tf.io.gfile.GFile(path, 'rb') as file:
      return file.read(limit)
  except tf.errors.OpError as error:
    raise InputError(f'{path}: cannot be read '
                     f'({checks.first_line(error)}).') from error


def _check_signature(
    path: str, content: bytes, bad: encoded.BadExamples) -> None:
  """Counts a file whose first bytes are no image we decode."""
  if not content.startswith(_SIGNATURES):
    bad.add(path, 'the content is not a JPEG, PNG, GIF or BMP image')
  # Offset 28 of a BMP file holds the bits per pixel.
  elif content.startswith(b'BM') and content[28:30] != b'\x18\x00':
    bad.add(path, 'only BMP files of 24 bits per pixel can be read, and PNG '
            'files of any kind')
