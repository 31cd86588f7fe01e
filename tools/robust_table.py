"""Robust runs side by side, as in Tables 1 and 4 of the DAT paper; no flags.

Zhang et al., "Distributed adversarial training to robustify deep neural
networks at scale" (2022). TA is clean accuracy, RA accuracy under an attack,
AA under AutoAttack. Times are seconds an epoch; where communication comes from
is in its cell:

  profile  measured: covered time of the phase `reduction`, which includes
           waiting for the slowest replica (`conadv-train --profile_steps`)
  model    predicted by `analysis.cost_model` for a ring of the network that
           is stated, and float32 gradients; where codes travel, of
           `analysis.traffic`'s bytes in as many messages as they take
  1 device there is none
  -        not known

MiB an update are what all replicas send, by `analysis.traffic`, gradients and
batch statistics; `virtual` bits are quantised in place of other workers, and
float32 is sent.
"""

from collections.abc import Sequence
import json
import os
from typing import Any

import numpy as np

from conadv_tf import config
from conadv_tf.analysis import cost_model, traffic
from conadv_tf.training import run_directory, stopping
from tools import figures, run_history

EVALUATION_FILE = "evaluation.json"  # of conadv-evaluate --output
_CLEAN = "validation/accuracy"
_ROBUST = "validation/robust_accuracy_"
_AUTO = "autoattack"


def table(runs: Sequence[run_history.Run], paths: Sequence[str],
          network: cost_model.Network | None = None) -> list[str]:
  """A table in Markdown, where any run has a robust accuracy.

  Args:
    runs: read.
    paths: their directories.
    network: for the cost model; None leaves it out.

  Raises:
    InputError: if an evaluation's or a profile's file is damaged.
  """
  found = [accuracies(run, path) for run, path in zip(runs, paths)]
  attacks = sorted({key for row in found for key in row
                    if key.startswith(_ROBUST)},
                   key=lambda key: (_AUTO in key, key))
  if not attacks:
    return []
  rows = [
      [run.name, f"{run.config.data.global_batch_size:,}",
       f"{config.training_replicas(run.config.runtime)}",
       *(_percent(row.get(key)) for key in (_CLEAN, *attacks)),
       bits(run.config), sent(run.config, path),
       communication(run, path, network), _total(run)]
      for run, path, row in zip(runs, paths, found)]
  head = ["run", "batch", "devices", "TA", *(
      f"{'AA' if _AUTO in key else 'RA'} ({key.removeprefix(_ROBUST)})"
      for key in attacks), "bits", "MiB/update", "communication s/epoch",
          "total s/epoch"]
  return [figures.table(head, rows)]


def accuracies(run: run_history.Run, path: str) -> dict[str, Any]:
  """Validation figures: of RUN/evaluation.json, else of the records.

  Of these the last one, or the best where the run has `evaluation.patience`:
  that of the weights which are its result. Both where they are of the same
  weights: what `conadv-evaluate` adds to a run that trained without attacks.
  """
  best = stopping.best_step(run.config.evaluation, run.metrics)
  last = next((record for record in run.metrics if record["step"] == best),
              run.metrics[-1])
  name = os.path.join(path, EVALUATION_FILE)
  if not os.path.exists(name):
    return last
  try:
    with open(name, encoding="utf-8") as file:
      evaluated = json.load(file)
    step = evaluated["step"]
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise config.InputError(
        f"{name} is no file of conadv-evaluate --output; delete it or evaluate "
        "again") from error
  return {**last, **evaluated} if step == last["step"] else evaluated


def bits(saved: config.ExperimentConfig) -> str:
  """Of a number of the gradients, and what is special about them."""
  options = saved.compression
  text = f"{options.bits}"
  if options.bits != 32:
    text += ", 2-sided" * (options.sides == 2)
    text += ", virtual" * (options.per == "virtual_replica")
  return text


def sent(saved: config.ExperimentConfig, path: str) -> str:
  """MiB that all replicas send for an update."""
  devices = config.training_replicas(saved.runtime)
  sizes = _reduced(path)
  if devices == 1:
    return "0"
  if sizes is None:
    return "-"
  total = (traffic.coded_bytes(
               saved.compression, sum(sizes), len(sizes), devices)
           if config.gradients_travel_in_codes(saved)
           else traffic.update_bytes(sum(sizes), devices))
  return f"{total / traffic.MIB:.4g}"


def communication(run: run_history.Run, path: str,
                  network: cost_model.Network | None) -> str:
  """Seconds an epoch, and where they come from."""
  steps = run.config.derived.steps_per_epoch
  devices = config.training_replicas(run.config.runtime)
  if devices == 1:
    return "0 (1 device)"
  measured = _profiled(path)
  if measured is not None:
    return f"{measured * steps:.4g} (profile)"
  shapes = _reduced(path) if network else None
  if shapes is None:
    return "-"
  seconds = (_coded_seconds(run.config, shapes, devices, network)
             if config.gradients_travel_in_codes(run.config)
             else cost_model.all_reduce_seconds(
                 4 * sum(shapes), devices, network, "ring"))
  return f"{seconds * steps:.4g} (model)"


def _coded_seconds(saved: config.ExperimentConfig, sizes: Sequence[int],
                   devices: int, network: cost_model.Network) -> float:
  """Predicted for codes: what each device sends, one message after another."""
  own = traffic.coded_bytes(
      saved.compression, sum(sizes), len(sizes), devices) / devices
  rounds = (devices - 1) * (2 if saved.compression.exchange == "scatter" else 1)
  return rounds * network.latency + own * network.seconds_per_byte


def _total(run: run_history.Run) -> str:
  """Seconds of training an epoch, the first one's tracing among them."""
  last = run.metrics[-1]
  if not last.get("seconds") or not last.get("epoch"):
    return "-"
  return f"{last['seconds'] / last['epoch']:.4g}"


def _percent(value: float | None) -> str:
  return "-" if value is None else f"{100 * value:.2f}"


def _profiled(path: str) -> float | None:
  """Measured seconds of reduction an update; None without a profile."""
  folder = os.path.join(path, "train", "plugins", "profile")
  if not os.path.isdir(folder):
    return None
  from tools import step_time  # has flags, which are the command's own
  name = step_time.newest(folder)
  trace = step_time.gather(step_time.read(name))
  if not trace.marks:
    return None
  phases = step_time.breakdown(trace, step_time.updates_of(name))["phases"]
  return phases["reduction"]["covered_ms"] / 1e3


def _reduced(path: str) -> list[int] | None:
  """Sizes of what an update reduces: gradients and batch statistics."""
  latest = run_directory.RunDirectory(path).checkpoints.latest()
  if latest is None:
    return None
  return [np.size(value) for name, value in latest.state.items()
          if name.startswith("network/")]
