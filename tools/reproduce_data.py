"""The data of a suite: its part of an .npz file or of a GLUE folder; no flags.

What trains is written with a validation split for curves and tuning, what is
evaluated at the end with the test split in its place.
"""

from collections.abc import Sequence
import dataclasses
import gzip
import json
import pathlib
import zlib

import numpy as np

from conadv_tf.config import InputError
from tools import reproduce_suite as suites


def places(data: suites.Data,
           folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """Where the data of the training and those of the end are in a folder."""
  if data.task:
    return folder / "train", folder / "final"
  return folder / "train.npz", folder / "final.npz"


def prepare(data: suites.Data, source: pathlib.Path | None,
            folder: pathlib.Path) -> None:
  """Writes the data, unless they are there.

  Args:
    data: how many examples, of what.
    source: an .npz file with x_train, y_train, x_test, y_test, images uint8
      [n, h, w, c]; or a folder with <task>_train.tsv or <task>_train.tsv.gz.
    folder: receives them.

  Raises:
    InputError: if the source holds too few or cannot be read, or what is
      there are other data.
  """
  marker = folder / "data.json"
  wanted = {key: value for key, value in dataclasses.asdict(data).items()
            if value is not None}
  if marker.exists():
    found = json.loads(marker.read_text(encoding="utf-8"))
    if found != wanted:
      raise InputError(f"{folder} holds data {json.dumps(found)}, not "
                       f"{json.dumps(wanted)}; name another --output")
    return
  if (folder / "train.npz").exists():  # from before there was such a file
    return
  if source is None:
    raise InputError("the suite needs --data=" + (
        f"FOLDER of {data.task}_train.tsv" if data.task else "FILE.npz"))
  folder.mkdir(parents=True, exist_ok=True)
  if data.task:
    _split_text(data, source, folder)
  else:
    _split_images(data, source, folder)
  marker.write_text(json.dumps(wanted), encoding="utf-8")


def _split_text(data: suites.Data, source: pathlib.Path,
                folder: pathlib.Path) -> None:
  """Writes both folders, all from the training file.

  Test and validation are held out at random. A training row whose sentences
  occur there, whatever the case of letters, is left out.
  """
  name = f"{data.task}_train.tsv"
  path = next((p for p in (source / name, source / f"{name}.gz")
               if p.exists()), None)
  if path is None:
    raise InputError(f"--data={source}: no {name} and no {name}.gz in it")
  try:
    with (gzip.open if path.suffix == ".gz" else open)(
        path, "rt", encoding="utf-8", newline="\n") as file:
      head, *rows = file.read().rstrip("\n").split("\n")
  except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
    raise InputError(f"--data={path}: {error}") from error
  order = np.random.default_rng(0).permutation(len(rows))
  test = [rows[i] for i in order[:data.test]]
  rest = _without([rows[i] for i in order[data.test:]], test)
  validation = rest[:data.validation]
  train = _without(rest[data.validation:], validation)
  if len(test) < data.test or len(train) < data.train:
    raise InputError(
        f"--data={path}: {len(rows)} rows, {max(0, len(train))} left to train "
        f"on; needed are {data.test} + {data.validation} + {data.train}")
  for place, dev in zip(places(data, folder), (validation, test)):
    place.mkdir(exist_ok=True)
    for split, part in (("train", train[:data.train]), ("dev", dev)):
      (place / f"{data.task}_{split}.tsv").write_text(
          "\n".join([head, *part]) + "\n", encoding="utf-8")


def _without(rows: Sequence[str], others: Sequence[str]) -> list[str]:
  """The rows whose sentences are not among the others'."""
  known = {_sentences(row) for row in others}
  return [row for row in rows if _sentences(row) not in known]


def _sentences(row: str) -> tuple[str, ...]:
  """All columns but the last, the label; spaces and case do not count."""
  return tuple(" ".join(column.casefold().split())
               for column in row.split("\t")[:-1])


def _split_images(data: suites.Data, source: pathlib.Path,
          folder: pathlib.Path) -> None:
  """Writes train.npz, whose test split is for validation, and final.npz.

  Args:
    data: how many images of what size.
    source: has x_train, y_train, x_test, y_test; images uint8 [n, h, w, c].
    folder: receives the files.

  Raises:
    InputError: if it holds too few, or cannot be read.
  """
  try:
    with np.load(source) as arrays:
      images, labels, final_images, final_labels = (
          arrays[key] for key in ("x_train", "y_train", "x_test", "y_test"))
  except (OSError, KeyError, ValueError) as error:
    raise InputError(f"--data={source}: {error}") from error
  rest = len(images) - data.validation
  if rest < data.train or len(final_images) < data.test:
    raise InputError(
        f"--data={source}: {len(images)} and {len(final_images)} images, "
        f"needed are {data.train + data.validation} and {data.test}")
  chosen = np.random.default_rng(0).permutation(rest)[:data.train]
  train = _shrink(images[chosen], data.image_size), labels[chosen]
  folder.mkdir(parents=True, exist_ok=True)
  for name, x, y in (
      ("final", final_images[:data.test], final_labels[:data.test]),
      ("train", images[rest:], labels[rest:])):
    np.savez(folder / f"{name}.npz", x_train=train[0], y_train=train[1],
             x_test=_shrink(x, data.image_size), y_test=y)


def _shrink(images: np.ndarray, size: int | None) -> np.ndarray:
  """Means of square blocks of pixels, rounded.

  Args:
    images: uint8 [n, h, h, c].
    size: a divisor of h; None keeps them.

  Returns:
    uint8 [n, size, size, c].

  Raises:
    InputError: if it is no divisor.
  """
  count, height, width, channels = images.shape
  if size in (None, height):
    return images
  if height % size or height != width:
    raise InputError(f"image_size: {size} is no divisor of {height}")
  block = height // size
  means = images.reshape(
      count, size, block, size, block, channels).mean((2, 4))
  return np.round(means).astype(np.uint8)
