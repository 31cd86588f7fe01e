"""Bytes that an update's gradients put on the wire, by exchange and workers.

Counts what all n workers send together; d numbers, of b bits, with m norms of
32 bits:

  float32, ring all-reduce    2 (n - 1) 4 d
  gathered codes, ring        n (n - 1) (b d / 8 + 4 m)
  scattered codes             2 (n - 1) (b d / 8 + 4 m)

The ratio of the second to the first is n b / 64, so gathered codes pay below
64 / b workers; that of the third is b / 32 for any number. Both are without
norms, which in buckets of k numbers add 32 / k to b.

Table 4 of the DAT paper ("Distributed adversarial training to robustify deep
neural networks at scale") counts otherwise: everyone sends everything to all
others, n (n - 1) messages also for float32, though its text names a ring; with
2 sides n - 1 messages to a server and n - 1 back. Its MB are MiB.
"""

import math
from typing import Literal

from conadv_tf import config as config_lib
from conadv_tf.distribute import compression

FLOAT_BYTES = 4
MIB = 2**20
Exchange = Literal["all_reduce", "gather", "scatter"]


def message_bytes(numbers: int, bits: int = 32, norms: int = 0) -> float:
  """One worker's gradients, as codes and norms.

  Args:
    numbers: d.
    bits: of a code; 32 is float32.
    norms: of float32.
  """
  return numbers * bits / 8 + norms * FLOAT_BYTES


def update_bytes(numbers: int, workers: int, exchange: Exchange = "all_reduce",
                 bits: int = 32, norms: int = 0) -> float:
  """What all workers send for one update.

  Args:
    numbers: d.
    workers: n.
    exchange: "all_reduce" is a ring's.
    bits: of a number.
    norms: of a message.

  Raises:
    ValueError: for another exchange, or no workers.
  """
  if workers < 1:
    raise ValueError(f"an exchange needs workers, got {workers}")
  messages = {"all_reduce": 2 * (workers - 1),
              "gather": workers * (workers - 1),
              "scatter": 2 * (workers - 1)}
  if exchange not in messages:
    raise ValueError(f"exchange {exchange!r} is none of {', '.join(messages)}")
  return messages[exchange] * message_bytes(numbers, bits, norms)


def coded_bytes(options: config_lib.CompressionConfig | compression.Compression,
                numbers: int, tensors: int, workers: int) -> float:
  """As `update_bytes`, of codes and norms.

  Args:
    options: bits, bucket and exchange.
    numbers: d.
    tensors: that they are.
    workers: n.
  """
  return update_bytes(
      numbers, workers, options.exchange, options.bits,
      compression.norms_of(numbers, tensors, options.bucket))


def gather_pays_below(bits: float) -> float:
  """The number of workers from which gathered codes save nothing.

  Args:
    bits: of a number, with its share of the norms.
  """
  return 64 / bits


def published_mib(numbers: int, workers: int, bits: int = 32,
                  sides: Literal[1, 2] = 1) -> float:
  """MiB of an update as table 4 of the DAT paper counts them, norms aside."""
  messages = (workers if sides == 1 else 2) * (workers - 1)
  return messages * message_bytes(numbers, bits) / MIB


def summary(config: config_lib.ExperimentConfig, numbers: int,
            tensors: int) -> str:
  """What compression a run has, and what it saves, in a line.

  Args:
    config: resolved, with compression on.
    numbers: of the gradients.
    tensors: that they are.
  """
  c, replicas = config.compression, config.runtime.num_replicas
  said = (f"compression: {c.bits} bits, sign and {2 ** (c.bits - 1) - 1} "
          f"levels of the {c.norm} norm of each "
          f"{f'{c.bucket:,} numbers' if c.bucket else 'tensor'}, {c.sides}-"
          f"sided, of each {c.per.replace('_', ' ')}'s gradient; ")
  if not config_lib.gradients_travel_in_codes(config):
    return said + "float32 on the wire"
  if replicas == 1:
    return said + "1 replica, nothing on the wire"
  sent = coded_bytes(c, numbers, tensors, replicas)
  usual = update_bytes(numbers, replicas)
  said += (f"an update sends {sent / MIB:,.2f} MiB among {replicas} replicas, "
           f"{sent / usual:.3f} of float32's ring")
  if c.exchange == "scatter":
    return said
  norms = compression.norms_of(numbers, tensors, c.bucket)
  with_norms = 8 * message_bytes(numbers, c.bits, norms) / numbers
  below = math.ceil(gather_pays_below(with_norms)) - 1
  return f"{said}; gathered codes pay up to {below} replicas"
