"""Exports a plain Keras model as a SavedModel that needs no package of ours."""

from collections.abc import Mapping, Sequence
import json
import math
import os
import shutil
from typing import Any

import numpy as np
import tensorflow as tf

from conadv_tf.config import InputError

ImageShape = tuple[int, int, int]  # height, width, channels
Outputs = dict[str, tf.Tensor]

CARD = "model_card.json"
GOLDEN = "golden.npz"
_FORMAT = "conadv_tf.export"
# All that an export may consist of; another file there is someone's own.
_OURS = frozenset({
    CARD, GOLDEN, "assets", "fingerprint.pb", "saved_model.pb", "variables"})
_DECODED_CHANNELS = (1, 3, 4)  # 4 is PNG only
_GOLDEN_IMAGES = 4
_TOLERANCE = 1e-6


def export(model: tf.keras.Model, output_dir: str, *,
           class_names: Sequence[str] | None, card: Mapping[str, Any],
           image_shape: ImageShape, outputs: str = "logits") -> None:
  """Writes a SavedModel, its model card and inputs with known outputs.

  The signatures are `serving_default`, from uint8 `images` [b, h, w, c], and
  `serving_bytes`, from JPEG or PNG `image_bytes` [b] (for 1, 3 or 4 channels;
  4 are PNG only). Both give float32 `logits` and `probabilities` [b, classes]
  and int64 `classes` [b]. The model keeps the precision it was trained in, so
  that it gives the numbers of its evaluation; variables and outputs are
  float32 in any case.

  The directory appears at once and complete, after a check that the
  SavedModel, loaded again, gives what the model gave (`golden.npz` holds these
  inputs and outputs, to repeat the check elsewhere).

  Args:
    model: plain; float images [b, h, w, c] in 0..255, normalised inside ->
      [b, classes]. Usually from `Trainer.merge()`.
    output_dir: new, empty, or an earlier export, which is replaced.
    class_names: one per class, or None.
    card: what the card shall say besides, such as `config` and `metrics`.
    image_shape: h, w, c.
    outputs: what the model ends in, "logits" or "probabilities". For
      probabilities p, `logits` is log p, with p at least the smallest normal
      float32 number, so that it is finite.

  Raises:
    InputError: if `output_dir` holds anything else or cannot be written.
    ValueError: if another argument does not fit the model.
    RuntimeError: if the SavedModel gives other numbers than the model.
  """
  target = _checked_target(output_dir)
  classifier = _Classifier(model, image_shape, outputs)
  text = _card_text(card, classifier, class_names)
  temporary = f"{target}.{os.getpid()}.tmp"
  try:
    os.makedirs(temporary)
  except OSError as error:
    raise InputError(f"output_dir: cannot write {output_dir!r}: "
                     f"{error.strerror}; choose another") from error
  try:
    tf.saved_model.save(classifier.root, temporary,
                        signatures=classifier.signatures)
    with open(os.path.join(temporary, CARD), "w", encoding="utf-8") as file:
      file.write(text)
    _write_golden(classifier, temporary)
    _replace(target, temporary)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


class _Classifier:
  """The functions that are served.

  Attributes:
    root: what is saved. It holds the model's variables and not the model:
      Keras objects would be saved with the functions of every layer.
    signatures: name -> what is exported.
    image_shape: h, w, c.
    classes: how many there are.
    outputs: what the model ends in.
  """

  def __init__(self, model: tf.keras.Model, image_shape: ImageShape,
               outputs: str) -> None:
    """Traces the signatures.

    Raises:
      ValueError: if the model does not map such images to one row of classes.
    """
    if outputs not in ("logits", "probabilities"):
      raise ValueError("outputs must be 'logits' or 'probabilities', got "
                       f"{outputs!r}")
    height, width, channels = image_shape
    self.image_shape = height, width, channels
    self.outputs = outputs
    self.root = tf.Module(name="classifier")
    self.root.model_variables = model.variables

    def classify(images: tf.Tensor) -> Outputs:
      return _classify(model, images, outputs)

    def classify_bytes(image_bytes: tf.Tensor) -> Outputs:
      return classify(_decode(image_bytes, (height, width, channels)))

    traced = tf.function(classify, autograph=False).get_concrete_function(
        tf.TensorSpec([None, height, width, channels], tf.uint8, "images"))
    shape = traced.structured_outputs["logits"].shape
    if shape.rank != 2 or shape[1] is None:
      raise ValueError(f"model {model.name!r} must give [b, classes], it "
                       f"gives {shape}")
    self.classes = shape[1]
    self.signatures = {"serving_default": traced}
    if channels in _DECODED_CHANNELS:
      self.signatures["serving_bytes"] = tf.function(
          classify_bytes, autograph=False).get_concrete_function(
              tf.TensorSpec([None], tf.string, "image_bytes"))


def _classify(model: tf.keras.Model, images: tf.Tensor,
              outputs: str) -> Outputs:
  values = tf.cast(model(tf.cast(images, tf.float32), training=False),
                   tf.float32)
  if outputs == "logits":
    logits, probabilities = values, tf.nn.softmax(values)
  else:
    logits = tf.math.log(tf.maximum(values, np.finfo(np.float32).tiny))
    probabilities = values
  return {"logits": logits, "probabilities": probabilities,
          "classes": tf.argmax(values, axis=1, output_type=tf.int64)}


def _decode(image_bytes: tf.Tensor, image_shape: ImageShape) -> tf.Tensor:
  """Encoded images [b] -> uint8 [b, h, w, c], as image folders are read."""
  height, width, channels = image_shape

  def decode(content: tf.Tensor) -> tf.Tensor:
    image = tf.io.decode_image(content, channels=channels,
                               expand_animations=False)
    image.set_shape([None, None, channels])
    image = tf.image.resize(image, [height, width])
    return tf.cast(tf.round(image), tf.uint8)

  return tf.map_fn(decode, image_bytes, fn_output_signature=tf.TensorSpec(
      image_shape, tf.uint8))


def _card_text(card: Mapping[str, Any], classifier: _Classifier,
               class_names: Sequence[str] | None) -> str:
  """The model card as JSON.

  Raises:
    ValueError: if names and classes differ in number, or the caller's part
      has a key that is ours.
  """
  if class_names is not None and len(class_names) != classifier.classes:
    raise ValueError(f"{len(class_names)} class names for a model of "
                     f"{classifier.classes} classes")
  images = {
      "name": "images", "dtype": "uint8", "range": [0, 255],
      "shape": [None, *classifier.image_shape],
      "channels": {1: "grey", 3: "RGB", 4: "RGBA"}.get(
          classifier.image_shape[2], "as in the training data"),
      "normalisation": "inside the model"}
  image_bytes = {
      "name": "image_bytes", "dtype": "string", "shape": [None],
      "encoding": "PNG" if classifier.image_shape[2] == 4 else "JPEG or PNG",
      "resize": "to the height and width of `images`: bilinear, without "
                "antialiasing, rounded, aspect ratio not kept"}
  inputs = {"serving_default": images, "serving_bytes": image_bytes}
  ours = {
      "format": _FORMAT, "format_version": 1,
      "tensorflow_version": tf.__version__,
      "inputs": {name: inputs[name] for name in classifier.signatures},
      "outputs": {
          "logits": "float32 [b, classes]" + (
              "" if classifier.outputs == "logits" else
              ", the logarithm of the probabilities"),
          "probabilities": "float32 [b, classes]",
          "classes": "int64 [b], the most probable class"},
      "classes": {"count": classifier.classes,
                  "names": None if class_names is None else list(class_names)},
  }
  taken = sorted(ours.keys() & card.keys())
  if taken:
    raise ValueError(f"the card's own keys cannot be set: {taken}")
  return json.dumps(_plain({**ours, **card}), indent=2, allow_nan=False,
                    ensure_ascii=False) + "\n"


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


def _write_golden(classifier: _Classifier, folder: str) -> None:
  """Saves inputs and outputs; loads the SavedModel and compares.

  Raises:
    RuntimeError: if an output differs.
  """
  images = np.random.default_rng(0).integers(
      0, 256, (_GOLDEN_IMAGES, *classifier.image_shape), dtype=np.uint8)
  expected = {name: value.numpy() for name, value in
              classifier.signatures["serving_default"](
                  tf.constant(images)).items()}
  np.savez(os.path.join(folder, GOLDEN), images=images, **expected)
  loaded = tf.saved_model.load(folder).signatures
  fed = {"serving_default": {"images": tf.constant(images)}}
  if "serving_bytes" in classifier.signatures:
    encoded = [tf.io.encode_png(image) for image in images]
    fed["serving_bytes"] = {"image_bytes": tf.stack(encoded)}
  for signature, inputs in fed.items():
    found = loaded[signature](**inputs)
    for name, value in expected.items():
      if not np.allclose(found[name].numpy(), value, rtol=_TOLERANCE,
                         atol=_TOLERANCE, equal_nan=True):
        raise RuntimeError(
            f"the SavedModel's {signature} gives other {name} than the model; "
            "nothing was exported")


def _checked_target(output_dir: str) -> str:
  """The absolute path, if it may be written."""
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
