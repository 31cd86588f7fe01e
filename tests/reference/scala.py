"""ScaLA (Algorithm 1) of a two-layer text model in NumPy float64.

The model: h = tanh(e W1 + b1) at every token, the mean over real tokens, and
W2, b2. Gradients of the two distances, p = softmax(gamma), q = softmax(z):

  symmetric KL, targets constant:  to z: q - p, to gamma: p - q
  both terms, gamma constant:      to z: q - p + q (log q - log p - KL(q || p))
"""

from collections.abc import Callable
import dataclasses

import numpy as np

from tests.reference import dat

Weights = dict[str, np.ndarray]


def forward(weights: Weights, e: np.ndarray, real: np.ndarray
            ) -> tuple[np.ndarray, np.ndarray]:
  """Outputs [b, classes] and hidden units of embeddings [b, L, d]."""
  h = np.tanh(e @ weights['w1'] + weights['b1'])
  pooled = (h * real).sum(1) / real.sum(1)
  return pooled @ weights['w2'] + weights['b2'], h


def backward(weights: Weights, e: np.ndarray, real: np.ndarray, h: np.ndarray,
             to_z: np.ndarray) -> tuple[Weights, np.ndarray]:
  """Gradients to the weights and to e, from that to the outputs."""
  pooled = (h * real).sum(1) / real.sum(1)
  to_h = ((to_z @ weights['w2'].T) / real.sum(1))[:, None] * real
  to_a = to_h * (1 - h**2)
  return dict(w1=np.einsum('bld,blh->dh', e, to_a), b1=to_a.sum((0, 1)),
              w2=pooled.T @ to_z, b2=to_z.sum(0)), to_a @ weights['w1'].T


def to_table(table: np.ndarray, ids: np.ndarray,
             to_e: np.ndarray) -> np.ndarray:
  """Sums the gradients of each word's embeddings."""
  total = np.zeros_like(table)
  np.add.at(total, ids, to_e)
  return total


def loss_gradient(z: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Of the summed cross entropy, or squared error of one output."""
  if z.shape[1] == 1:
    return 2 * (z - labels[:, None])
  return np.exp(dat.log_softmax(z)) - np.eye(z.shape[1])[labels]


@dataclasses.dataclass
class ScalaTwin:
  """Trains with SGD.

  Attributes:
    weights: table, w1, b1, w2, b2.
    rate: the learning rate.
    radius: omega, of linf.
    step_size: rho, of gradients divided by their largest size in a token.
    starts: y_0 of batch t, before padding is left out.
    steps: T.
    weight: lambda.
    labels: whether f is ascended (GT).
    lag: age of the attack's weights.
    delay: first update with a perturbation.
  """

  weights: Weights
  rate: float
  radius: float
  step_size: float
  starts: Callable[[int], np.ndarray]
  steps: int = 1
  weight: float = 1.0
  labels: bool = False
  lag: int = 0
  delay: int = 0
  history: list[Weights] = dataclasses.field(default_factory=list)

  def _ascended(self, gamma: np.ndarray, z: np.ndarray,
                labels: np.ndarray) -> np.ndarray:
    if self.labels:
      return loss_gradient(z, labels)
    if z.shape[1] == 1:
      return 2 * (z - gamma)
    to_q, to_p = dat.kl_gradients(gamma, z)[1], dat.kl_gradients(z, gamma)[0]
    return to_q + to_p

  def _perturb(self, weights: Weights, ids: np.ndarray, real: np.ndarray,
               labels: np.ndarray, y: np.ndarray) -> np.ndarray:
    e = weights['table'][ids]
    gamma, _ = forward(weights, e, real)
    for _ in range(self.steps):
      z, h = forward(weights, e + y, real)
      _, g = backward(
          weights, e + y, real, h, self._ascended(gamma, z, labels))
      largest = np.abs(g).max(-1, keepdims=True)
      y = y + self.step_size * real * g / np.where(largest, largest, 1)
      y = np.clip(y, -self.radius, self.radius)
    return y

  def step(self, tokens: np.ndarray, labels: np.ndarray) -> None:
    """Update t on batch t."""
    t, n = len(self.history), len(tokens)
    self.history.append({k: v.copy() for k, v in self.weights.items()})
    ids, real = tokens[..., 0], (tokens[..., :1] > 0).astype(float)
    w, e = self.weights, self.weights['table'][ids]
    gamma, h = forward(w, e, real)
    to_gamma = loss_gradient(gamma, labels) / n
    gradients = []
    if t >= self.delay:
      y = self._perturb(self.history[max(0, t - self.lag)], ids, real, labels,
                        self.starts(t) * real)
      z, h_y = forward(w, e + y, real)
      if self.labels:
        to_z = loss_gradient(z, labels)
      elif z.shape[1] == 1:
        to_z = 2 * (z - gamma)
      else:
        to_z = np.exp(dat.log_softmax(z)) - np.exp(dat.log_softmax(gamma))
      to_z = self.weight / n * to_z
      to_gamma = to_gamma - (not self.labels) * to_z
      gradients.append(backward(w, e + y, real, h_y, to_z))
    gradients.append(backward(w, e, real, h, to_gamma))
    for change, to_e in gradients:
      change['table'] = to_table(w['table'], ids, to_e)
      for name, value in change.items():
        w[name] = w[name] - self.rate * value
