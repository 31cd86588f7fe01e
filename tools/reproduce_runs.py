"""The runs of a suite: tuning, training, evaluation; no flags."""

from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from conadv_tf import config as config_lib
from conadv_tf import exits
from conadv_tf.config import InputError
from tools import reproduce_data
from tools import reproduce_suite as suites

_DIVERGED = exits.Diverged.exit_code
PICTURE = "images.png"  # of a run, in its folder
# No figure of a run depends on them.
_OTHER_GROUPS = ("derived", "checkpoint", "mlperf")


@dataclasses.dataclass(frozen=True)
class Run:
  """One training.

  Attributes:
    way: that is trained.
    seed: of weights, order and attack.
    overrides: besides those of suite and way.
    path: its model_dir.
  """

  way: suites.Way
  seed: int
  overrides: tuple[str, ...]
  path: pathlib.Path

  @property
  def is_done(self) -> bool:
    """Whether it was trained to its end, or diverged."""
    return (self.path / "results.json").exists() or self.diverged

  @property
  def diverged(self) -> bool:
    """Whether it ended in weights that are not finite."""
    return (self.path / "diverged").exists()


class Runner:
  """Trains what is missing, several runs side by side."""

  def __init__(self, suite: suites.Suite, folder: pathlib.Path, jobs: int,
               say: Callable[[str], None] = print):
    """Keeps the arguments.

    Args:
      suite: that is run.
      folder: with what `reproduce_data` wrote, where the suite has data.
      jobs: runs side by side, each with its share of the cores.
      say: for progress.
    """
    self._suite = suite
    self._folder = folder
    self._jobs = jobs
    self._say = say

  def tuning_runs(self, way: suites.Way) -> list[Run]:
    """One run for each point of the way's grid."""
    if way.tuning is None:
      return []
    return [
        Run(way, way.tuning.seed, point,
            self._folder / way.name / f"tuning{number}")
        for number, point in enumerate(way.tuning.points())]

  def tuned(self, way: suites.Way) -> list[suites.Tried]:
    """What every point of the way's grid reached.

    Raises:
      InputError: if a run has no such figure.
    """
    tried = []
    for run in self.tuning_runs(way):
      value = None
      if not run.diverged:
        results = json.loads((run.path / "results.json").read_text())
        value = results.get(way.tuning.maximise)
        if value is None:
          raise InputError(f"tune: {run.path}/results.json has no "
                           f"{way.tuning.maximise}")
      tried.append(suites.Tried(run.overrides, value))
    return tried

  def chosen(self, way: suites.Way) -> tuple[str, ...]:
    """The best point of the grid; of equal ones the first.

    Raises:
      InputError: if every run diverged.
    """
    if way.like:
      return self.chosen(self._suite.ways[way.like])
    tried = [point for point in self.tuned(way) if point.value is not None]
    if way.tuning and not tried:
      raise InputError(f"way {way.name}: all its tuning runs diverged")
    return max(tried, key=lambda point: point.value).overrides if tried else ()

  def final_runs(self, ways: Sequence[suites.Way],
                 only: Sequence[int] | None = None) -> list[Run]:
    """Every way with its seeds; all tuning is done.

    Args:
      ways: which are trained.
      only: these of a way's own seeds, and for ways without own ones these in
        place of the suite's; None means all.
    """
    chosen = {way.name: self.chosen(way) for way in ways}
    own = {way.name: way.seeds or only or self._suite.seeds for way in ways}
    seeds = only or sorted({seed for found in own.values() for seed in found})
    return [Run(way, seed, chosen[way.name],
                self._folder / way.name / f"seed{seed}")
            for seed in seeds for way in ways
            if seed in own[way.name]]

  def run(self, runs: Sequence[Run], then: Callable[[Run], None]) -> None:
    """Trains all of them.

    Args:
      runs: those that are done are left alone, others resume.
      then: called after each, in its thread.

    Raises:
      InputError: if one that is done was trained with another configuration,
        before anything is trained; or if a training fails.
    """
    for run in runs:
      if run.is_done:
        self.check(run)
    total = sum(not run.is_done for run in runs)
    numbers = itertools.count(1)  # `next` of it needs no lock
    started = time.monotonic()

    def one(run: Run) -> None:
      if not run.is_done:
        self._train(run)
        self._report(run, next(numbers), total, time.monotonic() - started)
      then(run)

    with concurrent.futures.ThreadPoolExecutor(self._jobs) as pool:
      futures = [pool.submit(one, run) for run in runs]
      try:
        for future in concurrent.futures.as_completed(futures):
          future.result()
      except BaseException:
        pool.shutdown(cancel_futures=True)
        raise

  def _report(self, run: Run, done: int, total: int, seconds: float) -> None:
    left = seconds / done * (total - done)
    state = " diverged" if run.diverged else ""
    self._say(f"[{done}/{total}] {run.path.relative_to(self._folder)}{state}"
              f"; about {left / 60:.0f} min left")

  def _files(self, run: Run) -> list[str]:
    return [*self._suite.config, *run.way.config]

  def _overrides(self, run: Run) -> list[str]:
    overrides = [*self._suite.overrides, *run.way.overrides, *run.overrides,
                 f"seed={run.seed}"]
    if run.way.workers > 1:
      overrides.insert(0, "runtime.strategy=multi_worker_mirrored")
    if self._suite.data:
      train, _ = reproduce_data.places(self._suite.data, self._folder)
      overrides.append(f"data.path={train}")
      if self._suite.data.task:
        overrides.append(f"text.task={self._suite.data.task}")
      else:
        overrides += reproduce_data.overrides(config_lib.load(
            self._files(run), overrides), self._folder)
    return overrides

  def command(self, run: Run) -> list[str]:
    """The training command."""
    command = [sys.executable, "-m", "conadv_tf.train",
               *(f"--config_file={path}" for path in self._files(run)),
               *(f"--params_override={text}"
                 for text in self._overrides(run)),
               f"--model_dir={run.path}"]
    if run.way.workers > 1:
      return [sys.executable, "-m", "tools.local_cluster",
              f"--workers={run.way.workers}", "--", *command]
    return command

  def check(self, run: Run) -> None:
    """Compares a run's params.yaml with what its command would now give.

    Raises:
      InputError: if a key differs, but for the place of the suite's data, and
        what the command leaves to the machine (the number of replicas) and to
        a published checkpoint (the network's sizes).
    """
    before, now = (dict(config_lib.flatten(config.as_dict())) for config in (
        config_lib.load([str(run.path / "params.yaml")]),
        config_lib.load(self._files(run), self._overrides(run))))
    for key, value in now.items():
      if (key.partition(".")[0] in _OTHER_GROUPS or value == before[key]
          or (key == "data.path" and self._suite.data)
          or (key == "runtime.num_replicas" and value is None)
          or (key == "model.args" and now["model.initial_weights"]
              and (value or {}).items() <= (before[key] or {}).items())):
        continue
      raise InputError(
          f"{run.path} was trained with {key}={json.dumps(before[key])}, not "
          f"with {key}={json.dumps(value)} as it would be now; move it away, "
          "or name another --output")

  def _train(self, run: Run) -> None:
    code = self.call(self.command(run), pathlib.Path(f"{run.path}.log"),
                     run.way.workers)
    if code == _DIVERGED:
      (run.path / "diverged").touch()
    elif code:
      raise InputError(_ended(run.path, code, f"{run.path}.log"))

  def call(self, command: Sequence[str], log: pathlib.Path,
           processes: int = 1) -> int:
    """Runs a command with its share of the cores; returns its exit code."""
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // (self._jobs * processes)))
    with open(log, "a", encoding="utf-8") as file:
      file.write(" ".join(command) + "\n")
      file.flush()
      return subprocess.run(
          command, stdout=file, stderr=file, check=False,
          env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ,
               "TF_NUM_INTRAOP_THREADS": threads,
               "TF_NUM_INTEROP_THREADS": threads}).returncode

  def evaluate(self, run: Run) -> None:
    """The figures of the end, once, a JSON file for each evaluation.

    Raises:
      InputError: if that fails.
    """
    for evaluation in self._suite.evaluations:
      target = run.path / f"{evaluation.name}.json"
      if (run.diverged or target.exists()
          or not evaluation.is_of(run.way.name, run.seed)):
        continue
      command = [sys.executable, "-m", "conadv_tf.evaluate",
                 f"--model_dir={run.path}", f"--output={target}",
                 *evaluation.flags]
      if self._suite.data:
        _, final = reproduce_data.places(self._suite.data, self._folder)
        command.append(f"--data_path={final}")
      self._follow(run, command, f"the evaluation {evaluation.name}")

  def picture(self, run: Run) -> None:
    """Draws the run's adversarial images into images.png, once.

    Raises:
      InputError: if that fails.
    """
    target = run.path / PICTURE
    if run.diverged or target.exists():
      return
    command = [sys.executable, "-m", "tools.picture", "--images_only",
               "--images=8", f"--model_dir={run.path}", f"--output={target}"]
    if self._suite.data:
      train, _ = reproduce_data.places(self._suite.data, self._folder)
      command.append(f"--data_path={train}")
    self._follow(run, command, "the picture")

  def _follow(self, run: Run, command: Sequence[str], what: str) -> None:
    """Runs what follows a training, its output behind the training's."""
    log = pathlib.Path(f"{run.path}.log")
    code = self.call(command, log)
    if code:
      raise InputError(_ended(f"{what} of {run.path}", code, log))

  def check_pictures(self, run: Run) -> None:
    """Raises InputError where the run will make no adversarial images."""
    config = config_lib.load(self._files(run), self._overrides(run))
    if not config_lib.attacks_images(config):
      raise InputError(f"pictures: way {run.way.name} makes no adversarial "
                       "images; leave it out")


def _ended(what: object, code: int, log: str | os.PathLike[str]) -> str:
  """One line for a command that failed; its own last one says why."""
  lines = []
  if os.path.exists(log):
    with open(log, encoding="utf-8", errors="replace") as file:
      lines = file.read().split("\n")
  last = next((line.strip() for line in reversed(lines) if line.strip()), "")
  return (f"{what} ended with code {code}, see {log}"
          + (f": {last.removeprefix('error: ')}" if last else ""))


def config_hash(config: Mapping[str, Any]) -> str:
  """12 hexadecimal digits of all keys but the two that say where files lie."""
  places = ("data.path", "model.initial_weights")
  keys = [(key, value) for key, value in config_lib.flatten(config)
          if key not in places]
  return hashlib.sha256(json.dumps(
      keys, sort_keys=True, default=str).encode()).hexdigest()[:12]


def figures_of(run: Run, evaluations: Sequence[suites.Evaluation]
               ) -> dict[str, Any] | None:
  """All that a run left: results.json, and every evaluation.

  Returns:
    None for a run that diverged. The keys of an evaluation have its name in
    place of `validation`, or in front; certified accuracies become one key for
    each radius, `NAME/certified_accuracy@0.25`.
  """
  if run.diverged:
    return None
  found = json.loads((run.path / "results.json").read_text())
  for evaluation in evaluations:
    if not evaluation.is_of(run.way.name, run.seed):
      continue
    figures = json.loads((run.path / f"{evaluation.name}.json").read_text())
    for key, value in figures.items():
      found[f"{evaluation.name}/{key.removeprefix('validation/')}"] = value
    certified = figures.get("certified/certified_accuracy", ())
    for radius, value in zip(figures.get("certified/radii", ()), certified):
      found[f"{evaluation.name}/certified_accuracy@{radius:g}"] = value
  return found
