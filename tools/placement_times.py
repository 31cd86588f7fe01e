"""Turns and figures of `python -m tools.benchmark_placement`; no flags."""

from collections.abc import Callable, Sequence
import contextlib
import os
import sys
from typing import Any, NamedTuple

import numpy as np

from tools import figures
from tools.scaling_worker import CONADV, Place, SPLIT, VANILLA, Work

LOOPBACK = "loopback"

# Seconds by column, one a round.
Times = dict[str, list[float]]


class Column(NamedTuple):
  """What is timed: some workers at a row of the scaling benchmark."""

  name: str
  cluster: str  # of `Clusters`
  row: str


COLUMNS = (
    Column("vanilla 1", "single", VANILLA),
    Column("together 1", "single", CONADV),
    Column("split 1+1", "pair", SPLIT),
    Column("vanilla 2", "pair", VANILLA),
    Column("together 2", "pair", CONADV),
    Column("split 2+1", "trio", SPLIT),
    Column("vanilla, 2 alone", "beside", VANILLA),
    Column("together, 2 alone", "beside", CONADV),
)
# Of steps with as many workers that train.
RATIOS = (
    ("together 1", "vanilla 1"), ("split 1+1", "vanilla 1"),
    ("split 1+1", "together 1"), ("together 2", "vanilla 2"),
    ("split 2+1", "vanilla 2"), ("split 2+1", "together 2"),
)


class Clusters:
  """Workers in groups of 1, 1, 2 and 3, on as many cores as there are."""

  def __init__(self, model: str, stack: contextlib.ExitStack):
    """Starts all; `stack` ends them."""
    from conadv_tf.distribute import ports
    from tools import scaling_clusters
    cores = sorted(os.sched_getaffinity(0))
    addresses = iter(f"127.0.0.1:{port}" for port in ports.choose(7))
    self.cores: dict[str, list[int]] = {}
    self._groups = {}
    for name, size, first in (("single", 1, 0), ("neighbour", 1, 1),
                              ("pair", 2, 0), ("trio", 3, 0)):
      workers = tuple(next(addresses) for _ in range(size))
      self.cores[name] = [
          cores[(first + i) % len(cores)] for i in range(size)]
      group = scaling_clusters.Group(
          [Place(workers, i, core)
           for i, core in enumerate(self.cores[name])], model)
      stack.callback(group.close)
      self._groups[name] = group
    self.gradient_bytes = max(
        group.gradient_bytes() for group in self._groups.values())

  def seconds(self, cluster: str, work: Work, executions: int) -> float:
    """Seconds an execution, of the slowest worker."""
    if cluster != "beside":
      return self._groups[cluster].seconds(work, executions)
    both = [self._groups["single"], self._groups["neighbour"]]
    for group in both:
      group.send(work, executions)
    return max(answer for group in both for answer in group.receive())


def measure(seconds: Callable[[str, Work, int], float], *, batch_size: int,
            rounds: int, steps: int, links: Sequence[str],
            choose: Callable[[str], None]) -> dict[str, Times]:
  """Seconds a step of each link and column.

  Args:
    seconds: of a cluster, for some work and executions.
    batch_size: of a worker that trains.
    rounds: after the warm-up.
    steps: of each column in a round.
    links: names.
    choose: makes a link the one that is used.
  """
  times: dict[str, Times] = {
      link: {column.name: [] for column in COLUMNS} for link in links}
  for number in range(rounds + 1):
    # There and back, so that a steady drift favours no column and no link.
    turn = -1 if number % 2 else 1
    for link in links[::turn]:
      choose(link)
      for column in COLUMNS[::turn]:
        taken = seconds(column.cluster, Work(column.row, batch_size), steps)
        if number:
          times[link][column.name].append(taken)
    print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
  return times


def summarise(times: Times) -> dict[str, Any]:
  """Medians, ratios round by round with quartiles, and all-reduces."""
  arrays = {name: np.array(values) for name, values in times.items()}
  added = {row: arrays[f"{row} 2"] - arrays[f"{row}, 2 alone"]
           for row in ("vanilla", "together")}
  medians = {row: float(np.median(values)) for row, values in added.items()}
  hidden = (1 - medians["together"] / medians["vanilla"]
            if medians["vanilla"] > 0 else None)  # it was too fast to be seen
  return {
      "seconds": {n: float(np.median(v)) for n, v in arrays.items()},
      "ratios": {f"{a} / {b}": figures.spread(arrays[a] / arrays[b])
                 for a, b in RATIOS},
      "all_reduce_adds": {row: figures.spread(v) for row, v in added.items()},
      "hidden_share": hidden}


def tables(report: dict[str, Any]) -> str:
  """The figures as Markdown, with quartiles in brackets."""
  parts = [
      f"{report['model']}, {report['batch_size']} examples a worker that "
      f"trains, {report['rounds']} rounds of {report['steps']} steps, "
      f"gradients of {report['gradient_bytes']:,} bytes; cores of 2 workers "
      f"{report['cores']['pair']}, of 3 {report['cores']['trio']}."]
  for link, found in report["links"].items():
    ratios = [[name, _quartiles(spread, 1)]
              for name, spread in found["ratios"].items()]
    added, hidden = found["all_reduce_adds"], found["hidden_share"]
    share = ("not to be seen" if hidden is None
             else f"ConAdv hides {hidden:.0%} of it")
    parts += [figures.table([link, "ratio"], ratios), "; ".join(
        f"{name} {seconds * 1e3:,.1f} ms"
        for name, seconds in found["seconds"].items()) + ".",
        "The all-reduce adds, in ms, to vanilla "
        f"{_quartiles(added['vanilla'], 1e3)}, to ConAdv "
        f"{_quartiles(added['together'], 1e3)}: {share}."]
  return "\n\n".join(parts)


def _quartiles(spread: dict[str, float], unit: float) -> str:
  low, median, high = (
      f"{spread[key] * unit:.3f}" for key in ("low", "median", "high"))
  return f"{median} [{low}, {high}]"
