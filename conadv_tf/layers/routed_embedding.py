"""Word embeddings that a pass may be given in place of those looked up."""

import tensorflow as tf

from conadv_tf.layers import routing

_NAME = "word_embeddings"
# By name: importing Model Garden's would cost every run seconds.
_KINDS = ("Embedding", "OnDeviceEmbedding")


def find(model: tf.keras.Model) -> tf.keras.layers.Layer | None:
  """The layer `word_embeddings`, else the only embedding; None without."""
  layers = list(model._flatten_layers(include_self=False))  # pylint: disable=protected-access
  named = [layer for layer in layers if layer.name == _NAME]
  found = named or [layer for layer in layers if type(layer).__name__ in _KINDS]
  return found[0] if len(found) == 1 else None


def route(layer: tf.keras.layers.Layer) -> None:
  """Makes a word embedding layer return the active route's embeddings."""
  original = layer.call

  @tf.autograph.experimental.do_not_convert
  def call(inputs: tf.Tensor) -> tf.Tensor:
    active = routing.active()
    if active is None or active.embeddings is None:
      return original(inputs)
    # Not the tensor itself: Keras may attach a mask to what comes back.
    return tf.identity(active.embeddings)

  layer.call = call


def width(layer: tf.keras.layers.Layer | None) -> int:
  """The d of a built layer's embeddings; 0 of none."""
  return layer.weights[0].shape[-1] if layer is not None else 0


def check(layer: tf.keras.layers.Layer | None, model: tf.keras.Model) -> None:
  """Raises ValueError unless a model's word embeddings can be perturbed."""
  if layer is None:
    raise ValueError(
        f"model {model.name!r} has no word embeddings that could be perturbed: "
        f"one layer must be called {_NAME!r}, or be the only Embedding or "
        "OnDeviceEmbedding")
  if layer.compute_dtype != "float32":
    raise ValueError(
        f"layer {layer.name!r} computes in {layer.compute_dtype}, where small "
        "perturbations are lost; give it dtype='float32'")
