import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.attacks import ball

_KEY = randomness.make_key(0, randomness.ATTACK_NOISE, 0, 0)


def test_l2_projection_agrees_with_numpy() -> None:
  delta = np.random.default_rng(0).normal(size=(6, 4, 4, 2)).astype(np.float32)
  delta *= np.array([0, 1e-8, .01, .1, 1, 100]).reshape(6, 1, 1, 1)
  delta = delta.astype(np.float32)
  norms = np.linalg.norm(delta.reshape(6, -1), axis=1).reshape(6, 1, 1, 1)
  expected = np.where(
      norms > 0.5, delta * 0.5 / np.maximum(norms, 1e-30), delta)
  np.testing.assert_allclose(
      ball.project(tf.constant(delta), 0.5, 'l2'), expected, rtol=1e-5)


def test_linf_projection_clips_every_pixel() -> None:
  actual = ball.project(tf.constant([[-2., -.5, 0., .25, 3.]]), 0.5, 'linf')
  np.testing.assert_array_equal(actual, [[-.5, -.5, 0., .25, .5]])


def test_random_points_are_uniform_in_the_cube() -> None:
  points = ball.random_point(_KEY, tf.zeros([5000, 2, 3]), 2.0, 'linf').numpy()
  assert np.abs(points).max() <= 2
  np.testing.assert_allclose(points.mean(0), 0, atol=0.08)
  np.testing.assert_allclose(points.var(0), 4 / 3, atol=0.08)
  flat = points.reshape(5000, 6)
  assert np.abs(np.corrcoef(flat.T) - np.eye(6)).max() < 0.06


@pytest.mark.parametrize('shape', [(2,), (3, 1, 1), (4, 4, 3)])
def test_random_points_are_uniform_in_the_l2_ball(
    shape: tuple[int, ...]) -> None:
  points = ball.random_point(
      _KEY, tf.zeros((4000,) + shape), 3.0, 'l2').numpy().reshape(4000, -1)
  dimension = points.shape[1]
  radii = np.linalg.norm(points, axis=1)
  assert radii.max() <= 3 + 1e-5
  # (|x| / r)^d is uniform: mean 1/2, variance 1/12, and no gap to uniform
  # larger than a Kolmogorov-Smirnov test at 0.1 % would let pass.
  u = np.sort((radii / 3)**dimension)
  assert np.abs(u - (np.arange(4000) + 0.5) / 4000).max() < 1.95 / 4000**0.5
  directions = points / radii[:, None]
  np.testing.assert_allclose(directions.mean(0), 0, atol=0.06)
  np.testing.assert_allclose(
      directions.T @ directions / 4000, np.eye(dimension) / dimension,
      atol=0.04)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_rows_of_one_draw_differ(norm: str) -> None:
  points = ball.random_point(_KEY, tf.zeros([6, 8]), 1.0, norm).numpy()
  assert len({p.tobytes() for p in points}) == 6


def test_directions() -> None:
  g = tf.constant([[3., -4.], [0., 0.], [1e-30, 0.]])
  np.testing.assert_array_equal(
      ball.direction(g, 'sign'), [[1, -1], [0, 0], [1, 0]])
  np.testing.assert_array_equal(ball.direction(g, 'raw'), g)
  unit = ball.direction(g, 'l2').numpy()
  np.testing.assert_allclose(unit[0], [0.6, -0.8], rtol=1e-6)
  np.testing.assert_array_equal(unit[1], [0, 0])
  assert np.isfinite(unit).all()
