"""ImageNet, or anything like it, as TFRecords of the usual converter.

The keys are those of tensorflow/tpu `tools/datasets/imagenet_to_gcs.py`, which
`tools/make_tfrecords.py` writes as well.
"""

from collections.abc import Sequence
import os
import re

import tensorflow as tf

from conadv_tf.config import DataConfig, InputError
from conadv_tf.data import checks, encoded, record_index, records, source

SPLITS = ('train', 'validation')
_FILE = re.compile(
    r'(?P<split>train|val(?:idation)?)(?![a-z]).*?'
    r'(?:-(?P<number>\d+)-of-(?P<count>\d+)(?:\.\w+)?|\.tfrecords?)')
_GIB = 2**30
_BOX = 'image/object/bbox/'
# Defaults make a bad example of a record that lacks the key.
_FEATURES = {
    'image/encoded': tf.io.FixedLenFeature([], tf.string, ''),
    'image/class/label': tf.io.FixedLenFeature([], tf.int64, -1),
    'image/filename': tf.io.FixedLenFeature([], tf.string, ''),
    **{_BOX + side: tf.io.FixedLenSequenceFeature(
        [], tf.float32, allow_missing=True)
       for side in ('ymin', 'xmin', 'ymax', 'xmax')},
}


def load(data: DataConfig) -> source.Splits:
  """Loads `path/train-00000-of-01024`, `path/validation-00000-of-00128`, ...

  Any number of files will do, `val` for `validation`, and names that end in
  `.tfrecord`. How many records each holds comes from `path/index.json`, or is
  counted. Labels are `image/class/label` minus `label_offset`.

  Args:
    data: `path` is the directory, local or gs://, and `image_size`, in
      pixels, is required. With `cache`, the encoded images are held in memory
      (ImageNet's are 144 GB, and twice that while they are loaded): the order
      is a full permutation then, and a run resumes at once. Without, they are
      streamed through a buffer of `shuffle_buffer` examples.

  Returns:
    Splits of RGB images, uint8 [image_size, image_size, 3].

  Raises:
    InputError: something is missing in the directory, the numbers of classes
      or examples are not known or not as stated, more files are damaged than
      `max_bad_examples`, or what `cache` holds does not fit into memory.
  """
  if not data.path:
    raise InputError('data.path is null; data.name=tfrecord needs the '
                     'directory of train-* and validation-* files.')
  if data.image_size is None:
    raise InputError('data.image_size is null; data.name=tfrecord needs the '
                     'size, in pixels, that images are brought to.')
  if not tf.io.gfile.isdir(data.path):
    raise InputError(f'data.path={data.path}: no such directory.')
  index = record_index.read_index(data.path)
  num_classes = _num_classes(data, index)
  train, validation = (
      _split(data, split, stated, index, num_classes) for split, stated in zip(
          SPLITS, (data.train_examples, data.validation_examples)))
  if data.cache:
    _check_memory(data.path, train.bytes + validation.bytes)
    train, validation = train.in_memory(), validation.in_memory()
  return source.Splits(
      source.truncate(train, data.num_examples), validation)


def split_files(
    directory: str, split: str, index: record_index.Index,
    partial: bool = False) -> list[str]:
  """Returns the sorted names of a split's files.

  Args:
    directory: local or remote.
    split: 'train' or 'validation'.
    index: of the directory.
    partial: whether files may be missing that the names of others, or the
      index, promise.

  Raises:
    InputError: no such directory, no such files, or some are missing.
  """
  if not tf.io.gfile.isdir(directory):
    raise InputError(f'data.path={directory}: no such directory.')
  names = _of_split(tf.io.gfile.listdir(directory), split)
  if not names:
    raise InputError(
        f'data.path={directory}: no {split} files in it, for instance '
        f'{split}-00000-of-00001 or {split}.tfrecord.')
  sets = {}
  for name in names:
    match = _FILE.fullmatch(name)
    if match['count']:
      first, last = match.span('number')
      sets[name[:first] + '*' + name[last:]] = {
          f'{name[:first]}{i:0{last - first}d}{name[last:]}'
          for i in range(int(match['count']))}
  if len(sets) > 1:
    raise InputError(
        f'data.path={directory}: has {len(sets)} sets of {split} files, '
        f'{" and ".join(sorted(sets)[:2])}; keep one.')
  promised = set(_of_split(index.files, split)).union(*sets.values())
  missing = sorted(promised - set(names))
  if missing and not partial:
    raise InputError(
        f'data.path={directory}: {len(missing)} of {len(promised)} {split} '
        f'files are missing, for instance {missing[0]}; bring them, or set '
        f'data.{split}_examples to the number of examples in the others.')
  return names


def parse(record: tf.Tensor, label_offset: int) -> encoded.Example:
  """Makes an `Example`, called by its `image/filename`, of a record."""
  values = tf.io.parse_single_example(record, _FEATURES)
  boxes = tf.stack([values[_BOX + side] for side in (
      'ymin', 'xmin', 'ymax', 'xmax')], axis=-1)
  return encoded.Example(
      values['image/encoded'],
      records.label(values['image/class/label'], label_offset), boxes,
      values['image/filename'])


def _of_split(names: Sequence[str], split: str) -> list[str]:
  found = ((name, _FILE.fullmatch(name)) for name in names)
  return sorted(name for name, match in found
                if match and split.startswith(match['split']))


def _num_classes(data: DataConfig, index: record_index.Index) -> int:
  if index.class_names is None:
    if data.num_classes is None:
      raise InputError(
          f'data.num_classes is null, and {data.path} has no '
          f'{record_index.INDEX_NAME} with the names of the classes; set '
          'data.num_classes (1000 for ImageNet).')
    return data.num_classes
  if data.num_classes not in (None, len(index.class_names)):
    raise InputError(
        f'data.num_classes={data.num_classes}: {data.path} has '
        f'{len(index.class_names)} classes; leave it null.')
  return len(index.class_names)


def _split(
    data: DataConfig, split: str, stated: int | None,
    index: record_index.Index, num_classes: int) -> records.RecordSource:
  """Makes the source of one split."""
  names = split_files(data.path, split, index, partial=stated is not None)
  where = f'{data.path} ({split})'
  stream = records.RecordSource(
      record_index.count(data.path, names, index),
      lambda record: parse(record, data.label_offset),
      num_classes=num_classes, image_size=data.image_size,
      class_names=index.class_names, preprocessing=data.preprocessing,
      shuffle_buffer=data.shuffle_buffer,
      bad=encoded.BadExamples(data.max_bad_examples, where), where=where)
  checks.check_count(split, stated, stream.num_examples, where)
  return stream


def _check_memory(where: str, size: int) -> None:
  """Raises InputError for more bytes than the machine has."""
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  if size > memory:
    raise InputError(
        f'{where}: {size / _GIB:.0f} GiB of records do not fit into the '
        f'{memory / _GIB:.0f} GiB of memory here; set data.cache=false.')
