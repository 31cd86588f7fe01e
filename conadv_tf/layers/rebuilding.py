"""The same model again, with variables of its own."""

from typing import Any

import tensorflow as tf


def rebuild(model: tf.keras.Model) -> tf.keras.Model:
  """Builds a model from its config, sharing no layer with it.

  Keras's own cloning calls `from_config(get_config())`. A config may hold
  layers themselves (that of Model Garden's ClassificationModel holds its
  backbone), and then model and clone would share them.

  Args:
    model: a Keras model; a subclassed one comes back unbuilt.

  Raises:
    NotImplementedError, TypeError, ValueError: as Keras does, if a config is
      missing or does not fit.
  """
  is_sequential = isinstance(model, tf.keras.Sequential)
  # Where a class writes a config of its own, it has a constructor of its own.
  is_plain = getattr(model.get_config, "_is_default", False)
  if is_sequential or (model._is_graph_network and is_plain):  # pylint: disable=protected-access
    return tf.keras.models.clone_model(model, clone_function=_from_config)
  return _from_config(model)


def _from_config(layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
  return type(layer).from_config(_without_layers(layer.get_config()))


def _without_layers(value: Any) -> Any:
  """The config with its layers rebuilt."""
  if isinstance(value, tf.keras.layers.Layer):
    return _from_config(value)
  if isinstance(value, dict):
    return {key: _without_layers(inner) for key, inner in value.items()}
  if isinstance(value, list):  # Keras wraps those that layers keep
    return [_without_layers(inner) for inner in value]
  if type(value) is tuple:
    return tuple(_without_layers(inner) for inner in value)
  return value
