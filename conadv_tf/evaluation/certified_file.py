"""Certificates in a file: a row an image, so that a stopped run goes on.

A TSV file; its first line is `# ` and the settings as JSON, its second one
the column names. Radii are l2 on the pixel scale 0..1 (see `certified`).
"""

from collections.abc import Iterable, Mapping
import dataclasses
import hashlib
import json
import os
import sys
import time
from typing import Any

import numpy as np

from conadv_tf import config
from conadv_tf.evaluation import certified

_COLUMNS = tuple(
    field.name for field in dataclasses.fields(certified.Certificate))
_SETTINGS = {
    field.name for field in dataclasses.fields(certified.Smoothing)}
_SECONDS = 10.0  # between two lines of progress


def digest(values: Iterable[np.ndarray]) -> str:
  """A short name of these very values, to tell networks apart."""
  found = hashlib.sha256()
  for value in values:
    found.update(np.ascontiguousarray(value).tobytes())
  return found.hexdigest()[:16]


def read(path: str) -> tuple[dict[str, Any], list[certified.Certificate]]:
  """Settings and certificates; a last row that was cut off is left out.

  Raises:
    InputError: if the file cannot be read or is none of these.
  """
  try:
    with open(path, encoding="utf-8") as file:
      head, columns, *rows = file.read().split("\n")[:-1]
    if tuple(columns.split("\t")) != _COLUMNS or head[:2] != "# ":
      raise ValueError("other columns")
    settings = json.loads(head[2:])
    if not isinstance(settings, dict) or not _SETTINGS <= settings.keys():
      raise ValueError("no settings")
    return settings, [_certificate(row) for row in rows]
  except OSError as error:
    raise config.InputError(f"{path}: {error.strerror}") from error
  except ValueError as error:
    raise config.InputError(
        f"{path} holds no certificates ({error}); conadv-evaluate --certify "
        "writes such files") from error


def _certificate(row: str) -> certified.Certificate:
  position, label, prediction, radius, count = row.split("\t")
  return certified.Certificate(int(position), int(label), int(prediction),
                               float(radius), int(count))


def known(path: str, settings: Mapping[str, Any]
          ) -> list[certified.Certificate]:
  """What an earlier run with the same settings has found; none at first.

  Raises:
    InputError: if the file is of other settings, or no such file.
  """
  if not os.path.exists(path):
    return []
  before, certificates = read(path)
  for key, value in settings.items():
    if before.get(key) != value:
      raise config.InputError(
          f"{path} was made with {key}={before.get(key)}, not {value}; name "
          "another --output, or remove it")
  return certificates


def write(path: str, settings: Mapping[str, Any],
          before: list[certified.Certificate],
          found: Iterable[certified.Certificate], total: int
          ) -> list[certified.Certificate]:
  """Writes certificates as they come and says on stderr how far it is.

  Args:
    path: of the file, written anew with what is known.
    settings: of all certificates.
    before: from `known`.
    found: those after them, in order.
    total: images in all.

  Returns:
    All certificates.
  """
  certificates = list(before)
  begun = said = time.monotonic()
  with open(path, "w", encoding="utf-8") as file:
    file.write(f"# {json.dumps(dict(settings))}\n" + "\t".join(_COLUMNS) + "\n")
    file.writelines(_row(certificate) for certificate in before)
    file.flush()
    for certificate in found:
      file.write(_row(certificate))
      file.flush()
      certificates.append(certificate)
      now = time.monotonic()
      if now - said >= _SECONDS:
        said = now
        _say(certificates, total,
             (now - begun) / (len(certificates) - len(before)))
  return certificates


def _row(certificate: certified.Certificate) -> str:
  return "\t".join(map(repr, dataclasses.astuple(certificate))) + "\n"


def _say(certificates: list[certified.Certificate], total: int,
         seconds: float) -> None:
  done = len(certificates)
  right = sum(c.is_correct for c in certificates)
  abstained = sum(c.prediction == certified.ABSTAINED for c in certificates)
  print(f"certify: {done}/{total} images, {right} right, {abstained} "
        f"abstained, {seconds:.3g} s an image, "
        f"{seconds * (total - done):.0f} s left", file=sys.stderr, flush=True)
