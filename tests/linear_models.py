"""A linear classifier of 4x4 images, whose robust accuracy is known exactly.

Two classes compete. The third one's output is the mean of theirs less 3 and
never the largest, so every loss of the outputs is a function of the two's
difference and its gradient points exactly across the border.
"""

import numpy as np
import tensorflow as tf

from conadv_tf import experiment
from conadv_tf.data import source
from tests import tiny

CLASSES, EXAMPLES = 3, 60
_random = np.random.default_rng(5)
WEIGHTS = _random.normal(size=(16, CLASSES)).astype(np.float32)
WEIGHTS[:, 2] = WEIGHTS[:, :2].mean(axis=1)
BIAS = np.float32([0.0, 0.0, -3.0])
# So far inside the pixel range that radii up to 60 clip nothing.
IMAGES = _random.integers(60, 196, (EXAMPLES, 4, 4, 1)).astype(np.uint8)


def scores(images: np.ndarray) -> np.ndarray:
  """Float64 [b, classes]."""
  return (images.reshape(-1, 16) / 255.0 - 0.5) @ WEIGHTS + BIAS


LABELS = scores(IMAGES).argmax(axis=1).astype(np.int32)


def exact(radius: float) -> np.ndarray:
  """Whether each example survives every perturbation of the ball, [b].

  The margin |z_0 - z_1| can fall by at most radius / 255 * |w_0 - w_1|_1.
  """
  z = scores(IMAGES)
  fall = radius / 255.0 * np.abs(WEIGHTS[:, 0] - WEIGHTS[:, 1]).sum()
  return np.abs(z[:, 0] - z[:, 1]) > fall


def _model(scale: float) -> tf.keras.Model:
  layers = tf.keras.layers
  inputs = layers.Input([4, 4, 1])
  x = layers.BatchNormalization(epsilon=0.0)(
      layers.Rescaling(1 / 255.0, offset=-0.5)(inputs))
  dense = layers.Dense(CLASSES)
  model = tf.keras.Model(inputs, dense(layers.Flatten()(x)))
  dense.set_weights([scale * WEIGHTS, scale * BIAS])
  return model


def plain(input_shape: tuple[int, int, int], num_classes: int
          ) -> tf.keras.Model:
  """Logits of the scores."""
  del input_shape, num_classes
  return _model(1.0)


def masked(input_shape: tuple[int, int, int], num_classes: int
           ) -> tf.keras.Model:
  """The same classifier whose cross entropy has no gradient in float32."""
  del input_shape, num_classes
  return _model(1e6)


def build(model: str, *overrides: str) -> experiment.Experiment:
  """An experiment with `plain` or `masked`, right about every image."""
  data = source.ArraySource(IMAGES, LABELS, num_classes=CLASSES)
  return experiment.build(
      tiny.load("method.name=conadv", f"model.name={__name__}:{model}",
                "evaluation.batch_size=25", *overrides),
      source.Splits(data, data))
