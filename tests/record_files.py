"""TFRecord files with the keys of the usual converter, whole and damaged."""

from collections.abc import Sequence
import io
import pathlib

import numpy as np
from PIL import Image
import tensorflow as tf

FRAME = 16  # Bytes of a record that are not its payload.


def jpeg(value: int, size: tuple[int, int] = (10, 8),
         mode: str = "RGB", kind: str = "JPEG") -> bytes:
  """An image (height, width) all of whose pixels have nearly this value."""
  file = io.BytesIO()
  pixels = np.full([*size, 3], value, np.uint8)
  Image.fromarray(pixels).convert(mode).save(file, kind, quality=95)
  return file.getvalue()


def example(content: bytes | None, label: int | None,
            filename: str | None = None,
            boxes: Sequence[Sequence[float]] = ()) -> bytes:
  """A serialised example; what is None is left out."""
  features = {}
  if content is not None:
    features["image/encoded"] = tf.train.Feature(
        bytes_list=tf.train.BytesList(value=[content]))
  if label is not None:
    features["image/class/label"] = tf.train.Feature(
        int64_list=tf.train.Int64List(value=[label]))
  if filename is not None:
    features["image/filename"] = tf.train.Feature(
        bytes_list=tf.train.BytesList(value=[filename.encode()]))
  for i, side in enumerate(("ymin", "xmin", "ymax", "xmax")):
    if boxes:
      features[f"image/object/bbox/{side}"] = tf.train.Feature(
          float_list=tf.train.FloatList(value=[box[i] for box in boxes]))
  return tf.train.Example(
      features=tf.train.Features(feature=features)).SerializeToString()


def write(path: pathlib.Path, payloads: Sequence[bytes]) -> pathlib.Path:
  """Writes one TFRecord file."""
  with tf.io.TFRecordWriter(str(path)) as writer:
    for payload in payloads:
      writer.write(payload)
  return path


def numbered(folder: pathlib.Path, split: str,
             counts: Sequence[int]) -> list[str]:
  """Writes files of `counts` records; content and filename are "i".

  Returns:
    The filenames of all records.
  """
  folder.mkdir(exist_ok=True)
  total = 0
  for shard, count in enumerate(counts):
    name = f"{split}-{shard:05d}-of-{len(counts):05d}"
    write(folder / name, [
        example(b"%d" % i, i % 3 + 1, str(i))
        for i in range(total, total + count)])
    total += count
  return [str(i) for i in range(total)]


def flip_bit(path: pathlib.Path, offset: int) -> None:
  """Damages one byte."""
  content = bytearray(path.read_bytes())
  content[offset] ^= 1
  path.write_bytes(content)
