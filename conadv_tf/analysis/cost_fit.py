"""Finds the cost model's few numbers from measured or published times."""

from collections.abc import Sequence

import numpy as np

from conadv_tf.analysis import cost_model


def fit_pass_times(
    runs: Sequence[cost_model.Run], seconds: Sequence[float],
    network: cost_model.Network, gradient_bytes: int,
    algorithm: cost_model.Algorithm = "halving_doubling",
) -> cost_model.Machine:
  """Finds the pass times that fit step times best.

  Least squares of log(predicted / seconds) over log(fixed) and
  log(per_image), by Gauss-Newton with step halving, so that 10 % too much
  counts the same for a short and a long step.

  Args:
    runs: at least two that differ in images a device or in passes.
    seconds: the step time of each run.
    network: known; it is not fitted.
    gradient_bytes: what an update reduces.
    algorithm: of the all-reduce.
  """
  if len(runs) != len(seconds) or len(runs) < 2 or min(seconds) <= 0:
    raise ValueError("a fit needs two runs or more, and a positive time for "
                     f"each; got {len(runs)} runs and times {list(seconds)}")
  # Seconds are linear in (fixed, per_image).
  counts = np.array([(run.passes.chain, run.passes.work * run.batch
                      / run.devices) for run in runs])
  if np.linalg.matrix_rank(counts) < 2:
    raise ValueError("these runs cannot tell fixed costs from costs an image; "
                     "add one with another number of images a device")
  reduction = np.array([
      cost_model.all_reduce_seconds(gradient_bytes, run.all_devices, network,
                                    algorithm) for run in runs])

  def residuals(logs: np.ndarray) -> np.ndarray:
    return np.log((counts @ np.exp(logs) + reduction) / np.asarray(seconds))

  # Halves of the first step time, so that both start in the right order.
  logs = np.log(seconds[0] / 2 / counts[0])
  for _ in range(200):
    now, times = residuals(logs), counts * np.exp(logs)
    slopes = times / (times.sum(axis=1) + reduction)[:, np.newaxis]
    step = -np.linalg.lstsq(slopes, now, rcond=None)[0]
    step = np.clip(step, -2.0, 2.0)
    while (np.sum(residuals(logs + step) ** 2) > np.sum(now ** 2)
           and np.abs(step).max() > 1e-12):
      step = step / 2
    logs = logs + step
    if np.abs(step).max() < 1e-10:
      break
  fixed, per_image = np.exp(logs).tolist()
  return cost_model.Machine(cost_model.PassTimes(fixed, per_image), network,
                            gradient_bytes, algorithm)


def log_error(predicted: Sequence[float], seconds: Sequence[float]) -> float:
  """The root of the mean of log(predicted / seconds) squared."""
  ratios = np.log(np.asarray(predicted) / np.asarray(seconds))
  return float(np.sqrt(np.mean(ratios ** 2)))


def fit_network(message_bytes: Sequence[float], seconds: Sequence[float],
                devices: int, algorithm: cost_model.Algorithm = "ring",
                ) -> cost_model.Network:
  """Latency and bandwidth from measured all-reduces.

  Least squares of the relative error. Noise that would make one of the two
  negative leaves it at 0.

  Args:
    message_bytes: two sizes or more.
    seconds: of one all-reduce of each size.
    devices: that took part, at least 2.
    algorithm: of these all-reduces.
  """
  if (len(message_bytes) != len(seconds) or len(set(message_bytes)) < 2
      or min(seconds) <= 0 or devices < 2):
    raise ValueError("a network is fitted to all-reduces of two sizes or more, "
                     "with positive times, over 2 devices or more")
  latencies, volume = cost_model.all_reduce_counts(devices, algorithm)
  columns = np.stack([np.full(len(seconds), float(latencies)),
                      volume * np.asarray(message_bytes, np.float64)], axis=1)
  columns = columns / np.asarray(seconds, np.float64)[:, np.newaxis]
  # Columns of one size, as latencies and bytes differ by many powers of 10.
  scale = np.linalg.norm(columns, axis=0)
  ones = np.ones(len(seconds))
  found = np.linalg.lstsq(columns / scale, ones, rcond=None)[0] / scale
  for negative, other in ((0, 1), (1, 0)):
    if found[negative] < 0:
      column = columns[:, other]
      found = np.zeros(2)
      found[other] = column @ ones / (column @ column)
  return cost_model.Network(*found.tolist())
