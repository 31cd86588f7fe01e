r"""Runs a suite and reports: `python -m tools.reproduce --suite=NAME`.

    python -m tools.reproduce --suite=dat-cifar10 --data=cifar10.npz \
        --output=DIR [--seeds=0,1,2] [--budget=NAME] [--only=WAY,WAY] \
        [--jobs=2] [--set=key=value]

A suite is a file under suites/: ways of training, each a few overrides of a
configuration, what is tuned on a validation split with the same grid for
every way, and the tables and figures to draw. First the tuning runs, then each
way with each seed, then its figures on the test split, once. What is done is
left alone, what was interrupted resumes. Writes into DIR

    report.md, report.html  tables and figures, beside the paper's numbers
    results.json            all figures of all runs
    figure*.png, images*.png
    benchmark.json          times of steps, where the suite measures them
    WAY/seed*/              the runs
"""

from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
import platform
import shlex
import shutil
import sys
from typing import Any

from absl import flags

from conadv_tf import command_line
from conadv_tf.config import InputError
from tools import (
  figures,
  reproduce_data,
  reproduce_report,
  reproduce_runs,
  reproduce_speed,
)
from tools import reproduce_suite as suites

_SUITE = flags.DEFINE_string("suite", None, "Name under suites/, or a file.")
_DATA = flags.DEFINE_string(
    "data", None, "An .npz file or a GLUE folder, where it needs one.")
_EXAMPLES = flags.DEFINE_list(
    "examples", [], "TRAIN,VALIDATION,TEST of --data in place of the suite's.")
_SET = flags.DEFINE_multi_string(
    "set", [], "key=value for every way, after the suite's; may be repeated.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of runs and report.")
_SEEDS = flags.DEFINE_list("seeds", [], "Default: those of the suite.")
_BUDGET = flags.DEFINE_string("budget", None, "One of the suite's budgets.")
_ONLY = flags.DEFINE_list("only", [], "Some of the ways; default: all.")
_JOBS = flags.DEFINE_integer(
    "jobs", 1, "Runs side by side, which share the cores.", lower_bound=1)
_BENCHMARK = flags.DEFINE_bool(
    "benchmark", True, "Measure the speed of a step, where the suite does.")


def main() -> None:
  """Runs what is missing, writes the report and prints it."""
  with command_line.one_line_errors():
    if not (_SUITE.value and _OUTPUT.value):
      raise InputError("--suite and --output are needed; suites are "
                       f"{', '.join(suites.names())}")
    suite = suites.load(_SUITE.value, _BUDGET.value, _SET.value)
    seeds = command_line.numbers(_SEEDS, int)
    ways = _ways(suite)
    if not suite.data and (_DATA.value or _EXAMPLES.value):
      raise InputError(
          f"--{'data' if _DATA.value else 'examples'}: the suite {suite.name} "
          "takes no file: its runs use the data of their configuration")
    folder = pathlib.Path(_OUTPUT.value).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if suite.data:
      suite = _sized(suite)
      reproduce_data.prepare(
          suite.data, _DATA.value and pathlib.Path(_DATA.value), folder)
    runner = reproduce_runs.Runner(
        suite, folder, _JOBS.value, lambda text: print(text, flush=True))
    tuning = [run for way in _tuned(suite, ways)
              for run in runner.tuning_runs(way)]
    if tuning:
      print(f"{_count(tuning, 'run')} of tuning", flush=True)
      runner.run(tuning, lambda run: None)
    runs = runner.final_runs(ways, seeds)
    pictured = _pictured(suite.pictures, runs)
    for run in pictured:
      runner.check_pictures(run)
    numbers = sorted({run.seed for run in runs})
    print(f"{_count(runs, 'run')}: {_count(ways, 'way')}, "
          f"seed{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}",
          flush=True)
    runner.run(runs, runner.evaluate)
    for run in pictured:
      runner.picture(run)
    if suite.benchmark and _BENCHMARK.value:
      print("Measuring the speed of a step; let nothing else run", flush=True)
      reproduce_speed.measure(suite.benchmark, folder, reproduce_runs.Runner(
          suite, folder, 1).call)
    print(_report(suite, runner, runs, folder))
    print(f"Report: {folder / 'report.html'}")


def _count(things: Sequence[Any], name: str) -> str:
  return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def _sized(suite: suites.Suite) -> suites.Suite:
  """The suite with as many examples as --examples says."""
  if not _EXAMPLES.value:
    return suite
  try:
    train, validation, test = map(int, _EXAMPLES.value)
    if min(train, validation, test) < 1:
      raise ValueError
  except ValueError as error:
    raise InputError(f"--examples={','.join(_EXAMPLES.value)}: three whole "
                     "numbers above 0, TRAIN,VALIDATION,TEST") from error
  return dataclasses.replace(suite, data=dataclasses.replace(
      suite.data, train=train, validation=validation, test=test))


def _ways(suite: suites.Suite) -> list[suites.Way]:
  for name in _ONLY.value:
    if name not in suite.ways:
      raise InputError(
          f"--only={name}: known are {', '.join(suite.ways)}")
  return [suite.ways[name] for name in _ONLY.value or suite.ways]


def _tuned(suite: suites.Suite, ways: list[suites.Way]) -> list[suites.Way]:
  """Those whose tuning these ways need, each once."""
  needed = {}
  for way in ways:
    while way.like:
      way = suite.ways[way.like]
    needed[way.name] = way
  return list(needed.values())


def _pictured(specs: list[dict[str, Any]], runs: list[reproduce_runs.Run]
              ) -> list[reproduce_runs.Run]:
  """Those whose adversarial images are shown."""
  wanted = {(way, spec["seed"]) for spec in specs for way in spec["ways"]}
  return [run for run in runs if (run.way.name, run.seed) in wanted]


def _report(suite: suites.Suite, runner: reproduce_runs.Runner,
            runs: list[reproduce_runs.Run], folder: pathlib.Path) -> str:
  from conadv_tf.training import run_directory
  results: dict[str, dict[int, Any]] = {}
  histories: dict[str, list[dict[str, Any]]] = {}
  positions: dict[str, dict[str, float]] = {}
  images: dict[str, list[float]] = {}
  keys = {spec["x"] for spec in suite.figures if "." in spec["x"]}
  for run in runs:
    name = run.way.name
    results.setdefault(name, {})[run.seed] = reproduce_runs.figures_of(
        run, suite.evaluations)
    directory = run_directory.RunDirectory(str(run.path))
    histories.setdefault(name, []).extend(directory.metrics())
    config = directory.saved_config().as_dict()
    if not run.diverged:
      results[name][run.seed]["config_hash"] = reproduce_runs.config_hash(
          config)
      images.setdefault(name, []).append(
          results[name][run.seed]["step"] * config["data"]["global_batch_size"])
    for key in keys:
      group, leaf = key.split(".")
      positions.setdefault(key, {})[name] = config[group][leaf]
  tuned = {way.name: runner.tuned(way) for way in _tuned(
      suite, [suite.ways[name] for name in results]) if way.tuning}
  more = _pictures(suite, runs, folder)
  if suite.benchmark:
    more.append(("Speed of a step", reproduce_speed.section(
        suite.benchmark, reproduce_speed.read(folder), images)))
  return reproduce_report.write(
      _described(suite), results, histories, positions, _facts(), tuned,
      folder, more)


def _described(suite: suites.Suite) -> suites.Suite:
  """The suite, whose text also says what this command changed in it."""
  changed = [f"`{_without_folder(text)}`" for text in suite.changed]
  if _EXAMPLES.value:
    changed.append("{} examples to train, {} to validate and {} to test "
                   "on".format(*_EXAMPLES.value))
  if not changed:
    return suite
  return dataclasses.replace(suite, about=(
      f"{suite.about.strip()}\n\n**Set for every run of this report, whatever "
      f"stands above:** {'; '.join(changed)}."))


def _pictures(suite: suites.Suite, runs: list[reproduce_runs.Run],
              folder: pathlib.Path) -> list[tuple[str, str]]:
  """Titles and texts of the sections that show adversarial images."""
  sections = []
  for spec in suite.pictures:
    parts = [spec.get("about", "").strip()]
    for run in _pictured([spec], runs):
      name = f"images_{run.way.name}_{run.seed}.png"
      if run.diverged:
        parts.append(f"{run.way.name} diverged.")
      else:
        shutil.copy(run.path / reproduce_runs.PICTURE, folder / name)
        parts += [f"{run.way.name}, seed {run.seed}:",
                  f"![{run.way.name}]({name})"]
    sections.append((spec["title"], "\n\n".join(filter(None, parts))))
  return sections


def _facts() -> dict[str, Any]:
  """What made the figures; of paths the last names only."""
  arguments = [f"--suite={pathlib.Path(_SUITE.value).stem}", *(
      _without_folder(text) for text in sys.argv[1:]
      if not text.startswith("--suite="))]
  return {
      "command": shlex.join(["python", "-m", "tools.reproduce", *arguments]),
      "versions": json.dumps(figures.versions()),
      "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
  }


def _without_folder(argument: str) -> str:
  """`--set=key=/folder/name` as `--set=key=name`."""
  before, equals, value = argument.rpartition("=")
  return before + equals + (
      pathlib.Path(value).name if os.path.exists(value) else value)


if __name__ == "__main__":
  command_line.start(main)
