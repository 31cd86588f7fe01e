from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.optimizers import schedules
from tests.reference import schedules as reference

_STEPS = (0, 1, 9, 10, 11, 50, 55, 99, 100, 101, 10_000)
_CASES = {
    'constant': (
        schedules.Constant(3.7, warmup_steps=10),
        lambda s: reference.constant(s, 3.7, 10)),
    'constant_without_warmup': (
        schedules.Constant(3.7), lambda s: reference.constant(s, 3.7, 0)),
    'polynomial': (
        schedules.Polynomial(3.7, 100, 10),
        lambda s: reference.polynomial(s, 3.7, 100, 10, 2.0, 1e-4)),
    'polynomial_of_another_power': (
        schedules.Polynomial(3.7, 100, power=0.7, end_lr=0.5),
        lambda s: reference.polynomial(s, 3.7, 100, 0, 0.7, 0.5)),
    'polynomial_that_is_held': (
        schedules.Polynomial(1e-2, 60, end_lr=1e-4),
        lambda s: reference.polynomial(s, 1e-2, 60, 0, 2.0, 1e-4)),
    'cosine': (
        schedules.Cosine(3.7, 100, 10, end_lr=0.1),
        lambda s: reference.cosine(s, 3.7, 100, 10, 0.1)),
    'cyclic': (
        schedules.Cyclic(3.7, 100, peak_fraction=0.1),
        lambda s: reference.cyclic(s, 3.7, 100, 0.1)),
    'cyclic_with_a_peak_between_steps': (
        schedules.Cyclic(3.7, 101), lambda s: reference.cyclic(
            s, 3.7, 101, 0.4)),
    'piecewise': (
        schedules.Piecewise(3.7, [50, 100], [1.0, 0.1, 0.01], 10),
        lambda s: reference.piecewise(
            s, 3.7, [50, 100], [1.0, 0.1, 0.01], 10)),
}


def test_a_warmup_by_whole_epochs_is_piecewise() -> None:
  # Appendix 4.1 of DAT (arXiv:2206.06257): epoch k of 5 has k/5 of the rate,
  # then 0.1 times it at 20, 25 and 28 of 30 further epochs; 4 updates each.
  epochs = (1, 2, 3, 4, 25, 30, 33)
  schedule = schedules.Piecewise(
      0.4, [4 * epoch for epoch in epochs],
      [0.2, 0.4, 0.6, 0.8, 1, 0.1, 0.01, 0.001])
  for step in range(4 * 35):
    k = step // 4 + 1
    decays = sum(k - 1 - 5 >= epoch for epoch in (20, 25, 28))
    expected = k / 5 * 0.4 if k <= 5 else 0.4 * 0.1**decays
    np.testing.assert_allclose(schedule(step).numpy(), expected, rtol=2e-6)


@pytest.mark.parametrize('name', _CASES)
def test_agrees_with_the_twin(name: str) -> None:
  schedule, twin = _CASES[name]
  for step in _STEPS:
    actual = schedule(tf.constant(step, tf.int64))
    assert actual.dtype == tf.float32 and actual.shape == ()
    np.testing.assert_allclose(
        actual.numpy(), twin(step), rtol=2e-6, atol=1e-7, err_msg=str(step))


@pytest.mark.parametrize('name', _CASES)
def test_compiles_and_survives_serialisation(name: str) -> None:
  schedule, _ = _CASES[name]
  copy = tf.keras.optimizers.schedules.deserialize(
      tf.keras.optimizers.schedules.serialize(schedule))
  assert type(copy) is type(schedule)
  assert copy.get_config() == schedule.get_config()
  compiled = tf.function(copy, jit_compile=True, autograph=False)
  for step in _STEPS:
    np.testing.assert_allclose(
        compiled(tf.constant(step, tf.int64)).numpy(), schedule(step).numpy(),
        rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('peak_lr', [0.1, 3.7, 31.2, 1e-3])
def test_ends_are_exact(peak_lr: float) -> None:
  peak = np.float32(peak_lr)
  for schedule in (
      schedules.Constant(peak_lr, 7),
      schedules.Polynomial(peak_lr, 77, 7),
      schedules.Cosine(peak_lr, 77, 7, end_lr=1e-4),
      schedules.Cyclic(peak_lr, 70, peak_fraction=0.1),
      schedules.Piecewise(peak_lr, [20], [1.0, 0.1], 7)):
    assert schedule(0).numpy() == 0.0
    assert schedule(7).numpy() == peak
  assert schedules.Polynomial(peak_lr, 77, 7)(77).numpy() == np.float32(1e-4)
  assert schedules.Cyclic(peak_lr, 70)(70).numpy() == 0.0


def test_middle_values_by_hand() -> None:
  # Half of the decay has passed: 0.5 + (2.5 - 0.5) * 0.5**2 = 1.
  assert schedules.Polynomial(2.5, 30, 10, 2.0, 0.5)(20).numpy() == 1.0
  assert schedules.Polynomial(2.5, 30, 10)(4).numpy() == 1.0
  np.testing.assert_allclose(
      schedules.Cosine(2.0, 40, end_lr=1.0)(20).numpy(), 1.5, rtol=1e-6)
  assert schedules.Cyclic(2.0, 10)(2).numpy() == 1.0
  assert schedules.Cyclic(2.0, 10)(7).numpy() == 1.0
  steps = schedules.Piecewise(2.0, [3, 6], [1.0, 0.5, 0.25])
  assert [float(steps(s)) for s in (2, 3, 5, 6)] == [2.0, 1.0, 1.0, 0.5]


def test_mlperf_s_decay_is_one_step_longer() -> None:
  # The reference: PolynomialDecay(step - warmup, total - warmup + 1).
  schedule = schedules.Polynomial(31.2, 1000 + 1, 100)
  for step in (100, 500, 999):
    expected = 1e-4 + (31.2 - 1e-4) * (1 - (step - 100) / 901) ** 2
    np.testing.assert_allclose(schedule(step).numpy(), expected, rtol=1e-6)
    keras = tf.keras.optimizers.schedules.PolynomialDecay(
        31.2, 1000 - 100 + 1, 1e-4, power=2.0)(step - 100)
    np.testing.assert_allclose(keras.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize('schedule, twin', [
    (schedules.Polynomial(43.0, 20_000, 400),
     lambda s: reference.polynomial(s, 43.0, 20_000, 400, 2.0, 1e-4)),
    (schedules.Cosine(43.0, 20_000, 400, end_lr=1e-4),
     lambda s: reference.cosine(s, 43.0, 20_000, 400, 1e-4))])
def test_the_last_rates_of_a_long_run_are_not_rounded_away(
    schedule: schedules.Polynomial | schedules.Cosine,
    twin: Callable[[float], float]) -> None:
  for step in range(19_990, 20_001):
    np.testing.assert_allclose(schedule(step).numpy(), twin(step), rtol=1e-6)


def test_all_steps_in_warmup() -> None:
  schedule = schedules.Polynomial(1.0, 10, 10)
  assert [float(schedule(s)) for s in (5, 10, 11)] == [
      0.5, 1.0, np.float32(1e-4)]


@pytest.mark.parametrize('make, message', [
    (lambda: schedules.Constant(-1.0), 'peak_lr must be >= 0, got -1.0'),
    (lambda: schedules.Constant(1.0, -1), 'warmup_steps must be >= 0, got -1'),
    (lambda: schedules.Polynomial(1.0, 5, 6), 'total_steps must be >= 1 and'),
    (lambda: schedules.Polynomial(1.0, 0), 'total_steps must be >= 1 and'),
    (lambda: schedules.Polynomial(1.0, 5, end_lr=2.0), 'end_lr must be in'),
    (lambda: schedules.Polynomial(1.0, 5, power=0.0), 'power must be > 0'),
    (lambda: schedules.Cosine(float('nan'), 5), 'peak_lr must be >= 0'),
    (lambda: schedules.Cyclic(1.0, 5, 1.5), 'peak_fraction must be in'),
    (lambda: schedules.Piecewise(1.0, [4, 4], [1, 1, 1]), 'must increase'),
    (lambda: schedules.Piecewise(1.0, [4], [1, 1], 5), 'not come before'),
    (lambda: schedules.Piecewise(1.0, [4], [1]), '1 boundaries need 2 values'),
    (lambda: schedules.Piecewise(1.0, [], [-1]), 'values must be >= 0'),
])
def test_illegal_arguments(
    make: Callable[[], object], message: str) -> None:
  with pytest.raises(ValueError, match=message):
    make()
