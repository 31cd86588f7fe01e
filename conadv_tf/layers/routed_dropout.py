"""Dropout whose masks are a function of (seed, batch, replica, layer).

Keras draws masks from stateful generators, so a resumed run, or the same
batch on another arrangement of replicas, would see other masks. A routed
layer draws the same mask wherever and whenever its row is trained on, and
none in an attack or an evaluation.
"""

from collections.abc import Callable

import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.layers import routing

_Apply = Callable[[tf.keras.layers.Layer, tf.Tensor, randomness.Key],
                  tf.Tensor]


def _dropout(layer: tf.keras.layers.Dropout, x: tf.Tensor,
             key: randomness.Key) -> tf.Tensor:
  shape = layer._get_noise_shape(x)  # pylint: disable=protected-access
  shape = tf.shape(x) if shape is None else shape
  keep = randomness.uniform(key, shape) >= layer.rate
  scaled = x * tf.cast(1.0 / (1.0 - layer.rate), x.dtype)
  return tf.where(keep, scaled, tf.zeros_like(x))


def _gaussian_dropout(layer: tf.keras.layers.GaussianDropout, x: tf.Tensor,
                      key: randomness.Key) -> tf.Tensor:
  deviation = (layer.rate / (1.0 - layer.rate))**0.5
  noise = 1.0 + deviation * randomness.normal(key, tf.shape(x))
  return x * tf.cast(noise, x.dtype)


def _gaussian_noise(layer: tf.keras.layers.GaussianNoise, x: tf.Tensor,
                    key: randomness.Key) -> tf.Tensor:
  noise = layer.stddev * randomness.normal(key, tf.shape(x))
  return x + tf.cast(noise, x.dtype)


def _alpha_dropout(layer: tf.keras.layers.AlphaDropout, x: tf.Tensor,
                   key: randomness.Key) -> tf.Tensor:
  # Klambauer et al. 2017: dropped units take SELU's lower limit, and the
  # affine map a*x + b gives mean 0 and variance 1 back.
  lower = -1.6732632423543772 * 1.0507009873554805
  shape = tf.shape(x) if layer.noise_shape is None else layer.noise_shape
  keep = randomness.uniform(key, shape) >= layer.rate
  a = ((1.0 - layer.rate) * (1.0 + layer.rate * lower**2))**-0.5
  b = -a * lower * layer.rate
  x = tf.where(keep, x, tf.cast(lower, x.dtype))
  return tf.cast(a, x.dtype) * x + tf.cast(b, x.dtype)


# Subclasses (SpatialDropout1D, ...) come under their base class.
_KINDS: tuple[tuple[type, str, _Apply], ...] = (
    (tf.keras.layers.Dropout, "rate", _dropout),
    (tf.keras.layers.GaussianDropout, "rate", _gaussian_dropout),
    (tf.keras.layers.GaussianNoise, "stddev", _gaussian_noise),
    (tf.keras.layers.AlphaDropout, "rate", _alpha_dropout),
)


def route(layer: tf.keras.layers.Layer, index: int) -> bool:
  """Makes a dropout layer obey the active route.

  Args:
    layer: any layer; changed in place if it is a dropout variant.
    index: its position among the model's layers, part of the mask's key.

  Returns:
    Whether the layer was routed.
  """
  for kind, knob, apply in _KINDS:
    if isinstance(layer, kind):
      _override(layer, index, knob, apply)
      return True
  return False


def _override(layer: tf.keras.layers.Layer, index: int, knob: str,
              apply: _Apply) -> None:
  original = layer.call

  @tf.autograph.experimental.do_not_convert
  def call(inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
    active = routing.active()
    if active is None:
      return original(inputs, training=training)
    off = (active.mode is not routing.Mode.TRAIN
           or not getattr(layer, knob)
           or (training is not None and not training))
    if off:
      return tf.identity(inputs)
    number = active.next_call(index)
    return routing.join([
        apply(layer, x, active.mask_key(index, number, branch))
        for branch, x in active.split(inputs, layer.name)])

  layer.call = call
