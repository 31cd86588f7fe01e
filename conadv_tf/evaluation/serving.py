"""Exports a plain Keras model as a SavedModel that needs no package of ours."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from conadv_tf.evaluation import saved_models

ImageShape = tuple[int, int, int]  # height, width, channels

_DECODED_CHANNELS = (1, 3, 4)  # 4 is PNG only
_GOLDEN_IMAGES = 4


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
  target = saved_models.checked_target(output_dir)
  classifier = _Classifier(model, image_shape, outputs)
  text = _card_text(card, classifier, class_names)
  with saved_models.replacing(target) as folder:
    saved_models.save(classifier.served(), folder, text)


class _Classifier:
  """The functions that are served.

  Attributes:
    root: what is saved, see `saved_models.Served`.
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

    def classify(images: tf.Tensor) -> saved_models.Outputs:
      return _classify(model, images, outputs)

    def classify_bytes(image_bytes: tf.Tensor) -> saved_models.Outputs:
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

  def served(self) -> saved_models.Served:
    """What is exported, with random images to check it."""
    images = np.random.default_rng(0).integers(
        0, 256, (_GOLDEN_IMAGES, *self.image_shape), dtype=np.uint8)
    fed = {"serving_default": {"images": tf.constant(images)}}
    if "serving_bytes" in self.signatures:
      encoded = [tf.io.encode_png(image) for image in images]
      fed["serving_bytes"] = {"image_bytes": tf.stack(encoded)}
    return saved_models.Served(
        self.root, self.signatures, {"images": images}, fed)


def _classify(model: tf.keras.Model, images: tf.Tensor,
              outputs: str) -> saved_models.Outputs:
  return saved_models.classified(
      model(tf.cast(images, tf.float32), training=False), outputs)


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
      "inputs": {name: inputs[name] for name in classifier.signatures},
      **saved_models.classes_card(
          classifier.classes, class_names, classifier.outputs),
  }
  return saved_models.card_text(ours, card)
