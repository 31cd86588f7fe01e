from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.objectives import per_example
from tests.reference import dat

losses = tf.keras.losses
_random = np.random.default_rng(0)
_LOGITS = _random.normal(size=(6, 4)).astype(np.float32)
_SPARSE = _random.integers(0, 4, 6)
_ONE_HOT = np.eye(4, dtype=np.float32)[_SPARSE]
_SOFT = _random.dirichlet([1.] * 4, 6).astype(np.float32)
_PROBABILITIES = np.exp(_LOGITS) / np.exp(_LOGITS).sum(1, keepdims=True)
_BINARY = _random.integers(0, 2, 6)
_SCORES = _random.random((6, 1)).astype(np.float32)


def _cross_entropy(targets: np.ndarray) -> np.ndarray:
  return -(targets * np.log(_PROBABILITIES)).sum(1)


@pytest.mark.parametrize('loss, labels, outputs, expected', [
    (losses.SparseCategoricalCrossentropy(from_logits=True), _SPARSE, _LOGITS,
     _cross_entropy(_ONE_HOT)),
    (losses.SparseCategoricalCrossentropy(from_logits=True), _SPARSE[:, None],
     _LOGITS, _cross_entropy(_ONE_HOT)),
    ('sparse_categorical_crossentropy', _SPARSE, _PROBABILITIES,
     _cross_entropy(_ONE_HOT)),
    ('sparse_categorical_crossentropy', _SPARSE[:, None], _PROBABILITIES,
     _cross_entropy(_ONE_HOT)),
    (losses.categorical_crossentropy, _SOFT, _PROBABILITIES,
     _cross_entropy(_SOFT)),
    (losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=0.2, reduction='sum'),
     _ONE_HOT, _LOGITS, _cross_entropy(0.8 * _ONE_HOT + 0.05)),
    ('mse', _SOFT, _LOGITS, ((_SOFT - _LOGITS)**2).mean(1)),
    (lambda y, p: tf.reduce_sum(tf.abs(y - p), -1), _SOFT, _LOGITS,
     np.abs(_SOFT - _LOGITS).sum(1)),
    (losses.BinaryCrossentropy(), _BINARY, _SCORES, -np.log(
        np.where(_BINARY, _SCORES[:, 0], 1 - _SCORES[:, 0]))),
    ('binary_crossentropy', _BINARY, _SCORES, -np.log(
        np.where(_BINARY, _SCORES[:, 0], 1 - _SCORES[:, 0]))),
    ('mse', _BINARY.astype(np.float32), _SCORES,
     (_BINARY - _SCORES[:, 0])**2),
])
def test_losses_of_single_examples(
    loss: Any, labels: np.ndarray, outputs: np.ndarray,
    expected: np.ndarray) -> None:
  actual = per_example.per_example_loss(loss)(
      tf.constant(labels), tf.constant(outputs))
  assert actual.dtype == tf.float32 and actual.shape == [6]
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_no_loss_and_unknown_losses_are_errors() -> None:
  with pytest.raises(ValueError, match='loss'):
    per_example.per_example_loss(None)
  with pytest.raises(ValueError, match='nonsense'):
    per_example.per_example_loss('nonsense')


def test_the_mean_is_over_weights() -> None:
  values = tf.constant([1., 2., 3., 100.])
  mean = per_example.weighted_mean
  assert float(mean(values, tf.ones([4]))) == 26.5
  assert float(mean(values, tf.constant([1., 1., 1., 0.]))) == 2
  assert float(mean(values, tf.constant([3., 1., 0., 0.]))) == 1.25
  assert float(mean(values, tf.zeros([4]))) == 0


def test_the_gradient_with_all_weights_0_is_0() -> None:
  values = tf.Variable([1., 2.])
  with tf.GradientTape() as tape:
    loss = per_example.weighted_mean(values, tf.zeros([2]))
  np.testing.assert_array_equal(tape.gradient(loss, values), [0, 0])


@pytest.mark.parametrize('labels, outputs, expected', [
    ([6], [6, 4], True), ([6, 1], [6, 4], True), ([6, 4], [6, 4], True),
    ([6, 3], [6, 4], False), ([6], [6, 1], False), ([6], [6], False),
    ([6, 2, 4], [6, 4], False), ([6, 2], [6, 2, 2], False)])
def test_what_is_a_classification(
    labels: list[int], outputs: list[int], expected: bool) -> None:
  assert per_example.is_classification(
      tf.TensorSpec(labels), tf.TensorSpec(outputs)) == expected


@pytest.mark.parametrize('labels', [
    np.array([2, 0, 1]), np.array([[2], [0], [1]]), np.array([2., 0., 1.]),
    np.eye(3)[[2, 0, 1]], np.array([[.2, .3, .5], [.9, 0, .1], [.3, .4, .3]])])
def test_correctness_in_every_form_of_labels(labels: np.ndarray) -> None:
  outputs = tf.constant([[0., 1., 2.], [0., 1., 2.], [5., 9., 2.]])
  np.testing.assert_array_equal(
      per_example.is_correct(tf.constant(labels), outputs), [1, 0, 1])


def test_kl_divergence() -> None:
  other = _random.normal(size=(6, 4)).astype(np.float32)
  q = np.exp(other) / np.exp(other).sum(1, keepdims=True)
  expected = (_PROBABILITIES * np.log(_PROBABILITIES / q)).sum(1)
  actual = per_example.kl_divergence(tf.constant(_LOGITS), tf.constant(other))
  np.testing.assert_allclose(actual, expected, rtol=1e-5)
  np.testing.assert_array_equal(
      per_example.kl_divergence(_LOGITS, _LOGITS), np.zeros(6))
  # Where a probability is 0 to rounding it is finite.
  far = per_example.kl_divergence(tf.constant([[500., 0]]),
                                  tf.constant([[0, 500.]]))
  np.testing.assert_allclose(far, [500.])


def test_symmetric_kl_and_its_gradients_agree_with_numpy() -> None:
  p, q = tf.constant(_LOGITS), tf.constant(_random.normal(
      size=(6, 4)).astype(np.float32))
  with tf.GradientTape() as tape:
    tape.watch([p, q])
    values = per_example.symmetric_kl(p, q)
    loss = tf.reduce_sum(values)
  a, b = (np.exp(dat.log_softmax(x.numpy().astype(float))) for x in (p, q))
  np.testing.assert_allclose(
      values, ((a - b) * np.log(a / b)).sum(1), rtol=1e-5)
  for gradient, expected in zip(tape.gradient(loss, [p, q]), (a - b, b - a)):
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-6)


def test_gradients_of_kl_agree_with_numpy_and_are_0_at_equality() -> None:
  other = _random.normal(size=(6, 4)).astype(np.float32)
  for q in (other, _LOGITS):
    tensors = tf.constant(_LOGITS), tf.constant(q)
    with tf.GradientTape() as tape:
      tape.watch(tensors)
      loss = tf.reduce_sum(per_example.kl_divergence(*tensors))
    gradients = tape.gradient(loss, tensors)
    for gradient, expected in zip(gradients, dat.kl_gradients(
        _LOGITS.astype(float), q.astype(float))):
      np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-6)
  assert not np.any(gradients)  # exactly


def test_squared_error() -> None:
  a, b = tf.constant([[1.0], [2.0]]), tf.constant([[4.0], [2.0]])
  with tf.GradientTape() as tape:
    tape.watch([a, b])
    values = per_example.squared_error(a, b)
  np.testing.assert_array_equal(values, [9, 0])
  to_a, to_b = tape.gradient(values, [a, b])
  np.testing.assert_array_equal(to_a, [[-6], [0]])
  np.testing.assert_array_equal(to_b, [[6], [0]])



@pytest.mark.parametrize('labels, expected', [
    (np.array([2, -1, 0]), [1, 0, 1]), (np.array([[2], [-1]]), [1, 0]),
    (np.array([-1., 2.]), [1, 1]), (np.array([2, 255], np.uint8), [1, 1]),
    (np.array([[0, 1], [-1, 0]]), [1, 1])])
def test_is_labelled(labels: np.ndarray, expected: list[int]) -> None:
  np.testing.assert_array_equal(
      per_example.is_labelled(tf.constant(labels)), expected)
