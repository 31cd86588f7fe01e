"""Casting and slicing outputs without losing the logits of a softmax head."""

import tensorflow as tf


def as_float32(outputs: tf.Tensor) -> tf.Tensor:
  """Casts outputs, with the logits that Keras leaves on a softmax head."""
  cast = tf.cast(outputs, tf.float32)
  logits = getattr(outputs, "_keras_logits", None)
  if logits is not None:
    cast._keras_logits = tf.cast(logits, tf.float32)  # pylint: disable=protected-access
  return cast


def take_rows(outputs: tf.Tensor, start: int, stop: int) -> tf.Tensor:
  """Rows start..stop-1 of a model's outputs [b, classes].

  Keras leaves the logits of a softmax head on its output and computes the
  cross entropy from them; a plain slice would lose them, and with them the
  gradient of saturated mistakes.
  """
  rows = outputs[start:stop]
  logits = getattr(outputs, "_keras_logits", None)
  if logits is not None:
    rows._keras_logits = logits[start:stop]  # pylint: disable=protected-access
  return rows
