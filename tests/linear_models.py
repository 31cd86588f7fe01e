"""A linear classifier of 4x4 images, whose robust accuracy is known exactly."""

import numpy as np
import tensorflow as tf

from conadv_tf import experiment
from conadv_tf.data import source
from tests import tiny

CLASSES, EXAMPLES = 3, 60
_random = np.random.default_rng(5)
WEIGHTS = _random.normal(size=(16, CLASSES)).astype(np.float32)
# So far inside the pixel range that radii up to 60 clip nothing.
IMAGES = _random.integers(60, 196, (EXAMPLES, 4, 4, 1)).astype(np.uint8)


def scores(images: np.ndarray) -> np.ndarray:
  """Float64 [b, classes]."""
  return (images.reshape(-1, 16) / 255.0 - 0.5) @ WEIGHTS.astype(np.float64)


LABELS = scores(IMAGES).argmax(axis=1).astype(np.int32)


def exact(radius: float) -> np.ndarray:
  """Whether each example survives every perturbation of the ball, [b].

  For label y and class k the margin z_y - z_k can fall by at most
  radius / 255 * |w_y - w_k|_1.
  """
  z = scores(IMAGES)
  fall = radius / 255.0 * np.abs(
      WEIGHTS[:, LABELS].T[:, :, None] - WEIGHTS[None]).sum(axis=1)
  left = z[np.arange(EXAMPLES), LABELS][:, None] - z - fall
  left[np.arange(EXAMPLES), LABELS] = np.inf
  return left.min(axis=1) > 0


def _model(scale: float) -> tf.keras.Model:
  layers = tf.keras.layers
  inputs = layers.Input([4, 4, 1])
  x = layers.BatchNormalization(epsilon=0.0)(
      layers.Rescaling(1 / 255.0, offset=-0.5)(inputs))
  dense = layers.Dense(CLASSES, use_bias=False)
  model = tf.keras.Model(inputs, dense(layers.Flatten()(x)))
  dense.set_weights([scale * WEIGHTS])
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
  return _model(1e4)


def build(model: str, *overrides: str) -> experiment.Experiment:
  """An experiment with `plain` or `masked`, right about every image."""
  data = source.ArraySource(IMAGES, LABELS, num_classes=CLASSES)
  return experiment.build(
      tiny.load("method.name=conadv", f"model.name={__name__}:{model}",
                "evaluation.batch_size=25", *overrides),
      source.Splits(data, data))
