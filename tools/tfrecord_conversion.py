"""What `tools.make_tfrecords` does, as functions."""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
import os
import sys
import time
from typing import NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from conadv_tf.config import InputError
from conadv_tf.data import checks, image_folder, record_index, tfrecord

_FOLDERS = {"train": image_folder.TRAIN, "validation": image_folder.VALIDATION}
_EXAMPLES_PER_FILE = {"train": 1250, "validation": 390}  # As ImageNet's are.
_LEAST_FILES = {"train": 16, "validation": 4}
_SEED = 12345  # One order for all runs: the same input gives the same files.
_TEMPORARY = ".making-"
_QUALITY = 100
_NAMED = 5  # Bad files that an error names.
_AHEAD = 4  # Images per thread that may wait to be written.

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Image(NamedTuple):
  """An image file to be converted."""
  path: str
  label: int  # From 1; 0 is the background, as in the usual converter.
  class_name: str


def convert(
    source: str, directory: str, *, shards: Mapping[str, int | None],
    threads: int, max_bad: int) -> None:
  """Writes TFRecords and their index; see `tools.make_tfrecords`.

  The files get their names only when all of them are complete, so that a
  directory never looks finished before it is.

  Args:
    source: folder of images.
    directory: for the records.
    shards: number of files of each split, or None.
    threads: images worked on at a time.
    max_bad: how many files may be left out.

  Raises:
    InputError: the folder is not as it should be, there are more bad files,
      or the directory holds anything that was not made here.
  """
  classes, images = _find(source)
  old = _own_files(directory)
  try:
    tf.io.gfile.makedirs(directory)
  except tf.errors.OpError as error:
    raise InputError(f'--output={directory}: cannot be made '
                     f'({checks.first_line(error)}).') from error
  left_out = _LeftOut(max_bad)
  written = {}
  progress = _Progress(sum(map(len, images.values())))
  try:
    for split in tfrecord.SPLITS:
      written |= _write_split(
          directory, split, images[split], shards[split], threads, left_out,
          progress)
    progress.finish()
    left_out.report()
    for name in old:  # The index first: without it nothing is complete.
      tf.io.gfile.remove(os.path.join(directory, name))
    for name in written:
      tf.io.gfile.rename(os.path.join(directory, _TEMPORARY + name),
                         os.path.join(directory, name), overwrite=True)
  finally:
    _remove_temporary(directory)
  record_index.Index(
      written, tuple(classes), os.path.abspath(source)).write(directory)
  for split in tfrecord.SPLITS:
    files = [v for name, v in written.items() if name.startswith(split)]
    print(f"{split}: {sum(n for n, _ in files)} images of {len(classes)} "
          f"classes in {len(files)} files, "
          f"{sum(size for _, size in files) / 2**20:.1f} MiB.")


def write_index(directory: str) -> None:
  """Counts the records of existing files and writes their index.

  Damaged files are named and keep what the index had for them, if anything:
  whoever trains on them is to hear of it again.

  Raises:
    InputError: there are no files, or some are missing.
  """
  index = record_index.read_index(directory)
  found = {}
  for split in tfrecord.SPLITS:
    names = tfrecord.split_files(directory, split, record_index.Index())
    # Counted anew, whatever the index says.
    files = record_index.count(directory, names, record_index.Index())
    for name, file in zip(names, files):
      if not file.damage:
        found[name] = file.records, file.size
        continue
      print(f"{file.path}: {file.damage}.", file=sys.stderr)
      if name in index.files:  # How many records it once had is worth keeping.
        found[name] = index.files[name]
    print(f"{split}: {sum(file.records for file in files)} records in "
          f"{len(files)} files.")
  record_index.Index(found, index.class_names, index.made_from).write(directory)


def _find(source: str) -> tuple[list[str], dict[str, list[Image]]]:
  """Returns the classes, and the files of each split in a fixed random order.

  Hidden files are ignored, all others listed.
  """
  classes, images = [], {}
  for split, names in _FOLDERS.items():
    folder = image_folder.split_folder(source, names)
    present = image_folder.class_folders(folder)
    classes = classes or present
    extra = sorted(set(present) - set(classes))
    if extra:
      raise InputError(f"{folder}: class {extra[0]} is not in the training "
                       "set; add it there or remove it here.")
    found = [
        Image(os.path.join(folder, name, file), classes.index(name) + 1, name)
        for name in present
        for file in image_folder.list_names(os.path.join(folder, name))]
    order = np.random.default_rng(_SEED).permutation(len(found))
    images[split] = [found[i] for i in order]
  return classes, images


def _own_files(directory: str) -> list[str]:
  """Returns the files to be replaced, the index first; raises for others'."""
  if not tf.io.gfile.exists(directory):
    return []
  if not tf.io.gfile.isdir(directory):
    raise InputError(f"--output={directory}: is a file; name a directory.")
  names = image_folder.list_names(directory)
  index = record_index.read_index(directory)
  own = [record_index.INDEX_NAME, *index.files] if index.made_from else []
  strangers = sorted(set(names) - set(own))
  if strangers:
    raise InputError(
        f"--output={directory}: holds {strangers[0]}, which was not made by "
        "this tool; name an empty directory.")
  return [name for name in own if name in names]


def _write_split(
    directory: str, split: str, images: Sequence[Image], shards: int | None,
    threads: int, left_out: "_LeftOut", progress: "_Progress"
) -> dict[str, tuple[int, int]]:
  """Writes a split under temporary names; returns records and bytes."""
  if shards is None:
    shards = min(len(images), max(
        _LEAST_FILES[split], len(images) // _EXAMPLES_PER_FILE[split]))
  if not images:
    raise InputError(f"the {split} folder holds no images; put them into "
                     "its class folders.")
  if len(images) < shards:
    raise InputError(f"--{split}_shards={shards}: there are only "
                     f"{len(images)} {split} images; make fewer files.")
  written = {}
  with futures.ThreadPoolExecutor(threads) as pool:
    records = _ahead(pool, _record_or_reason, images, _AHEAD * threads)
    for shard in range(shards):
      name = f"{split}-{shard:05d}-of-{shards:05d}"
      path = os.path.join(directory, _TEMPORARY + name)
      count = 0
      size = len(images) // shards + (shard < len(images) % shards)
      with tf.io.TFRecordWriter(path) as writer:
        for _ in range(size):
          image, (record, reason) = next(records)
          if reason:
            left_out.add(image.path, reason)
          else:
            writer.write(record)
            count += 1
          progress.add()
      if not count:
        raise InputError(f"{split}: none of the {size} images for {name} can "
                         "be used; mend them or make fewer files.")
      written[name] = count, tf.io.gfile.stat(path).length
  return written


def _record_or_reason(image: Image) -> tuple[bytes, str]:
  """Returns a serialised example, or b"" and why there is none."""
  if not image.path.lower().endswith(image_folder.EXTENSIONS):
    return b"", "is no image by its name"
  try:
    with tf.io.gfile.GFile(image.path, "rb") as file:
      content = file.read()
    if not content:
      return b"", "is empty"
    # A palette would be decoded to wrong colours without an error.
    if content.startswith(b"BM") and content[28:30] != b"\x18\x00":
      return b"", "is a BMP file of other than 24 bits per pixel"
    content, height, width = _as_jpeg(content)
  except tf.errors.OpError as error:
    return b"", f"cannot be read ({checks.first_line(error)})"
  name = os.path.basename(image.path)
  return _example(content, height, width, image, name).SerializeToString(), ""


def _as_jpeg(content: bytes) -> tuple[bytes, int, int]:
  """Returns a JPEG that decodes to RGB, its height and its width.

  JPEGs stay as they are but for CMYK ones; those and PNG, GIF (first frame)
  and BMP images are encoded anew, with quality 100.

  Raises:
    tf.errors.InvalidArgumentError: it cannot be decoded, to its last byte.
  """
  with tf.device("CPU:0"):
    if content.startswith(b"\xff\xd8\xff"):
      height, width, channels = tf.io.extract_jpeg_shape(content).numpy()
      if channels != 4:
        # An eighth of the size: all bytes are read, few pixels are made.
        tf.io.decode_jpeg(content, channels=3, ratio=8)
        return content, int(height), int(width)
    image = tf.io.decode_image(content, channels=3, expand_animations=False)
    height, width, _ = image.shape
    content = tf.io.encode_jpeg(image, "rgb", quality=_QUALITY).numpy()
    return content, height, width


def _example(
    content: bytes, height: int, width: int, image: Image, name: str
) -> tf.train.Example:
  """Returns an example with all keys of the usual converter.

  See tensorflow/tpu `tools/datasets/imagenet_to_gcs.py`.
  """
  def integers(*values: int) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

  def text(value: str | bytes) -> tf.train.Feature:
    value = value.encode() if isinstance(value, str) else value
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

  none = tf.train.Feature(float_list=tf.train.FloatList())
  return tf.train.Example(features=tf.train.Features(feature={
      "image/height": integers(height),
      "image/width": integers(width),
      "image/colorspace": text("RGB"),
      "image/channels": integers(3),
      "image/class/label": integers(image.label),
      "image/class/synset": text(image.class_name),
      "image/class/text": text(image.class_name),
      "image/object/bbox/xmin": none,
      "image/object/bbox/xmax": none,
      "image/object/bbox/ymin": none,
      "image/object/bbox/ymax": none,
      "image/object/bbox/label": integers(),
      "image/format": text("JPEG"),
      "image/filename": text(name),
      "image/encoded": text(content)}))


def _ahead(
    pool: futures.Executor, work: Callable[[_In], _Out], items: Iterable[_In],
    limit: int) -> Iterator[tuple[_In, _Out]]:
  """Maps in order, with at most `limit` results in memory."""
  waiting = collections.deque()
  for item in items:
    waiting.append((item, pool.submit(work, item)))
    if len(waiting) == limit:
      item, result = waiting.popleft()
      yield item, result.result()
  for item, result in waiting:
    yield item, result.result()


def _remove_temporary(directory: str) -> None:
  for name in tf.io.gfile.listdir(directory):
    if name.startswith(_TEMPORARY):
      tf.io.gfile.remove(os.path.join(directory, name))


class _LeftOut:
  """The files that cannot be used, up to a limit."""

  def __init__(self, limit: int) -> None:
    self._limit = limit
    self._reasons: dict[str, str] = {}

  def add(self, path: str, reason: str) -> None:
    """Raises InputError for one too many."""
    self._reasons[path] = reason
    if len(self._reasons) > self._limit:
      named = [f"{path} {reason}" for path, reason in self._reasons.items()]
      raise InputError(
          f"more than --max_bad={self._limit} files cannot be used; mend or "
          f"remove them, or raise it: {'; '.join(named[-_NAMED:])}")

  def report(self) -> None:
    """Names them all."""
    for path, reason in self._reasons.items():
      print(f"left out: {path} {reason}")


class _Progress:
  """One line on a terminal, rewritten; elsewhere a line now and then."""

  def __init__(self, total: int) -> None:
    self._total = total
    self._done = 0
    self._start = time.monotonic()
    self._shown = self._start
    self._terminal = sys.stdout.isatty()
    self._interval = 1.0 if self._terminal else 30.0

  def add(self) -> None:
    """Counts a file."""
    self._done += 1
    now = time.monotonic()
    if now - self._shown >= self._interval:
      self._shown = now
      rate = self._done / (now - self._start)
      left = int((self._total - self._done) / rate)
      self._print(f"{self._done} of {self._total} files, {rate:.0f} files/s, "
                  f"{left // 60}:{left % 60:02d} left",
                  end="\r" if self._terminal else "\n")

  def finish(self) -> None:
    """Says how it went."""
    seconds = time.monotonic() - self._start
    self._print(f"{self._done} files in {seconds:.1f} s, "
                f"{self._done / max(seconds, 1e-9):.0f} files/s.")

  def _print(self, text: str, end: str = "\n") -> None:
    # Padded, to cover what a longer line has left behind.
    print(f"{text:60}" if self._terminal else text, end=end, flush=True)
