r"""Hurts a job of several workers at random and looks whether it minds.

    python -m tools.fault_drill --kills=50 [--seed=0] [--workers=2] \
        [--output=FILE.json]

trains a small job twice under `tools.local_cluster`: once unbroken, and once
with so many faults at random moments of random workers: mostly kill -9, else
SIGTERM to one worker, or SIGSTOP, which stands for a machine that has lost its
network. Four of five faults come while updates, evaluations or checkpoints are
made, the others while the workers start. Each time the launcher starts all
workers again. In the end every array of the last checkpoint and every line of
metrics.jsonl must be those of the unbroken run, bit for bit (but for what a
clock measured), else the exit code is 1.

A fault takes about 10 to 15 seconds, most of them for the start.
"""

import dataclasses
import json
import os
import pathlib
import sys
import tempfile
import time

from absl import flags

from conadv_tf import command_line
from conadv_tf.config import InputError
from tools import fault_drill_group, fault_drill_job, fault_drill_plan

_KILLS = flags.DEFINE_integer(
    "kills", 50, "How many faults there are.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of their kinds, moments and workers.")
_WORKERS = flags.DEFINE_integer(
    "workers", 2, "How many processes the job has.", lower_bound=2)
_OUTPUT = flags.DEFINE_string("output", None, "A JSON file for the result.")

_PATIENCE = 300.0  # seconds, until something is very wrong


def hurt(group: fault_drill_group.Group,
         faults: list[fault_drill_plan.Fault]) -> None:
  """Sends all faults, waiting for what comes of each.

  Raises:
    RuntimeError: if the job ends too early, or does not go on.
  """
  hurt_at, began = [], 0.0
  for number, fault in enumerate(faults, 1):
    if fault.update is None:
      time.sleep(max(0.0, began + fault.delay - time.monotonic()))
    else:
      group.wait_for_update(began, fault.update, _PATIENCE)
      time.sleep(fault.delay)
    pid = group.worker(fault.worker, _PATIENCE)
    now = time.monotonic()
    os.kill(pid, fault.kind)
    hurt_at.append(now)
    restart = group.wait_for_restart(now, _PATIENCE)
    began, fault.code = restart.seconds, restart.code
    fault.stopped = began - now
    print(f"{number} of {len(faults)}: {fault.kind.name} to worker "
          f"{fault.worker} " + (
              "while starting" if fault.update is None else
              f"after update {fault.update}") +
          f", all stopped after {fault.stopped:.1f} s", flush=True)
  for fault, now in zip(faults, hurt_at):
    restarted = now + fault.stopped
    fault.trained = group.wait_for_update(restarted, 1, _PATIENCE) - now


def _command(kills: int, model_dir: pathlib.Path) -> list[str]:
  return fault_drill_job.command(
      fault_drill_plan.UPDATES * (kills + 1), model_dir)


def drill(kills: int, seed: int, workers: int, folder: pathlib.Path
          ) -> dict[str, object]:
  """Runs both jobs and compares them.

  Args:
    kills: how many faults.
    seed: of their choice.
    workers: processes of the job.
    folder: for the two runs and their logs.

  Returns:
    What is written to --output.

  Raises:
    RuntimeError: if a job does not end as it should.
  """
  begin = time.monotonic()
  with fault_drill_group.Group(_command(kills, folder / "unbroken"), workers,
                           0, folder / "unbroken.log") as group:
    group.wait_for_end(_PATIENCE + kills * fault_drill_plan.UPDATES)
  unbroken = time.monotonic() - begin
  faults = fault_drill_plan.plan(kills, seed, workers)
  # A few more: under load a start may fail by itself.
  with fault_drill_group.Group(_command(kills, folder / "drilled"), workers,
                           kills + 5, folder / "drilled.log") as group:
    hurt(group, faults)
    group.wait_for_end(_PATIENCE + kills * fault_drill_plan.UPDATES)
    restarts = group.restarts
  print(fault_drill_plan.table(faults))
  return {
      "seed": seed, "workers": workers, "kills": kills, "restarts": restarts,
      "updates": fault_drill_plan.UPDATES * (kills + 1),
      "seconds_unbroken": unbroken,
      "seconds": time.monotonic() - begin - unbroken,
      "differences": fault_drill_job.differences(
          folder / "unbroken", folder / "drilled"),
      "faults": [{**dataclasses.asdict(f), "kind": f.kind.name}
                 for f in faults]}


def main() -> None:
  """Drills; exits with 1 where anything was lost."""
  with command_line.one_line_errors():
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fault_drill_"))
    print(f"runs and logs are in {folder}", flush=True)
    try:
      result = drill(_KILLS.value, _SEED.value, _WORKERS.value, folder)
    except RuntimeError as error:
      print(f"error: {error}; see the logs in {folder}", file=sys.stderr)
      sys.exit(1)
    if _OUTPUT.value:
      try:
        pathlib.Path(_OUTPUT.value).write_text(
            json.dumps(result, indent=2) + "\n", "utf-8")
      except OSError as error:
        raise InputError(f"--output={_OUTPUT.value}: {error}") from error
    differing = result["differences"]
    print(f"{result['restarts']} restarts; " + (
        f"DIFFERENT: {', '.join(differing)}" if differing else
        "the end is that of the unbroken run, bit for bit"))
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
  command_line.start(main)
