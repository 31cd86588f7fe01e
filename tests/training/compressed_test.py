"""Quantised gradients in a trainer, against the twin and against none."""

import logging

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import config as config_lib
from conadv_tf import methods, randomness
from conadv_tf.distribute import compression, strategies
from conadv_tf.training import checkpoint, compressed, run_directory
from tests import tiny
from tests.methods import running
from tests.reference import compression as twin

Compression = compression.Compression
_SHAPES = ((5, 8), (7,))
_SIZES = (40, 7)


def _uniform(purpose: int, step: int, worker: int) -> np.ndarray:
  key = randomness.make_key(3, purpose, step, worker)
  return randomness.uniform(key, [47]).numpy()


def _made(options: Compression, slots: int = 1
          ) -> tuple[compressed.CompressedGradients, tf.Variable]:
  step = strategies.counter("step")
  return compressed.CompressedGradients(
      options, [tf.Variable(tf.zeros(s)) for s in _SHAPES], 3, step,
      slots), step


@pytest.mark.parametrize("options", [
    Compression(8), Compression(6, sides=2, norm="max"),
    Compression(5, bucket=8, sides=2, error_feedback=True)])
def test_sums_equal_the_twin(options: Compression) -> None:
  """One replica, several updates; the carried part is e += g - Q(e + g)."""
  made, step = _made(options)
  random = np.random.default_rng(0)
  carried = np.zeros(47)

  def through(vector: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    return twin.decode(
        *twin.encode(vector, uniform, options.bits, _SIZES, options.bucket,
                     options.norm), options.bits, _SIZES, options.bucket)

  for update in range(3):
    gradient = random.normal(size=47).astype(np.float32)
    sent = gradient + carried
    expected = through(sent, _uniform(randomness.COMPRESSION, update, 0))
    if options.error_feedback:
      carried = sent - expected
    if options.sides == 2:
      expected = through(
          expected, _uniform(randomness.COMPRESSED_SUM, update, 0))
    found = made.sum(tf.constant(gradient), lambda total: total)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    step.assign_add(1)
  made.take_snapshot()
  if options.error_feedback:
    np.testing.assert_allclose(
        made.snapshot[0, 0], carried, rtol=1e-4, atol=1e-5)
    assert np.abs(carried).max() > 0.01
  else:
    assert made.snapshot.size == 0


def test_every_virtual_replica_has_bits_of_its_own() -> None:
  made, _ = _made(Compression(4, per="virtual_replica"))
  packed = tf.constant(np.random.default_rng(1).normal(size=50), tf.float64)
  first, second = (made.contribution(packed, tf.constant(i)) for i in (0, 1))
  assert first.dtype == tf.float64
  assert np.abs(first - second)[:47].max() > 0.1
  # Statistics and the share stay as they are.
  np.testing.assert_array_equal(first[47:], packed[47:])
  expected = twin.decode(*twin.encode(
      packed.numpy()[:47].astype(np.float32),
      _uniform(randomness.COMPRESSION, 0, 1), 4, _SIZES), 4, _SIZES)
  np.testing.assert_allclose(second[:47], expected, rtol=1e-5)


def test_what_is_not_finite_reaches_the_sum_and_is_not_carried_over() -> None:
  made, _ = _made(Compression(8, bucket=8, error_feedback=True))
  made.sum(tf.ones([47]) / 3.0, lambda total: total)
  made.take_snapshot()
  before = made.snapshot
  gradient = np.ones(47, np.float32)
  gradient[11] = np.nan
  found = made.sum(tf.constant(gradient), lambda total: total).numpy()
  assert np.isnan(found[8:16]).all() and np.isfinite(found[16:]).all()
  made.take_snapshot()
  np.testing.assert_array_equal(made.snapshot, before)


def _train(options: Compression | None, **others: object) -> object:
  return running.train(
      methods.Vanilla(), options={"deterministic": False,
                                  "compression": options}, **others)


def test_off_is_nothing_and_16_bits_are_close() -> None:
  plain = _train(None)
  assert running.distance(plain, _train(Compression(32))) == 0
  found = running.distance(plain, _train(Compression(16, bucket=16)))
  assert 1e-7 < found < 2e-3


def test_a_run_goes_on_with_what_it_carries_over() -> None:
  options = Compression(4, bucket=16, error_feedback=True)
  straight = _train(options, updates=4)
  half = running.make(methods.Vanilla(), options={
      "deterministic": False, "compression": options})
  half.fit(running.dataset(32), steps_per_epoch=2, verbose=0)
  half.compressed.take_snapshot()
  state = checkpoint.capture(half)
  assert state["residual"].shape[:2] == (1, 1)
  goes_on = running.make(methods.Vanilla(), options={
      "deterministic": False, "compression": options})
  checkpoint.restore(goes_on, state)
  goes_on.fit(running.dataset(32, 64), steps_per_epoch=2, verbose=0)
  assert running.distance(straight, goes_on) == 0
  state["residual"] = np.concatenate([state["residual"]] * 2)
  with pytest.raises(config_lib.InputError, match="error_feedback: the check"):
    checkpoint.restore(goes_on, state)
  del state["residual"]
  with pytest.raises(config_lib.InputError, match="shape None"):
    checkpoint.restore(goes_on, state)


@pytest.mark.slow
def test_two_replicas_and_one_with_virtual_ones(
    mirrored: tf.distribute.Strategy) -> None:
  options = {"deterministic": True, "compression": Compression(
      6, bucket=16, sides=2, per="virtual_replica")}
  one, two = (running.train(methods.ConAdv(), options=options, **arrangement)
              for arrangement in (dict(micro_batches=4),
                                  dict(micro_batches=2, strategy=mirrored)))
  assert running.distance(one, two) == 0
  # Replicas that send codes compute what as many virtual ones do; scatter
  # falls back to the same numbers where there are no other workers.
  travelling = _train(Compression(
      8, bucket=16, sides=2, exchange="scatter"), strategy=mirrored)
  virtual = _train(Compression(
      8, bucket=16, sides=2, per="virtual_replica"), micro_batches=2)
  assert running.distance(travelling, virtual) < 1e-5
  assert running.distance(travelling, _train(None, strategy=mirrored)) > 1e-4


@pytest.mark.slow
def test_compiled_updates_are_close() -> None:
  options = Compression(16, bucket=16, error_feedback=True)
  plain, compiled = (_train(options, jit_compile=jit)
                     for jit in (None, True))
  # A level of a bucket of 16 is 3e-5 of its norm; some round otherwise.
  assert running.distance(plain, compiled) < 1e-2


def test_other_replicas_quantise_otherwise(
    caplog: pytest.LogCaptureFixture) -> None:
  saved, now = (tiny.load(
      "runtime.deterministic=false,compression.bits=8,runtime.strategy="
      f"mirrored,runtime.num_replicas={n}") for n in (1, 2))
  with caplog.at_level(logging.WARNING):
    run_directory.keep_virtual_replicas(saved, now)
  assert "quantises 2 gradients instead of 1" in caplog.text
