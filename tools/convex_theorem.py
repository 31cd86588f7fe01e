"""Theorem 1 of the ABSA paper for the logistic regression; no flags.

With batches b_t and step sizes b_t eta_0, eta_0 <= 1 / (L_g (M_v + B_max))
(equation 4), the expected gap L(theta_t) - L_* is at most (equation 5)

  prod_(k < t) (1 - b_k eta_0 c_s) (gap_0 - floor) + floor,
  floor = eta_0 L_g M / (2 c_s)

The paper's index leaves out one factor of the product; all t are here.

The constants hold for every theta:

  c_s = l2, exact where features are dependent
  L_g = top eigenvalue of X'X / (4 n) + l2, since p (1 - p) <= 1/4
  V(grad l_i) <= M + M_v |grad L|^2, squared: equation 9 prints |grad L|, but
    10 and the proof need its square. With r = max |x_i|^2, and e the error of
    a row's probability, (1 - p)^2 or p^2,
      V <= r mean(e) <= r K L <= r K (L_* + |grad L|^2 / (2 c_s)),
    K = max over q of (1 - q)^2 / -log q, then equation 12. So M = r K L_* and
    M_v = r K / (2 c_s).
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from tools import convex_problem, convex_training

# 2 q (1 - q) at the root of -2 q log q = 1 - q, rounded up.
ERROR_PER_LOSS = 0.40727


@dataclasses.dataclass(frozen=True)
class Constants:
  """Of assumption 2 and equation 4.

  Attributes:
    smoothness: L_g.
    convexity: c_s.
    noise: M, the variance of one row's gradient where the gradient is 0.
    noise_slope: M_v, what |grad L|^2 adds to it.
    minimum: L_*.
  """

  smoothness: float
  convexity: float
  noise: float
  noise_slope: float
  minimum: float

  def largest_rate(self, max_batch: int) -> float:
    """The largest eta_0 of equation 4."""
    return 1.0 / (self.smoothness * (self.noise_slope + max_batch))

  def floor(self, rate: float) -> float:
    """What the bound tends to, for eta_0 = rate."""
    return rate * self.smoothness * self.noise / (2.0 * self.convexity)


def constants(problem: convex_problem.Problem) -> Constants:
  """Of a problem with an l2 term.

  Raises:
    ValueError: without one: the strong convexity is 0, the bound undefined.
  """
  _, minimum = problem.minimum()
  row = float(np.max(np.sum(problem.features ** 2, axis=1)))
  per_loss = row * ERROR_PER_LOSS
  return Constants(
      smoothness=float(problem.gram[-1]) / 4 + problem.l2,
      convexity=problem.l2, noise=per_loss * minimum,
      noise_slope=per_loss / (2 * problem.l2), minimum=minimum)


def contraction(found: Constants, rate: float,
                batches: np.ndarray) -> np.ndarray:
  """The product after 0, 1, ... updates, float64 [updates + 1]."""
  factors = 1.0 - batches * rate * found.convexity
  return np.concatenate([[1.0], np.cumprod(factors)])


def bound(found: Constants, rate: float, batches: np.ndarray,
          first_gap: float) -> np.ndarray:
  """Equation 5 after 0, 1, ... updates, float64 [updates + 1].

  Args:
    found: of the problem.
    rate: eta_0, the step size of one row.
    batches: rows of each update, int [updates].
    first_gap: L(theta_0) - L_*.
  """
  floor = found.floor(rate)
  return contraction(found, rate, batches) * (first_gap - floor) + floor


@dataclasses.dataclass
class Comparison:
  """Means over seeds after 0, 1, ... updates, as far as all seeds go.

  Attributes:
    epochs: passes over the data.
    gaps: L - L_*.
    bounds: the seeds' own bounds, which differ where their batches do.
    normalised: (gap - floor) / product, over its first value; the form in
      which the theorem holds for batches that depend on the run: its
      expectation never rises.
    first: the first seed's run.
  """

  epochs: np.ndarray
  gaps: np.ndarray
  bounds: np.ndarray
  normalised: np.ndarray
  first: convex_training.Trace

  @property
  def largest_ratio(self) -> float:
    """Of mean gap and mean bound after at least one update."""
    return float(np.max(self.gaps[1:] / self.bounds[1:]))


def compare(problem: convex_problem.Problem, found: Constants, rate: float,
            traces: Sequence[convex_training.Trace]) -> Comparison:
  """Means over the traces, one for each seed."""
  length = min(len(trace.losses) for trace in traces)
  floor = found.floor(rate)
  epochs, gaps, bounds, normalised = [], [], [], []
  for trace in traces:
    gap = trace.losses - found.minimum
    batches = trace.batches
    ratio = (gap - floor) / contraction(found, rate, batches)
    for means, values in (
        (epochs, trace.samples / problem.rows), (gaps, gap),
        (bounds, bound(found, rate, batches, gap[0])),
        (normalised, ratio / (gap[0] - floor))):
      means.append(values[:length])
  return Comparison(*(np.mean(each, axis=0)
                      for each in (epochs, gaps, bounds, normalised)),
                    traces[0])
