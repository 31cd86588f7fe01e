"""The data of a suite: its part of an .npz file or of a GLUE folder; no flags.

What trains is written with a validation split for curves and tuning, what is
evaluated at the end with the test split in its place.
"""

from collections.abc import Sequence
import dataclasses
import gzip
import json
import pathlib
from typing import Any
import zlib

import numpy as np

from conadv_tf.config import ExperimentConfig, InputError
from conadv_tf.data import checks, npz
from tools import reproduce_suite as suites

FACTS = "images.json"
_SPLITS = ("train", "test")
_CLOSE = 16  # of 255 levels


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
    facts = _split_images(data, source, folder)
    (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")
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
                  folder: pathlib.Path) -> dict[str, Any]:
  """Writes train.npz, whose test split is for validation, and final.npz.

  A split whose labels stand in blocks is shuffled first.

  Args:
    data: how many images of what size.
    source: has x_train, y_train, x_test, y_test; images uint8 [n, h, w, c] or
      [n, h, w].
    folder: receives the files.

  Returns:
    `image_facts` of what is trained on.

  Raises:
    InputError: if it holds too few, or cannot be read.
  """
  train, test = _read(source)
  rest = len(train[0]) - data.validation
  if rest < data.train or len(test[0]) < data.test:
    raise InputError(
        f"--data={source}: {len(train[0])} and {len(test[0])} images, needed "
        f"are {data.train + data.validation} and {data.test}; "
        "--examples=TRAIN,VALIDATION,TEST takes fewer")
  classes = 1 + int(max(train[1].max(), test[1].max()))
  train, test = map(_mixed, (train, test))
  chosen = np.random.default_rng(0).permutation(rest)[:data.train]
  parts = {"train": (train[0][chosen], train[1][chosen]),
           "validation": (train[0][rest:], train[1][rest:]),
           "final": (test[0][:data.test], test[1][:data.test])}
  size = _size(data.image_size, train[0].shape[1:3])
  parts = {name: (_shrink(x, size), y) for name, (x, y) in parts.items()}
  for name, held_out in (("final", "final"), ("train", "validation")):
    (x, y), (other_x, other_y) = parts["train"], parts[held_out]
    np.savez(folder / f"{name}.npz", x_train=x, y_train=y, x_test=other_x,
             y_test=other_y)
  return image_facts(parts["train"][0], classes)


def _read(source: pathlib.Path) -> list[tuple[np.ndarray, np.ndarray]]:
  """Images uint8 [n, h, w, c] and labels [n] of both splits, checked."""
  arrays = npz.read(
      str(source), [f"{kind}_{split}" for split in _SPLITS for kind in "xy"],
      "--data")
  found = []
  for split in _SPLITS:
    where = f"--data={source} ({split})"
    images = checks.check_images(arrays[f"x_{split}"], where)
    labels = checks.check_labels(arrays[f"y_{split}"], where)
    if len(images) != len(labels):
      raise InputError(f"{where}: {len(images)} images but {len(labels)} "
                       "labels; they must be equal in number")
    found.append((images, labels))
  if found[0][0].shape[1:] != found[1][0].shape[1:]:
    raise InputError(f"--data={source}: x_train has images of shape "
                     f"{found[0][0].shape[1:]} but x_test of "
                     f"{found[1][0].shape[1:]}; make them equal")
  return found


def _mixed(split: tuple[np.ndarray, np.ndarray]
           ) -> tuple[np.ndarray, np.ndarray]:
  """The split in a fixed random order, where its labels stand in blocks.

  Its first or last examples would else be of few classes. They stand in blocks
  where a label follows another one less than half as often as in a random
  order.
  """
  images, labels = split
  shares = np.unique(labels, return_counts=True)[1] / len(labels)
  expected = (len(labels) - 1) * (1 - np.sum(shares**2))
  if np.count_nonzero(np.diff(labels.astype(np.int64))) >= expected / 2:
    return split
  order = np.random.default_rng(0).permutation(len(labels))
  return images[order], labels[order]


def image_facts(images: np.ndarray, classes: int) -> dict[str, Any]:
  """What a configuration must know of images.

  Args:
    images: uint8 [n, h, w, c], of the training.
    classes: how many, of all splits.

  Returns:
    `num_classes`, and means and deviations of the pixels, by channel.
  """
  axes = (0, 1, 2)
  means = images.mean(axes, dtype=np.float64)
  stds = images.std(axes, dtype=np.float64)
  return {"num_classes": classes,
          "pixel_mean": [round(float(v), 1) for v in means],
          "pixel_std": [max(1.0, round(float(v), 1)) for v in stds]}


def overrides(config: ExperimentConfig, folder: pathlib.Path) -> list[str]:
  """What a suite's configuration must take from the images in its place.

  The number of classes where it names another one; means and deviations of the
  pixels where it names some that do not fit: of another number of channels, or
  further away than 16 of 255 levels.

  Args:
    config: as the suite has it.
    folder: of `prepare`.

  Returns:
    key=value; nothing for data that were written before these facts were kept.
  """
  path = folder / FACTS
  if not path.exists():
    return []
  facts = json.loads(path.read_text(encoding="utf-8"))
  found = []
  if config.data.num_classes not in (None, facts["num_classes"]):
    found.append(f"data.num_classes={facts['num_classes']}")
  args = config.model.args or {}
  pixels = {key: facts[key] for key in ("pixel_mean", "pixel_std")}
  if not all(_fits(args[key], value) for key, value in pixels.items()
             if key in args):
    found.append("model.args={" + ", ".join(
        f"{key}: {value}" for key, value in pixels.items()) + "}")
  return found


def _fits(stated: float | Sequence[float], measured: Sequence[float]) -> bool:
  """One number for all channels is no statistic of the data: it is kept."""
  return not isinstance(stated, Sequence) or len(stated) == 1 or (
      len(stated) == len(measured) and all(
          abs(a - b) <= _CLOSE for a, b in zip(stated, measured)))


def _size(size: int | None, shape: tuple[int, int]) -> int | None:
  """The side that images are shrunk to; None keeps them."""
  height, width = shape
  if size is None or (height == width and height % size == 0):
    return size
  print(f"image_size: {size} is no divisor of {height} x {width}: the images "
        "stay as they are", flush=True)
  return None


def _shrink(images: np.ndarray, size: int | None) -> np.ndarray:
  """Means of square blocks of pixels, rounded.

  Args:
    images: uint8 [n, h, h, c].
    size: a divisor of h; None keeps them.

  Returns:
    uint8 [n, size, size, c].
  """
  count, height, _, channels = images.shape
  if size in (None, height):
    return images
  block = height // size
  means = images.reshape(
      count, size, block, size, block, channels).mean((2, 4))
  return np.round(means).astype(np.uint8)
