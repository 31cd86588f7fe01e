"""Input pipeline against bare decoding: `python -m tools.benchmark_input`.

Three rows over the same JPEGs with as many threads, interleaved round by
round:

  bare         tf.io.decode_and_crop_jpeg of windows that are drawn alike, and
               tf.image.resize
  pipeline     what a run of `data.name: image_folder` trains on: shuffled,
               flipped, broken files left out
  autoaugment  the same with AutoAugment

Ratios are throughputs over that of `bare`, round by round, so above 1 is
faster; those of CPU time say the same on a machine that does other work, too.
A round makes an iterator and times elements after its first two, when each is
taken as soon as it is there and none is ready. `--path` is a folder of JPEGs;
without it some are made. The files are read again and again, from the
operating system's cache.
"""

import glob
import json
import os
import platform
import tempfile
import time

from absl import flags

from conadv_tf import command_line

_PATH = flags.DEFINE_string("path", None, "Folder of JPEGs, at any depth.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Rounds after the warm-up.",
                               lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 256, "Images of an element.",
                              lower_bound=1)
_ELEMENTS = flags.DEFINE_integer(
    "elements", 20, "Elements of a round; in short ones, what is made ahead of "
    "time blurs the figures.", lower_bound=1)
_SIZE = flags.DEFINE_integer("image_size", 224, "Pixels of the result.",
                             lower_bound=1)
_AUTOAUGMENT = flags.DEFINE_bool(
    "autoaugment", True, "Whether to measure AutoAugment, which is slow.")
_MADE = 64  # Images that are made where none are given.
_FIRST = 2  # Elements of a round that are not timed.
_ENDLESS = 10**6  # Elements.
_FILES, _COPIES = 16, 16  # TFRecord files, and copies of every image in them.


def files(path: str | None) -> list[str]:
  """Paths of all JPEGs below a folder, or of some that are made."""
  if path is None:
    return made(tempfile.mkdtemp())
  found = sorted(
      name for name in glob.glob(os.path.join(path, "**"), recursive=True)
      if name.lower().endswith((".jpg", ".jpeg")))
  if not found:
    from conadv_tf.config import InputError
    raise InputError(f"--path={path}: holds no .jpg or .jpeg files.")
  return found


def made(folder: str) -> list[str]:
  """Writes JPEGs of 500 x 375 pixels, smooth shapes under some noise."""
  import numpy as np
  from PIL import Image
  rng = np.random.default_rng(0)
  paths = []
  for number in range(_MADE):
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    image = np.asarray(coarse.resize((500, 375), Image.BICUBIC), np.int32)
    noise = rng.integers(-20, 21, image.shape)
    paths.append(os.path.join(folder, f"{number}.jpg"))
    Image.fromarray(np.clip(image + noise, 0, 255).astype(np.uint8)).save(
        paths[-1], quality=90)
  return paths


def bare(paths: list[str]) -> object:
  """Batches of decoded, cropped and resized images, float32."""
  import tensorflow as tf

  from conadv_tf.data import decode, positions
  key, boxes = tf.constant([0, 0]), tf.zeros([0, 4])

  def image(number: tf.Tensor, path: tf.Tensor) -> tf.Tensor:
    content = tf.io.read_file(path)
    window = decode.window(tf.io.extract_jpeg_shape(content), boxes,
                           positions.bits(key, number, 1, 4)[0])
    decoded = tf.io.decode_and_crop_jpeg(content, window, channels=3)
    return tf.image.resize(decoded, [_SIZE.value, _SIZE.value])

  return tf.data.Dataset.from_tensor_slices(paths).repeat(
      ).enumerate().map(
          image, num_parallel_calls=os.cpu_count(), deterministic=True).batch(
              _BATCH.value, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def pipeline(paths: list[str], augment: str) -> object:
  """What training on a folder of images reads."""
  import numpy as np

  from conadv_tf.data import encoded
  from conadv_tf.data import pipeline as pipelines
  source = encoded.IndexedSource(
      paths, np.zeros(len(paths), np.int32), image_size=_SIZE.value,
      from_files=True, preprocessing="imagenet")
  return pipelines.train_dataset(
      source, global_batch_size=_BATCH.value, augment=augment,
      num_steps=_ENDLESS)


def stream(paths: list[str]) -> object:
  """The same from TFRecords, in which every image comes several times."""
  import tensorflow as tf

  from conadv_tf.data import pipeline as pipelines
  from conadv_tf.data import record_index, records, tfrecord
  folder = tempfile.mkdtemp()
  names = [f"train-{i:05d}-of-{_FILES:05d}" for i in range(_FILES)]
  for number, name in enumerate(names):
    with tf.io.TFRecordWriter(os.path.join(folder, name)) as writer:
      for path in (paths * _COPIES)[number::_FILES]:
        content = tf.io.gfile.GFile(path, "rb").read()
        writer.write(tf.train.Example(features=tf.train.Features(feature={
            "image/encoded": tf.train.Feature(
                bytes_list=tf.train.BytesList(value=[content])),
            "image/class/label": tf.train.Feature(
                int64_list=tf.train.Int64List(value=[1])),
        })).SerializeToString())
  source = records.RecordSource(
      record_index.count(folder, names, record_index.Index()),
      lambda record: tfrecord.parse(record, 1), num_classes=1,
      image_size=_SIZE.value, preprocessing="imagenet",
      shuffle_buffer=len(paths))
  return pipelines.train_dataset(
      source, global_batch_size=_BATCH.value, num_steps=_ENDLESS)


def settle() -> None:
  """Waits until threads in the background have nothing left to do."""
  before = -1.0
  while time.process_time() - before > 0.01:
    before = time.process_time()
    time.sleep(0.1)


def turn(dataset: object, elements: int) -> tuple[float, float]:
  """Seconds, of the clock and of all cores, for some elements."""
  iterator = iter(dataset)
  for _ in range(_FIRST):
    next(iterator)
  start, cpu_start = time.perf_counter(), time.process_time()
  for _ in range(elements):
    next(iterator)
  return time.perf_counter() - start, time.process_time() - cpu_start


def measure(rows: dict[str, object], rounds: int, elements: int
            ) -> dict[str, list[tuple[float, float]]]:
  """Both times of each row in each round, after one warm-up round."""
  times = {name: [] for name in rows}
  for number in range(rounds + 1):
    for name, dataset in rows.items():
      settle()  # The one before has only just been told to stop.
      taken = turn(dataset, elements)
      if number:
        times[name].append(taken)
  return times


def summarise(times: dict[str, list[tuple[float, float]]],
              count: int) -> list[dict[str, object]]:
  """Images a second, and ratios of throughput to the first row's."""
  import numpy as np
  reference = np.array(next(iter(times.values())))
  table = []
  for name, values in times.items():
    (low, cpu_low), (median, cpu), (high, cpu_high) = np.percentile(
        reference / np.array(values), [25, 50, 75], axis=0)
    table.append({
        "row": name,
        "images_per_second": count / float(np.median(values, axis=0)[0]),
        "ratio": float(median), "ratio_quartiles": [float(low), float(high)],
        "cpu_ratio": float(cpu),
        "cpu_ratio_quartiles": [float(cpu_low), float(cpu_high)]})
  return table


def main() -> None:
  """Measures, prints a table and writes JSON."""
  with command_line.one_line_errors():
    run()


def run() -> None:
  """The measurement; TensorFlow is imported from here on."""
  if _OUTPUT.value:
    command_line.check_output(_OUTPUT.value)
  paths = files(_PATH.value)
  count = _BATCH.value * _ELEMENTS.value
  rows = {"bare": bare(paths), "pipeline": pipeline(paths, "none"),
          "records": stream(paths)}
  if _AUTOAUGMENT.value:
    rows["autoaugment"] = pipeline(paths, "autoaugment")
  import tensorflow as tf

  from conadv_tf.config import InputError
  try:
    times = measure(rows, _ROUNDS.value, _ELEMENTS.value)
  except tf.errors.OpError as error:
    raise InputError(f"--path={_PATH.value}: a file cannot be decoded "
                     f"({error.message}); use whole JPEGs") from error
  table = summarise(times, count)
  for row in table:
    (low, high), (cpu_low, cpu_high) = (
        row["ratio_quartiles"], row["cpu_ratio_quartiles"])
    print(f"{row['row']:12s} {row['images_per_second']:8.1f} images/s   "
          f"{row['ratio']:.3f} [{low:.3f}, {high:.3f}] of bare   by CPU time "
          f"{row['cpu_ratio']:.3f} [{cpu_low:.3f}, {cpu_high:.3f}]")
  if _OUTPUT.value:
    report = {"files": len(paths), "batch_size": _BATCH.value,
              "image_size": _SIZE.value, "rounds": _ROUNDS.value,
              "images_per_round": count, "threads": os.cpu_count(),
              "machine": platform.processor() or platform.machine(),
              "rows": table}
    with open(_OUTPUT.value, "w", encoding="utf-8") as file:
      json.dump(report, file, indent=2)


if __name__ == "__main__":
  command_line.start(main)
