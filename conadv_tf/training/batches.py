"""From the elements that `fit` receives to the batches that methods see."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from conadv_tf.methods import method as methods

_VIEWS = {"image", "augmented"}


def image(element: Any) -> Any:
  """The images of an element (x, y[, weight]), or their spec."""
  return element[0]["image"] if isinstance(element[0], Mapping) else element[0]


def check(spec: Any, augments: bool) -> None:
  """Refuses elements that no method takes.

  Args:
    spec: of an element: (x, y[, weight]), where x are images, or with
      `augments` {"image": ..., "augmented": ...} of the same shape.
    augments: whether the method trains on two views of an example.

  Raises:
    ValueError: that says what is expected.
  """
  views = (isinstance(spec, tuple) and spec and isinstance(spec[0], Mapping)
           and set(spec[0]) == _VIEWS and augments)
  tensors = (tuple(spec[0].values()) + spec[1:] if views else spec)
  if not isinstance(spec, tuple) or len(spec) not in (2, 3) or not all(
      isinstance(s, tf.TensorSpec) for s in tensors):
    raise ValueError("dataset elements must be (x, y) or (x, y, weight) "
                     f"tensors, got {spec}")
  if augments and not views:
    raise ValueError(
        "bn_branches=3 and augmented_stream train on two views of every "
        'example: dataset elements must be ({"image": ..., "augmented": ...}, '
        "y) or the same with a weight")


def batch(element: Any, spec: Any) -> methods.Batch:
  """What a method sees of an element of static shapes.

  Args:
    element: tensors, or specs of them.
    spec: the element's, on one replica.
  """
  x, y, weight = tf.keras.utils.unpack_x_y_sample_weight(element)
  rows = image(spec).shape[0]
  if isinstance(y, tf.TensorSpec):
    weight = tf.TensorSpec([rows])
  else:
    x, y = tf.nest.map_structure(
        lambda t, s: tf.ensure_shape(t, s.shape), (x, y), tuple(spec[:2]))
    weight = tf.ones([rows]) if weight is None else tf.reshape(
        tf.cast(weight, tf.float32), [rows])
  if isinstance(x, Mapping):
    return methods.Batch(x["image"], y, weight, x["augmented"])
  return methods.Batch(x, y, weight)
