import math

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import randomness

_KEY = [3, 4]


def test_uniform_numbers_have_24_bits_and_the_moments_of_the_interval() -> None:
  draws = randomness.uniform(tf.constant(_KEY), [100_000]).numpy()
  assert draws.dtype == np.float32
  assert draws.min() >= 0 and draws.max() < 1
  np.testing.assert_array_equal(draws * 2**24, np.round(draws * 2**24))
  # Standard errors of mean and variance: 0.0009 and 0.0002.
  assert abs(draws.mean() - 1 / 2) < 0.004
  assert abs(draws.var() - 1 / 12) < 0.001
  counts, _ = np.histogram(draws, bins=16, range=(0, 1))
  assert np.abs(counts - 6250).max() < 5 * math.sqrt(6250)


def test_normal_numbers_have_mean_0_and_variance_1() -> None:
  draws = randomness.normal(tf.constant(_KEY), [100_000]).numpy()
  assert np.isfinite(draws).all()
  assert abs(draws.mean()) < 0.015
  assert abs(draws.var() - 1) < 0.02
  assert abs((draws**4).mean() - 3) < 0.15
  assert abs((np.abs(draws) < 1).mean() - 0.6827) < 0.007


@pytest.mark.parametrize('limit', [1, 2, 7, 1000])
def test_integers_are_uniform_below_the_limit(limit: int) -> None:
  draws = randomness.integer(tf.constant(_KEY), [50_000], limit).numpy()
  assert draws.dtype == np.int32
  assert draws.min() == 0 and draws.max() == limit - 1
  counts = np.bincount(draws, minlength=limit)
  expected = 50_000 / limit
  assert np.abs(counts - expected).max() <= 6 * math.sqrt(expected)


@pytest.mark.parametrize('draw', [randomness.uniform, randomness.normal])
def test_draws_are_functions_of_the_key_in_every_kind_of_execution(
    draw: object) -> None:
  def compute() -> tf.Tensor:
    return draw(randomness.make_key(5, randomness.ATTACK_NOISE, 7, 1), [257])

  eager = compute().numpy()
  np.testing.assert_array_equal(eager, compute().numpy())
  np.testing.assert_array_equal(eager, tf.function(compute)().numpy())
  compiled = tf.function(compute, jit_compile=True)().numpy()
  if draw is randomness.uniform:
    np.testing.assert_array_equal(eager, compiled)
  else:  # logarithm and cosine are XLA's own
    np.testing.assert_allclose(eager, compiled, atol=1e-5)


def test_every_part_of_a_key_and_their_order_matter() -> None:
  parts = [(5, 1, 7, 2), (6, 1, 7, 2), (5, 2, 7, 2), (5, 1, 8, 2), (5, 1, 7, 3),
           (5, 1, 2, 7), (5, 1, 7), (5, 1), (5, 1, 0), (5, 1, 7, 2, 0)]
  draws = [tuple(randomness.uniform(randomness.make_key(*p), [4]).numpy())
           for p in parts]
  assert len(set(draws)) == len(parts)


def test_a_tensor_and_a_number_make_the_same_key() -> None:
  for dtype in (tf.int32, tf.int64):
    np.testing.assert_array_equal(
        randomness.make_key(1, 2, tf.constant(3, dtype)).numpy(),
        randomness.make_key(1, 2, 3).numpy())


def test_streams_of_consecutive_keys_are_not_correlated() -> None:
  draws = np.stack([
      randomness.uniform(randomness.make_key(0, 1, step, 0), [2000]).numpy()
      for step in range(8)])
  correlation = np.corrcoef(draws) - np.eye(8)
  assert np.abs(correlation).max() < 0.1


def test_seeds_beyond_31_bits_are_accepted() -> None:
  assert randomness.make_key(2**40 + 3, 1).dtype == tf.int32
