"""The job of `tools.fault_drill`, and whether two runs of it are the same."""

import json
import pathlib
import sys

import numpy as np
import tensorflow as tf

_EVALUATE_EVERY, _CHECKPOINT_EVERY = 5, 7  # updates, which are epochs
_WALL_CLOCK = ("seconds", "examples_per_second")


def model(input_shape: tuple[int, int, int],
          num_classes: int) -> tf.keras.Model:
  """The job's: small, so that most of an update is what workers exchange."""
  inputs = tf.keras.layers.Input(input_shape)
  x = tf.keras.layers.Rescaling(1 / 255.0)(inputs)
  x = tf.keras.layers.Conv2D(8, 3)(x)
  x = tf.keras.layers.BatchNormalization(momentum=0.9)(x)
  x = tf.keras.layers.Flatten()(tf.keras.layers.ReLU()(x))
  return tf.keras.Model(inputs, tf.keras.layers.Dense(num_classes)(x))


def command(updates: int, model_dir: pathlib.Path) -> list[str]:
  """Trains on all examples with every update.

  An epoch is an update: training's figures start anew with every epoch and
  every start, and so are those of an unbroken run.
  """
  return [
      sys.executable, "-m", "conadv_tf.train", f"--model_dir={model_dir}",
      # A worker that was stopped while they gather is given up soon.
      "--peer_timeout=20", "--params_override="
      f"data.name=digits,data.global_batch_size=1442,"
      f"model.name={__name__}:model,method.name=conadv,method.lag=1,"
      f"attack.radius=16,schedule.epochs={updates},schedule.peak_lr=0.5,"
      f"checkpoint.every_epochs={_CHECKPOINT_EVERY},"
      f"evaluation.every_epochs={_EVALUATE_EVERY},"
      "runtime.strategy=multi_worker_mirrored,runtime.deterministic=true,"
      "runtime.stall_seconds=30"]


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
  """What is not the same in two finished runs; empty if they are equal."""
  found = []
  expected, actual = (_arrays(path) for path in (one, other))
  found += [f"array {name}" for name in sorted(expected.keys() | actual.keys())
            if name not in expected or name not in actual or
            not _same_bits(expected[name], actual[name])]
  lines, others = (_records(path) for path in (one, other))
  if len(lines) != len(others):
    found.append(f"metrics.jsonl has {len(others)} lines instead of "
                 f"{len(lines)}")
  return found + [f"metrics.jsonl, line {number}" for number, (a, b)
                  in enumerate(zip(lines, others), 1) if a != b]


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
  return (one.dtype, one.shape, one.tobytes()) == (
      other.dtype, other.shape, other.tobytes())


def _arrays(model_dir: pathlib.Path) -> dict[str, np.ndarray]:
  newest = sorted((model_dir / "checkpoints").glob("step-*"))[-1]
  with np.load(newest / "state.npz") as arrays:
    return {"the newest step": np.array(newest.name), **arrays}


def _records(model_dir: pathlib.Path) -> list[dict[str, object]]:
  lines = (model_dir / "metrics.jsonl").read_text("utf-8").splitlines()
  return [{k: v for k, v in json.loads(line).items() if k not in _WALL_CLOCK}
          for line in lines]
