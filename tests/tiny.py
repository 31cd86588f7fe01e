"""The smallest run that has everything: for tests of what is around it."""

import tensorflow as tf

from conadv_tf import config

layers = tf.keras.layers

# 6 updates of 8 examples, 3 an epoch.
SETTINGS = (
    'data.name=synthetic,data.image_size=4,data.num_classes=3,'
    'data.num_examples=24,data.global_batch_size=8,'
    'schedule.epochs=2,schedule.peak_lr=1,schedule.warmup_epochs=0.5,'
    'attack.radius=16,evaluation.batch_size=6,'
    f'model.name={__name__}:model,runtime.deterministic=true')


def model(input_shape: tuple[int, int, int], num_classes: int
          ) -> tf.keras.Model:
  """A convolution, batch normalisation and a dense layer."""
  inputs = layers.Input(input_shape)
  x = layers.Rescaling(1 / 255.0)(inputs)
  x = layers.Conv2D(4, 3)(x)
  x = layers.ReLU()(layers.BatchNormalization(momentum=0.5)(x))
  return tf.keras.Model(inputs, layers.Dense(num_classes)(layers.Flatten()(x)))


def load(*overrides: str) -> config.ExperimentConfig:
  """The settings above, overridden."""
  return config.load([], [SETTINGS, *overrides])
