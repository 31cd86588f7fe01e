"""A batch that grows during training: its variables, rate and driver."""

from collections.abc import Callable
import logging
import math
from typing import Any, NamedTuple

import tensorflow as tf

from conadv_tf.distribute import strategies
from conadv_tf.methods import growth as growths
from conadv_tf.methods import method as methods


class GrowingBatch:
  """What the host changes between updates and the device reads.

  They follow a growth rule, whose state a checkpoint holds.

  Attributes:
    ratio: int64 variable, initial batches in an update.
    rate_factor: float32 variable, of the schedule's learning rate.
    gamma: float32 variable, share of adversarial rows.
  """

  def __init__(self, gamma: float = 0.0):
    """Creates the variables under the current strategy's scope."""
    self.ratio = strategies.counter("ratio", 1)
    self.rate_factor = _number("rate_factor", 1.0)
    self.gamma = _number("gamma", gamma)

  def assign(self, rule: growths.Growth) -> None:
    """Takes over a rule's decisions, eagerly."""
    self.ratio.assign(rule.ratio)
    self.rate_factor.assign(rule.rate_factor)
    self.gamma.assign(rule.gamma)


def _number(name: str, initial: float) -> tf.Variable:
  return tf.Variable(
      initial, dtype=tf.float32, trainable=False, name=name,
      aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)


class GrowingRate(tf.keras.optimizers.schedules.LearningRateSchedule):
  """A schedule over the position in the data, times the rate factor.

  An optimizer counts updates, which are no measure of time once the batch
  grows.
  """

  def __init__(self, schedule: Callable[[Any], tf.Tensor],
               position: tf.Variable, batch: GrowingBatch):
    """Keeps the parts.

    Args:
      schedule: learning rate of an initial batch's index.
      position: int64 variable, initial batches so far.
      batch: whose rate factor counts.
    """
    self._schedule, self._position, self._batch = schedule, position, batch

  def __call__(self, step: Any) -> tf.Tensor:
    """The rate of the update that is being made, whatever its index."""
    del step
    return (self._schedule(self._position.read_value())
            * self._batch.rate_factor.read_value())

  def get_config(self) -> dict[str, Any]:
    """Of the schedule; the rest belongs to a trainer."""
    return self._schedule.get_config()


def rate(schedule: Callable[[Any], tf.Tensor], position: tf.Variable,
         batch: GrowingBatch | None) -> Any:
  """The learning rate for an optimizer: the schedule where nothing grows."""
  return schedule if batch is None else GrowingRate(schedule, position, batch)


class Estimate(NamedTuple):
  """An estimate of the Hessian's largest eigenvalue.

  Attributes:
    value: not finite where it failed.
    iterations: products that it took; None where it failed.
    problem: why it failed.
  """

  value: float
  iterations: int | None = None
  problem: str = ""


class Driver:
  """Asks a growth rule before updates and after estimates, on the host.

  Without growth it counts.

  Attributes:
    updates: weight updates so far.
    batch_ratio: initial batches in the latest update.
    rate_factor: of the latest update, as `gamma`.
    gamma: share of its rows that were adversarial.
  """

  def __init__(self, rule: growths.Growth, batch: GrowingBatch | None, *,
               total: int, updates: int = 0, every: float = math.inf,
               estimate: Callable[[int], Estimate] | None = None,
               monitors: bool = False):
    """Starts with a rule as it is.

    Args:
      rule: that decides.
      batch: the trainer's variables; None where nothing grows.
      total: initial batches of the run.
      updates: made before.
      every: initial batches from one estimate to the next.
      estimate: of the largest eigenvalue, given how many there were before.
        It must return the same on all workers.
      monitors: whether to estimate also where the rule does not need it.
    """
    self._rule, self._batch = rule, batch
    self._total, self._every = total, every
    self._estimate, self._monitors = estimate, monitors
    self.updates, self._estimates = updates, 0
    self._assigned: tuple[float, ...] = ()
    self._keep_latest()

  @property
  def ratio(self) -> int:
    """Initial batches in the next update."""
    return self._rule.ratio

  @property
  def grows(self) -> bool:
    """Whether the batch, its rate or gamma may change."""
    return self._batch is not None

  def ends(self, position: int) -> bool:
    """Whether what is left of the run makes no update."""
    return position + self.ratio > self._total

  def before(self, position: int) -> int:
    """Prepares the update at a position; returns its initial batches."""
    self._rule.before_update(position, self._total)
    self._keep_latest()
    decided = self.batch_ratio, self.rate_factor, self.gamma
    if self._batch is not None and decided != self._assigned:
      self._batch.assign(self._rule)
      self._assigned = decided
    return self.ratio

  def _keep_latest(self) -> None:
    rule = self._rule
    self.batch_ratio, self.rate_factor = rule.ratio, rule.rate_factor
    self.gamma = rule.gamma

  def after(self, position: int, span: int) -> Estimate | None:
    """Counts what was made, and estimates where that is due.

    Args:
      position: initial batches so far.
      span: of them, since the last call.

    Returns:
      The estimate, if there was one.
    """
    self.updates += span // self.batch_ratio
    if (not self._estimate or not (self._rule.measures or self._monitors)
        or self.ends(position)
        or self._passed(position) == self._passed(position - span)):
      return None
    estimate = self._estimate(self._estimates)
    self._estimates += 1
    if not math.isfinite(estimate.value):
      logging.warning(
          "no eigenvalue after %d initial batches: %s; training goes on with "
          "the batch as it is", position, estimate.problem or "not finite")
      return estimate
    if self._rule.measures:
      self._rule.measured(estimate.value, self._total - position)
    return estimate

  def _passed(self, position: int) -> int:
    return math.floor(position / self._every + 1e-9)

  def state(self) -> dict[str, Any]:
    """What a checkpoint holds, as JSON."""
    return {"updates": self.updates, "estimates": self._estimates,
            "latest": [self.batch_ratio, self.rate_factor, self.gamma],
            **self._rule.state()}

  def restore(self, state: dict[str, Any]) -> None:
    """Goes on from a checkpoint."""
    self.updates, self._estimates = state["updates"], state["estimates"]
    self._rule.restore(state)
    self.batch_ratio, self.rate_factor, self.gamma = state["latest"]


def saved_ratio(extra: dict[str, Any]) -> int:
  """Initial batches of the update after a checkpoint, from its manifest."""
  return extra.get("growth", {"ratio": 1})["ratio"]


def check(method: methods.Method) -> None:
  """Refuses methods that hold a batch of a size that may change.

  Raises:
    ValueError: that says what to do.
  """
  if method.perturbs:
    raise ValueError(
        "a growing batch excludes methods that perturb embeddings, whose delay "
        "counts updates; set growth.name=none")
  if method.holds:
    raise ValueError(
        "a growing batch excludes methods that hold a batch for the next "
        "update; set method.execution=sequential (or method.lag=0), "
        "method.pairing=same_batch, method.adversary=fresh and "
        "method.attack_every=1")
