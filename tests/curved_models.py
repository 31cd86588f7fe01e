"""Small models that have no Hessian to multiply by."""

import tensorflow as tf


class _Kink(tf.keras.layers.Layer):
  """Adds |w|^1.5, of slope 0 at w = 0 and of infinite curvature."""

  def build(self, shape: tf.TensorShape) -> None:
    self.w = self.add_weight(name='w', shape=(), initializer='zeros')

  def call(self, x: tf.Tensor) -> tf.Tensor:
    return x + tf.abs(self.w) ** 1.5


def kinked(input_shape: tuple[int, int, int], num_classes: int
           ) -> tf.keras.Model:
  inputs = tf.keras.Input(input_shape)
  x = tf.keras.layers.Rescaling(1 / 255.0)(inputs)
  x = _Kink(name='kink')(tf.keras.layers.Flatten()(x))
  return tf.keras.Model(inputs, tf.keras.layers.Dense(num_classes)(x))


def normalised_by_response(input_shape: tuple[int, int, int],
                           num_classes: int) -> tf.keras.Model:
  """Its normalisation has no second derivative in TensorFlow."""
  inputs = tf.keras.Input(input_shape)
  x = tf.keras.layers.Conv2D(4, 3)(inputs)
  x = tf.keras.layers.Lambda(tf.nn.local_response_normalization)(x)
  x = tf.keras.layers.Flatten()(x)
  return tf.keras.Model(inputs, tf.keras.layers.Dense(num_classes)(x))
