"""Any image classification builder of TensorFlow Datasets."""

import os
from typing import Any

import numpy as np
import tensorflow as tf

from conadv_tf.config import DataConfig, InputError
from conadv_tf.data import checks, encoded, record_index, records, source

_BATCH = 256


def load(data: DataConfig) -> source.Splits:
  """Loads the training split and `validation` (or `test`).

  Images of one fixed shape are held decoded. Where shapes vary,
  `data.image_size` asks for another, or `data.preprocessing` crops, images
  stay encoded and are decoded when read: with `data.cache` they are held in
  memory, without it they are streamed from the prepared files (as for
  `data.name=tfrecord`), which is for the likes of imagenet2012.

  Args:
    data: `builder` is the name with an optional config and version
      (`mnist:3.*.*`), `train_split` the split to train on (SVHN has `extra`),
      `path` the data_dir or null for the library's default.
      Data prepared there are read without any network access; otherwise the
      library downloads and prepares them.

  Returns:
    The two splits; images uint8 [h, w, c], with c = 1 or 3.

  Raises:
    InputError: unknown builder, preparation failed, no features `image` and
      `label` of the right kind, a split not there, image_size needed,
      another number of examples than stated, or a stream of files that are
      no TFRecords or have gone.
  """
  if not data.builder:
    raise InputError('data.builder is null; data.name=tfds needs a builder of '
                     'TensorFlow Datasets, for instance mnist:3.*.*.')
  builder = prepared_builder(data.builder, data.path)
  image, num_classes, names = _features(builder, data)
  fixed = None not in image.shape and data.preprocessing == 'resize' and (
      data.image_size in (None, *(
          image.shape[:2] if image.shape[0] == image.shape[1] else ())))
  if not fixed and data.image_size is None:
    raise InputError(
        f'data.image_size is null; images of {data.builder} vary in shape or '
        'are cropped, and need a size, in pixels, to be brought to.')
  # What all sources of encoded images have in common.
  options = None if fixed else dict(
      image_size=data.image_size, channels=image.shape[-1] or 3,
      preprocessing=data.preprocessing)
  held_out = _validation_split(builder, data)  # before anything is read
  train, validation = (
      _split(builder, data, split, name, num_classes, names, options)
      for split, name in (
          ('train', data.train_split), ('validation', held_out)))
  return source.Splits(source.truncate(train, data.num_examples), validation)


def _split(
    builder: Any, data: DataConfig, split: str, name: str, num_classes: int,
    class_names: list[str] | None, options: dict[str, Any] | None
) -> source.Source:
  """Makes the source of a split; images are decoded if `options` is None."""
  stated = (data.train_examples if split == 'train'
            else data.validation_examples)
  where = f'{data.builder} ({name})'
  known = dict(num_classes=num_classes, class_names=class_names, where=where)
  if options is None:
    made = source.ArraySource(*_read(builder, name, decode=True), **known)
  else:
    known |= options
    known['bad'] = encoded.BadExamples(data.max_bad_examples, where)
    if data.cache:
      made = encoded.IndexedSource(
          *_read(builder, name, decode=False), **known)
    else:
      made = records.RecordSource(
          _files(builder, name, data), _parser(builder),
          shuffle_buffer=data.shuffle_buffer, **known)
  checks.check_count(split, stated, made.num_examples, where)
  return made


def prepared_builder(name: str, data_dir: str | None) -> Any:
  """Returns the `tfds.core.DatasetBuilder`, its data ready to read."""
  import tensorflow_datasets as tfds  # Slow to import.

  where = data_dir or 'the default data_dir'
  # Builders are third-party code and may raise anything.
  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except Exception as error:
    raise InputError(
        f'data.builder={name} (data.path={where}): cannot be loaded '
        f'({checks.first_line(error)}); check the name and version.'
    ) from error
  if builder.is_prepared():
    return builder
  _check_manual_files(builder, name, data_dir)
  try:
    builder.download_and_prepare()
  except Exception as error:
    raise InputError(
        f'data.builder={name}: is not prepared in {where} and preparing it '
        f'failed ({checks.first_line(error)}); check the network, or set '
        'data.path to where it is prepared.') from error
  return builder


def _check_manual_files(
    builder: Any, name: str, data_dir: str | None) -> None:
  """Raises InputError if files that only the user can get are not there."""
  import tensorflow_datasets as tfds

  if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    return
  folder = os.path.join(
      os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR),
      'downloads', 'manual')
  if not tf.io.gfile.isdir(folder):
    wanted = (' (ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar)'
              if builder.name == 'imagenet2012' else '')
    raise InputError(
        f'data.builder={name}: is not prepared in '
        f'{data_dir or "the default data_dir"}, and its files{wanted} have to '
        f'be downloaded by hand into {folder}; or set data.path to where it '
        'is prepared.')


def _features(
    builder: Any, data: DataConfig
) -> tuple[Any, int | None, list[str] | None]:
  """Returns the image feature, number of classes and names, or raises."""
  import tensorflow_datasets as tfds

  features = builder.info.features
  known = dict(features.items()) if hasattr(features, 'items') else {}
  image, label = known.get('image'), known.get('label')
  if not isinstance(image, tfds.features.Image) or label is None:
    raise InputError(
        f'data.builder={data.builder}: its features are '
        f'{", ".join(known) or features}; need an image `image` and a `label`.')
  if np.dtype(image.np_dtype) != np.uint8 or image.shape[-1] not in (
      1, 3, None):
    raise InputError(
        f'data.builder={data.builder}: images are {image.np_dtype} '
        f'{image.shape}; need uint8 with 1 or 3 channels.')
  if label.shape != () or np.dtype(label.np_dtype).kind not in 'iu':
    raise InputError(
        f'data.builder={data.builder}: labels are {label.np_dtype} '
        f'{label.shape}; need one integer per image.')
  num_classes, names = data.num_classes, None
  if isinstance(label, tfds.features.ClassLabel):
    num_classes = label.num_classes if num_classes is None else num_classes
    names = label.names
  elif num_classes is None:
    # Two splits need not hold the same largest label.
    raise InputError(
        f'data.num_classes is null; labels of {data.builder} are plain '
        'integers and need the number of classes.')
  return image, num_classes, names


def _validation_split(builder: Any, data: DataConfig) -> str:
  """Returns the split to evaluate on, or raises InputError."""
  splits = list(builder.info.splits)
  for name in ('validation', 'test'):
    if data.train_split in splits and name in splits:
      return name
  raise InputError(
      f'data.builder={data.builder}: its splits are {", ".join(splits)}; need '
      f'{data.train_split} (data.train_split) and one of validation, test.')


def _read(
    builder: Any, split: str, decode: bool
) -> tuple[np.ndarray | list[bytes], np.ndarray]:
  """Reads a split in the library's fixed order.

  Returns:
    Images, uint8 [n, h, w, c] if `decode` else n encoded byte strings, and
    labels, integers [n].
  """
  import tensorflow_datasets as tfds

  decoders = tfds.decode.PartialDecoding(
      {'image': True, 'label': True},
      decoders=None if decode else {'image': tfds.decode.SkipDecoding()})
  dataset = builder.as_dataset(
      split=split, shuffle_files=False, decoders=decoders,
      read_config=tfds.ReadConfig(try_autocache=False))
  batches = list(tfds.as_numpy(dataset.batch(_BATCH)))
  if not batches:
    raise InputError(f'{builder.info.full_name}: split {split} is empty.')
  images = [batch['image'] for batch in batches]
  labels = np.concatenate([batch['label'] for batch in batches])
  if decode:
    return np.concatenate(images), labels
  return [content for batch in images for content in batch], labels


def _files(
    builder: Any, split: str, data: DataConfig
) -> list[record_index.RecordFile]:
  """Returns the files of a split with the library's numbers of records."""
  if builder.info.file_format.value != 'tfrecord':
    raise InputError(
        f'data.builder={data.builder}: was prepared as '
        f'{builder.info.file_format.value}, and only tfrecord can be '
        'streamed; set data.cache=true or prepare it anew.')
  info = builder.info.splits[split]
  files = []
  for path, count in zip(map(os.fspath, info.filepaths), info.shard_lengths):
    if not tf.io.gfile.exists(path):
      raise InputError(f'{path}: is missing; prepare {data.builder} anew.')
    files.append(record_index.RecordFile(
        path, count, tf.io.gfile.stat(path).length))
  return files


def _parser(builder: Any) -> records.Parse:
  """Returns what makes an `Example` of a record, the image not decoded."""
  import tensorflow_datasets as tfds

  known = dict(builder.info.features.items())
  wanted = {'image': True, 'label': True}
  if isinstance(known.get('file_name'), tfds.features.Text):
    wanted['file_name'] = True
  features = tfds.decode.PartialDecoding(wanted).extract_features(
      builder.info.features)

  def parse(record: tf.Tensor) -> encoded.Example:
    values = features.deserialize_example(
        record, decoders={'image': tfds.decode.SkipDecoding()})
    return encoded.Example(
        values['image'], records.label(tf.cast(values['label'], tf.int64)),
        tf.zeros([0, 4]), values.get('file_name', tf.constant('')))

  return parse
