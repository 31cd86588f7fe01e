"""What a second `fit`, or one that stops early, must not leave behind."""

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import methods
from tests.methods import running


def _plain() -> tf.keras.Model:
  """Quicker to trace, for what does not depend on the model."""
  return running.small_network(0, False)


def _twice(method: methods.ConAdv) -> object:
  trainer = running.make(method)
  for start in (0, 3):
    trainer.fit(running.dataset(32, 32 * start), steps_per_epoch=3, verbose=0)
  return trainer


@pytest.mark.parametrize('lag', [
    2, *(pytest.param(lag, marks=pytest.mark.slow) for lag in (1, 3))])
def test_two_fits_agree_in_both_executions(lag: int) -> None:
  # Every fit starts from its own weights, however it makes adversaries.
  concurrent = _twice(methods.ConAdv(lag=lag))
  sequential = _twice(methods.ConAdv(lag=lag, execution='sequential'))
  assert running.distance(concurrent, sequential) == 0


def test_a_fit_that_stops_midway_leaves_no_gradient_behind() -> None:
  def numbered(batches: int) -> tf.data.Dataset:
    return running.dataset(16).take(batches)

  interrupted = running.make(methods.Vanilla(), model=_plain,
                             options={'micro_batches': 2})
  start = [v.numpy() for v in interrupted.network.variables]
  # 5 elements are 2 updates and a half.
  data = numbered(5).filter(lambda *_: True)
  interrupted.fit(data, steps_per_epoch=9, verbose=0)
  assert float(tf.norm(interrupted._accumulator)) > 0
  clean = running.make(methods.Vanilla(), model=_plain,
                       options={'micro_batches': 2})
  for trainer in (interrupted, clean):
    for variable, value in zip(trainer.network.variables, start, strict=True):
      variable.assign(value)
    for variable in trainer.optimizer.variables:
      variable.assign(tf.zeros_like(variable))
    trainer.step_counter.assign(0)
    trainer.fit(numbered(2), verbose=0)
  assert running.distance(interrupted, clean) == 0


@pytest.mark.parametrize('method', [
    methods.ConAdv, pytest.param(methods.Vanilla, marks=pytest.mark.slow)])
def test_no_update_happens_without_a_batch(method: type) -> None:
  # Three batches for ten steps: Keras warns and stops.
  trainer = running.make(method())
  data = running.dataset(32).take(3).filter(lambda *_: True)
  trainer.fit(data, steps_per_epoch=10, verbose=0)
  assert int(trainer.step_counter) == 3
  assert int(trainer.optimizer.iterations) == 3
  whole = running.make(method())
  whole.fit(running.dataset(32), steps_per_epoch=3, verbose=0)
  assert running.distance(trainer, whole) == 0


def test_keras_counts_the_updates() -> None:
  # Keras's TensorBoard callback takes its steps from this counter.
  trainer = running.make(methods.ConAdv(), model=_plain)
  trainer.fit(running.dataset(32), steps_per_epoch=3, verbose=0)
  assert int(trainer._train_counter) == 3


def test_early_stopping_leaves_the_counter_alone() -> None:
  trainer = running.make(methods.ConAdv(), model=_plain)
  stop = tf.keras.callbacks.EarlyStopping(
      'loss', patience=1, restore_best_weights=True, min_delta=100.0)
  trainer.fit(running.dataset(32), steps_per_epoch=2, epochs=6, verbose=0,
              callbacks=[stop])
  assert int(trainer.step_counter) == int(trainer.optimizer.iterations)


def test_half_precision_heads_keep_their_gradient() -> None:
  # Confidently wrong: Keras computes the loss from the logits, which must
  # survive the cast of the outputs to float32.
  previous = tf.keras.mixed_precision.global_policy()
  tf.keras.mixed_precision.set_global_policy('mixed_float16')
  try:
    inputs = tf.keras.Input((2, 2, 1))
    x = tf.keras.layers.Flatten()(inputs)
    model = tf.keras.Model(inputs, tf.keras.layers.Dense(
        2, activation='softmax', kernel_initializer='zeros',
        bias_initializer=tf.keras.initializers.Constant([30.0, -30.0]))(x))
  finally:
    tf.keras.mixed_precision.set_global_policy(previous)
  trainer = running.make(methods.Vanilla(), model=lambda: model,
                         optimizer=lambda: tf.keras.optimizers.SGD(0.0),
                         loss='sparse_categorical_crossentropy')
  # The model's own policy asks for loss scaling, whatever the global one is.
  assert isinstance(trainer.optimizer,
                    tf.keras.mixed_precision.LossScaleOptimizer)
  data = tf.data.Dataset.from_tensors(
      (np.full((4, 2, 2, 1), 0.5, np.float32), np.ones(4, np.int32)))
  history = trainer.fit(data, verbose=0).history
  np.testing.assert_allclose(history['loss'], 60.0, rtol=1e-2)
  assert history['gradient_norm'][0] > 0.5
