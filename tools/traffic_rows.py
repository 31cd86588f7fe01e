"""Bytes on the loopback for an update: the rows, and a worker that counts."""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import sys
import time
from typing import Any

import numpy as np
import tensorflow as tf

import conadv_tf as ca
from conadv_tf.analysis import traffic
from conadv_tf.distribute import cluster, compression, strategies

Compression = compression.Compression
ROWS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"reduce_dtype": "bfloat16"},
    "16_bits": {"compression": Compression(16)},
    "8_bits": {"compression": Compression(8)},
    "8_bits_2_sided": {"compression": Compression(8, sides=2)},
    "4_bits": {"compression": Compression(4, bucket=512)},
    "8_bits_scatter": {"compression": Compression(
        8, bucket=512, sides=2, exchange="scatter")},
}
_SHORT, _LONG = 5, 25  # updates; what both runs have in common drops out
_IMAGE, _WIDTH, _CLASSES, _ROWS = (8, 8, 3), 5120, 10, 2


@dataclasses.dataclass
class Counted:
  """A row's figures, of one update.

  Attributes:
    name: of the row.
    bytes: that all workers sent together, TCP's and gRPC's own included.
    formula: what `analysis.traffic` says of the gradients.
    seconds: of the longer run, an update.
  """

  name: str
  bytes: float
  formula: float
  seconds: float


def sent_bytes() -> int:
  """What has left the loopback of this network namespace."""
  for line in pathlib.Path("/proc/net/dev").read_text().splitlines():
    name, _, figures = line.partition(":")
    if name.strip() == "lo":
      return int(figures.split()[8])
  raise RuntimeError("there is no loopback")


def model() -> tf.keras.Model:
  """Many weights and little work: 1,039,370 numbers in 4 tensors."""
  inputs = tf.keras.Input(_IMAGE)
  x = tf.keras.layers.Dense(_WIDTH)(tf.keras.layers.Flatten()(inputs))
  return tf.keras.Model(inputs, tf.keras.layers.Dense(_CLASSES)(x))


def formula(name: str, workers: int, sizes: Sequence[int]) -> float:
  """Bytes of an update's gradients."""
  options, numbers = ROWS[name], sum(sizes)
  found = options.get("compression")
  if found is None:
    bits = 8 * tf.as_dtype(options.get("reduce_dtype", "float32")).size
    return traffic.update_bytes(numbers, workers, bits=bits)
  return traffic.coded_bytes(found, numbers, len(sizes), workers)


def count(name: str, strategy: tf.distribute.Strategy) -> Counted:
  """Trains with a row's options; on every worker."""
  replicas = strategy.num_replicas_in_sync
  random = np.random.default_rng(0)
  data = tf.data.Dataset.from_tensors((
      random.random((_ROWS * replicas, *_IMAGE), np.float32),
      random.integers(0, _CLASSES, _ROWS * replicas))).repeat()
  with strategy.scope():
    trainer = ca.Trainer(model(), ca.methods.Vanilla(), **ROWS[name])
    trainer.compile(
        tf.keras.optimizers.SGD(1e-3),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
  sizes = [v.shape.num_elements() for v in trainer.network.trainable_variables]
  trainer.fit(data, steps_per_epoch=1, verbose=0)  # traces
  sent, seconds = [], 0.0
  for updates in (_SHORT, _LONG):
    before, begin = sent_bytes(), time.perf_counter()
    trainer.fit(data, steps_per_epoch=updates, verbose=0)
    seconds = (time.perf_counter() - begin) / updates
    sent.append(sent_bytes() - before)
  return Counted(name, (sent[1] - sent[0]) / (_LONG - _SHORT),
                 formula(name, replicas, sizes), seconds)


def table(rows: Sequence[Counted], workers: int) -> str:
  """The rows in Markdown, against the first."""
  lines = [f"{workers} workers", "",
           "| gradients | bytes an update | of float32 | formula | of float32 "
           "| s an update |", "|---|---|---|---|---|---|"]
  for row in rows:
    lines.append(
        f"| {row.name} | {row.bytes:,.0f} | {row.bytes / rows[0].bytes:.3f} "
        f"| {row.formula:,.0f} | {row.formula / rows[0].formula:.3f} "
        f"| {row.seconds:.3f} |")
  return "\n".join(lines)


def main(output: str, *names: str) -> None:
  """A worker: counts rows; the chief writes them."""
  tf.get_logger().setLevel("ERROR")
  machines = strategies.Machines(cluster.from_environment())
  strategy = strategies.get("multi_worker_mirrored", machines=machines)
  rows = [dataclasses.asdict(count(name, strategy)) for name in names]
  if machines.is_chief:
    pathlib.Path(output).write_text(json.dumps(rows))


if __name__ == "__main__":
  main(*sys.argv[1:])
