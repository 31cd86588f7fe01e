"""Learning rates over time.

Every schedule rises linearly from 0 at step 0 to `peak_lr` at step
`warmup_steps`, then follows its own rule. `step` counts finished updates, so
the first update uses step 0. All lengths and boundaries are absolute steps,
counted from step 0 and not from the end of the warm-up.
"""

from collections.abc import Sequence
import itertools
import math
from typing import Any

import tensorflow as tf

_Step = int | tf.Tensor | tf.Variable


class _WarmedUp(tf.keras.optimizers.schedules.LearningRateSchedule):
  """Linear warm-up, then what `_decayed` says."""

  def __init__(self, peak_lr: float, warmup_steps: float) -> None:
    _require(peak_lr >= 0, 'peak_lr', '>= 0', peak_lr)
    _require(warmup_steps >= 0, 'warmup_steps', '>= 0', warmup_steps)
    self.peak_lr = float(peak_lr)
    self.warmup_steps = warmup_steps

  def __call__(self, step: _Step) -> tf.Tensor:
    step = tf.cast(step, tf.float32)
    rising = self.peak_lr * (step / (self.warmup_steps or 1))
    return tf.where(step < self.warmup_steps, rising, self._decayed(step))

  def _decayed(self, step: tf.Tensor) -> tf.Tensor:
    raise NotImplementedError

  def get_config(self) -> dict[str, Any]:
    """Returns the constructor's arguments."""
    return {'peak_lr': self.peak_lr, 'warmup_steps': self.warmup_steps}


class _Decaying(_WarmedUp):
  """From the peak at `warmup_steps` to `end_lr` at `total_steps` and after."""

  def __init__(self, peak_lr: float, total_steps: int, warmup_steps: float,
               end_lr: float) -> None:
    super().__init__(peak_lr, warmup_steps)
    _require(total_steps >= max(1, warmup_steps), 'total_steps',
             '>= 1 and >= warmup_steps', total_steps)
    _require(0 <= end_lr <= peak_lr, 'end_lr', 'in [0, peak_lr]', end_lr)
    self.total_steps = total_steps
    self.end_lr = float(end_lr)

  def _decayed(self, step: tf.Tensor) -> tf.Tensor:
    length = (self.total_steps - self.warmup_steps) or 1
    # Not 1 - done: near the end that loses most of float32's digits.
    end = self.warmup_steps + length
    time_left = tf.clip_by_value((end - step) / length, 0.0, 1.0)
    height = self._height(time_left)
    # In this form both ends are exact.
    return self.peak_lr * height + self.end_lr * (1.0 - height)

  def _height(self, time_left: tf.Tensor) -> tf.Tensor:
    """Maps the share of the time that is left to the share of the peak."""
    raise NotImplementedError

  def get_config(self) -> dict[str, Any]:
    """Returns the constructor's arguments."""
    return {**super().get_config(), 'total_steps': self.total_steps,
            'end_lr': self.end_lr}


@tf.keras.saving.register_keras_serializable(package='conadv_tf')
class Constant(_WarmedUp):
  """Stays at the peak."""

  def __init__(self, peak_lr: float, warmup_steps: int = 0) -> None:
    super().__init__(peak_lr, warmup_steps)

  def _decayed(self, step: tf.Tensor) -> tf.Tensor:
    return self.peak_lr * tf.ones_like(step)


@tf.keras.saving.register_keras_serializable(package='conadv_tf')
class Polynomial(_Decaying):
  """`end_lr + (peak_lr - end_lr) * time_left ** power`.

  `time_left` runs from 1 at `warmup_steps` to 0 at `total_steps`, so the last
  of `total_steps` updates still uses a little more than `end_lr`. The MLPerf
  reference decays over one step more; for its rates give `total_steps + 1`.
  """

  def __init__(self, peak_lr: float, total_steps: int, warmup_steps: int = 0,
               power: float = 2.0, end_lr: float = 1e-4) -> None:
    super().__init__(peak_lr, total_steps, warmup_steps, end_lr)
    _require(power > 0, 'power', '> 0', power)
    self.power = float(power)

  def _height(self, time_left: tf.Tensor) -> tf.Tensor:
    return tf.pow(time_left, self.power)

  def get_config(self) -> dict[str, Any]:
    """Returns the constructor's arguments."""
    return {**super().get_config(), 'power': self.power}


@tf.keras.saving.register_keras_serializable(package='conadv_tf')
class Cosine(_Decaying):
  """Half a cosine wave from the peak to `end_lr`."""

  def __init__(self, peak_lr: float, total_steps: int, warmup_steps: int = 0,
               end_lr: float = 0.0) -> None:
    super().__init__(peak_lr, total_steps, warmup_steps, end_lr)

  def _height(self, time_left: tf.Tensor) -> tf.Tensor:
    return tf.square(tf.sin(0.5 * math.pi * time_left))


@tf.keras.saving.register_keras_serializable(package='conadv_tf')
class Cyclic(_Decaying):
  """One triangle: 0, the peak at `peak_fraction` of the steps, 0 again."""

  def __init__(
      self, peak_lr: float, total_steps: int, peak_fraction: float = 0.4
  ) -> None:
    _require(0 <= peak_fraction <= 1, 'peak_fraction', 'in [0, 1]',
             peak_fraction)
    super().__init__(peak_lr, total_steps, peak_fraction * total_steps, 0.0)
    self.peak_fraction = float(peak_fraction)

  def _height(self, time_left: tf.Tensor) -> tf.Tensor:
    return time_left

  def get_config(self) -> dict[str, Any]:
    """Returns the constructor's arguments."""
    return {'peak_lr': self.peak_lr, 'total_steps': self.total_steps,
            'peak_fraction': self.peak_fraction}


@tf.keras.saving.register_keras_serializable(package='conadv_tf')
class Piecewise(_WarmedUp):
  """`values[i]` times the peak before `boundaries[i]`, then the next value."""

  def __init__(self, peak_lr: float, boundaries: Sequence[int],
               values: Sequence[float], warmup_steps: int = 0) -> None:
    """Builds the schedule.

    Args:
      peak_lr: rate at the end of the warm-up, before its factor.
      boundaries: increasing steps, each the first with its new value.
      values: factors of `peak_lr`, one more than boundaries.
      warmup_steps: at most the first boundary.
    """
    super().__init__(peak_lr, warmup_steps)
    self.boundaries = list(boundaries)
    self.values = [float(value) for value in values]
    if any(a >= b for a, b in itertools.pairwise(self.boundaries)) or any(
        boundary < warmup_steps for boundary in self.boundaries):
      raise ValueError('boundaries must increase and not come before '
                       f'warmup_steps={warmup_steps}, got {self.boundaries}')
    if len(self.values) != len(self.boundaries) + 1:
      raise ValueError(
          f'{len(self.boundaries)} boundaries need '
          f'{len(self.boundaries) + 1} values, got {self.values}')
    for value in self.values:
      _require(value >= 0, 'values', '>= 0', value)

  def _decayed(self, step: tf.Tensor) -> tf.Tensor:
    factor = self.values[0] * tf.ones_like(step)
    for boundary, value in zip(self.boundaries, self.values[1:], strict=True):
      factor = tf.where(step >= boundary, value, factor)
    return self.peak_lr * factor

  def get_config(self) -> dict[str, Any]:
    """Returns the constructor's arguments."""
    return {**super().get_config(), 'boundaries': self.boundaries,
            'values': self.values}


def _require(is_legal: bool, name: str, expected: str, value: float) -> None:
  if not (is_legal and math.isfinite(value)):
    raise ValueError(f'{name} must be {expected}, got {value}')
