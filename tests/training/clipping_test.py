"""Keras's gradient clipping, on gradients that can be written down."""

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import methods, optimizers
from conadv_tf.training import trainer as trainers
from tests.methods import running

# Weights 0, so both classes have probability 1/2 and the gradient of the mean
# cross entropy is mean over examples of x * (1/2 - [class is the label]).
_IMAGES = np.array([[6.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 1.0]],
                   np.float32)[:, None, :, None]
_LABELS = np.array([0, 0, 1, 0], np.int32)
# Rows are the pixels: (6 + 2) / 4 * (-1/2, 1/2) and 0; for the bias
# (1/2 - 3/4, 1/2 - 1/4).
_KERNEL = np.array([[-1.0, 1.0], [0.0, 0.0]])
_BIAS = np.array([-0.25, 0.25])


def _model() -> tf.keras.Model:
  inputs = tf.keras.Input((1, 2, 1))
  return tf.keras.Model(inputs, tf.keras.layers.Dense(
      2, kernel_initializer='zeros')(tf.keras.layers.Flatten()(inputs)))


def _update(options: dict[str, float], micro_batches: int,
            strategy: tf.distribute.Strategy | None = None
            ) -> list[np.ndarray]:
  """What one update with learning rate 1 takes off kernel and bias."""
  trainer = running.make(
      methods.Vanilla(), model=_model, strategy=strategy,
      optimizer=lambda: tf.keras.optimizers.SGD(1.0, **options),
      options={'micro_batches': micro_batches, 'pixel_range': (0.0, 8.0)})
  data = tf.data.Dataset.from_tensor_slices((_IMAGES, _LABELS))
  trainer.fit(data.batch(4 // micro_batches), verbose=0)
  return [-v.numpy() for v in trainer.network.trainable_variables]


@pytest.mark.parametrize('options, kernel, bias', [
    ({}, 1.0, 1.0),
    # Each tensor to norm 1/2; |kernel| = sqrt(2), |bias| = sqrt(2) / 4.
    ({'clipnorm': 0.5}, 0.5 / np.sqrt(2), 1.0),
    # Both by one factor; together their norm is sqrt(2 + 1/8).
    ({'global_clipnorm': 0.5}, 0.5 / np.sqrt(2.125), 0.5 / np.sqrt(2.125)),
    ({'clipvalue': 0.2}, 0.2, 0.8),
])
@pytest.mark.parametrize('micro_batches', [1, 2])
def test_the_mean_gradient_is_clipped(
    options: dict[str, float], kernel: float, bias: float,
    micro_batches: int) -> None:
  """Not those of micro batches: the second one's kernel gradient is 0."""
  made = _update(options, micro_batches)
  np.testing.assert_allclose(made[0], kernel * _KERNEL, rtol=1e-6)
  np.testing.assert_allclose(made[1], bias * _BIAS, rtol=1e-6)


def test_replicas_clip_their_common_gradient(
    mirrored: tf.distribute.Strategy) -> None:
  made = _update({'global_clipnorm': 0.5}, 1, mirrored)
  for mine, expected in zip(made, (_KERNEL, _BIAS)):
    np.testing.assert_allclose(
        mine, 0.5 / np.sqrt(2.125) * expected, rtol=1e-6)


def test_lars_scales_the_clipped_gradient() -> None:
  """With weights w, trust = eeta * |w| / |clipped g|; biases take it as is."""
  def trained(**options: float) -> trainers.Trainer:
    trainer = running.make(
        methods.Vanilla(), model=_model, options={'pixel_range': (0.0, 8.0)},
        optimizer=lambda: optimizers.Lars(1.0, momentum=0.0, **options))
    trainer.network.trainable_variables[0].assign([[1.0, 1.0], [1.0, 1.0]])
    data = tf.data.Dataset.from_tensors((_IMAGES, _LABELS))
    trainer.fit(data, verbose=0)
    return trainer

  kernel, bias = trained(clipnorm=0.1).network.trainable_variables
  # Equal columns leave the probabilities at 1/2. |w| = 2, eeta = 0.001, and
  # the direction is g / |g|.
  np.testing.assert_allclose(
      1.0 - kernel.numpy(), 0.002 * _KERNEL / np.sqrt(2), atol=1e-7)
  np.testing.assert_allclose(
      -bias.numpy(), 0.1 * _BIAS / np.linalg.norm(_BIAS), rtol=1e-6)


@pytest.mark.slow
def test_a_bound_that_nothing_reaches_changes_no_bit() -> None:
  runs = []
  for options in ({}, {'clipvalue': 1e6}):
    trainer = running.make(methods.Vanilla(), optimizer=lambda o=options: (
        optimizers.Lars(1.0, **o)))
    trainer.fit(running.dataset(16), steps_per_epoch=2, verbose=0)
    runs.append(trainer)
  assert running.distance(*runs) == 0
