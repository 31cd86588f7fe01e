"""A loss that is quadratic in weights and example; all constants are known.

  L_i(theta, x) = a/2 |theta|^2 + theta' C x - mu/2 |x - x_i|^2,
  x within epsilon of x_i in every coordinate.

Its gradients are a theta + C x to the weights and C' theta - mu (x - x_i) to
the example, so that the maximum in the box is x_i + clip(C' theta / mu). The
objective is half the mean clean loss and half the mean maximum.
"""

import dataclasses
import math

import numpy as np

from conadv_tf.analysis import theory


@dataclasses.dataclass(frozen=True)
class Game:
  """The problem.

  Attributes:
    a: curvature in the weights, above 0.
    coupling: C, float64 [p, d].
    mu: concavity in the example, above 0.
    epsilon: half the width of the boxes.
    centres: x_i, float64 [n, d].
  """

  a: float
  coupling: np.ndarray
  mu: float
  epsilon: float
  centres: np.ndarray

  def perturbation(self, theta: np.ndarray, step: float | None = None
                   ) -> np.ndarray:
    """x - x_i after a gradient step from x_i into the box.

    Args:
      theta: float64 [..., p].
      step: of the gradient; 1 / mu, the default, leads to the maximum.

    Returns:
      float64 [..., d], the same for every example.
    """
    step = 1.0 / self.mu if step is None else step
    return np.clip(step * theta @ self.coupling, -self.epsilon, self.epsilon)

  def example_gradient(self, theta: np.ndarray, perturbation: np.ndarray
                       ) -> np.ndarray:
    """To the example, at a perturbation of it, [..., d]."""
    return theta @ self.coupling - self.mu * perturbation

  def weight_gradient(self, theta: np.ndarray, perturbation: np.ndarray,
                      centre: np.ndarray | None = None) -> np.ndarray:
    """Half clean, half adversarial, [..., p].

    Args:
      theta: float64 [..., p].
      perturbation: of the adversaries, [..., d].
      centre: mean of the batch's examples, [..., d]; by default of all.
    """
    centre = self.centres.mean(axis=0) if centre is None else centre
    return self.a * theta + (centre + perturbation / 2.0) @ self.coupling.T

  def gradient(self, theta: np.ndarray) -> np.ndarray:
    """Of the objective, by the envelope theorem."""
    return self.weight_gradient(theta, self.perturbation(theta))

  def objective(self, theta: np.ndarray) -> np.ndarray:
    """L_D, [...]."""
    delta = self.perturbation(theta)
    pull = theta @ self.coupling
    gain = np.sum(pull * delta - self.mu / 2.0 * delta**2, axis=-1)
    clean = (self.a / 2.0 * np.sum(theta**2, axis=-1)
             + pull @ self.centres.mean(axis=0))
    return clean + gain / 2.0

  def minimum(self) -> float:
    """Of the objective, which is strongly convex."""
    theta = np.zeros(len(self.coupling))
    rate = 1.0 / self.constants().smoothness
    for _ in range(5000):
      theta = theta - rate * self.gradient(theta)
    return float(self.objective(theta))

  def constants(self, start: np.ndarray | None = None, batch: int | None = None,
                inexactness: float = 0.0) -> theory.Constants:
    """All constants of the theory, known beforehand but for lambda.

    M: while eta a <= 1, |theta| stays below its start or |C| R / a, where R
    bounds |x|. sigma: the adversary moves all examples alike, so gradients of
    single examples differ by C (x_i - mean).

    Args:
      start: theta_0; without it M is not bounded.
      batch: examples an update, drawn with replacement; None means all of
        them, each once.
      inexactness: lambda.
    """
    norm = float(np.linalg.norm(self.coupling, 2))
    longest = math.inf
    if start is not None:
      reach = norm * (np.linalg.norm(self.centres, axis=1).max()
                      + self.epsilon * math.sqrt(self.centres.shape[1]))
      longest = self.a * max(
          np.linalg.norm(start), reach / self.a) + reach
    spread = (self.centres - self.centres.mean(axis=0)) @ self.coupling.T
    variance = np.sum(spread**2, axis=1).mean() / batch if batch else 0.0
    return theory.Constants(self.a, norm, norm, self.mu, float(longest),
                            math.sqrt(variance), inexactness)


@dataclasses.dataclass(frozen=True)
class Trajectory:
  """Of one or more runs side by side.

  Attributes:
    theta: [T + 1, ..., p].
    used: the gradient of each update, g_hat, [T, ..., p].
    fresh: on the same batch with fresh and exact adversaries, g.
    perturbation: that was trained on, [T, ..., d].
    inexactness: lambda, the largest that was measured.
  """

  theta: np.ndarray
  used: np.ndarray
  fresh: np.ndarray
  perturbation: np.ndarray
  inexactness: float


def train(game: Game, start: np.ndarray, *, rate: float, updates: int,
          lag: int = 0, batch: int | None = None, runs: int = 1, seed: int = 0,
          step: float | None = None) -> Trajectory:
  """ConAdv by plain SGD, many runs at once.

  Args:
    game: the problem.
    start: theta_0, [p].
    rate: eta.
    updates: T.
    lag: tau; adversaries of update t come from theta_max(0, t - tau).
    batch: examples an update, drawn with replacement; None takes all.
    runs: how many.
    seed: of the batches.
    step: of the attack, see `Game.perturbation`.
  """
  random = np.random.default_rng(seed)
  thetas = [np.tile(start, (runs, 1))]
  used, fresh, attacks, inexactness = [], [], [], 0.0
  for t in range(updates):
    theta, old = thetas[-1], thetas[max(0, t - lag)]
    delta, best = game.perturbation(old, step), game.perturbation(old)
    inexactness = max(inexactness, theory.inexactness(
        best, delta, game.example_gradient(old, delta)))
    centre = None if batch is None else game.centres[
        random.integers(len(game.centres), size=(runs, batch))].mean(axis=1)
    used.append(game.weight_gradient(theta, delta, centre))
    fresh.append(game.weight_gradient(theta, game.perturbation(theta), centre))
    attacks.append(delta)
    thetas.append(theta - rate * used[-1])
  return Trajectory(np.array(thetas), np.array(used), np.array(fresh),
                    np.array(attacks), inexactness)


def sample(epsilon: float = 0.4, seed: int = 0) -> tuple[Game, np.ndarray]:
  """A small problem and theta_0."""
  random = np.random.default_rng(seed)
  coupling = random.normal(size=(3, 5))
  return Game(a=1.0, coupling=coupling / np.linalg.norm(coupling, 2), mu=2.0,
              epsilon=epsilon, centres=random.normal(size=(16, 5))
              ), random.normal(size=3)
