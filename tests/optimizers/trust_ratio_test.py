import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.optimizers import trust_ratio
from tests.reference import lars as reference


def test_is_one_for_a_zero_weight_or_gradient() -> None:
  zero, two = tf.zeros([2, 2]), tf.ones([2, 2])
  for w, g in ((zero, two), (two, zero), (zero, zero)):
    assert trust_ratio.trust_ratio(w, g, 0.1, 0.001, 0.0).numpy() == 1.0
  # |w| = |g| = 2: 0.5 * 2 / (2 + 0.25 * 2 + 1.5) = 0.25.
  assert trust_ratio.trust_ratio(two, two, 0.25, 0.5, 1.5).numpy() == 0.25


@pytest.mark.parametrize('clip, expected', [
    (None, 2 / 3), ((0.0, 10.0), 2 / 3), ((0.0, 1.5), 0.5), ((3.0, 4.0), 1.0)])
def test_the_clip_is_of_the_weights_norm(
    clip: tuple[float, float] | None, expected: float) -> None:
  # |w| = 2 in two tensors, |g| = 3.
  w = [tf.fill([3], 1.0), tf.constant([[1.0]])]
  g = [tf.fill([2], 2.0), tf.constant([[1.0]])]
  assert trust_ratio.trust_ratio(w, g, clip=clip).numpy() == pytest.approx(
      expected, rel=1e-6)


def test_layers_are_neighbours_of_one_prefix() -> None:
  names = ['a/conv/kernel:0', 'a/conv/bias:0', 'bn/gamma:0', 'bn/beta:0',
           'dense/kernel:0', 'dense/bias:0', 'dense/kernel:0', 'dense/bias:0',
           'x:0', 'y:0', 'bn/adversarial/gamma:0', 'bn/adversarial/beta:0',
           'bn/gamma:0']
  assert trust_ratio.layer_numbers(names) == [
      0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 6, 7]
  assert trust_ratio.layer_numbers([]) == []


def test_of_half_precision_does_not_overflow() -> None:
  w = tf.fill([300, 300], tf.constant(2.0, tf.float16))
  ratio = trust_ratio.trust_ratio(w, 2 * w, 0.0, 0.5, 0.0)
  assert ratio.dtype == tf.float32
  assert ratio.numpy() == 0.25


@pytest.mark.parametrize('weight_decay, eeta, epsilon', [
    (0.0, 0.001, 0.0), (2e-4, 0.001, 0.0), (0.3, 0.1, 1e-2)])
@pytest.mark.parametrize('jit_compile', [False, True])
def test_agrees_with_the_twin(
    weight_decay: float, eeta: float, epsilon: float, jit_compile: bool
) -> None:
  random = np.random.default_rng(3)
  w, g = random.normal(size=(2, 7, 5)).astype(np.float32)
  ratio = tf.function(trust_ratio.trust_ratio, jit_compile=jit_compile)
  np.testing.assert_allclose(
      ratio(w, g, weight_decay, eeta, epsilon).numpy(),
      reference.trust_ratio(w, g, weight_decay, eeta, epsilon), rtol=1e-6)
