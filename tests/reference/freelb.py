"""FreeLB's Algorithm 1 of the text model of `scala` in NumPy float64."""

from collections.abc import Callable
import dataclasses

import numpy as np

from tests.reference import scala


def _length(values: np.ndarray) -> np.ndarray:
  return np.sqrt((values**2).sum((1, 2), keepdims=True))


@dataclasses.dataclass
class FreeLbTwin:
  """Trains with SGD.

  Attributes:
    weights: table, w1, b1, w2, b2.
    rate: the learning rate.
    radius: of the l2 ball of a sentence.
    step_size: alpha.
    starts: uniform numbers in -1 .. 1 of batch t.
    magnitude: of the start.
    steps: K.
  """

  weights: scala.Weights
  rate: float
  radius: float
  step_size: float
  starts: Callable[[int], np.ndarray]
  magnitude: float
  steps: int
  updates: int = 0

  def step(self, tokens: np.ndarray, labels: np.ndarray) -> None:
    """Update t on batch t."""
    ids, real = tokens[..., 0], (tokens[..., :1] > 0).astype(float)
    w, n = self.weights, len(tokens)
    numbers = real.sum((1, 2), keepdims=True) * w['table'].shape[1]
    delta = (self.magnitude / np.sqrt(numbers)
             * self.starts(self.updates) * real)
    self.updates += 1
    total = {name: np.zeros_like(value) for name, value in w.items()}
    for _ in range(self.steps):
      e = w['table'][ids] + delta
      z, h = scala.forward(w, e, real)
      change, to_e = scala.backward(
          w, e, real, h, scala.loss_gradient(z, labels) / n)
      change['table'] = scala.to_table(w['table'], ids, to_e)
      for name, value in change.items():
        total[name] += value / self.steps
      delta = delta + self.step_size * to_e / _length(to_e)
      delta = delta * np.minimum(1, self.radius / _length(delta))
    for name, value in total.items():
      w[name] = w[name] - self.rate * value
