"""Appendix C's arithmetic: what the ABSA paper prints, and what it should."""

import dataclasses

import pytest

from conadv_tf.analysis import cost_model, training_time
from conadv_tf.analysis import published_absa as published

_PRICES = training_time.Prices(compute=0.5, communication=0.25,
                               adversarial_compute=0.75, hessian=3.0)


def test_a_training_by_hand() -> None:
  recipe = training_time.Recipe('x', updates=100, evaluations=7,
                                adversarial_updates=40)
  # 100 * 0.75, a quarter more for each of 40, 7 * 3
  assert training_time.total_seconds(recipe, _PRICES) == 75 + 10 + 21
  # Nothing of it: vanilla.
  plain = training_time.Recipe('x', updates=100)
  assert training_time.total_seconds(plain, _PRICES) == 75


@pytest.mark.parametrize('name, seconds, printed', [
    ('BL', 16666.65, 16_666), ('GG', 6149.99, 6_150),
    ('ABS', 2560.04, 2_666), ('ABSA', 3489.54, 3_467)])
def test_table_3(name: str, seconds: float, printed: int) -> None:
  row, = (row for row in published.ROWS if row.recipe.name == name)
  assert training_time.total_seconds(
      row.recipe, published.PRICES) == pytest.approx(seconds, abs=0.01)
  assert row.printed_seconds == printed


def test_what_the_printed_totals_would_take() -> None:
  baseline, growing, adaptive, adversarial = published.ROWS
  assert baseline.recipe.updates == 90 * -(-cost_model.IMAGENET_IMAGES // 256)
  assert training_time.total_seconds(
      dataclasses.replace(baseline.recipe, updates=baseline.printed_updates),
      published.PRICES) == pytest.approx(16651.7, abs=0.1)
  # 30, 30, 20 and 10 epochs at 1, 10, 100 and 1,000 times the batch.
  assert growing.recipe.updates == int(5005 * (30 + 3 + 0.2 + 0.01))
  assert training_time.total_seconds(
      dataclasses.replace(adaptive.recipe, updates=69_257),
      published.PRICES) == pytest.approx(adaptive.printed_seconds, abs=0.02)
  assert training_time.total_seconds(
      dataclasses.replace(adversarial.recipe, adversarial_updates=64_783),
      published.PRICES) == pytest.approx(adversarial.printed_seconds, abs=0.05)
  for row in published.ROWS[1:]:
    assert row.printed_speedup == pytest.approx(
        baseline.printed_seconds / row.printed_seconds, abs=0.008)


def test_communication_is_equation_14() -> None:
  """And equation 16 is its limit; the printed figure is 1.5E-2."""
  seconds = training_time.communication(
      published.PARAMETERS, published.DEVICES, published.NETWORK)
  size = 4 * 11_689_512
  assert seconds == pytest.approx(
      2 * (2e-6 * 9 + 511 / 512 * size / 6e9), rel=1e-12)
  assert 0.0145 < seconds < 0.0156
  assert seconds == pytest.approx(2 * size / 6e9, rel=1e-3)
  half = training_time.communication(
      published.PARAMETERS, published.DEVICES, published.NETWORK, 2)
  assert half == pytest.approx(seconds / 2, abs=2e-5)
  assert training_time.communication(1000, 1, published.NETWORK) == 0


def test_wrong_arguments() -> None:
  for match, call in (
      ('needs an update', lambda: training_time.Recipe('x', 0)),
      ('evaluations are 0', lambda: training_time.Recipe('x', 1, -1)),
      ('cannot be adversarial', lambda: training_time.Recipe('x', 1, 0, 2)),
      ('compute is a time', lambda: training_time.Prices(float('nan'), 0.0)),
      ('hessian is a time', lambda: training_time.Prices(0, 0, hessian=-1.0)),
      ('adversarial_compute must', lambda: training_time.total_seconds(
          training_time.Recipe('x', 1, 0, 1), training_time.Prices(1, 1))),
      ('needs parameters', lambda: training_time.communication(
          0, 2, published.NETWORK))):
    with pytest.raises(ValueError, match=match):
      call()
