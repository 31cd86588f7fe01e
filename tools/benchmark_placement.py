"""What extra processors are worth: `python -m tools.benchmark_placement`.

    python -m tools.benchmark_placement [--output=FILE.json] [--quick]
        [--rate=100mbit]

Real worker processes of MultiWorkerMirroredStrategy over loopback, with one
TensorFlow thread of each kind and a core each (where there are fewer cores
than workers some share one, which is said). All are started once and measured
in turns, round by round, with the same model and batch a worker that trains:

  vanilla, together  plain training, ConAdv (lag 1) whose workers train and
                     attack: 1 worker, 2 workers, and 2 that know nothing of
                     each other (the slower one counts)
  split              ConAdv with one worker more that only attacks: 1 + 1, 2 + 1

ConAdv's attack does not wait for the all-reduce, so it may hide it: what the
all-reduce adds to a step of 2 workers, over 2 independent ones, is given for
ConAdv and for vanilla training, which has nothing to hide it with.

--rate measures everything a second time over a loopback of that speed. All
traffic shares it. It needs root, `unshare`, `ip` and `tc`; the whole program
then runs in a network namespace of its own.
"""

from collections.abc import Callable, Sequence
import contextlib
import json
import os
import platform
import sys
from typing import Any, NamedTuple

from absl import flags
import numpy as np

from conadv_tf import command_line
from tools.scaling_worker import CONADV, Place, SPLIT, VANILLA, Work

_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")
_QUICK = flags.DEFINE_bool(
    "quick", False, "A tiny model and few rounds, to see whether it works.")
_RATE = flags.DEFINE_string("rate", None, "Of a slower loopback, as tc has it.")
_MODEL = flags.DEFINE_string("model", "resnet20", "A model for 32x32 images.")
_BATCH = flags.DEFINE_integer("batch_size", 64, "Clean examples a step of one "
                              "worker that trains.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 15, "After the warm-up.",
                               lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 2, "Steps of each column in a round.",
                              lower_bound=1)
_QUICKLY = {"model": "resnet8", "batch_size": 8, "rounds": 2, "steps": 1}
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
      "ratios": {f"{a} / {b}": _spread(arrays[a] / arrays[b])
                 for a, b in RATIOS},
      "all_reduce_adds": {row: _spread(v) for row, v in added.items()},
      "hidden_share": hidden}


def _spread(values: np.ndarray) -> dict[str, float]:
  low, median, high = np.percentile(values, [25, 50, 75]).tolist()
  return {"low": low, "median": median, "high": high}


def tables(report: dict[str, Any]) -> str:
  """The figures as Markdown, with quartiles in brackets."""
  parts = [
      f"{report['model']}, {report['batch_size']} examples a worker that "
      f"trains, {report['rounds']} rounds of {report['steps']} steps, "
      f"gradients of {report['gradient_bytes']:,} bytes; cores of 2 workers "
      f"{report['cores']['pair']}, of 3 {report['cores']['trio']}."]
  for link, figures in report["links"].items():
    lines = [f"| {link} | ratio |", "| --- | --- |"]
    lines += [f"| {name} | {_quartiles(spread, 1)} |"
              for name, spread in figures["ratios"].items()]
    added, hidden = figures["all_reduce_adds"], figures["hidden_share"]
    share = ("not to be seen" if hidden is None
             else f"ConAdv hides {hidden:.0%} of it")
    parts += ["\n".join(lines), "; ".join(
        f"{name} {seconds * 1e3:,.1f} ms"
        for name, seconds in figures["seconds"].items()) + ".",
        "The all-reduce adds, in ms, to vanilla "
        f"{_quartiles(added['vanilla'], 1e3)}, to ConAdv "
        f"{_quartiles(added['together'], 1e3)}: {share}."]
  return "\n\n".join(parts)


def _quartiles(spread: dict[str, float], unit: float) -> str:
  low, median, high = (
      f"{spread[key] * unit:.3f}" for key in ("low", "median", "high"))
  return f"{median} [{low}, {high}]"


def main() -> None:
  """Measures, prints tables and writes JSON."""
  with command_line.one_line_errors():
    from tools import slow_link  # imports TensorFlow, which talks at once
    if _OUTPUT.value:
      command_line.check_output(_OUTPUT.value)
    rate = _RATE.value
    if rate:
      slow_link.check(rate)
      slow_link.enter("tools.benchmark_placement", sys.argv[1:])
    if _QUICK.value:
      for name, value in _QUICKLY.items():
        flags.FLAGS.set_default(name, value)
    links = [LOOPBACK, rate] if rate else [LOOPBACK]

    def choose(link: str) -> None:
      if rate:
        slow_link.throttle(None if link == LOOPBACK else link)

    settings = {"batch_size": _BATCH.value, "rounds": _ROUNDS.value,
                "steps": _STEPS.value}
    with contextlib.ExitStack() as stack:
      clusters = Clusters(_MODEL.value, stack)
      times = measure(clusters.seconds, links=links, choose=choose, **settings)
    report = {
        "model": _MODEL.value, **settings, "cores": clusters.cores,
        "gradient_bytes": clusters.gradient_bytes, "seconds": times,
        "links": {link: summarise(times[link]) for link in links}}
    print(tables(report))
    if _OUTPUT.value:
      machine = {"machine": platform.processor() or platform.machine(),
                 "machine_cores": os.cpu_count()}
      with open(_OUTPUT.value, "w", encoding="utf-8") as file:
        json.dump({**machine, **report}, file, indent=2)


if __name__ == "__main__":
  command_line.start(main)
