"""The runs of `tools.absa_study` and what came of them; no flags."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np

from conadv_tf import exits
from conadv_tf.config import InputError
from tools import figures

CONFIG = "configs/cifar10/absa_study.yaml"
_TRAIN, _VALIDATION = 10000, 5000
_EPOCHS_OF_DECAY = "[4,8,10.67]"


def _baseline(ratio: int) -> tuple[str, ...]:
  # Micro batches of 32, as where the batch grows: the same ghost batches.
  return (f"data.global_batch_size={32 * ratio}",
          f"runtime.micro_batches={ratio}")


# The published counts of updates fit an evaluation every 65,536 samples, 69 in
# 90 epochs of 50,000; 1,792 of 120,000 (56 initial batches) make 66.
_CURVATURE = ("growth.name=curvature", "growth.max_batch_size=512",
              "curvature.every_samples=1792")
_ABSA = (*_CURVATURE, "method.name=absa", "method.lag=0",
         "attack.radius=1.275", "method.gamma=0.2", "method.gamma_epochs=6")
# Watched once an epoch, on the same examples; training is the same bits.
_WATCHED = ("curvature.monitor=true",)
WAYS: dict[str, tuple[str, ...]] = {
    "bl_32": _WATCHED,
    "bl_32_block": (*_WATCHED, "curvature.last_layers=2"),
    "bl_128": _baseline(4),
    "bl_512": _baseline(16),
    "fb_512": (*_baseline(16), "schedule.peak_lr=0.4",
                "schedule.warmup_epochs=1"),
    "gg_512": ("growth.name=scheduled", "growth.max_batch_size=512",
                "growth.factor=5", f"growth.epochs={_EPOCHS_OF_DECAY}"),
    "abs_512": _CURVATURE,
    "absa_512": _ABSA,
    "absa_512_block": (*_ABSA, "curvature.last_layers=2"),
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


def train(run: Run) -> bool:
  """Trains, or resumes, with one thread.

  Returns:
    False if the run diverged.

  Raises:
    InputError: if it ended otherwise.
  """
  if (run.path / "results.json").exists():
    return True
  command = [sys.executable, "-m", "conadv_tf.train",
             f"--config_file={CONFIG}", f"--model_dir={run.path}",
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


def figures_of(run: Run, data: str) -> dict[str, Any]:
  """Of the test split of `data`, read once, and of the run."""
  path = run.path / "test.json"
  if not path.exists():
    path.write_text(json.dumps(_test(run, data), indent=2))
  results = json.loads((run.path / "results.json").read_text())
  return {**json.loads(path.read_text()),
          **{key: results[key] for key in (
              "step", "updates", "seconds", "train/loss",
              "validation/accuracy") if key in results}}


def _test(run: Run, data: str) -> dict[str, float]:
  """Loss and accuracy on the 10,000 test images."""
  from conadv_tf import saved_runs  # TensorFlow only where it is needed
  with np.load(data) as arrays:
    images, labels = arrays["x_test"], arrays["y_test"]
  experiment, _ = saved_runs.restore(str(run.path))
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
