"""LAMB in NumPy, one layer of tensors and one update at a time, in float64."""

from collections.abc import Sequence
import math

import numpy as np


def _norm(tensors: Sequence[np.ndarray]) -> float:
  return math.sqrt(sum(float(np.sum(np.square(x))) for x in tensors))


def ratio(weights: Sequence[np.ndarray], directions: Sequence[np.ndarray],
          trust_clip: Sequence[float] | None) -> float:
  """phi(|w|) / |u| of tensors that share it."""
  w_norm, u_norm = _norm(weights), _norm(directions)
  if w_norm == 0 or u_norm == 0:
    return 1.0
  if trust_clip is not None:
    w_norm = min(max(w_norm, trust_clip[0]), trust_clip[1])
  return w_norm / u_norm


def direction(
    w: np.ndarray, m: np.ndarray, v: np.ndarray, t: int, *, beta_1: float,
    beta_2: float, epsilon: float, weight_decay: float, bias_correction: bool,
    epsilon_placement: str, decay_placement: str, decay_vectors: bool
) -> np.ndarray:
  """u of update t, which is 1 for the first, from the new moments."""
  if bias_correction:
    m, v = m / (1 - beta_1**t), v / (1 - beta_2**t)
  if epsilon_placement == 'inside_root':
    u = m / np.sqrt(v + epsilon)
  else:
    u = m / (np.sqrt(v) + epsilon)
  if decay_placement == 'inside_update' and (decay_vectors or w.ndim > 1):
    u = u + weight_decay * w
  return u


class Lamb:
  """A layer is a list of tensors; `scope` says whether they share a ratio."""

  def __init__(self, layers: list[list[np.ndarray]], *, learning_rate: float,
               trust_clip: Sequence[float] | None, scope: str,
               scale_vectors: bool, **settings: float | str | bool) -> None:
    self.layers = [[w.astype(np.float64) for w in layer] for layer in layers]
    self._moments = [[(np.zeros(w.shape), np.zeros(w.shape)) for w in layer]
                     for layer in layers]
    self._rate, self._clip = learning_rate, trust_clip
    self._scope, self._scale_vectors = scope, scale_vectors
    self._settings, self._t = settings, 0

  def update(self, gradients: list[list[np.ndarray]]) -> None:
    self._t += 1
    for layer, moments, values in zip(
        self.layers, self._moments, gradients, strict=True):
      self._update_layer(layer, moments, values)

  def _update_layer(
      self, layer: list[np.ndarray],
      moments: list[tuple[np.ndarray, np.ndarray]],
      gradients: list[np.ndarray]) -> None:
    s = self._settings
    for i, g in enumerate(gradients):
      m, v = moments[i]
      moments[i] = (s['beta_1'] * m + (1 - s['beta_1']) * g,
                    s['beta_2'] * v + (1 - s['beta_2']) * g * g)
    u = [direction(w, m, v, self._t, **s)
         for w, (m, v) in zip(layer, moments, strict=True)]
    scaled = [i for i, w in enumerate(layer)
              if self._scope != 'none' and (self._scale_vectors or w.ndim > 1)]
    ratios = [1.0] * len(layer)
    for i in scaled:
      members = scaled if self._scope == 'layer' else [i]
      ratios[i] = ratio([layer[j] for j in members], [u[j] for j in members],
                        self._clip)
    for i, w in enumerate(layer):
      decay = 0.0
      if s['decay_placement'] == 'outside_update' and (
          s['decay_vectors'] or w.ndim > 1):
        decay = s['weight_decay']
      layer[i] = w - self._rate * (ratios[i] * u[i] + decay * w)
