"""How many records each TFRecord file of a directory holds.

The numbers come from `index.json` in the directory, which lists records and
bytes of every file, or else from walking through the files.
"""

from collections.abc import Mapping, Sequence
from concurrent import futures
import dataclasses
import json
import os
import struct
import time
from typing import NamedTuple

from absl import logging
import tensorflow as tf

from conadv_tf.config import InputError
from conadv_tf.data import checks

INDEX_NAME = 'index.json'

_HEADER = struct.Struct('<QI')
_FRAME_BYTES = _HEADER.size + 4  # Around each payload.
_CRC_MASK = 0xa282ead8
_THREADS = 16
_SLOW = 5.0  # Seconds; below, nobody needs to know.


class RecordFile(NamedTuple):
  """A TFRecord file.

  Attributes:
    path: where it is.
    records: how many examples it is to yield, counted from its start.
    size: in bytes.
    damage: what is wrong with the rest of it, or ''.
    lost: how many of `records`, the last ones, the damage has taken.
  """
  path: str
  records: int
  size: int
  damage: str = ''
  lost: int = 0


@dataclasses.dataclass(frozen=True)
class Index:
  """What `index.json` says.

  Attributes:
    files: name -> (records, bytes) of the undamaged files.
    class_names: one per class, or None.
    made_from: the folder of images that the files were made from, or None
      where they come from elsewhere.
  """
  files: Mapping[str, tuple[int, int]] = dataclasses.field(
      default_factory=dict)
  class_names: tuple[str, ...] | None = None
  made_from: str | None = None

  def write(self, directory: str) -> None:
    """Writes the index into the directory, whole or not at all."""
    path = os.path.join(directory, INDEX_NAME)
    temporary = os.path.join(directory, f'.{INDEX_NAME}.tmp')
    with tf.io.gfile.GFile(temporary, 'w') as file:
      json.dump(dataclasses.asdict(self), file)
    tf.io.gfile.rename(temporary, path, overwrite=True)


def read_index(directory: str) -> Index:
  """Returns the index of a directory, an empty one where it has none.

  Raises:
    InputError: it is there but cannot be used.
  """
  path = os.path.join(directory, INDEX_NAME)
  if not tf.io.gfile.exists(path):
    return Index()
  try:
    with tf.io.gfile.GFile(path) as file:
      tree = json.load(file)
    names = tree.get('class_names')
    return Index(
        {str(name): (int(records), int(size))
         for name, (records, size) in tree['files'].items()},
        tuple(map(str, names)) if names else None, tree.get('made_from'))
  except (tf.errors.OpError, AttributeError, KeyError, TypeError,
          ValueError) as error:
    raise InputError(
        f'{path}: cannot be used ({checks.first_line(error)}); remove it, or '
        'write it anew by python -m tools.make_tfrecords --index_only '
        f'--path={directory}') from error


def count(
    directory: str, names: Sequence[str], index: Index
) -> list[RecordFile]:
  """Returns the files with their numbers of records.

  A file that the index does not have, or has with another size, is walked
  through. Of a damaged one the records that the index has for it count, and
  those that are lost are bad examples, one by one; without an index only the
  intact ones up to the damage are known, and the file is one bad example.

  Args:
    directory: local or remote.
    names: the files, in the order wanted.
    index: of the directory.
  """
  paths = [os.path.join(directory, name) for name in names]
  start = time.monotonic()
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    sizes = list(pool.map(_size, paths))
    walked = [index.files.get(name, (0, None))[1] != size
              for name, size in zip(names, sizes)]
    files = list(pool.map(
        lambda path, name, walk: (
            _with_lost(scan(path), index.files.get(name, (0, 0))[0])
            if walk else RecordFile(path, *index.files[name])),
        paths, names, walked))
  seconds = time.monotonic() - start
  if any(walked):
    logging.log(
        logging.WARNING if seconds > _SLOW else logging.INFO,
        '%s: counting the records of %d files took %.1f s; python -m '
        'tools.make_tfrecords --index_only --path=%s saves that next time.',
        directory, sum(walked), seconds, directory)
  return files


def _with_lost(file: RecordFile, indexed: int) -> RecordFile:
  """A damaged file with the records that it had, where that is known."""
  if not file.damage or indexed <= file.records:
    return file
  return file._replace(records=indexed, lost=indexed - file.records)


def scan(path: str) -> RecordFile:
  """Counts the records of a file by walking through its framing.

  A record is a little-endian uint64 length, the masked crc32c of these 8
  bytes, the payload and its masked crc32c (tensorflow/core/lib/io/
  record_writer.h). Payloads are not read; readers check their sums.
  """
  records = offset = 0
  size = _size(path)
  damage = '' if size else 'is empty'
  try:
    # A buffer would read what lies between the headers.
    with (tf.io.gfile.GFile(path, 'rb') if '://' in path
          else open(path, 'rb', buffering=0)) as file:
      while offset < size and not damage:
        file.seek(offset)
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
          damage = f'is truncated after {records} records'
          break
        length, checksum = _HEADER.unpack(header)
        offset += _FRAME_BYTES + length
        if _masked_crc32c(header[:8]) != checksum:
          damage = (f'is damaged after {records} records' if records else
                    'is no TFRecord file, or a compressed one')
        elif offset > size:
          damage = f'is truncated after {records} records'
        else:
          records += 1
  except (OSError, tf.errors.OpError) as error:
    raise InputError(f'{path}: cannot be read '
                     f'({checks.first_line(error)}).') from error
  return RecordFile(path, records, size, damage)


def _size(path: str) -> int:
  """Returns a file's number of bytes, or raises InputError."""
  try:
    return tf.io.gfile.stat(path).length
  except tf.errors.OpError as error:
    raise InputError(f'{path}: cannot be read '
                     f'({checks.first_line(error)}).') from error


def _crc32c_table() -> list[int]:
  """Returns the sums of all bytes, for the reflected polynomial."""
  table = []
  for value in range(256):
    for _ in range(8):
      value = (value >> 1) ^ (0x82f63b78 if value & 1 else 0)
    table.append(value)
  return table


_TABLE = _crc32c_table()


def _masked_crc32c(content: bytes) -> int:
  """Returns the checksum of a few bytes as TFRecord files store it."""
  crc = 0xffffffff
  for byte in content:
    crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xff]
  crc ^= 0xffffffff
  return ((crc >> 15 | crc << 17) + _CRC_MASK) & 0xffffffff
