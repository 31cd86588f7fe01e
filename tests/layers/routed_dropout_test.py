import logging
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.layers import network as networks
from conadv_tf.layers import routing

layers = tf.keras.layers
_TRAIN, _PROBE, _EVAL = (
    routing.Mode.TRAIN, routing.Mode.PROBE, routing.Mode.EVAL)
_ALL = [layers.Dropout(.3), layers.SpatialDropout1D(.3),
        layers.GaussianDropout(.3), layers.GaussianNoise(.5),
        layers.AlphaDropout(.3)]


def _network(*stack: tf.keras.layers.Layer,
             shape: tuple[int, ...] = (50, 40)) -> networks.Network:
  stack = [type(l).from_config(l.get_config()) for l in stack]
  return networks.convert(tf.keras.Sequential([layers.Input(shape), *stack]))


def _key(*data: int) -> tf.Tensor:
  return randomness.make_key(0, randomness.DROPOUT, *data)


def _train(net: networks.Network, x: Any, key: tf.Tensor,
           segments: Any = None) -> np.ndarray:
  segments = segments or (('clean', len(x)),)
  return net.logits(x, segments, _TRAIN, key)[0].numpy()


def test_dropout_keeps_and_scales_with_its_rate() -> None:
  y = _train(_network(layers.Dropout(.3)), np.ones((10, 50, 40)), _key(0))
  np.testing.assert_allclose(np.unique(y), [0, 1 / .7], rtol=1e-6)
  assert abs((y == 0).mean() - .3) < .012  # 4 standard errors


def test_dropout_respects_a_noise_shape() -> None:
  net = _network(layers.Dropout(.4, noise_shape=(None, 1, 40)))
  y = _train(net, np.ones((20, 50, 40)), _key(0))
  np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1], y.shape))
  assert abs((y[:, 0] == 0).mean() - .4) < .07
  net = _network(layers.SpatialDropout1D(.4))
  y = _train(net, np.ones((20, 50, 40)), _key(0))
  np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1], y.shape))
  assert 0 < (y == 0).mean() < 1


def test_gaussian_variants_have_their_moments() -> None:
  x = np.full((10, 50, 40), 2.0)
  y = _train(_network(layers.GaussianDropout(.3)), x, _key(0))
  # times N(1, rate / (1 - rate))
  assert abs(y.mean() - 2) < .04 and abs(y.var() - 4 * .3 / .7) < .07
  y = _train(_network(layers.GaussianNoise(.5)), x, _key(0))
  assert abs(y.mean() - 2) < .015 and abs(y.var() - .25) < .01


def test_alpha_dropout_keeps_mean_0_and_variance_1() -> None:
  x = np.random.default_rng(0).normal(size=(10, 50, 40)).astype(np.float32)
  y = _train(_network(layers.AlphaDropout(.3)), x, _key(0))
  assert abs(y.mean()) < .03 and abs(y.var() - 1) < .05
  values, counts = np.unique(y, return_counts=True)
  assert abs(counts.max() / y.size - .3) < .015  # dropped ones share a value
  lower = -1.0507009873554805 * 1.6732632423543772
  a = (.7 * (1 + .3 * lower**2))**-.5
  np.testing.assert_allclose(
      values[counts.argmax()], a * lower - a * lower * .3, rtol=1e-5)


@pytest.mark.parametrize('layer', _ALL, ids=lambda l: type(l).__name__)
def test_noise_is_off_outside_training(layer: tf.keras.layers.Layer) -> None:
  net = _network(layer)
  x = np.random.default_rng(0).random((4, 50, 40), np.float32)
  for mode in (_PROBE, _EVAL):
    y = net.logits(x, (('clean', 1), ('adversarial', 3)), mode)
    np.testing.assert_array_equal(y, x)
  assert (_train(net, x, _key(0)) != x).mean() > .25


@pytest.mark.parametrize('layer', [
    pytest.param(layer, id=type(layer).__name__, marks=[pytest.mark.slow] * (
        type(layer) in (layers.GaussianDropout, layers.AlphaDropout)))
    for layer in _ALL])
def test_masks_are_functions_of_the_key(layer: tf.keras.layers.Layer) -> None:
  x = np.random.default_rng(0).random((4, 50, 40), np.float32)
  net, other = _network(layer), _network(layer)
  y = _train(net, x, _key(3, 1))
  np.testing.assert_array_equal(_train(net, x, _key(3, 1)), y)
  np.testing.assert_array_equal(_train(other, x, _key(3, 1)), y)
  traced = tf.function(lambda x: net.logits(
      x, (('clean', 4),), _TRAIN, _key(3, 1))[0])
  np.testing.assert_allclose(traced(x), y, rtol=1e-5, atol=1e-6)
  for parts in ((3, 2), (2, 1), (1, 3)):
    assert (_train(net, x, _key(*parts)) != y).mean() > .2


def test_layers_calls_and_branches_draw_independent_masks() -> None:
  i = layers.Input((2000,))
  drop, again = layers.Dropout(.5), layers.Dropout(.5)
  net = networks.convert(
      tf.keras.Model(i, tf.stack([drop(i), drop(i), again(i)], axis=1)))
  y = _train(net, np.ones((4, 2000)), _key(0),
             (('clean', 2), ('adversarial', 2)))
  correlation = np.corrcoef(y.reshape(12, -1)) - np.eye(12)
  assert np.abs(correlation).max() < .1


def test_rate_0_and_training_false_draw_nothing() -> None:
  x = np.random.default_rng(0).random((4, 6), np.float32)
  i = layers.Input((6,))
  net = networks.convert(
      tf.keras.Model(i, layers.Dropout(0)(layers.Dropout(.5)(
          i, training=False))))
  np.testing.assert_array_equal(_train(net, x, _key(0)), x)


def test_gradients_pass_where_units_are_kept() -> None:
  net = _network(layers.Dropout(.5))
  x = tf.ones([4, 50, 40])
  with tf.GradientTape() as tape:
    tape.watch(x)
    y, _ = net.logits(x, (('clean', 4),), _TRAIN, _key(0))
  np.testing.assert_array_equal(tape.gradient(y, x), y)


def test_a_training_pass_needs_a_key() -> None:
  with pytest.raises(ValueError, match='key'):
    _network(layers.Dropout(.5)).logits(
        np.ones((4, 50, 40)), (('clean', 4),), _TRAIN)


class _Random(layers.Layer):

  def call(self, x: tf.Tensor) -> tf.Tensor:
    return x + tf.random.normal(tf.shape(x))


@pytest.mark.parametrize('stack', [
    [_Random(name='shaky')],
    [_Random(name='shaky'), _Random(name='too')],
    [layers.LSTM(3, dropout=.5, name='shaky')]])
def test_other_random_layers_give_one_warning(
    stack: list[tf.keras.layers.Layer],
    caplog: pytest.LogCaptureFixture) -> None:
  with caplog.at_level(logging.WARNING):
    _network(*stack)
  warnings = [r for r in caplog.records if 'stateful random' in r.getMessage()]
  assert len(warnings) == 1
  assert 'shaky' in warnings[0].getMessage()


def test_routed_layers_give_no_warning(
    caplog: pytest.LogCaptureFixture) -> None:
  with caplog.at_level(logging.WARNING):
    _network(*_ALL)
  assert not [r for r in caplog.records if 'random' in r.getMessage()]
