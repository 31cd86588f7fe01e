"""Theorem 1's constants hold, and so does the bound."""

import numpy as np
import pytest

from conadv_tf.methods import absa
from tests.tools import convex_data
from tools import convex_problem, convex_runs, convex_theorem, convex_training


def test_the_error_per_loss_is_the_largest() -> None:
  q = np.linspace(1e-6, 1 - 1e-6, 1_000_001)
  largest = np.max((1 - q) ** 2 / -np.log(q))
  assert largest < convex_theorem.ERROR_PER_LOSS < largest + 1e-5


@pytest.mark.parametrize('size', [0.0, 0.3, 1.0, 3.0, 10.0])
def test_the_constants_hold_everywhere(size: float) -> None:
  problem = convex_data.problem(l2=0.05)
  found = convex_theorem.constants(problem)
  generator = np.random.default_rng(0)
  for _ in range(20):
    theta = size * generator.normal(size=9)
    slope = problem.gradient(theta)
    rows = np.stack([problem.gradient(theta, np.array([row]))
                     for row in range(problem.rows)])
    variance = np.mean(np.sum(rows ** 2, axis=1)) - slope @ slope
    assert variance <= found.noise + found.noise_slope * slope @ slope
    eigenvalues = np.linalg.eigvalsh(problem.hessian(theta))
    # One-hot groups are dependent: the smallest is the l2 term.
    assert eigenvalues[0] == pytest.approx(found.convexity, abs=1e-12)
    assert eigenvalues[-1] <= found.smoothness + 1e-12
  assert problem.top_eigenvalue(np.zeros(9)) == pytest.approx(found.smoothness)


def test_the_bound_by_hand() -> None:
  found = convex_theorem.Constants(smoothness=2.0, convexity=0.5, noise=3.0,
                                   noise_slope=6.0, minimum=0.1)
  assert found.largest_rate(4) == 1 / (2 * 10)
  rate = 0.05
  assert found.floor(rate) == pytest.approx(0.05 * 2 * 3 / (2 * 0.5))
  # 1 - 0.05 * 0.5 * b is 0.95 and 0.9.
  np.testing.assert_allclose(
      convex_theorem.bound(found, rate, np.array([2, 4]), 1.3),
      [1.3, 0.95 + 0.3, 0.95 * 0.9 + 0.3])


def _compare(rate: float, seeds: int) -> convex_theorem.Comparison:
  problem = convex_data.problem(l2=0.05)
  found = convex_theorem.constants(problem)
  traces = [convex_training.train(
      problem, convex_training.Settings(2, 2 * rate, 40, seed, True),
      absa.Controller(8, kappa=2)) for seed in range(seeds)]
  assert {trace.batches[-1] for trace in traces} == {16}
  return convex_theorem.compare(problem, found, rate, traces)


def test_the_bound_holds_in_the_mean_and_not_at_any_rate() -> None:
  found = convex_theorem.constants(convex_data.problem(l2=0.05))
  rate = found.largest_rate(16)
  means = _compare(rate, seeds=20)
  assert 0.9 < means.largest_ratio < 1
  assert np.max(means.normalised[1:]) < 1
  assert means.gaps[0] == means.bounds[0] and means.normalised[0] == 1
  # 2 / L_g for the largest batch is the end of stability.
  assert _compare(4 / (16 * found.smoothness), seeds=2).largest_ratio > 1


def test_without_an_l2_term_there_is_no_bound() -> None:
  with pytest.raises(ValueError, match='l2'):
    convex_theorem.constants(convex_data.problem())


@convex_data.needs_mushrooms
def test_the_bound_on_the_mushrooms() -> None:
  read = convex_problem.read_libsvm(convex_data.MUSHROOMS)
  problem = convex_problem.Problem(read.features, read.labels, convex_runs.L2)
  found = convex_theorem.constants(problem)
  assert found.smoothness == pytest.approx(2.678, abs=1e-3)
  assert found.minimum == pytest.approx(0.1427, abs=1e-4)
  means = convex_runs.beside_the_bound(
      problem, found, convex_runs.cases(found)[0], 30, range(3))
  assert means.largest_ratio < 1 and np.max(means.normalised[1:]) < 1
