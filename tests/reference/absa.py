"""ABSA in NumPy: Algorithm 1, GG, and a whole training with both.

Written from the paper's text and the counts of its tables, apart from
`conadv_tf.methods.absa`.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from tests.reference import conadv


def controlled(eigenvalues: Sequence[float], largest: int, beta: int,
               alpha: float, kappa: int, gamma: float, omega: float
               ) -> list[tuple[int, float]]:
  """(B / B_min, gamma) after each evaluation, on a run without an end."""
  batch, reference, since = 1, None, 0
  found = []
  for value in eigenvalues:
    if reference is None:
      reference = value
    elif value * alpha < reference:
      batch, gamma = min(batch * beta, largest), gamma / omega
      reference, since = value, 0
    else:
      since += 1
      if since == kappa:
        batch, since = min(batch * beta, largest), 0
    found.append((batch, gamma))
  return found


def scheduled_updates(lengths: Sequence[int], factor: int, largest: int
                      ) -> int:
  """Updates of GG: floor of the sum over phases of length / ratio.

  Args:
    lengths: of the phases between growths, in micro batches.
    factor: of each growth.
    largest: B_max / B_min.
  """
  count, rest, ratio = 0, 0, 1
  for i, length in enumerate(lengths):
    ratio = min(factor**i, largest)
    # What is accumulated of an update stays where a phase ends.
    count += (rest + length) // ratio
    rest = (rest + length) % ratio
  return count


@dataclasses.dataclass
class GrowingTwin(conadv.Twin):
  """Updates of several micro batches, whose first rows are adversarial.

  Attributes:
    rate: of the schedule, SGD with momentum, by position.
    momentum_sgd: of SGD.
    micro_rows: of a micro batch.
    age: of the attack's weights.
  """

  rate: float = 0.1
  momentum_sgd: float = 0.9
  micro_rows: int = 4
  age: int = 0

  def _attacked(self, x: np.ndarray, labels: np.ndarray,
                count: int) -> np.ndarray:
    """FGSM on the first rows through moving statistics."""
    if not count:
      return x
    time = max(0, len(self._history) - 1 - self.age)
    slope = _slope(*self._past[time], x[:count], labels[:count])
    adversary = np.clip(x[:count] + self.radius * np.sign(slope), 0, 1)
    return np.concatenate([adversary, x[count:]])

  def __post_init__(self) -> None:
    super().__post_init__()
    self._past = [(dict(self.weights), dict(self.moving))]

  def grown_step(self, x: np.ndarray, labels: np.ndarray, rate_factor: float,
                 gamma: float) -> None:
    """One update on [ratio * micro_rows, features]."""
    total, statistics = {}, {}
    parts = len(x) // self.micro_rows
    for i in range(parts):
      rows = slice(i * self.micro_rows, (i + 1) * self.micro_rows)
      count = int(gamma * self.micro_rows)
      image = self._attacked(x[rows], labels[rows], count)
      changes, _, own = conadv.gradients(
          self.weights, image, labels[rows],
          np.full(self.micro_rows, 1 / self.micro_rows),
          [(conadv.CLEAN, self.micro_rows)], self.normalise)
      for sums, values in ((total, changes), (statistics, own)):
        for name, value in values.items():
          sums[name] = sums.get(name, 0) + value / parts
    self.update = conadv.momentum_update(
        self.rate * rate_factor, self.momentum_sgd)
    self._apply(total, statistics)
    self._past.append((dict(self.weights), dict(self.moving)))


def _slope(weights: conadv.Weights, moving: conadv.Weights, x: np.ndarray,
           labels: np.ndarray) -> np.ndarray:
  """Gradient to x of the summed loss with moving statistics."""
  scale = weights['gamma_clean'] / np.sqrt(
      moving['variance_clean'] + conadv.EPSILON)
  hidden = np.tanh((x @ weights['w1'] + weights['b1'] - moving['mean_clean'])
                   * scale + weights['beta_clean'])
  logits = hidden @ weights['w2'] + weights['b2']
  exponentials = np.exp(logits - logits.max(1, keepdims=True))
  slopes = exponentials / exponentials.sum(1, keepdims=True)
  slopes[np.arange(len(labels)), labels] -= 1
  return (slopes @ weights['w2'].T * (1 - hidden**2) * scale
          ) @ weights['w1'].T
