"""LARS in NumPy, one tensor and one update at a time, in float64."""

import numpy as np


def trust_ratio(
    w: np.ndarray, g: np.ndarray, weight_decay: float, eeta: float,
    epsilon: float) -> float:
  w_norm = np.sqrt(np.sum(np.square(w)))
  g_norm = np.sqrt(np.sum(np.square(g)))
  if w_norm == 0 or g_norm == 0:
    return 1.0
  return eeta * w_norm / (g_norm + weight_decay * w_norm + epsilon)


def update(
    w: np.ndarray, m: np.ndarray, g: np.ndarray, *, learning_rate: float,
    momentum: float, weight_decay: float, eeta: float, epsilon: float,
    nesterov: bool, excluded: bool) -> tuple[np.ndarray, np.ndarray]:
  """Returns the new weights and the new velocity."""
  if excluded:
    step = learning_rate * g
  else:
    trust = trust_ratio(w, g, weight_decay, eeta, epsilon)
    step = learning_rate * trust * (g + weight_decay * w)
  m = momentum * m + step
  return w - (momentum * m + step if nesterov else m), m
