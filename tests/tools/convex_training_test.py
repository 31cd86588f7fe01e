"""Full gradients, SGD, ABS and ABSA, step by step."""

import numpy as np

from conadv_tf.methods import absa, growth
from tests.tools import convex_data
from tools import convex_problem, convex_runs, convex_training

_SETTINGS = convex_training.Settings(batch=5, rate=0.4, epochs=4, seed=3)


def test_a_full_gradient_by_hand() -> None:
  problem = convex_data.problem(l2=0.1)
  trace = convex_training.train(
      problem, convex_training.Settings(problem.rows, 0.5, 3))
  theta = np.zeros(9)
  for _ in range(3):
    theta = theta - 0.5 * problem.gradient(theta)
  np.testing.assert_allclose(trace.theta, theta, rtol=1e-12)
  assert trace.samples.tolist() == [0, 60, 120, 180]
  # log 2 at theta = 0, then downhill, the rate being below 1 / L_g.
  np.testing.assert_allclose(trace.losses[0], np.log(2), rtol=1e-12)
  assert np.all(np.diff(trace.losses) < 0)


def test_an_epoch_is_the_mean_over_all_its_rows() -> None:
  """With a tiny rate, 12 batches of 5 are one full gradient of 12 times it."""
  problem = convex_data.problem()
  trace = convex_training.train(problem, convex_training.Settings(5, 1e-9, 1))
  np.testing.assert_allclose(trace.theta, -12e-9 * problem.gradient(
      np.zeros(9)), rtol=1e-6)
  drawn = convex_training.train(problem, convex_training.Settings(
      5, 1e-9, 1, replacement=True))
  assert np.abs(drawn.theta - trace.theta).max() > 1e-12


def test_off_is_sgd_bit_for_bit() -> None:
  problem = convex_data.problem()
  sgd = convex_training.train(problem, _SETTINGS)
  assert sgd.batches.tolist() == [5] * 48
  for rule in (growth.Growth(), absa.Controller(1), absa.Controller(1, beta=3)):
    trace = convex_training.train(problem, _SETTINGS, rule)
    np.testing.assert_array_equal(trace.losses, sgd.losses)
    assert not trace.eigenvalues
  # No adversary of radius 0, and none once tau is over.
  none = convex_training.Settings(5, 0.4, 4, 3, epsilon=0.0)
  for settings, rule in (
      (none, absa.Controller(1, gamma=0.4)),
      (_SETTINGS, absa.Controller(1, gamma=0.4, vanishes=0))):
    np.testing.assert_array_equal(
        convex_training.train(problem, settings, rule).theta, sgd.theta)


class _Doubles(growth.Growth):
  """Grows at every eigenvalue."""

  @property
  def measures(self) -> bool:
    return self.ratio < self.max_ratio

  def measured(self, eigenvalue: float, left: int) -> None:
    self._grow(2, left)


def test_the_rate_grows_with_the_batch_at_multiples_of_n() -> None:
  problem = convex_data.problem()
  settings = convex_training.Settings(5, 0.1, 4, every=32)
  trace = convex_training.train(problem, settings, _Doubles(4))
  # 32 is crossed at 35, 64 at 65, which is the last.
  assert trace.samples.tolist() == [
      0, 5, 10, 15, 20, 25, 30, 35, 45, 55, 65, 85, 105, 125, 145, 165, 185,
      205, 225]
  assert trace.batches.tolist() == [5] * 7 + [10] * 3 + [20] * 8
  np.testing.assert_allclose(trace.rates, 0.1 * trace.batches / 5)
  assert [seen for seen, _ in trace.eigenvalues] == [35, 65]
  assert trace.growths == [(35, 10, trace.eigenvalues[0][1]),
                           (65, 20, trace.eigenvalues[1][1])]


def test_eigenvalues_are_those_of_the_weights_then() -> None:
  problem = convex_data.problem()
  trace = convex_training.train(
      problem, convex_training.Settings(60, 0.5, 2), _Doubles(2))
  theta = -0.5 * problem.gradient(np.zeros(9))
  assert np.isclose(trace.eigenvalues[0][1], problem.top_eigenvalue(theta),
                    rtol=1e-12)


def test_the_first_rows_are_adversarial() -> None:
  """Those of the row that the update sees, at the weights before it."""
  one = convex_problem.Problem(np.array([[0.5, 0.5]]), np.array([1.0]))
  settings = convex_training.Settings(1, 1.0, 2, epsilon=0.1)
  trace = convex_training.train(one, settings, absa.Controller(1, gamma=1.0))
  # At 0 the slope is 0: 0.5 * x = 0.25 each. Then x is 0.4 and z 0.2.
  expected = 0.25 + 0.4 / (1 + np.exp(0.2))
  np.testing.assert_allclose(trace.theta, [expected, expected], rtol=1e-12)


@convex_data.needs_mushrooms
def test_abs_needs_fewer_updates_than_sgd_for_the_same_loss() -> None:
  problem = convex_problem.read_libsvm(convex_data.MUSHROOMS)
  last = {name: trace for name, (trace,) in convex_runs.stochastic(
      problem, epochs=30, seeds=[0]).items()}
  sgd = last['SGD']
  assert len(sgd.batches) == 30 * 6513 // 100
  for name in ('ABS', 'ABSA'):
    assert len(last[name].batches) < 0.55 * len(sgd.batches)
    assert abs(last[name].losses[-1] / sgd.losses[-1] - 1) < 0.05
    assert last[name].batches[-1] >= 800
