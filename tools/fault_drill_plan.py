"""What `tools.fault_drill` does to a job, and the table of what came of it."""

import dataclasses
import random
import signal
import statistics

_KINDS = {signal.SIGKILL: 0.7, signal.SIGTERM: 0.15, signal.SIGSTOP: 0.15}
_WHILE_STARTING = 0.2  # share of the faults
_START_SECONDS = 8.0  # a start takes about so long
UPDATES = 30  # for each fault


@dataclasses.dataclass
class Fault:
  """What is done to one worker, and what came of it.

  Attributes:
    kind: a signal.
    worker: that receives it.
    update: after which it does; None where workers start.
    delay: seconds after that update was seen, or after the start.
    stopped: seconds until no worker was left.
    trained: seconds until the next evaluation was made.
    code: of the worker that ended first.
  """

  kind: signal.Signals
  worker: int
  update: int | None
  delay: float
  stopped: float | None = None
  trained: float | None = None
  code: int | None = None


def plan(kills: int, seed: int, workers: int) -> list[Fault]:
  """Random faults, in their order."""
  generator = random.Random(seed)
  kinds = generator.choices(list(_KINDS), list(_KINDS.values()), k=kills)
  starting = [generator.random() < _WHILE_STARTING for _ in kinds]
  updates = iter(sorted(generator.sample(
      range(UPDATES // 2, UPDATES * kills), starting.count(False))))
  return [
      Fault(kind, generator.randrange(workers),
            None if starts else next(updates),
            generator.uniform(0, _START_SECONDS if starts else 1.0))
      for kind, starts in zip(kinds, starting)]


def table(faults: list[Fault]) -> str:
  """Markdown: how long it took, by kind and moment."""
  rows = ["| fault | how many | all stopped after, s (median, max) | trained "
          "again after, s (median, max) | codes of the first to end |",
          "|---|---|---|---|---|"]
  for kind in _KINDS:
    for starts in (False, True):
      group = [f for f in faults
               if f.kind == kind and (f.update is None) == starts]
      if group:
        times = [", ".join(f"{x:.1f}" for x in (statistics.median(t), max(t)))
                 for t in ([f.stopped for f in group],
                           [f.trained for f in group])]
        codes = ", ".join(map(str, sorted({f.code for f in group})))
        rows.append(f"| {kind.name}{' while starting' * starts} | {len(group)} "
                    f"| {times[0]} | {times[1]} | {codes} |")
  return "\n".join(rows)
