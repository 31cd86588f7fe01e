"""Directories of exports: written whole or not at all, and checked.

An export is a SavedModel with a model card (`model_card.json`) and inputs with
known outputs (`golden.npz`).
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
import math
import os
import shutil
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from conadv_tf.config import InputError

CARD = "model_card.json"
GOLDEN = "golden.npz"
_FORMAT = "conadv_tf.export"
# All that an export may consist of; another file there is someone's own.
_OURS = frozenset({
    CARD, GOLDEN, "assets", "fingerprint.pb", "saved_model.pb", "variables"})
_TOLERANCE = 1e-6

Arrays = Mapping[str, Any]  # by input or output
Outputs = dict[str, tf.Tensor]


class Served(NamedTuple):
  """What is exported.

  Attributes:
    root: what is saved. It holds the model's variables and not the model:
      Keras objects would be saved with the functions of every layer.
    signatures: name -> what is exported, `serving_default` among them.
    golden: what goes into golden.npz as known inputs.
    fed: signature -> its inputs, which are the same examples for all.
  """

  root: tf.Module
  signatures: dict[str, Any]
  golden: Arrays
  fed: dict[str, Arrays]


def save(served: Served, folder: str, card: str) -> None:
  """Writes an export and checks it.

  Args:
    served: what.
    folder: empty.
    card: from `card_text`.

  Raises:
    RuntimeError: if the SavedModel, loaded again, gives another output.
  """
  tf.saved_model.save(served.root, folder, signatures=served.signatures)
  with open(os.path.join(folder, CARD), "w", encoding="utf-8") as file:
    file.write(card)
  expected = {name: value.numpy() for name, value in served.signatures[
      "serving_default"](**served.fed["serving_default"]).items()}
  np.savez(os.path.join(folder, GOLDEN), **served.golden, **expected)
  loaded = tf.saved_model.load(folder).signatures
  for signature, inputs in served.fed.items():
    found = loaded[signature](**inputs)
    for name, value in expected.items():
      if not np.allclose(found[name].numpy(), value, rtol=_TOLERANCE,
                         atol=_TOLERANCE, equal_nan=True):
        raise RuntimeError(
            f"the SavedModel's {signature} gives other {name} than the model; "
            "nothing was exported")


def classified(values: tf.Tensor, outputs: str) -> Outputs:
  """What is served of a classifier.

  Args:
    values: [b, classes], what the model gives.
    outputs: what these are, "logits" or "probabilities". For probabilities p,
      `logits` is log p, with p at least the smallest normal float32 number, so
      that it is finite.
  """
  values = tf.cast(values, tf.float32)
  if outputs == "logits":
    logits, probabilities = values, tf.nn.softmax(values)
  else:
    logits = tf.math.log(tf.maximum(values, np.finfo(np.float32).tiny))
    probabilities = values
  return {"logits": logits, "probabilities": probabilities,
          "classes": tf.argmax(values, axis=1, output_type=tf.int64)}


def classes_card(count: int, names: Sequence[str] | None, outputs: str
                 ) -> dict[str, Any]:
  """What the card says of a classifier's outputs.

  Raises:
    ValueError: if names and classes differ in number.
  """
  if names is not None and len(names) != count:
    raise ValueError(
        f"{len(names)} class names for a model of {count} classes")
  logarithm = "" if outputs == "logits" else (
      ", the logarithm of the probabilities")
  return {
      "outputs": {
          "logits": "float32 [b, classes]" + logarithm,
          "probabilities": "float32 [b, classes]",
          "classes": "int64 [b], the most probable class"},
      "classes": {"count": count,
                  "names": None if names is None else list(names)}}


def card_text(ours: Mapping[str, Any], card: Mapping[str, Any]) -> str:
  """The model card as JSON.

  Args:
    ours: what follows from the model.
    card: what the caller says besides.

  Raises:
    ValueError: if the caller's part has a key that is ours.
  """
  ours = {"format": _FORMAT, "format_version": 1,
          "tensorflow_version": tf.__version__, **ours}
  taken = sorted(ours.keys() & card.keys())
  if taken:
    raise ValueError(f"the card's own keys cannot be set: {taken}")
  return json.dumps(_plain({**ours, **card}), indent=2, allow_nan=False,
                    ensure_ascii=False) + "\n"


@contextlib.contextmanager
def replacing(target: str) -> Iterator[str]:
  """An empty folder that takes the place of `target` if no error is raised.

  Args:
    target: from `checked_target`.

  Raises:
    InputError: if nothing can be written there.
  """
  temporary = f"{target}.{os.getpid()}.tmp"
  try:
    os.makedirs(temporary)
  except OSError as error:
    raise InputError(f"output_dir: cannot write {target!r}: "
                     f"{error.strerror}; choose another") from error
  try:
    yield temporary
    _replace(target, temporary)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _plain(value: Any) -> Any:
  """What JSON can say; it has no word for NaN and infinity but null."""
  if isinstance(value, Mapping):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if isinstance(value, (np.ndarray, np.generic)):
    return _plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def checked_target(output_dir: str) -> str:
  """The absolute path, if it may be written.

  Raises:
    InputError: if there is anything but an earlier export.
  """
  if "://" in output_dir:
    raise InputError(f"output_dir: {output_dir!r} is not a local directory; "
                     "export to one and copy it")
  target = os.path.realpath(output_dir)
  if not os.path.exists(target):
    return target
  if not os.path.isdir(target):
    raise InputError(f"output_dir: {output_dir!r} is a file; choose another "
                     "or remove it")
  names = set(os.listdir(target))
  if names and not _is_export(target):
    raise InputError(f"output_dir: {output_dir!r} is not empty and no earlier "
                     "export; choose another or empty it")
  foreign = sorted(names - _OURS)
  if foreign:
    raise InputError(f"output_dir: {output_dir!r} holds {foreign[0]!r} beside "
                     "an earlier export; move it away or choose another")
  return target


def _is_export(folder: str) -> bool:
  try:
    with open(os.path.join(folder, CARD), encoding="utf-8") as file:
      return json.load(file)["format"] == _FORMAT
  except (OSError, ValueError, KeyError, TypeError):
    return False


def _replace(target: str, complete: str) -> None:
  """Puts `complete` in the place of `target`, which may exist."""
  if not os.path.exists(target):
    os.replace(complete, target)
    return
  # A directory that is not empty can only be moved out of the way.
  old = f"{target}.{os.getpid()}.old"
  os.replace(target, old)
  try:
    os.replace(complete, target)
  except OSError:
    os.replace(old, target)
    raise
  shutil.rmtree(old)
