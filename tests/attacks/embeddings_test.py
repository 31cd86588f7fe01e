"""Starts, steps and projections of embeddings' perturbations."""

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.attacks import embeddings

Perturbation = embeddings.Perturbation
_random = np.random.default_rng(0)
_GRADIENT = _random.normal(size=(3, 5, 4)).astype(np.float32) * 1e-6
_GRADIENT[1, 2] = 0
_MASK = np.ones((3, 5, 1), np.float32)
_MASK[0, 3:] = _MASK[2, 1:] = 0
_ZERO = tf.zeros([3, 5, 4])


def _length(values: np.ndarray, axes: int | tuple[int, ...]) -> np.ndarray:
  return np.sqrt((values**2).sum(axes, keepdims=True))


@pytest.mark.parametrize('direction, expected', [
    ('raw', _GRADIENT), ('sign', np.sign(_GRADIENT)),
    ('linf', _GRADIENT / np.maximum(
        np.abs(_GRADIENT).max(-1, keepdims=True), 1e-30)),
    ('l2', _GRADIENT / np.maximum(_length(_GRADIENT, -1), 1e-30)),
    ('sentence', _GRADIENT / _length(_GRADIENT, (1, 2)))])
def test_a_step_in_each_direction(direction: str,
                                  expected: np.ndarray) -> None:
  ascent = Perturbation(radius=9.0, step_size=0.5, direction=direction)
  np.testing.assert_allclose(ascent.move(_ZERO, _GRADIENT, _MASK),
                             0.5 * expected * _MASK, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_steps_end_in_the_ball(norm: str) -> None:
  ascent = Perturbation(radius=0.3, norm=norm, step_size=2.0)
  y = ascent.move(_ZERO, _GRADIENT, _MASK).numpy()
  size = np.abs(y).max((1, 2)) if norm == 'linf' else _length(y, (1, 2))
  np.testing.assert_allclose(size, np.full_like(size, 0.3), rtol=1e-6)


def test_starts() -> None:
  key, like = tf.constant([1, 2]), tf.zeros([200, 5, 4])
  mask = np.ones((200, 5, 1), np.float32)
  mask[:100, 2:] = 0
  begin = lambda start: Perturbation(start=start, start_size=0.5).begin(
      key, like, mask).numpy()
  assert not begin('zero').any()
  for start in ('normal', 'uniform', 'sentence'):
    y = begin(start)
    assert not (y * (1 - mask)).any()
    short, whole = y[:100, :2], y[100:]
    expected = {'normal': (0.5, 0.5), 'uniform': (0.5 / 3**.5,) * 2,
                # 2 tokens of 4 numbers, and 5 of them.
                'sentence': (0.5 / (3 * 8)**.5, 0.5 / (3 * 20)**.5)}[start]
    assert (short.std(), whole.std()) == pytest.approx(expected, rel=0.06)
    # Four standard errors; each number is drawn on its own.
    assert abs(whole.mean()) < 4 * whole.std() / 2000**.5
    assert len(np.unique(whole)) > 1990
  assert np.abs(begin('normal')).max() > 1.4  # of 2800, near 3.5 deviations
  assert np.abs(begin('uniform')).max() <= 0.5


def test_ascent_converges_geometrically_on_strongly_concave_functions(
) -> None:
  # Lemma 3: f = -sum_i c_i (y_i - m_i)^2 / 2 with C <= c_i <= S < 2 C and raw
  # steps of 1/S. The gap to the best of the ball falls by 1 - C/S or more.
  curvature = np.linspace(1.0, 1.9, 20).reshape(1, 5, 4)
  optimum = _random.uniform(-2, 2, (1, 5, 4))  # half of it outside the ball
  best = np.clip(optimum, -1, 1)
  value = lambda y: -(curvature * (y - optimum)**2).sum() / 2
  ascent = Perturbation(radius=1.0, step_size=1 / 1.9, direction='raw')
  y, gaps = tf.zeros([1, 5, 4]), [value(best) - value(0.0)]
  for _ in range(12):
    y = ascent.move(y, tf.constant(
        curvature * (optimum - y.numpy()), tf.float32), tf.ones([1, 5, 1]))
    gaps.append(value(best) - value(y.numpy().astype(np.float64)))
  ratios = np.array(gaps[1:]) / np.array(gaps[:-1])
  assert gaps[0] > 5 and gaps[-1] < 1e-3
  assert (ratios[:8] <= 1 - 1.0 / 1.9 + 1e-3).all(), ratios
