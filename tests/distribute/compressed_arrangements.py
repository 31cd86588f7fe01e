"""Trains with compressed gradients in one arrangement of replicas.

    python -m tests.distribute.compressed_arrangements \\
      FOLDER NAME STRATEGY MICRO_BATCHES CASES

Every worker writes FOLDER/NAME-INDEX.json: its weights, by case.
"""

import json
import pathlib
import sys

import numpy as np
import tensorflow as tf

from conadv_tf import experiment as experiments
from conadv_tf.distribute import cluster, strategies
from conadv_tf.layers import network as networks
from conadv_tf.training import checkpoint
from tests import tiny

UPDATES = 4
_BUCKETS = "compression.bits=8,compression.bucket=16,"
CASES = {
    "8 bits": "compression.bits=8",
    "2 sides": f"{_BUCKETS}compression.sides=2",
    "scatter": f"{_BUCKETS}compression.sides=2,compression.exchange=scatter",
    "feedback": f"{_BUCKETS}compression.error_feedback=true",
    "virtual": "compression.bits=8,compression.per=virtual_replica",
    "virtual, deterministic": (
        "compression.bits=4,compression.sides=2,compression.per="
        "virtual_replica,runtime.deterministic=true"),
}
RESUMED = "feedback, resumed"


def _build(case: str, strategy: str, micro_batches: str,
           machines: strategies.Machines) -> experiments.Experiment:
  config = tiny.load(
      "runtime.deterministic=false,data.global_batch_size=24,"
      "data.num_examples=48,schedule.epochs=4,schedule.peak_lr=0.1,"
      f"method.name=vanilla,optimizer.name=sgd,runtime.strategy={strategy},"
      f"runtime.micro_batches={micro_batches}", case)
  strategies.plan(config.runtime, machines)
  return experiments.build(config, machines=machines)


def _weights(case: str, *place: object) -> list[float]:
  resumed = case == RESUMED
  overrides = CASES["feedback" if resumed else case]
  experiment = _build(overrides, *place)
  trainer = experiment.trainer
  first = UPDATES // 2 if resumed else UPDATES
  trainer.updates_next, trainer.snapshot_next = first, True
  # One execution, of so many updates.
  trainer.fit(experiment.train_dataset(0), steps_per_epoch=1, verbose=0)
  if resumed:
    state = checkpoint.capture(trainer)
    experiment = _build(overrides, *place)
    trainer = experiment.trainer
    checkpoint.restore(trainer, state)
    trainer.updates_next = UPDATES - first
    trainer.fit(experiment.train_dataset(first), steps_per_epoch=1, verbose=0)
  assert int(networks.read(trainer.step_counter)) == UPDATES
  return np.concatenate([
      networks.read(v).ravel() for v in trainer.network.trainable_variables
  ]).astype(float).tolist()


def main(folder: str, name: str, strategy: str, micro_batches: str,
         *cases: str) -> None:
  """Runs some of the cases."""
  tf.get_logger().setLevel("ERROR")
  tf.config.experimental.enable_op_determinism()
  machines = strategies.Machines(cluster.from_environment())
  if machines.cluster:
    cluster.meet(machines.cluster, "compressed", 60)
  results = {}
  for case in cases:
    results[case] = _weights(case, strategy, micro_batches, machines)
    tf.keras.backend.clear_session()
  index = machines.cluster.index if machines.cluster else 0
  pathlib.Path(folder, f"{name}-{index}.json").write_text(json.dumps(results))


if __name__ == "__main__":
  main(*sys.argv[1:])
