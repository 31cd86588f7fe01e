"""Bounds of ConAdv's convergence analysis, as they follow from its proofs.

Liu et al., Concurrent Adversarial Learning for Large-Batch Training, ICLR
2022, section 3.4 and appendix A.1 to A.3; derivation and misprints:
docs/theory.md. Norms are Euclidean. x*(theta) maximises the loss of an example
in its ball, x_hat is what an attack found, tau the lag, eta the learning rate
of plain SGD (no momentum, no layer-wise rates).

What the paper prints and its proofs do not give is here as `printed_...`, to
show where it fails.
"""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Constants:
  """Constants of Assumptions 1 to 4 (equations 6 to 9).

  Attributes:
    theta_theta: L_thetatheta; how fast the gradient to the weights changes
      with the weights.
    theta_x: L_thetax, the same with the example.
    x_theta: L_xtheta; how fast the gradient to the example changes with the
      weights.
    mu: strong concavity of the loss in the example, above 0.
    gradient: M, the longest gradient that an update takes.
    deviation: sigma; sigma^2 bounds the variance of the gradient of a batch
      whose adversaries are exact and fresh.
    inexactness: lambda, of the attack; see `inexactness`.
  """

  theta_theta: float
  theta_x: float
  x_theta: float
  mu: float
  gradient: float = math.inf
  deviation: float = 0.0
  inexactness: float = 0.0

  @property
  def smoothness(self) -> float:
    """L of Lemma 2 (18, 22): the objective's gradient is L-Lipschitz.

    L_thetatheta + L_xtheta L_thetax / (2 mu), the half because the clean loss
    is half of the objective. Equation 32 is followed by another L, with an
    epsilon that is not defined; (19) prints an equality, no gradient and
    L / (t - tau) |.| for "at most", the gradient and L / 2 |.|^2.
    """
    return self.theta_theta + self.x_theta * self.theta_x / (2.0 * self.mu)


def inexactness(best: np.ndarray, found: np.ndarray, gradient: np.ndarray
                ) -> float:
  """The smallest lambda for which the examples found are lambda-solutions.

  The largest <x* - x_hat, grad_x L(x_hat)> (Theorem 1); (25) prints the
  gradient to the weights.

  Args:
    best: x*, float [n, d].
    found: x_hat, float [n, d].
    gradient: of the loss to the example at x_hat, under the same weights,
      float [n, d].
  """
  return float(max(0.0, np.max(np.sum((best - found) * gradient, axis=-1))))


def weight_distance(constants: Constants, rate: float, lag: int) -> float:
  """|theta_t - theta_(t-tau)| of plain SGD: at most eta tau M (16)."""
  return rate * lag * constants.gradient if lag else 0.0


def adversary_distance(constants: Constants, distance: float) -> float:
  """Lemma 1 (12): |x*(theta_t) - x*(theta_(t-tau))| is at most this.

  L_xtheta / mu times the distance of the weights; (10) prints L / mu. The
  first line of (15) prints the gradient at x*(theta_t), by which nothing
  would follow; it is the one at x*(theta_(t-tau)).

  Args:
    constants: of the problem.
    distance: |theta_t - theta_(t-tau)|.
  """
  return constants.x_theta / constants.mu * distance


def attack_error(constants: Constants) -> float:
  """|x*(theta) - x_hat(theta)| is at most sqrt(lambda / mu) (30)."""
  return math.sqrt(constants.inexactness / constants.mu)


def gradient_error(constants: Constants, rate: float, lag: int) -> float:
  """Lemma 3 as (31) has it: |g(theta_t) - g_hat_t| is at most this.

  g_hat_t is the gradient at theta_t on adversaries from theta_(t-tau), g the
  one on fresh and exact ones, of the same batch.
  """
  stale = adversary_distance(
      constants, weight_distance(constants, rate, lag))
  return constants.theta_x / 2.0 * (stale + attack_error(constants))


def printed_gradient_error(constants: Constants) -> float:
  """Lemma 3 as (23) prints it, without the term of tau."""
  return constants.theta_x / 2.0 * attack_error(constants)


def learning_rate(constants: Constants, gap: float, updates: int) -> float:
  """The rate of Theorem 1: min(1 / L, sqrt(Delta / (T L sigma^2))).

  Args:
    constants: of the problem.
    gap: Delta, the objective at the start less its minimum.
    updates: T.
  """
  longest = 1.0 / constants.smoothness
  if not constants.deviation:
    return longest
  return min(longest, math.sqrt(
      gap / (updates * constants.smoothness)) / constants.deviation)


def mean_squared_gradient(constants: Constants, gap: float, updates: int,
                          rate: float, lag: int) -> float:
  """Theorem 1 corrected, for any rate up to 1 / L.

  Bounds the mean over updates 0 to T - 1 of E |grad L_D(theta_t)|^2 by

    2 Delta / (eta T) + 2 L eta sigma^2
      + L_thetax^2 / 4 (1 + L eta) (eta tau M L_xtheta / mu
                                    + sqrt(lambda / mu))^2,

  which is (35) divided by eta T / 2.

  Args:
    constants: of the problem.
    gap: Delta, the objective at the start less its minimum.
    updates: T.
    rate: eta.
    lag: tau.

  Raises:
    ValueError: if the rate is above 1 / L, where (33) does not hold.
  """
  smoothness = constants.smoothness
  if not 0.0 < rate * smoothness <= 1.0 + 1e-12:
    raise ValueError(
        f"the bound needs a rate in (0, 1 / L = {1 / smoothness:g}], got "
        f"{rate:g}")
  return (2.0 * gap / (rate * updates)
          + 2.0 * smoothness * rate * constants.deviation**2
          + (1.0 + smoothness * rate)
          * gradient_error(constants, rate, lag)**2)


def theorem_1(constants: Constants, gap: float, updates: int, lag: int
              ) -> float:
  """Theorem 1 corrected, at the rate of `learning_rate`.

    4 sigma sqrt(L Delta / T) + 2 L Delta / T
      + L_thetax^2 / 2 (tau M L_xtheta / (L mu) + sqrt(lambda / mu))^2

  It is never below `mean_squared_gradient` at that rate.
  """
  smoothness = constants.smoothness
  return (4.0 * constants.deviation * math.sqrt(smoothness * gap / updates)
          + 2.0 * smoothness * gap / updates + _staleness(constants, lag))


def printed_theorem_1(constants: Constants, gap: float, updates: int,
                      lag: int) -> float:
  """Theorem 1 as (11, 32, 36) print it: it does not follow, and fails.

  It has 2 where (35) gives 4, and lacks 2 L Delta / T. Without noise and with
  L_thetax = 0 it says that the gradient is 0 from the first update on.
  """
  return (2.0 * constants.deviation
          * math.sqrt(constants.smoothness * gap / updates)
          + _staleness(constants, lag))


def _staleness(constants: Constants, lag: int) -> float:
  """The last term, of a rate of 1 / L."""
  return 2.0 * gradient_error(constants, 1.0 / constants.smoothness, lag)**2
