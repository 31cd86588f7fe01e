"""What a run did, from the files that it left; no flags."""

from collections.abc import Sequence
import dataclasses
import logging
from typing import Any

import numpy as np

from conadv_tf import config, description
from conadv_tf.training import run_directory

_POINTS = 1500  # of a learning rate, besides its jumps


@dataclasses.dataclass
class Run:
  """A run, finished or not.

  Attributes:
    name: for pictures and tables.
    config: resolved.
    metrics: lines of metrics.jsonl, at least one.
    curvature: lines of curvature.jsonl, without estimates that failed.
    growth: lines of growth.jsonl; none where nothing may change.
  """

  name: str
  config: config.ExperimentConfig
  metrics: list[dict[str, Any]]
  curvature: list[dict[str, Any]]
  growth: list[dict[str, Any]]

  @property
  def end(self) -> int:
    """Initial batches so far, as far as any record knows."""
    return max(r["step"] for r in (
        *self.metrics, *self.curvature, *self.growth))

  def batch_sizes(self) -> tuple[np.ndarray, np.ndarray]:
    """The batch size from its start to its end.

    Returns:
      Epochs, and batch sizes that hold from each to the next; [n] both.
    """
    steps, sizes = self._decided("batch_size", self._initial_batch)
    return self._epochs(np.append(steps, self.end)), np.append(
        sizes, sizes[-1])

  def learning_rates(self) -> tuple[np.ndarray, np.ndarray]:
    """The schedule's rate times the factor of growth, from start to end.

    Returns:
      Epochs, and rates that hold from each to the next; [n] both.
    """
    starts, factors = self._decided("rate_factor", 1.0)
    schedule = description.schedule(self.config)
    last = max(self.end - 1, 0)  # update that was made
    steps = np.unique(np.concatenate([
        np.linspace(0, last, _POINTS).astype(int), starts,
        [self.config.derived.warmup_steps],
        np.array(getattr(schedule, "boundaries", ()), int)]))
    steps = steps[steps <= last]
    rates = schedule(steps).numpy() * factors[
        np.searchsorted(starts, steps, side="right") - 1]
    return self._epochs(np.append(steps, self.end)), np.append(
        rates, rates[-1])

  @property
  def _initial_batch(self) -> int:
    return self.config.data.global_batch_size

  def _epochs(self, steps: np.ndarray) -> np.ndarray:
    return steps / self.config.derived.steps_per_epoch

  def _decided(self, key: str, initial: float
               ) -> tuple[np.ndarray, np.ndarray]:
    """Where growth gave what, from 0 on; `initial` where it says nothing."""
    points = [(r["step"], r[key]) for r in self.growth]
    if not points or points[0][0] > 0:
      points.insert(0, (0, initial))
    steps, values = zip(*points)
    return np.array(steps), np.array(values)


def read(path: str, name: str) -> Run:
  """Reads a run.

  Args:
    path: its directory.
    name: that it gets.

  Raises:
    InputError: if there is none, or it has no evaluation yet.
  """
  directory = run_directory.RunDirectory(path)
  if directory.saved_config() is None:
    raise config.InputError(
        f"{path} holds no run (no params.yaml); name a directory that "
        "conadv_tf.train wrote")
  metrics, growth = directory.metrics(), directory.growth()
  if not metrics:
    raise config.InputError(f"{path}: the run has no evaluation yet (no "
                            "metrics.jsonl)")
  resolved = config.load_resolved(directory.file("params.yaml"))
  if config.batch_changes(resolved) and not growth:
    logging.warning("%s has no growth.jsonl: its batch is shown as constant",
                    path)
  return Run(name, resolved, metrics, [
      r for r in directory.curvature() if r.get("value") is not None], growth)


def common_estimates(one: Run, other: Run) -> tuple[np.ndarray, np.ndarray]:
  """Logarithms of the positive eigenvalues of two runs at equal steps.

  Returns:
    Those of `one` and of `other`, float64 [n] both.
  """
  ours, theirs = ({(r["step"], r["epoch"]): r["value"] for r in run.curvature
                   if r["value"] > 0} for run in (one, other))
  places = sorted(ours.keys() & theirs.keys())
  return tuple(np.log([values[place] for place in places])
               for values in (ours, theirs))


def correlations(x: Sequence[float], y: Sequence[float]
                 ) -> tuple[float, float]:
  """Spearman's rank correlation, equal values at their mean rank; Pearson's.

  Args:
    x: [n].
    y: [n].

  Returns:
    Both in [-1, 1]; NaN where a side does not vary.
  """
  return tuple(_pearson(*map(np.asarray, pair))
               for pair in ((_ranks(x), _ranks(y)), (x, y)))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
  if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
    return float("nan")
  return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray:
  _, places, counts = np.unique(
      values, return_inverse=True, return_counts=True)
  return (np.cumsum(counts) - (counts - 1) / 2)[places]
