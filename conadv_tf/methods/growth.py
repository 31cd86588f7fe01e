"""How the batch grows during a run: arithmetic, without TensorFlow.

Positions and lengths count initial batches. An update at ratio r takes r of
them, and the learning rate is that of the schedule times `rate_factor`.
"""

from collections.abc import Sequence
from typing import Any


class Growth:
  """Leaves the batch as it is; the base of all rules.

  Attributes:
    ratio: initial batches in an update, at least 1.
    max_ratio: that it never exceeds.
    rate_factor: of the schedule's learning rate.
    gamma: share of each micro batch's rows that are made adversarial.
  """

  # What a resumed run needs to go on.
  state_names: tuple[str, ...] = ("ratio", "rate_factor", "gamma")

  def __init__(self, max_ratio: int = 1, gamma: float = 0.0,
               vanishes: int | None = None):
    """Starts at ratio 1.

    Args:
      max_ratio: at least 1.
      gamma: in [0, 1].
      vanishes: tau, the position from which gamma is 0; None means never.

    Raises:
      ValueError: if an argument is out of range.
    """
    if max_ratio < 1:
      raise ValueError(f"max_ratio must be at least 1, got {max_ratio}")
    if not 0 <= gamma <= 1:
      raise ValueError(f"gamma must be in [0, 1], got {gamma}")
    self.ratio, self.max_ratio = 1, max_ratio
    self.rate_factor = 1.0
    self.gamma = float(gamma)
    self._vanishes = vanishes

  @property
  def measures(self) -> bool:
    """Whether an eigenvalue could change anything now."""
    return False

  def before_update(self, position: int, total: int) -> None:
    """Prepares the next update.

    Args:
      position: its first initial batch, counted from 0.
      total: of the run.
    """
    del total
    if self._vanishes is not None and position >= self._vanishes:
      self.gamma = 0.0

  def measured(self, eigenvalue: float, left: int) -> None:
    """Takes in the largest eigenvalue of the Hessian.

    Args:
      eigenvalue: finite; it may be negative.
      left: initial batches to the end of the run.
    """
    del eigenvalue, left

  def state(self) -> dict[str, Any]:
    """What changes, as JSON takes it."""
    return {name: getattr(self, name) for name in self.state_names}

  def restore(self, state: dict[str, Any]) -> None:
    """Puts the result of `state` back."""
    for name in self.state_names:
      setattr(self, name, state[name])

  def _grow(self, factor: int, left: int) -> float:
    """Grows the batch, and the rate with it; returns the growth.

    A batch that is larger than the rest of the run would never be trained on,
    so that this growth does not happen.
    """
    ratio = min(self.ratio * factor, self.max_ratio)
    if ratio > left:
      return 1.0
    growth = ratio / self.ratio
    self.ratio = ratio
    self.rate_factor *= growth
    return growth


class Scheduled(Growth):
  """GG: the batch grows where the learning rate would have been decayed.

  Paper: Smith et al., Don't Decay the Learning Rate, Increase the Batch Size,
  ICLR 2018; the baseline "GG" of Yao et al., 2018 (ABSA).

  An update that would reach beyond a boundary is made with the grown batch,
  as a gradient that is accumulated over micro batches is; so the counts of
  updates are those that Yao et al. print, for epochs of floor(N / B) initial
  batches as theirs. Where the largest batch leaves a part of the factor, the
  learning rate decays by that part.
  """

  state_names = (*Growth.state_names, "passed")

  def __init__(self, max_ratio: int, boundaries: Sequence[int], factor: int,
               gamma: float = 0.0, vanishes: int | None = None):
    """Makes the rule.

    Args:
      max_ratio: at least 1.
      boundaries: increasing positions, each the first with a larger batch.
      factor: of the batch at each of them, at least 2.
      gamma: see `Growth`, as `vanishes`.
      vanishes: position.

    Raises:
      ValueError: if an argument is out of range.
    """
    super().__init__(max_ratio, gamma, vanishes)
    if factor < 2:
      raise ValueError(f"factor must be at least 2, got {factor}")
    self.boundaries, self.factor = list(boundaries), factor
    self.passed = 0  # boundaries

  def before_update(self, position: int, total: int) -> None:
    """Grows at boundaries before the end of the next update."""
    super().before_update(position, total)
    while (self.passed < len(self.boundaries)
           and self.boundaries[self.passed] < position + self.ratio):
      self.passed += 1
      self._grow(self.factor, total - position)
      self.rate_factor /= self.factor
