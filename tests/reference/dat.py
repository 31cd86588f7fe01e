"""DAT of the two-layer network of `conadv` in NumPy float64.

Gradients of KL(p || q), p = softmax(a), q = softmax(b), derived by hand:

  d/db_j = q_j - p_j
  d/da_j = p_j * (log p_j - log q_j - KL)
"""

from collections.abc import Callable
import dataclasses

import numpy as np

from tests.reference import conadv


def log_softmax(logits: np.ndarray) -> np.ndarray:
  """Of each row."""
  shifted = logits - logits.max(1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def kl_gradients(a: np.ndarray, b: np.ndarray
                 ) -> tuple[np.ndarray, np.ndarray]:
  """Gradients of the sum of KL(softmax(a) || softmax(b)) to a and to b."""
  log_p, log_q = log_softmax(a), log_softmax(b)
  p = np.exp(log_p)
  kl = (p * (log_p - log_q)).sum(1, keepdims=True)
  return p * (log_p - log_q - kl), np.exp(log_q) - p


@dataclasses.dataclass
class DatTwin(conadv.Twin):
  """Trains as equation 2 and Algorithm A1 say; a label of -1 is none.

  Attributes:
    clean_weight: lambda.
    trades_weight: beta; None is a cross-entropy phi.
    steps: of the attack, each as long as twice the radius.
    starts: what is added to batch t before the attack.
  """

  lag: int | None = 0
  shared: bool = True
  clean_weight: float = 0.0
  trades_weight: float | None = None
  steps: int = 1
  starts: Callable[[int, tuple[int, ...]], np.ndarray] = (
      lambda t, shape: np.zeros(shape))

  def _pass(self, weights: conadv.Weights, x: np.ndarray, labels: np.ndarray,
            row_weights: np.ndarray, coupled: object = None) -> tuple:
    return conadv.gradients(
        weights, x, np.maximum(labels, 0), row_weights * (labels >= 0),
        [(conadv.CLEAN, len(x))], self.normalise, coupled)

  def _attack(self, weights: conadv.Weights, x: np.ndarray,
              labels: np.ndarray) -> np.ndarray:
    adversary = x + self.starts(len(self._history) - 1, x.shape)
    coupled, ascended = None, labels
    if self.trades_weight is not None:
      ascended, seen = np.full_like(labels, -1), []
      self._pass(weights, x, ascended, np.ones(len(x)),
                 lambda logits: seen.append(logits) or np.zeros_like(logits))
      coupled = lambda logits: kl_gradients(seen[0], logits)[1]
    for _ in range(self.steps):
      gradient = self._pass(weights, adversary, ascended, np.ones(len(x)),
                            coupled)[1]
      adversary = adversary + 2 * self.radius * np.sign(gradient)
      adversary = np.clip(adversary, x - self.radius, x + self.radius)
      adversary = np.clip(adversary, 0, 1)
    return adversary

  def step(self, x: np.ndarray, labels: np.ndarray,
           augmented: np.ndarray | None = None) -> None:
    """Update t on batch t."""
    rows = len(x)
    time = max(0, len(self._history) - 1 - self.lag)
    images = self._attack(self._history[time], x, labels)
    row_weights, coupled = np.full(rows, 1 / rows), None
    if self.clean_weight:
      images = np.concatenate([x, images])
      labels = np.concatenate([labels, labels])
      row_weights = np.repeat([self.clean_weight / rows, 1 / rows], rows)
    if self.trades_weight is not None:
      row_weights[rows:] = 0
      coupled = lambda logits: self.trades_weight / rows * np.concatenate(
          kl_gradients(logits[:rows], logits[rows:]))
    changes, _, statistics = self._pass(
        self.weights, images, labels, row_weights, coupled)
    self._apply(changes, statistics)
