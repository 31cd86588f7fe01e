"""Gradients in few bits: QSGD's randomised quantiser, packed into words.

Alistarh et al., "QSGD: Communication-efficient SGD via gradient quantization
and encoding" (NeurIPS 2017), as the DAT paper uses it ("Distributed adversarial
training to robustify deep neural networks at scale", section 4.3 and table 4).
Of b bits one is the sign, as table 4's 731 MB have it (its text prints s = 2^b
and a sign besides, which are 9 bits for b = 8); the others count
s = 2^(b - 1) - 1 levels:

  Q(g)_i = |g| sign(g_i) xi_i / s,   xi_i = floor(x_i) or, with probability
                                     x_i - floor(x_i), one more,
  x_i = s |g_i| / |g|

with the norm |g| of a tensor or of a bucket. E Q(g) = g, and with the l2 norm
E |Q(g) - g|^2 <= min(d / s^2, sqrt(d) / s) |g|^2 over d numbers. Everything
here is a pure function of its arguments.
"""

from collections.abc import Sequence
import dataclasses
import math

import tensorflow as tf

WORD_BITS = 32
OFF = 32  # bits of what is not quantised
MIN_BITS, MAX_BITS = 2, 16
_CHOICES = {"norm": ("l2", "max"), "exchange": ("gather", "scatter"),
            "per": ("replica", "virtual_replica"), "sides": (1, 2)}


@dataclasses.dataclass(frozen=True)
class Compression:
  """How gradients are quantised between replicas.

  Attributes:
    bits: of a number, one of them the sign: 2 to 16, or 32, which is off.
    bucket: numbers that share a norm, of all tensors one after another; 0
      means that each tensor has a norm of its own, as in DAT.
    norm: "l2", or "max", which leaves less noise and is no QSGD.
    sides: 2 quantises the sum once more.
    exchange: "gather" sends every replica's codes to all others, "scatter"
      the codes of a part to the replica that sums it, whose sum travels in
      codes: with 2 sides and buckets, the same numbers.
    per: what is quantised: each "replica"'s own sum over its micro batches,
      which travels in codes, or each "virtual_replica"'s gradient before any
      sum, which travels as before: what as many workers would compute.
    error_feedback: whether what quantising loses is added to the next
      update's gradient.
  """

  bits: int = OFF
  bucket: int = 0
  norm: str = "l2"
  sides: int = 1
  exchange: str = "gather"
  per: str = "replica"
  error_feedback: bool = False

  def __post_init__(self) -> None:
    if self.bits != OFF and not MIN_BITS <= self.bits <= MAX_BITS:
      raise ValueError(f"compression bits must be {MIN_BITS} to {MAX_BITS}, or "
                       f"{OFF} for off, got {self.bits}")
    if self.bucket < 0:
      raise ValueError(f"compression bucket must be >= 0, got {self.bucket}")
    for name, choices in _CHOICES.items():
      if getattr(self, name) not in choices:
        raise ValueError(f"compression {name} must be one of {choices}, got "
                         f"{getattr(self, name)!r}")
    if self.is_on and self.exchange == "scatter" and (
        self.sides, self.per, bool(self.bucket)) != (2, "replica", True):
      raise ValueError(
          "compression exchange=scatter sums parts and quantises the sums: it "
          "needs sides=2, per=replica and a bucket")
    # Else what is carried over may grow without limit: the noise of a bucket
    # of d numbers is less than they are only where d < s^2.
    if self.error_feedback and self.is_on and not (
        0 < self.bucket < levels(self.bits)**2):
      raise ValueError(
          f"compression error_feedback with {self.bits} bits needs a bucket "
          f"of 1 to {levels(self.bits)**2 - 1} numbers, got {self.bucket}")

  @property
  def is_on(self) -> bool:
    """Whether anything is quantised."""
    return self.bits != OFF

  @property
  def travels(self) -> bool:
    """Whether codes are what replicas exchange."""
    return self.is_on and self.per == "replica"


def levels(bits: int) -> int:
  """s, the largest level of a code of so many bits."""
  return 2 ** (bits - 1) - 1


def norms_of(numbers: int, tensors: int, bucket: int) -> int:
  """Norms of so many numbers in so many tensors; 0 is no buckets."""
  return -(-numbers // bucket) if bucket else tensors


@dataclasses.dataclass(frozen=True)
class Quantiser:
  """Turns float32 vectors into codes and norms, and back.

  Attributes:
    bits: of a code, 2 to 16.
    sizes: of the tensors that the vector consists of.
    bucket: see `Compression`.
    norm: see `Compression`.
  """

  bits: int
  sizes: tuple[int, ...]
  bucket: int = 0
  norm: str = "l2"

  @property
  def length(self) -> int:
    """Numbers in the vector, d."""
    return sum(self.sizes)

  @property
  def norms_length(self) -> int:
    """Norms of a vector."""
    return norms_of(self.length, len(self.sizes), self.bucket)

  def _parts(self, vector: tf.Tensor) -> list[tf.Tensor]:
    """What has one norm each: [rows, bucket], or a [1, size] a tensor."""
    if self.bucket:
      return [_in_rows(vector, self.bucket)]
    return [part[None] for part in tf.split(vector, self.sizes)]

  def _joined(self, parts: Sequence[tf.Tensor]) -> tf.Tensor:
    flat = [tf.reshape(part, [-1]) for part in parts]
    return tf.concat(flat, axis=0)[:self.length]

  def _by_part(self, norms: tf.Tensor) -> list[tf.Tensor]:
    """Norms as [rows, 1], for each of the parts."""
    if self.bucket:
      return [norms[:, None]]
    return [part[:, None] for part in tf.split(norms, len(self.sizes))]

  def norms(self, vector: tf.Tensor) -> tf.Tensor:
    """Norms [m] of float32 [d]; not finite where the numbers are not."""
    return tf.concat([self._norms(p) for p in self._parts(vector)], axis=0)

  def _norms(self, rows: tf.Tensor) -> tf.Tensor:
    largest = tf.reduce_max(tf.abs(rows), axis=1)
    # A maximum may drop what is not a number; a sum does not.
    largest += 0.0 * tf.reduce_sum(rows, axis=1)
    if self.norm == "max":
      return largest
    # Squares of the numbers themselves would leave float32's range.
    scale = _never_zero(largest)
    return largest * tf.sqrt(
        tf.reduce_sum(tf.square(rows / scale[:, None]), axis=1))

  def encode(self, vector: tf.Tensor, uniform: tf.Tensor
             ) -> tuple[tf.Tensor, tf.Tensor]:
    """Quantises.

    Args:
      vector: float32 [d].
      uniform: float32 [d], random numbers on [0, 1).

    Returns:
      (codes, norms): int32 [d], 2 * level + (1 if negative), and float32 [m].
      Where a norm is 0, so are the codes; where it is not finite they mean
      nothing, and `decode` gives numbers that are not finite.
    """
    with tf.name_scope("encode"):
      norms = self.norms(vector)
      most = float(levels(self.bits))
      position = self._joined([
          tf.abs(part) / _never_zero(norm) * most
          for part, norm in zip(self._parts(vector), self._by_part(norms))])
      position = tf.where(tf.math.is_finite(position), position, 0.0)
      low = tf.floor(position)
      # Exact, where floor(position + uniform) would round first.
      level = low + tf.cast(uniform < position - low, tf.float32)
      level = tf.cast(tf.minimum(level, most), tf.int32)
      return 2 * level + tf.cast(vector < 0.0, tf.int32), norms

  def decode(self, codes: tf.Tensor, norms: tf.Tensor) -> tf.Tensor:
    """float32 [d] of what `encode` gave."""
    with tf.name_scope("decode"):
      signed = tf.cast((codes // 2) * (1 - 2 * (codes % 2)), tf.float32)
      step = norms / float(levels(self.bits))
      return self._joined([
          part * unit for part, unit in zip(self._parts(signed),
                                            self._by_part(step))])

  def message(self, codes: tf.Tensor, norms: tf.Tensor) -> tf.Tensor:
    """What travels, int32 words [.., w]: packed codes, then norms' bits."""
    return tf.concat(
        [pack(codes, self.bits), tf.bitcast(norms, tf.int32)], axis=-1)

  def decode_message(self, words: tf.Tensor) -> tf.Tensor:
    """float32 [d] of a message [w]."""
    count = packed_words(self.length, self.bits)
    return self.decode(unpack(words[:count], self.bits, self.length),
                       tf.bitcast(words[count:], tf.float32))


def _in_rows(vector: tf.Tensor, size: int) -> tf.Tensor:
  return tf.reshape(tf.pad(vector, [[0, -vector.shape[0] % size]]), [-1, size])


def _never_zero(values: tf.Tensor) -> tf.Tensor:
  return tf.where(tf.equal(values, 0.0), 1.0, values)


# ---- Codes in words.


def packed_words(count: int, bits: int) -> int:
  """Words of 32 bits that so many codes take."""
  group = WORD_BITS // math.gcd(WORD_BITS, bits)  # codes that end with a word
  return -(-count // group) * group * bits // WORD_BITS


def pack(codes: tf.Tensor, bits: int) -> tf.Tensor:
  """Codes without a gap, the first in the lowest bits.

  Args:
    codes: int32 [.., n] below 2^bits.
    bits: 2 to 16.

  Returns:
    int32 [.., packed_words(n, bits)]; collectives on CPUs send no uint8.
  """
  group = WORD_BITS // math.gcd(WORD_BITS, bits)
  outer, count = codes.shape[:-1], codes.shape[-1]
  codes = tf.pad(codes, [[0, 0]] * len(outer) + [[0, -count % group]])
  if bits in (8, 16):  # the same, and faster
    narrow = tf.cast(codes, tf.uint8 if bits == 8 else tf.uint16)
    return tf.bitcast(tf.reshape(narrow, [*outer, -1, group]), tf.int32)
  columns = tf.unstack(tf.reshape(codes, [*outer, -1, group]), axis=-1)
  words = []
  for word in range(group * bits // WORD_BITS):
    value = tf.zeros_like(columns[0])
    for index, column in enumerate(columns):
      shift = index * bits - word * WORD_BITS
      if -bits < shift < WORD_BITS:
        value |= (tf.bitwise.left_shift(column, shift) if shift >= 0
                  else tf.bitwise.right_shift(column, -shift))
    words.append(value)
  return tf.reshape(tf.stack(words, axis=-1),
                    [*outer, packed_words(count, bits)])


def unpack(words: tf.Tensor, bits: int, count: int) -> tf.Tensor:
  """The codes int32 [count] of words [packed_words(count, bits)]."""
  group = WORD_BITS // math.gcd(WORD_BITS, bits)
  if bits in (8, 16):
    narrow = tf.bitcast(words, tf.uint8 if bits == 8 else tf.uint16)
    return tf.cast(tf.reshape(narrow, [-1])[:count], tf.int32)
  each = group * bits // WORD_BITS
  columns = tf.unstack(tf.reshape(words, [-1, each]), axis=-1)
  codes = []
  for index in range(group):
    word, shift = divmod(index * bits, WORD_BITS)
    # The sign's bit comes along from the left and is masked away.
    value = tf.bitwise.right_shift(columns[word], shift)
    if shift + bits > WORD_BITS:
      value &= (1 << (WORD_BITS - shift)) - 1
      value |= tf.bitwise.left_shift(columns[word + 1], WORD_BITS - shift)
    codes.append(value & ((1 << bits) - 1))
  return tf.reshape(tf.stack(codes, axis=-1), [-1])[:count]
