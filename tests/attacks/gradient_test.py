from collections.abc import Callable
import itertools
from typing import Any

import foolbox
import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.attacks import gradient

_KEY = randomness.make_key(3, randomness.ATTACK_NOISE, 1, 0)
_random = np.random.default_rng(0)
# Some pixels on the edge of the range, where clipping matters.
_IMAGES = np.clip(
    1.4 * _random.random((8, 5, 5, 3)) - 0.2, 0, 1).astype(np.float32)
_LABELS = _random.integers(0, 4, 8)


def _model() -> tf.keras.Model:
  tf.keras.utils.set_random_seed(2)
  return tf.keras.Sequential([
      tf.keras.layers.Flatten(input_shape=(5, 5, 3)),
      tf.keras.layers.Dense(16, 'tanh'), tf.keras.layers.Dense(4)])


def _loss(model: tf.keras.Model, scale: float = 1.0
          ) -> Callable[[tf.Tensor], tf.Tensor]:
  def loss_of_x(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=_LABELS, logits=model(x * scale)))
  return loss_of_x


def _linear(weights: np.ndarray) -> Callable[[tf.Tensor], tf.Tensor]:
  """Loss sum_i <w, x_i>, whose gradient is w everywhere."""
  return lambda x: tf.reduce_sum(x * weights)


def test_radius_is_in_255ths_of_the_pixel_range() -> None:
  weights = np.array([1., -1.], np.float32)
  x = tf.fill([3, 2], 0.5)
  actual = gradient.Pgd(radius=4)(_linear(weights), x, _KEY)
  np.testing.assert_allclose(
      actual - x, np.tile([4 / 255, -4 / 255], (3, 1)), atol=1e-7)
  actual = gradient.Pgd(radius=4)(
      _linear(weights), tf.fill([3, 2], 100.), _KEY, (0., 255.))
  np.testing.assert_array_equal(actual, np.tile([104., 96.], (3, 1)))
  actual = gradient.Pgd(radius=4, norm='l2', direction='l2')(
      _linear(np.float32([3, 4])), x, _KEY)
  np.testing.assert_allclose(
      actual - x, np.tile([2.4 / 255, 3.2 / 255], (3, 1)), atol=1e-7)


@pytest.mark.parametrize('options', [
    dict(), dict(random_start=1.0), dict(steps=3),
    dict(steps=3, random_start=1.0), dict(norm='l2', direction='l2'),
    dict(norm='l2', direction='l2', steps=2, random_start=1.0, radius=90.0),
    dict(direction='raw', step_size=20.0),
    dict(norm='l2', direction='raw', step_size=20.0, steps=2)])
@pytest.mark.parametrize('high', [255.0, 3.0])
def test_pixel_ranges_give_the_same_perturbation(
    options: dict[str, Any], high: float) -> None:
  attack = gradient.Pgd(**options)
  model = _model()
  one = attack(_loss(model), tf.constant(_IMAGES), _KEY, (0.0, 1.0))
  other = attack(_loss(model, 1 / high), tf.constant(_IMAGES) * high, _KEY,
                 (0.0, high))
  np.testing.assert_allclose(other / high, one, atol=2e-6)
  shifted = attack(lambda x: _loss(model)((x + 1.0) / 2.0),
                   tf.constant(_IMAGES) * 2.0 - 1.0, _KEY, (-1.0, 1.0))
  np.testing.assert_allclose((shifted + 1.0) / 2.0, one, atol=2e-6)
  assert np.abs(one - _IMAGES).max() > 1 / 255


@pytest.mark.parametrize('norm, direction, steps, start', itertools.product(
    ['linf', 'l2'], ['sign', 'raw', 'l2'], [1, 3], [None, 0.0, 0.5, 1.0]))
def test_adversaries_stay_in_ball_and_range(
    norm: str, direction: str, steps: int, start: float | None) -> None:
  # Steps far larger than the ball.
  attack = gradient.Pgd(radius=8, norm=norm, direction=direction, steps=steps,
                        random_start=start, step_size=100.0)
  actual = attack(_loss(_model()), tf.constant(_IMAGES), _KEY).numpy()
  delta = (actual - _IMAGES).reshape(8, -1).astype(np.float64)
  size = (np.abs(delta).max(1) if norm == 'linf'
          else np.linalg.norm(delta, axis=1))
  assert size.max() <= 8 / 255 + 1e-6
  assert size.min() > 2 / 255
  assert actual.min() >= 0 and actual.max() <= 1


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('steps', [1, 2])
def test_radius_0_returns_the_input_bit_for_bit(norm: str, steps: int) -> None:
  x = tf.constant(_IMAGES) * 1.5 - 0.2  # even outside the range
  attack = gradient.Pgd(radius=0, norm=norm, steps=steps, random_start=1.0,
                        step_size=3.0)
  np.testing.assert_array_equal(attack(_loss(_model()), x, _KEY), x)


def test_fgsm_in_closed_form() -> None:
  # Gradient of sum (x - c)^2 / 2 is x - c: its sign moves x away from c.
  c = np.full(_IMAGES.shape, 0.3, np.float32)
  actual = gradient.Pgd(radius=10)(
      lambda x: tf.reduce_sum((x - c)**2) / 2.0, tf.constant(_IMAGES), _KEY)
  expected = np.clip(_IMAGES + 10 / 255 * np.sign(_IMAGES - c), 0, 1)
  np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize('pixel_range', [(0., 1.), (0., 255.)])
def test_the_raw_direction_in_closed_form(
    pixel_range: tuple[float, float]) -> None:
  # With images of range 1 the gradient is w: step_size / 255 * w.
  width = pixel_range[1]
  weights = np.array([0.5, -0.25, 30., 0.], np.float32)
  x = tf.fill([2, 4], 0.5 * width)
  attack = gradient.Pgd(radius=8, step_size=4, direction='raw')
  actual = attack(lambda x: tf.reduce_sum(x / width * weights), x, _KEY,
                  pixel_range)
  expected = np.array([2., -1., 8., 0.]) / 255  # 120 projected to 8
  np.testing.assert_allclose((actual - x) / width, [expected] * 2, atol=1e-6)


def test_descending_is_ascending_the_negative() -> None:
  model = _model()
  before = _loss(model)(tf.constant(_IMAGES))
  up = gradient.Pgd(radius=8)(_loss(model), tf.constant(_IMAGES), _KEY)
  down = gradient.Pgd(radius=8)(
      lambda x: -_loss(model)(x), tf.constant(_IMAGES), _KEY)
  assert _loss(model)(down) < before - 0.1 < before + 0.1 < _loss(model)(up)


@pytest.mark.parametrize('name, ours, theirs', [
    ('fgsm', dict(radius=8), foolbox.attacks.LinfFastGradientAttack(
        random_start=False)),
    ('l2 fgsm', dict(radius=200, norm='l2', direction='l2'),
     foolbox.attacks.L2FastGradientAttack(random_start=False)),
    ('linf', dict(radius=8, steps=10, step_size=2),
     foolbox.attacks.LinfPGD(abs_stepsize=2 / 255, steps=10,
                             random_start=False)),
    ('l2', dict(radius=200, steps=7, step_size=60, norm='l2', direction='l2'),
     foolbox.attacks.L2PGD(abs_stepsize=60 / 255, steps=7,
                           random_start=False))])
def test_foolbox_agrees(name: str, ours: dict[str, Any], theirs: Any) -> None:
  del name
  model = _model()
  expected, _, _ = theirs(
      foolbox.TensorFlowModel(model, bounds=(0, 1), device='/CPU:0'),
      tf.constant(_IMAGES), tf.constant(_LABELS), epsilons=ours['radius'] / 255)
  actual = gradient.Pgd(**ours)(_loss(model), tf.constant(_IMAGES), _KEY)
  np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize('probability', [
    0.2, *(pytest.param(probability, marks=pytest.mark.slow)
           for probability in (0.0, 0.8, 1.0))])
def test_random_start_happens_with_its_probability(probability: float) -> None:
  # A gradient of 0 leaves the start as it is.
  attack = gradient.Pgd(radius=8, random_start=probability)
  x = tf.fill([2, 3], 0.5)

  @tf.function
  def started(step: tf.Tensor) -> tf.Tensor:
    key = randomness.make_key(0, randomness.ATTACK_NOISE, step, 0)
    moved = attack(lambda x: 0.0 * tf.reduce_sum(x), x, key) != x
    return tf.reduce_any(moved, axis=1)

  each = tf.map_fn(started, tf.range(1000), fn_output_signature=tf.bool).numpy()
  np.testing.assert_array_equal(each[:, 0], each[:, 1])  # per batch
  assert abs(each.mean() - probability) < 0.05


def test_the_start_depends_on_the_key_alone() -> None:
  attack = gradient.Pgd(radius=8, random_start=1.0)
  call = lambda key: attack(_loss(_model()), tf.constant(_IMAGES), key).numpy()
  np.testing.assert_array_equal(call(_KEY), call(_KEY))
  other = call(randomness.make_key(3, randomness.ATTACK_NOISE, 2, 0))
  assert np.abs(other - call(_KEY)).max() > 1 / 255


@pytest.mark.parametrize('steps', [1, 4])
def test_graph_and_xla_agree_with_eager(steps: int) -> None:
  attack = gradient.Pgd(radius=8, steps=steps, random_start=1.0)
  model = _model()
  call = lambda: attack(_loss(model), tf.constant(_IMAGES), _KEY)
  np.testing.assert_allclose(tf.function(call)(), call(), atol=1e-6)
  np.testing.assert_allclose(
      tf.function(call, jit_compile=True)(), call(), atol=1e-6)


def test_adversaries_carry_no_gradient() -> None:
  x = tf.constant(_IMAGES)
  model = _model()
  for options in (dict(), dict(steps=2), dict(radius=0)):
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = gradient.Pgd(**options)(_loss(model), x, _KEY)
    assert tape.gradient(y, [x] + model.trainable_variables) == [None] * 5


@pytest.mark.parametrize('options, expected', [
    (dict(radius=4), 4), (dict(radius=4, steps=5), 2), (dict(radius=6, steps=2,
     step_size=1), 1), (dict(radius=4, step_size=0), 0)])
def test_default_step_size(options: dict[str, Any], expected: float) -> None:
  assert gradient.Pgd(**options).resolved_step_size == expected


@pytest.mark.parametrize('options', [
    dict(radius=-1), dict(radius=float('nan')), dict(steps=0),
    dict(step_size=-1), dict(random_start=1.1), dict(random_start=-0.1),
    dict(norm='l1'), dict(direction='sgn'), dict(target='least'),
    dict(branch='main'), dict(mode='train')])
def test_bad_arguments_are_named(options: dict[str, Any]) -> None:
  with pytest.raises(ValueError, match=next(iter(options))):
    gradient.Pgd(**options)


def test_float16_input_gradients_survive_with_the_summed_loss() -> None:
  # One example's share of a mean over 32,768 lies below float16's smallest
  # number; its share of the sum does not.
  x = tf.constant(_IMAGES)
  model = _model()
  labels = tf.argmax(model(x), axis=1)  # examples that are learnt already
  half = [tf.cast(v, tf.float16) for v in model.trainable_variables]

  def loss_of_x(x: tf.Tensor, scale: float) -> tf.Tensor:
    h = tf.cast(tf.reshape(x, [8, -1]), tf.float16)
    logits = 9 * (tf.tanh(h @ half[0] + half[1]) @ half[2] + half[3])
    return scale * tf.reduce_sum(
        tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=labels, logits=tf.cast(logits, tf.float32)))

  zeros = []
  for scale in (1.0, 2.0**-15):
    with tf.GradientTape() as tape:
      tape.watch(x)
      loss = loss_of_x(x, scale)
    zeros.append(float(np.mean(tape.gradient(loss, x).numpy() == 0)))
  assert zeros[0] < 0.01 < 0.03 < zeros[1]
  moved = gradient.Pgd(radius=8)(lambda x: loss_of_x(x, 1.0), x, _KEY) != x
  inside = (_IMAGES > 0.05) & (_IMAGES < 0.95)
  assert moved.numpy()[inside].mean() > 0.99


def test_a_start_from_normal_noise() -> None:
  x = tf.fill([4, 40, 40, 3], 100.0)
  attack = gradient.PgdFromNoise(radius=8, random_start=1.0, start_std=2.0)
  delta = attack.start(x, _KEY, (0., 255.)).numpy() - 100
  assert np.abs(delta).max() <= 8  # 4 standard deviations; some are cut
  assert delta.mean() == pytest.approx(0, abs=0.05)
  assert delta.std() == pytest.approx(2.0, abs=0.05)
  narrow = gradient.PgdFromNoise(radius=1, random_start=1.0, start_std=2.0)
  delta = narrow.start(x, _KEY, (0., 255.)).numpy() - 100
  assert (np.abs(delta) <= 1).all() and (np.abs(delta) == 1).mean() > 0.5
  off = gradient.PgdFromNoise(radius=8, random_start=0.0)
  np.testing.assert_array_equal(off.start(x, _KEY, (0., 255.)), x)
