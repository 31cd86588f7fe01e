"""Throughput and training times of a suite's methods; no flags.

A suite's `benchmark`:

    benchmark:
      flags: [--regimes=throughput, --models=resnet20_b64,
              "--rows=vanilla,disadv_separate,conadv_joined", --rounds=5]
      ways: {vanilla_512: vanilla, conadv_512: conadv_joined}
      paper: {disadv_separate: 1.39}     # its time over vanilla's
      about: Text above the tables.

`flags` are those of `python -m tools.benchmark`, which runs once, when nothing
else does. `ways` says which of its rows a way's training is: the time of a run
is then the images that it trains on times the row's measured time per image.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import pathlib
import statistics
import sys
from typing import Any

from conadv_tf.config import InputError
from tools import benchmark_plan, figures

FILE = "benchmark.json"
# A `Runner.call`.
Call = Callable[[Sequence[str], pathlib.Path], int]


def measure(spec: Mapping[str, Any], folder: pathlib.Path, call: Call) -> None:
  """Runs the benchmark, unless its figures are there.

  Args:
    spec: the suite's `benchmark`.
    folder: receives benchmark.json.
    call: runs a command with all cores, its output into a file.

  Raises:
    InputError: if it fails, or what is there was measured with other flags.
  """
  target, flags = folder / FILE, list(spec["flags"])
  if target.exists():
    found = json.loads(target.read_text(encoding="utf-8"))["flags"]
    if found != flags:
      raise InputError(f"{target} was measured with {' '.join(found)}, not "
                       f"with {' '.join(flags)}; move it away")
    return
  raw, log = folder / "benchmark_raw.json", folder / "benchmark.log"
  code = call([sys.executable, "-m", "tools.benchmark", f"--output={raw}",
               *flags], log)
  if code:
    raise InputError(f"the benchmark ended with code {code}, see {log}")
  report = json.loads(raw.read_text(encoding="utf-8"))
  raw.write_text(json.dumps({"flags": flags, **report}), encoding="utf-8")
  raw.replace(target)  # whole or not at all


def read(folder: pathlib.Path) -> dict[str, Any] | None:
  """What was measured; None where it was not."""
  path = folder / FILE
  return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def section(spec: Mapping[str, Any], found: Mapping[str, Any] | None,
            images: Mapping[str, Sequence[float]]) -> str:
  """Both tables in Markdown, with what they do not say.

  Args:
    spec: the suite's `benchmark`.
    found: of `read`.
    images: way -> images that each of its runs trained on.
  """
  if found is None:
    return "Not measured."
  parts = [spec.get("about", "").strip()]
  for run in found["runs"]:
    parts += [
        f"{run['regime']}, {run['model']}: batch {run['batch_size']} on "
        f"{found['cores']} cores of one machine ({found['machine']}), "
        f"{run['rounds']} rounds. Median [quartiles]; ratios are formed round "
        "by round. The paper's figures are of TPU pods with 64 images a core, "
        "where the attack runs beside the update: only ratios compare, and "
        "these only as far as the cores leave room.",
        throughput(spec, run)]
    if spec.get("ways"):
      parts += [
          "Training time: the images of a run times the measured time per "
          "image, without input, evaluation and checkpoints. It is that of "
          "the network and batch above, not of the run's own where they "
          "differ.",
          training_times(spec, run, images)]
  return "\n\n".join(part for part in parts if part)


def throughput(spec: Mapping[str, Any], run: Mapping[str, Any]) -> str:
  """A row for each method that was measured."""
  paper, rows = spec.get("paper", {}), []
  for name, row in run["rows"].items():
    low, median, high = (run["batch_size"] / s for s in row["quartiles"][::-1])
    rows.append([
        benchmark_plan.ROWS[name], figures.ms(row["quartiles"][1]),
        f"{median:,.0f} [{low:,.0f}, {high:,.0f}]",
        "{1:.2f} [{0:.2f}, {2:.2f}]".format(*row["ratio"]),
        *([f"{paper[name]:g}" if name in paper else ""] if paper else [])])
  return figures.table(
      ["step", "ms", "images/s", "time over vanilla's",
       *(["paper: the same"] if paper else [])], rows)


def training_times(spec: Mapping[str, Any], run: Mapping[str, Any],
                   images: Mapping[str, Sequence[float]]) -> str:
  """A row for each way that was trained; means over its runs."""
  rows = []
  for way, name in spec["ways"].items():
    if images.get(way) and name in run["rows"]:
      mean = statistics.mean(images[way])
      seconds = mean * run["rows"][name]["quartiles"][1] / run["batch_size"]
      rows.append([way, benchmark_plan.ROWS[name], f"{mean:,.0f}",
                   f"{seconds:,.1f}"])
  return figures.table(["way", "step", "images", "seconds"], rows)


def check(where: str, spec: Mapping[str, Any], ways: Mapping[str, Any]) -> None:
  """Raises InputError unless ways and rows are known."""
  for way in spec.get("ways", {}):
    if way not in ways:
      raise InputError(f"{where}: ways: {way} is no way")
  for row in (*spec.get("ways", {}).values(), *spec.get("paper", {})):
    if row not in benchmark_plan.ROWS:
      raise InputError(f"{where}: {row} is no row of the benchmark; known are "
                       f"{', '.join(benchmark_plan.ROWS)}")
