"""The MLPerf ResNet-50 reference's schedule and LARS in NumPy, in float64.

Written from its formulas (mlcommons/training, retired_benchmarks/resnet-tf2:
resnet_runnable.py, lars_util.py, lars_optimizer.py), one tensor and one update
at a time.
"""

import dataclasses

import numpy as np

# The log says lars_epsilon 0, but the optimizer computes `epsilon or
# tf.keras.backend.epsilon()`: the flag 0 becomes Keras's default.
EPSILON_OF_FLAG_0 = 1e-7
EETA = 0.001


@dataclasses.dataclass(frozen=True)
class Point:
  """Numbers of one reference point."""

  batch: int
  peak_lr: float
  warmup_epochs: int
  epochs: float
  momentum: float
  weight_decay: float
  end_lr: float = 1e-4
  power: float = 2.0
  examples: int = 1_281_167

  def steps_per_epoch(self) -> int:
    return self.examples // self.batch

  def train_steps(self) -> int:
    return int(self.epochs * self.steps_per_epoch())

  def warmup_steps(self) -> int:
    return self.warmup_epochs * self.steps_per_epoch()

  def learning_rate(self, step: int) -> float:
    """Of the update that `step` others precede."""
    warmup = self.warmup_steps()
    if step <= warmup:
      return self.peak_lr * step / warmup
    decay_steps = self.train_steps() - warmup + 1
    decayed = min(step - warmup, decay_steps)
    return self.end_lr + (self.peak_lr - self.end_lr) * (
        1.0 - decayed / decay_steps) ** self.power


def is_excluded(name: str) -> bool:
  return any(part in name for part in ('batch_normalization', 'bias', 'bn'))


def trust_ratio(w: np.ndarray, g: np.ndarray, weight_decay: float,
                epsilon: float = EPSILON_OF_FLAG_0) -> float:
  w_norm, g_norm = np.linalg.norm(w.ravel()), np.linalg.norm(g.ravel())
  if w_norm == 0 or g_norm == 0:
    return 1.0
  return EETA * w_norm / (g_norm + weight_decay * w_norm + epsilon)


def lars(name: str, w: np.ndarray, v: np.ndarray, g: np.ndarray,
         point: Point, step: int) -> tuple[np.ndarray, np.ndarray]:
  """New weights and slot; the slot holds the change, so minus a velocity."""
  rate = point.learning_rate(step)
  if not is_excluded(name):
    rate = rate * trust_ratio(w, g, point.weight_decay)
    g = g + point.weight_decay * w
  v = point.momentum * v - rate * g
  return w + v, v
