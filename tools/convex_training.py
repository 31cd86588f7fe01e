"""Trains the convex problem: full gradient, SGD, ABS, ABSA; no flags.

Plain steps without momentum, theta -= rate * gradient, from theta = 0.
"""

import dataclasses

import numpy as np

from conadv_tf.methods import growth as growth_rules
from tools import convex_problem


@dataclasses.dataclass(frozen=True)
class Settings:
  """One run.

  Attributes:
    batch: rows of the first update; all rows are the full gradient.
    rate: step size of the first update; grows with the batch.
    epochs: passes over the data; an update that no longer fits is left out.
    seed: of the order of the rows.
    replacement: whether rows are drawn independently, as the theorem has
      them, or in a new order each epoch.
    every: rows between two eigenvalues; 0 is an epoch.
    epsilon: of FGSM, in the features' own units.
  """

  batch: int
  rate: float
  epochs: int
  seed: int = 0
  replacement: bool = False
  every: int = 0
  epsilon: float = 0.005


@dataclasses.dataclass
class Trace:
  """What happened; element t of the first two is before update t.

  Attributes:
    samples: rows visited, int [updates + 1].
    losses: L over all rows, float64 [updates + 1].
    batches: rows of each update, int [updates].
    rates: step sizes, float64 [updates].
    eigenvalues: (rows visited, top eigenvalue) of each evaluation.
    theta: the last weights, float64 [features].
  """

  samples: np.ndarray
  losses: np.ndarray
  batches: np.ndarray
  rates: np.ndarray
  eigenvalues: list[tuple[int, float]]
  theta: np.ndarray

  @property
  def growths(self) -> list[tuple[int, int, float]]:
    """(rows visited, new batch, eigenvalue then) of each growth."""
    values = dict(self.eigenvalues)
    grown = np.flatnonzero(np.diff(self.batches)) + 1
    return [(int(seen), int(batch), values[seen]) for seen, batch in zip(
        self.samples[grown], self.batches[grown])]


class _Order:
  """Which rows come next."""

  def __init__(self, rows: int, seed: int, replacement: bool):
    self._rows, self._replacement = rows, replacement
    self._generator = np.random.default_rng(seed)
    self._left = np.zeros(0, int)  # of this epoch's order

  def take(self, count: int) -> np.ndarray:
    """The next rows, int [count]."""
    if self._replacement:
      return self._generator.integers(self._rows, size=count)
    while len(self._left) < count:
      self._left = np.concatenate(
          [self._left, self._generator.permutation(self._rows)])
    taken, self._left = np.split(self._left, [count])
    return taken


def train(problem: convex_problem.Problem, settings: Settings,
          growth: growth_rules.Growth | None = None) -> Trace:
  """Trains once.

  Args:
    problem: loss and data.
    settings: of the run.
    growth: decides on the batch, the rate and the adversarial share; counts in
      batches of `settings.batch`. None keeps everything as it is.
  """
  growth = growth or growth_rules.Growth()
  order = _Order(problem.rows, settings.seed, settings.replacement)
  every = settings.every or problem.rows
  total = settings.epochs * problem.rows // settings.batch
  theta = np.zeros(problem.features.shape[1])
  position, samples, losses = 0, [0], [problem.loss(theta)]
  batches, rates, eigenvalues = [], [], []
  # A run that diverges may overflow: that is what it shows.
  with np.errstate(over="ignore", invalid="ignore"):
    while True:
      growth.before_update(position, total)
      if position + growth.ratio > total:
        break
      position += growth.ratio
      batches.append(settings.batch * growth.ratio)
      rates.append(settings.rate * growth.rate_factor)
      theta = theta - rates[-1] * _gradient(
          problem, theta, order.take(batches[-1]), growth.gamma,
          settings.epsilon)
      samples.append(settings.batch * position)
      losses.append(problem.loss(theta))
      if (growth.measures and np.isfinite(losses[-1])
          and samples[-1] // every > samples[-2] // every):
        eigenvalue = problem.top_eigenvalue(theta)
        growth.measured(eigenvalue, total - position)
        eigenvalues.append((samples[-1], eigenvalue))
  return Trace(np.array(samples), np.array(losses), np.array(batches, int),
               np.array(rates), eigenvalues, theta)


def _gradient(problem: convex_problem.Problem, theta: np.ndarray,
              chosen: np.ndarray, gamma: float, epsilon: float) -> np.ndarray:
  """Over the chosen rows, the first gamma of them adversarial."""
  x, y = problem.features[chosen], problem.labels[chosen]
  attacked = int(gamma * len(chosen))
  if attacked:
    x[:attacked] = convex_problem.adversarial(
        theta, x[:attacked], y[:attacked], epsilon)
  return convex_problem.gradient(theta, x, y, problem.l2)
