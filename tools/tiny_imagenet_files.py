"""What `tools.tiny_imagenet` does with the published zip file; no flags."""

import collections
import os
import pathlib
import re
import shutil
import zipfile
import zlib

from conadv_tf.config import InputError

_TRAIN = re.compile(r"[^/]+/train/(n\d+)/images/([^/]+\.JPEG)")
_VALIDATION = re.compile(r"[^/]+/val/images/([^/]+\.JPEG)")
_ANNOTATIONS = re.compile(r"[^/]+/val/val_annotations\.txt")


def arrange(archive: str, output: str) -> dict[str, int]:
  """Unpacks the images into one folder per split and class.

  Args:
    archive: path of the zip file.
    output: folder to make; it appears once it is complete.

  Returns:
    Number of images of "train" and "validation".

  Raises:
    InputError: no such file, not such a zip file, an image without a class,
      or an output that is there.
  """
  if os.path.exists(output):
    raise InputError(f"--output={output}: is there already; remove it or name "
                     "another folder")
  partial = pathlib.Path(f"{output}.partial")
  try:
    with zipfile.ZipFile(archive) as file:
      places = _places(file)
      counts = collections.Counter()
      for name, place in places.items():
        path = partial / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.read(name))
        counts[place.parts[0]] += 1
    partial.rename(output)
  except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
    shutil.rmtree(partial, ignore_errors=True)
    raise InputError(f"--zip={archive}: {error}") from error
  return dict(counts)


def _places(file: zipfile.ZipFile) -> dict[str, pathlib.PurePath]:
  """Where each image of the archive goes, by its name there.

  Raises:
    ValueError: that says what is missing.
  """
  places, held_out, annotations = {}, {}, None
  for name in file.namelist():
    if match := _TRAIN.fullmatch(name):
      places[name] = pathlib.PurePath("train", *match.groups())
    elif match := _VALIDATION.fullmatch(name):
      held_out[match[1]] = name
    elif _ANNOTATIONS.fullmatch(name):
      annotations = name
  if not (places and held_out and annotations):
    raise ValueError("has no train/<class>/images, val/images or "
                     "val/val_annotations.txt; get tiny-imagenet-200.zip")
  known = {place.parts[1] for place in places.values()}
  classes = {}
  for line in file.read(annotations).decode("utf-8").splitlines():
    image, label, *_ = line.split("\t") + [""]
    if label not in known:
      raise ValueError(f"{annotations}: {line.strip()!r} names no class of the "
                       "training images")
    classes[image] = label
  for image, name in held_out.items():
    if image not in classes:
      raise ValueError(f"{annotations}: has no class for {image}")
    places[name] = pathlib.PurePath("validation", classes[image], image)
  return places
