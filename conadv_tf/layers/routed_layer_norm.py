"""Layer normalisation whose second derivatives are right.

Keras takes the moments by `tf.nn.moments`, which holds the mean in the
variance constant. The gradient of that term is 0, its own derivative is not:
Hessian products through the layer would be wrong.
"""

import tensorflow as tf

from conadv_tf.layers import routing

# Of layers that take the same moments and are not routed.
_OTHERS = ("GroupNormalization", "InstanceNormalization")


def route(layer: tf.keras.layers.Layer) -> None:
  """Makes a layer normalisation obey `Route.fused`.

  Args:
    layer: any layer; changed in place if it is a layer normalisation.
  """
  if not isinstance(layer, tf.keras.layers.LayerNormalization):
    return
  original = layer.call

  @tf.autograph.experimental.do_not_convert
  def call(inputs: tf.Tensor) -> tf.Tensor:
    active = routing.active()
    if active is None or active.fused:
      return original(inputs)
    return _by_single_operations(layer, inputs)

  layer.call = call


def check(model: tf.keras.Model, is_routed: bool) -> None:
  """Raises ValueError for a layer whose second derivative is wrong.

  Args:
    model: whose Hessian is asked for.
    is_routed: whether it belongs to a network, which routes its layers.
  """
  for layer in model._flatten_layers(include_self=False):  # pylint: disable=protected-access
    wrong = type(layer).__name__ in _OTHERS
    if not is_routed and isinstance(
        layer, tf.keras.layers.LayerNormalization):
      wrong = True
    if wrong:
      raise ValueError(
          f"layer {layer.name!r} ({type(layer).__name__}) takes tf.nn.moments, "
          "whose second derivative is wrong" + (
              "" if is_routed else "; convert the model to a Network"))


def _by_single_operations(layer: tf.keras.layers.LayerNormalization,
                          inputs: tf.Tensor) -> tf.Tensor:
  x = tf.cast(inputs, tf.float32)
  axes = list(layer.axis)
  mean = tf.reduce_mean(x, axes, keepdims=True)
  centred = x - mean
  variance = tf.reduce_mean(tf.square(centred), axes, keepdims=True)
  y = centred * tf.math.rsqrt(variance + layer.epsilon)
  shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
  for weight, apply in ((layer.gamma, tf.multiply), (layer.beta, tf.add)):
    if weight is not None:
      y = apply(y, tf.reshape(tf.cast(weight, tf.float32), shape))
  return tf.cast(y, layer.compute_dtype)
