"""Step times, side by side.

    python -m tools.benchmark [--output=FILE.json] [--quick]
    python -m tools.benchmark scaling [--output=FILE.json] [--quick]

Without a verb all methods are measured beside each other, other libraries and
hand-written steps, on the same batch, in three regimes (--regimes):

  throughput  all cores for each operation, TensorFlow's default
  latency     one core for each operation, two at a time
  micro       as throughput, an update of four micro batches

on several models (--models). Each regime and model is a process of its own, one
after the other, in which all rows (--rows) run in turns, round by round, so
that a drift of the machine's speed hits all alike. What is quoted are medians
and, round by round, ratios to vanilla with their quartiles; docs/performance.md
explains every column. Progress goes to stderr, tables to stdout.

`scaling` measures 1 and 2 worker processes with a core each beside plain
Keras's, see tools/benchmark_scaling.py; --model, --batch_size and --steps are
for it alone, --regimes, --models and --rows for the other.
"""

from importlib import metadata
import json
import multiprocessing
import platform
import sys
import time
from typing import Any

from absl import flags

from conadv_tf import command_line, exits
from tools import benchmark_plan, figures

_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")
_QUICK = flags.DEFINE_bool(
    "quick", False, "Tiny models and few rounds, to see whether it works.")
_ROUNDS = flags.DEFINE_integer(
    "rounds", None, "Rounds after the warm-up; by default 15 for scaling, "
    "else as many as suit the model.", lower_bound=1)
_REGIMES = flags.DEFINE_list(
    "regimes", [], f"Some of {', '.join(benchmark_plan.REGIMES)}; else all.")
_MODELS = flags.DEFINE_list(
    "models", [], f"Some of {', '.join(benchmark_plan.MODELS)}; else all.")
_ROWS = flags.DEFINE_list(
    "rows", [], f"Some of {', '.join(benchmark_plan.ROWS)}; else all.")
_MODEL = flags.DEFINE_string("model", "resnet20", "A model for 32x32 images.")
_BATCH = flags.DEFINE_integer("batch_size", 64, "Clean examples a step of one "
                              "worker.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 2, "Steps of each row in a round.",
                              lower_bound=1)
_SCALING = {"rounds": 15}
_SCALING_QUICK = {"batch_size": 8, "model": "resnet8", "rounds": 2, "steps": 1}
_FOR_SCALING = ("model", "batch_size", "steps")
_FOR_STEPS = ("regimes", "models", "rows")
_PACKAGES = ("tensorflow", "keras", "numpy", "neural-structured-learning")


def main(verb: str) -> None:
  """Measures, prints tables and writes JSON."""
  with command_line.one_line_errors():
    _check(verb)
    if verb == "scaling":
      scaling()
    else:
      steps()


def _check(verb: str) -> None:
  from conadv_tf.config import InputError
  for name in _FOR_STEPS if verb == "scaling" else _FOR_SCALING:
    if flags.FLAGS[name].present:
      raise InputError(f"--{name} is for `python -m tools.benchmark"
                       f"{'' if verb == 'scaling' else ' scaling'}`")
  if _OUTPUT.value:
    command_line.check_output(_OUTPUT.value)


def scaling() -> None:
  """1 and 2 workers; TensorFlow is imported by these."""
  from tools import benchmark_scaling
  for name, value in (_SCALING_QUICK if _QUICK.value else _SCALING).items():
    flags.FLAGS.set_default(name, value)
  report = benchmark_scaling.run(benchmark_scaling.Settings(
      _MODEL.value, _BATCH.value, _ROUNDS.value, _STEPS.value))
  print(benchmark_scaling.tables(report))
  write(report)


def steps() -> None:
  """All rows; TensorFlow is imported by the processes."""
  from tools import benchmark_report
  jobs = benchmark_plan.jobs(
      quick=_QUICK.value, regimes=_REGIMES.value, models=_MODELS.value,
      rows=_ROWS.value, rounds=_ROUNDS.value)
  start, measured = time.monotonic(), []
  for number, job in enumerate(jobs, 1):
    def tell(message: str, number: int = number,
             job: benchmark_plan.Job = job) -> None:
      print(f"{time.monotonic() - start:6.0f} s  {number} of {len(jobs)}, "
            f"{job.title}: {message}", file=sys.stderr, flush=True)

    measured.append((job, run(job, tell)))
    tell(benchmark_report.progress(measured[-1][1]))
  report = benchmark_report.report(measured)
  print(benchmark_report.tables(report))
  write({"versions": {name: metadata.version(name) for name in _PACKAGES},
         "python": platform.python_version(),
         "minutes": (time.monotonic() - start) / 60, **report})


def run(job: benchmark_plan.Job, tell: Any) -> dict[str, Any]:
  """Measures in a process of its own.

  Args:
    job: what.
    tell: gets messages of progress.

  Raises:
    exits.Stop: if that process fails.
  """
  from tools import benchmark_child

  # A new interpreter each: TensorFlow survives no fork.
  spawn = multiprocessing.get_context("spawn")
  ours, theirs = spawn.Pipe(duplex=False)
  process = spawn.Process(target=benchmark_child.serve, args=(theirs, job))
  process.start()
  theirs.close()
  try:
    while True:
      message = ours.recv()
      if isinstance(message, dict):
        return message
      tell(message)
  except EOFError as error:
    raise exits.Stop(f"the process for {job.title} has ended; it says why "
                     "above") from error
  finally:
    process.kill()
    process.join()


def write(report: dict[str, Any]) -> None:
  """Writes the figures where --output says."""
  if _OUTPUT.value:
    with open(_OUTPUT.value, "w", encoding="utf-8") as file:
      json.dump({**figures.machine(), **report}, file, indent=2)


if __name__ == "__main__":
  # Flags come after the verb.
  given = sys.argv.pop(1) if sys.argv[1:2] == ["scaling"] else ""
  command_line.start(lambda: main(given))
