"""What `tools.benchmark_compression` measures and prints; no flags."""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np
import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.analysis import traffic
from conadv_tf.distribute import compression
from tools import figures

# (bits, bucket)
SETTINGS = ((4, 512), (8, 0), (8, 512), (16, 0))
# Numbers in a model's gradients; its tensors are not all alike in size.
SIZES = {"resnet20": 272_474, "resnet18_cifar": 11_173_962,
         "resnet50": 25_557_032}
_TENSORS = 60


@dataclasses.dataclass
class Timed:
  """Of one vector: median seconds, and bytes of its message.

  Attributes:
    model: whose gradients have this size.
    numbers: in it.
    bits: of a code.
    bucket: 0 means a norm for each of 60 tensors.
    encode: random bits, codes and words included.
    decode: of one message.
    message: bytes.
  """

  model: str
  numbers: int
  bits: int
  bucket: int
  encode: float
  decode: float
  message: int

  def pays_below(self, workers: int) -> float:
    """Bytes a second of a link, at which compression costs what it saves.

    A worker of n sends 2 (n - 1) / n of the float32 gradients to reduce them
    round a ring, n - 1 messages to gather codes; it encodes once and decodes
    n messages.
    """
    usual = traffic.update_bytes(self.numbers, workers) / workers
    saved = usual - (workers - 1) * self.message
    return max(0.0, saved) / (self.encode + workers * self.decode)


def measure(model: str, numbers: int, rounds: int) -> list[Timed]:
  """All settings in turns, there and back, after a warm-up."""
  tf.get_logger().setLevel("ERROR")  # about a function for each setting
  sizes = [numbers // _TENSORS] * (_TENSORS - 1)
  sizes.append(numbers - sum(sizes))
  vector = tf.constant(
      np.random.default_rng(0).standard_normal(numbers, np.float32))
  calls: dict[tuple[int, int, str], Callable[[], tf.Tensor]] = {}
  messages = {}
  for bits, bucket in SETTINGS:
    encode, decode = _functions(
        compression.Quantiser(bits, tuple(sizes), bucket))
    words = messages[bits, bucket] = encode(vector)
    calls[bits, bucket, "encode"] = lambda f=encode: f(vector)
    calls[bits, bucket, "decode"] = lambda f=decode, w=words: f(w)
  seconds = figures.interleaved(calls, rounds)
  return [Timed(model, numbers, bits, bucket,
                float(np.median(seconds[bits, bucket, "encode"])),
                float(np.median(seconds[bits, bucket, "decode"])),
                4 * words.shape[0])
          for (bits, bucket), words in messages.items()]


def _functions(quantiser: compression.Quantiser) -> tuple[
    Callable[[tf.Tensor], tf.Tensor], Callable[[tf.Tensor], tf.Tensor]]:
  @tf.function(autograph=False)
  def encode(vector: tf.Tensor) -> tf.Tensor:
    key = randomness.make_key(0, randomness.COMPRESSION, 0, 0)
    return quantiser.message(*quantiser.encode(
        vector, randomness.uniform(key, [quantiser.length])))

  return encode, tf.function(quantiser.decode_message, autograph=False)


def table(rows: Sequence[Timed]) -> str:
  """Markdown."""
  return figures.table(
      ["gradients of", "numbers", "bits", "bucket", "encode, ms", "decode, ms",
       "message, MiB", "pays below, MB/s: 2 workers", "4 workers"],
      [[row.model, f"{row.numbers:,}", str(row.bits),
        str(row.bucket) if row.bucket else "tensor", figures.ms(row.encode),
        figures.ms(row.decode), f"{row.message / traffic.MIB:,.2f}",
        *(f"{row.pays_below(n) / 1e6:,.0f}" for n in (2, 4))]
       for row in rows])
