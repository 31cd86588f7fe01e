"""Learning rates of one step, in plain Python."""

from collections.abc import Sequence
import math


def constant(step: float, peak_lr: float, warmup_steps: float) -> float:
  return peak_lr * step / warmup_steps if step < warmup_steps else peak_lr


def _done(step: float, total_steps: float, warmup_steps: float) -> float:
  if step >= total_steps:
    return 1.0
  return (step - warmup_steps) / (total_steps - warmup_steps)


def polynomial(step: float, peak_lr: float, total_steps: float,
               warmup_steps: float, power: float, end_lr: float) -> float:
  if step < warmup_steps:
    return constant(step, peak_lr, warmup_steps)
  left = (1 - _done(step, total_steps, warmup_steps)) ** power
  return end_lr + (peak_lr - end_lr) * left


def cosine(step: float, peak_lr: float, total_steps: float,
           warmup_steps: float, end_lr: float) -> float:
  if step < warmup_steps:
    return constant(step, peak_lr, warmup_steps)
  angle = math.pi * _done(step, total_steps, warmup_steps)
  return end_lr + (peak_lr - end_lr) * (1 + math.cos(angle)) / 2


def cyclic(step: float, peak_lr: float, total_steps: float,
           peak_fraction: float) -> float:
  return polynomial(
      step, peak_lr, total_steps, peak_fraction * total_steps, 1.0, 0.0)


def piecewise(step: float, peak_lr: float, boundaries: Sequence[float],
              values: Sequence[float], warmup_steps: float) -> float:
  if step < warmup_steps:
    return constant(step, peak_lr, warmup_steps)
  return peak_lr * values[sum(step >= b for b in boundaries)]
