"""Limits that the measured figures of `python -m tools.benchmark` are held to.

Ratios are formed round by round; what counts is their median. Where a method
has several forms of its training pass, the faster one is taken.
"""

from collections.abc import Iterator, Sequence
import dataclasses
from typing import Any

import numpy as np

from tools import benchmark_plan as plan
from tools import benchmark_schedule, figures

_DISADV = ("disadv_joined", "disadv_separate")
_CONADV = ("conadv_joined", "conadv_separate")
_RECYCLED = ("recycled_joined", "recycled_separate")
_FIFTH = tuple(
    tuple(f"{method}_fraction_0.2_{form}" for form in ("joined", "separate"))
    for method in ("conadv", "recycled"))
# At most so many times vanilla's time, where all cores work on each operation.
_THROUGHPUT = (
    (_DISADV, 2.8), (_CONADV, 2.8), (_RECYCLED, 2.15),
    (("recycled_lag0",), 2.15), (_FIFTH[0], 1.45), (_FIFTH[1], 1.3))
# At least so many times faster than a form of DisAdv, on two processors.
_LATENCY = (
    ("disadv_joined", _CONADV, 1.4), ("disadv_joined", _RECYCLED, 1.9),
    ("disadv_separate", _RECYCLED, 1.2))
# At most as slow as other people's.
_PEERS = ((("disadv_shared", "recycled_shared"), "nsl"),
          (_CONADV, "nsl_random_start"))
_FLOORS = (("vanilla", "floor_vanilla"), ("conadv_joined", "floor_conadv"))
_FLOOR, _FLOOR_MODEL = 1.03, "resnet20_b256"
_BOUND = 1.15
_GAIN = 1.95  # 2.0 to one decimal


@dataclasses.dataclass(frozen=True)
class Line:
  """One limit and what was measured.

  Attributes:
    what: regime, model and figure.
    limit: of the median.
    at_least: whether it is a lower limit.
    measured: the median.
    quartiles: of a ratio round by round, else ().
  """

  what: str
  limit: float
  at_least: bool
  measured: float
  quartiles: tuple[float, ...] = ()

  @property
  def met(self) -> bool:
    """Whether the median keeps to the limit."""
    return (self.measured >= self.limit if self.at_least
            else self.measured <= self.limit)


class _Seconds:
  """Times of one regime and model, by row."""

  def __init__(self, run: dict[str, Any]):
    self.title = f"{run['regime']}, {run['model']}"
    self._rows = {name: np.array(row["seconds"])
                  for name, row in run["rows"].items()}

  def fastest(self, names: Sequence[str]) -> str | None:
    """The measured one of these rows with the least median."""
    known = [name for name in names if name in self._rows]
    return min(known, key=lambda name: np.median(self._rows[name]),
               default=None)

  def line(self, above: Sequence[str], below: Sequence[str], limit: float,
           at_least: bool = False) -> Iterator[Line]:
    """The fastest of `above` over that of `below`, where both are there."""
    a, b = self.fastest(above), self.fastest(below)
    if a and b:
      low, median, high = figures.quartiles(self._rows[a] / self._rows[b])
      yield Line(f"{self.title}: {plan.ROWS[a]} / {plan.ROWS[b]}", limit,
                 at_least, median, (low, high))

  def lag_two(self, lag_one: str) -> Iterator[Line]:
    """Lag 2 over lag 1 and a copy of the weights."""
    if {"conadv_lag2", lag_one, "weight_copy"} <= set(self._rows):
      low, median, high = figures.quartiles(
          self._rows["conadv_lag2"]
          / (self._rows[lag_one] + self._rows["weight_copy"]))
      yield Line(f"{self.title}: ConAdv, lag 2 / (lag 1 + a copy)", 1.0,
                 False, median, (low, high))


def lines(report: dict[str, Any]) -> list[Line]:
  """All limits for which there are figures.

  Args:
    report: with "runs" and "schedules", see `benchmark_report`.
  """
  found: list[Line] = []
  for run in report["runs"]:
    seconds = _Seconds(run)
    if run["regime"] == plan.THROUGHPUT:
      for rows, limit in _THROUGHPUT:
        found += seconds.line(rows, (plan.REFERENCE,), limit)
      if run["model"] == _FLOOR_MODEL:
        for row, floor in _FLOORS:
          found += seconds.line((row,), (floor,), _FLOOR)
    elif run["regime"] == plan.LATENCY:
      for disadv, rows, limit in _LATENCY:
        found += seconds.line((disadv,), rows, limit, at_least=True)
      found += _bounds(seconds.title, run)
    for rows, peer in _PEERS:
      found += seconds.line(rows, (peer,), 1.0)
    form = plan.REGIMES[run["regime"]].training_pass
    found += seconds.lag_two(f"conadv_{form}")
  return found + list(_limits(report))


def _bounds(title: str, run: dict[str, Any]) -> Iterator[Line]:
  """The row of ours that is farthest from its own 2-processor bound."""
  ratios = {name: row["bound_ratio"] for name, row in run["rows"].items()
            if name not in plan.OTHERS and row.get("bound_ratio")}
  if ratios:
    worst = max(ratios, key=ratios.get)
    yield Line(f"{title}: time / 2-processor bound of {plan.ROWS[worst]}, the "
               "farthest row", _BOUND, False, ratios[worst])


def _limits(report: dict[str, Any]) -> Iterator[Line]:
  """ConAdv over DisAdv on processors without end, passes separate."""
  disadv, conadv = (benchmark_schedule.longest_chain(
      benchmark_schedule.pass_graph(f"{name}_separate"))
                    for name in ("disadv", "conadv"))
  yield Line("longest chains in F: DisAdv / ConAdv", _GAIN, True,
             disadv / conadv)
  for model, rows in report["schedules"].items():
    if {"disadv_separate", "conadv_separate"} <= set(rows):
      yield Line(
          f"longest chains of timed operations, {model}: DisAdv / ConAdv",
          _GAIN, True,
          rows["disadv_separate"]["chain"] / rows["conadv_separate"]["chain"])
