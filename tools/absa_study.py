r"""Compares ways of growing the batch on a part of CIFAR-10, over seeds.

    python -m tools.absa_study --data=cifar10.npz --output=DIR \
        [--seeds=0,1,2] [--only=bl_128,absa_2048] [--jobs=2]

trains each way for each seed (a command each, printed; those that are done are
left alone, others resume), and writes DIR/study.json and a table: the accuracy
on the test split, read once after each run, and how many updates it took. Runs
that diverge (exit code 3) are counted, and not in the means.

All train on 10,000 images that the seed 0 draws from the training split's first
45,000; the curves of training are those of its last 5,000. Settings are the
paper's, in configs/cifar10/absa_study.yaml; nothing is tuned.
"""

from collections.abc import Iterator
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from absl import flags
import numpy as np

from conadv_tf import command_line, exits
from conadv_tf.config import InputError
from tools import figures

_DATA = flags.DEFINE_string("data", None, "An .npz file of CIFAR-10.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the runs.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Of the runs.")
_ONLY = flags.DEFINE_list("only", [], "Some of the ways; default: all.")
_JOBS = flags.DEFINE_integer(
    "jobs", 1, "Runs side by side, one thread each.", lower_bound=1)

_CONFIG = "configs/cifar10/absa_study.yaml"
_TRAIN, _VALIDATION = 10000, 5000
_EPOCHS_OF_DECAY = "[4,8,10.67]"


def _baseline(ratio: int) -> tuple[str, ...]:
  # Micro batches of 128, as where the batch grows: the same ghost batches.
  return (f"data.global_batch_size={128 * ratio}",
          f"runtime.micro_batches={ratio}")


# The published counts of updates fit an evaluation every 65,536 samples, 69 in
# 90 epochs of 50,000; 1,792 of 120,000 (14 initial batches) make 66.
_CURVATURE = ("growth.name=curvature", "growth.max_batch_size=2048",
              "curvature.every_samples=1792")
_ABSA = (*_CURVATURE, "method.name=absa", "method.lag=0",
         "attack.radius=1.275", "method.gamma=0.2", "method.gamma_epochs=6")
# Watched once an epoch, on the same examples; training is the same bits.
_WATCHED = ("curvature.monitor=true",)
WAYS: dict[str, tuple[str, ...]] = {
    "bl_128": _WATCHED,
    "bl_128_block": (*_WATCHED, "curvature.last_layers=2"),
    "bl_512": _baseline(4),
    "bl_2048": _baseline(16),
    "fb_2048": (*_baseline(16), "schedule.peak_lr=1.6",
                "schedule.warmup_epochs=1"),
    "gg_2048": ("growth.name=scheduled", "growth.max_batch_size=2048",
                "growth.factor=5", f"growth.epochs={_EPOCHS_OF_DECAY}"),
    "abs_2048": _CURVATURE,
    "absa_2048": _ABSA,
    "absa_2048_block": (*_ABSA, "curvature.last_layers=2"),
}


@dataclasses.dataclass(frozen=True)
class Run:
  """One training.

  Attributes:
    way: a key of WAYS.
    seed: of weights, order and attack.
    path: its model_dir.
  """

  way: str
  seed: int
  path: pathlib.Path


def split(data: pathlib.Path, folder: pathlib.Path) -> None:
  """Writes `train.npz`, whose test split is of training images.

  Args:
    data: has x_train uint8 [50000, 32, 32, 3] and y_train.
    folder: receives the file.
  """
  with np.load(data) as arrays:
    images, labels = arrays["x_train"], arrays["y_train"]
  rest = len(images) - _VALIDATION
  chosen = np.random.default_rng(0).permutation(rest)[:_TRAIN]
  np.savez(folder / "train.npz", x_train=images[chosen],
           y_train=labels[chosen], x_test=images[rest:], y_test=labels[rest:])


def main() -> None:
  """Trains what is missing, evaluates, writes the table."""
  with command_line.one_line_errors():
    if not (_DATA.value and _OUTPUT.value):
      raise InputError("--data and --output are needed")
    unknown = [way for way in _ONLY.value if way not in WAYS]
    if unknown:
      raise InputError(f"--only={unknown[0]}: known are {', '.join(WAYS)}")
    folder = pathlib.Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "train.npz").exists():
      split(pathlib.Path(_DATA.value), folder)
    with concurrent.futures.ThreadPoolExecutor(_JOBS.value) as pool:
      ended = dict(zip(_runs(folder), pool.map(_train, _runs(folder)),
                       strict=True))
    results = {}
    for run, is_whole in ended.items():
      results.setdefault(run.way, {})[run.seed] = (
          _figures(run) if is_whole else None)
    (folder / "study.json").write_text(json.dumps(results, indent=2))
    print(table(results))


def _runs(folder: pathlib.Path) -> Iterator[Run]:
  for seed in map(int, _SEEDS.value):
    for way in _ONLY.value or WAYS:
      yield Run(way, seed, folder / f"{way}_seed{seed}")


def _train(run: Run) -> bool:
  """Trains, or resumes, with one thread.

  Returns:
    False if the run diverged.

  Raises:
    InputError: if it ended otherwise.
  """
  if (run.path / "results.json").exists():
    return True
  command = [sys.executable, "-m", "conadv_tf.train",
             f"--config_file={_CONFIG}", f"--model_dir={run.path}",
             f"--params_override=seed={run.seed}",
             f"--params_override=data.path={run.path.parent / 'train.npz'}",
             *(f"--params_override={text}" for text in WAYS[run.way])]
  print(" ".join(command), flush=True)
  threads = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
  with open(f"{run.path}.log", "a", encoding="utf-8") as log:
    code = subprocess.run(command, stdout=log, stderr=log,
                          env={**os.environ, **threads}).returncode
  if code not in (0, exits.Diverged.exit_code):
    raise InputError(f"{run.path} ended with code {code}, see {log.name}")
  return not code


def _figures(run: Run) -> dict[str, Any]:
  """Of the test split once, and of the run."""
  path = run.path / "test.json"
  if not path.exists():
    path.write_text(json.dumps(_test(run), indent=2))
  results = json.loads((run.path / "results.json").read_text())
  return {**json.loads(path.read_text()),
          **{key: results[key] for key in (
              "step", "updates", "seconds", "train/loss",
              "validation/accuracy") if key in results}}


def _test(run: Run) -> dict[str, float]:
  """Loss and accuracy on the 10,000 test images."""
  from conadv_tf import runs  # TensorFlow only where it is needed
  with np.load(_DATA.value) as arrays:
    images, labels = arrays["x_test"], arrays["y_test"]
  experiment, _ = runs.restore(str(run.path))
  figures_ = experiment.trainer.evaluate(
      images, labels, batch_size=1000, verbose=0, return_dict=True)
  return {f"test/{key}": value for key, value in figures_.items()}


def table(results: dict[str, dict[int, dict[str, float] | None]]) -> str:
  """Markdown: accuracy in %, mean and deviation over the seeds, updates.

  Args:
    results: by way and seed; None for a run that diverged.
  """
  rows = []
  for way, of_seed in results.items():
    runs_ = [found for found in of_seed.values() if found]
    if len(runs_) < len(of_seed):
      way += f" ({len(of_seed) - len(runs_)} diverged)"
    if not runs_:
      rows.append([way, "0", *["-"] * 4])
      continue
    test, validation = (
        100 * np.array([r[key] for r in runs_])
        for key in ("test/accuracy", "validation/accuracy"))
    updates = [r.get("updates", r["step"]) for r in runs_]
    rows.append([
        way, str(len(runs_)), *(
            f"{x.mean():.2f} ± {x.std(ddof=1):.2f}" if len(x) > 1 else
            f"{x[0]:.2f}" for x in (test, validation)),
        ", ".join(f"{n:,}" for n in sorted(updates)),
        f"{np.mean([r['seconds'] for r in runs_]):.0f}"])
  return figures.table(
      ["way", "seeds", "test accuracy, %", "held-out accuracy, %", "updates",
       "seconds"], rows)


if __name__ == "__main__":
  command_line.start(main)
