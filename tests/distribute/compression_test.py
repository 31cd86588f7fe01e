"""The quantiser against its twin, its bounds, and what it must survive."""

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.distribute import compression
from tests.reference import compression as twin

_SIZES = (60, 1, 39)
_random = np.random.default_rng(0)
_VECTOR = (_random.normal(size=100) * 10.0 ** _random.integers(-6, 3, 100)
           ).astype(np.float32)


def _uniform(count: int, seed: int = 0) -> np.ndarray:
  key = randomness.make_key(seed, randomness.COMPRESSION, 0)
  return randomness.uniform(key, [count]).numpy()


@pytest.mark.parametrize("norm", ["l2", "max"])
@pytest.mark.parametrize("bucket", [0, 16, 1000])
@pytest.mark.parametrize("bits", [2, 5, 8, 16])
def test_equals_the_twin(bits: int, bucket: int, norm: str) -> None:
  quantiser = compression.Quantiser(bits, _SIZES, bucket, norm)
  uniform = _uniform(100)
  codes, norms = quantiser.encode(tf.constant(_VECTOR), tf.constant(uniform))
  expected, lengths = twin.encode(_VECTOR, uniform, bits, _SIZES, bucket, norm)
  np.testing.assert_array_equal(codes, expected)
  np.testing.assert_allclose(norms, lengths, rtol=1e-6)
  assert norms.shape == [quantiser.norms_length]
  assert (np.array(codes) // 2).max() <= compression.levels(bits)
  decoded = quantiser.decode(codes, norms)
  np.testing.assert_allclose(
      decoded, twin.decode(expected, lengths, bits, _SIZES, bucket), rtol=1e-6)
  words = quantiser.message(codes, norms)
  assert words.shape == [
      compression.packed_words(100, bits) + quantiser.norms_length]
  np.testing.assert_array_equal(quantiser.decode_message(words), decoded)


@pytest.mark.parametrize("bits", range(2, 17))
def test_codes_are_packed_without_a_gap(bits: int) -> None:
  for count in (1, 33, 100):
    codes = np.random.default_rng(count).integers(0, 2**bits, count)
    codes[-1] = 2**bits - 1
    words = compression.pack(tf.constant(codes, tf.int32), bits)
    expected = twin.packed(codes, bits)
    # At most one group of codes more than they take.
    assert len(expected) <= 4 * words.shape[0] < len(expected) + 4 * bits
    found = words.numpy().astype("<i4").tobytes()
    assert found == expected.ljust(len(found), b"\0")
    np.testing.assert_array_equal(
        compression.unpack(words, bits, count), codes)


def test_sizes_of_1000_codes() -> None:
  # 1000 codes of 8 bits are 250 words, of 16 bits 500; 5 bits are 156.25,
  # and 32 codes of them end with a word: 32 groups of 5 words.
  assert [compression.packed_words(1000, b) for b in (2, 4, 5, 8, 16)] == [
      63, 125, 160, 250, 500]


@pytest.mark.parametrize("bits, size, bucket", [
    (8, 400, 0), (8, 400, 20), (3, 400, 0), (2, 5, 0), (16, 400, 0)])
def test_unbiased_and_within_the_bound_of_its_variance(
    bits: int, size: int, bucket: int) -> None:
  draws = 2000
  gradient = np.random.default_rng(1).normal(size=size).astype(np.float32)
  quantiser = compression.Quantiser(bits, (size,), bucket)

  @tf.function
  def quantise(uniform: tf.Tensor) -> tf.Tensor:
    return tf.map_fn(lambda u: quantiser.decode(*quantiser.encode(
        tf.constant(gradient), u)), uniform)

  found = quantise(tf.reshape(
      _uniform(draws * size), [draws, size])).numpy().astype(np.float64)
  errors = found - gradient
  variance = (errors ** 2).sum(1).mean()
  s, d = compression.levels(bits), bucket or size
  length = (gradient.astype(np.float64) ** 2).sum()
  # A sum of p (1 - p) over all numbers, p their distance to the level below.
  norms = quantiser.norms(tf.constant(gradient)).numpy().repeat(d)
  steps = norms / s
  p = np.modf(np.abs(gradient) / steps)[0]
  exact = (p * (1 - p) * steps ** 2).sum()
  assert variance == pytest.approx(exact, rel=0.05)
  assert exact <= min(d / s**2, np.sqrt(d) / s) * length
  # The mean's error: normal, of the exact standard deviation.
  deviation = np.sqrt(p * (1 - p) * steps ** 2 / draws) + 1e-7
  z = np.abs(errors.mean(0) / deviation)
  assert z.max() < 5 and (z > 2).mean() < 0.1


def test_a_tensor_of_100_000_numbers_in_8_bits_is_half_noise() -> None:
  """Facts of the bound's use: relative variance 1.0 a tensor, 0.005 a bucket.
  """
  gradient = tf.constant(
      np.random.default_rng(2).normal(size=10**5).astype(np.float32))
  for bucket, expected in ((0, 1.01), (512, 0.0053)):
    quantiser = compression.Quantiser(8, (10**5,), bucket)
    error = quantiser.decode(*quantiser.encode(
        gradient, tf.constant(_uniform(10**5)))) - gradient
    relative = tf.reduce_sum(error**2) / tf.reduce_sum(gradient**2)
    assert float(relative) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("bucket", [0, 4])
def test_zeros_extremes_and_what_is_not_finite(bucket: int) -> None:
  quantiser = compression.Quantiser(8, (4, 4, 4), bucket)

  def through(*values: float) -> np.ndarray:
    return quantiser.decode(*quantiser.encode(
        tf.constant(values, tf.float32), tf.constant(_uniform(12)))).numpy()

  np.testing.assert_array_equal(through(*[0.0] * 12), np.zeros(12))
  # Squares of these leave float32; each is alone, so it comes back whole.
  alone = through(1e30, 0, 0, 0, 0, -1e-30, 0, 0, 0, 0, 0, 7)
  np.testing.assert_allclose(
      alone, [1e30, 0, 0, 0, 0, -1e-30, 0, 0, 0, 0, 0, 7], rtol=1e-6)
  for bad in (np.nan, np.inf, -np.inf):
    found = through(1, 2, 3, 4, 5, bad, 7, 8, 9, 10, 11, 12)
    assert not np.isfinite(found[4:8]).any()
    assert np.isfinite(found[:4]).all() and np.isfinite(found[8:]).all()


def test_compiles_to_the_same_codes() -> None:
  """As on a TPU, whose collectives take words too."""
  quantiser = compression.Quantiser(5, _SIZES, 16)
  vector = tf.constant(_VECTOR)

  def message() -> tf.Tensor:
    key = randomness.make_key(3, randomness.COMPRESSION, 0)
    return quantiser.message(
        *quantiser.encode(vector, randomness.uniform(key, [100])))

  plain, compiled = message(), tf.function(message, jit_compile=True)()
  count = compression.packed_words(100, 5)
  codes = [compression.unpack(w[:count], 5, 100).numpy()
           for w in (plain, compiled)]
  # XLA may round a quotient otherwise: a level more or less, rarely.
  assert np.abs(codes[0] // 2 - codes[1] // 2).max() <= 1
  assert (codes[0] != codes[1]).mean() <= 0.02
  np.testing.assert_allclose(
      quantiser.decode_message(plain),
      tf.function(quantiser.decode_message, jit_compile=True)(plain),
      rtol=1e-6)


@pytest.mark.parametrize("options, message", [
    ({"bits": 17}, "must be 2 to 16, or 32 for off, got 17"),
    ({"bits": 1}, "must be 2 to 16, or 32 for off, got 1"),
    ({"bits": 8, "bucket": -1}, "bucket must be >= 0"),
    ({"bits": 8, "norm": "l1"}, "norm must be one of"),
    ({"bits": 8, "exchange": "scatter"}, "needs sides=2"),
    ({"bits": 8, "error_feedback": True}, "a bucket of 1 to 16128"),
    ({"bits": 8, "error_feedback": True, "bucket": 16129}, "got 16129")])
def test_refusals(options: dict, message: str) -> None:
  with pytest.raises(ValueError, match=message):
    compression.Compression(**options)
