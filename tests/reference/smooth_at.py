"""Smooth-AT of the network of `reference.conadv` in NumPy float64.

The gradient of -log mean_i p_i to the image is written out as
-(sum_i grad p_i) / (sum_i p_i), all copies at once, and not as the weighted
sum that the package adds up.
"""

import dataclasses

import numpy as np

from tests.reference import conadv


def probability_gradients(
    weights: conadv.Weights, moving: conadv.Weights, x: np.ndarray,
    labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Label's probability [b] and its gradient [b, features].

  Through moving statistics: z is scaled and shifted by constants.
  """
  scale = weights['gamma_clean'] / np.sqrt(
      moving['variance_clean'] + conadv.EPSILON)
  z = x @ weights['w1'] + weights['b1']
  hidden = np.tanh((z - moving['mean_clean']) * scale + weights['beta_clean'])
  logits = hidden @ weights['w2'] + weights['b2']
  p = np.exp(logits - logits.max(1, keepdims=True))
  p /= p.sum(1, keepdims=True)
  rows = np.arange(len(x))
  own = p[rows, labels]
  # d p_y / d logit_k = p_y (1[k = y] - p_k)
  dlogits = -p * own[:, None]
  dlogits[rows, labels] += own
  dhidden = dlogits @ weights['w2'].T * (1 - hidden**2) * scale
  return own, dhidden @ weights['w1'].T


def attack(weights: conadv.Weights, moving: conadv.Weights, x: np.ndarray,
           labels: np.ndarray, noises: np.ndarray, *, radius: float,
           step_size: float, steps: int) -> np.ndarray:
  """l2 PGD on the smoothed network; images in 0..1.

  Args:
    weights: of the network.
    moving: mean_clean and variance_clean.
    x: [b, features].
    labels: [b].
    noises: [copies, b, features].
    radius: of the ball, in units of the images.
    step_size: likewise.
    steps: of the attack.
  """
  found = x.copy()
  for _ in range(steps):
    pairs = [probability_gradients(weights, moving, found + noise, labels)
             for noise in noises]
    gradient = -sum(g for _, g in pairs) / sum(p for p, _ in pairs)[:, None]
    gradient /= np.linalg.norm(gradient, axis=1, keepdims=True)
    delta = found + step_size * gradient - x
    size = np.linalg.norm(delta, axis=1, keepdims=True)
    found = np.clip(x + delta * np.minimum(1, radius / size), 0, 1)
  return found


@dataclasses.dataclass
class SmoothAtTwin(conadv.Twin):
  """Trains on noisy copies of images attacked through the smoothed network.

  Attributes:
    step_size: of the attack, in units of the images.
    steps: of the attack.
  """

  step_size: float = 0.0
  steps: int = 1

  def noisy_step(self, x: np.ndarray, labels: np.ndarray,
                 noises: np.ndarray) -> np.ndarray:
    """One update; returns the attacked images.

    Args:
      x: [b, features].
      labels: [b].
      noises: [copies, b, features], of the attack and of the update.
    """
    adversary = attack(
        self.weights, self.moving, x, labels, noises, radius=self.radius,
        step_size=self.step_size, steps=self.steps)
    found = [conadv.gradients(
        self.weights, adversary + noise, labels, np.full(len(x), 1 / len(x)),
        [(conadv.CLEAN, len(x))], self.normalise) for noise in noises]
    mean = lambda part: {
        name: np.mean([f[part][name] for f in found], axis=0)
        for name in found[0][part]}
    self._apply(mean(0), mean(2))
    return adversary
