"""The probe of stale adversaries, where its figures are known."""

from collections.abc import Sequence

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import methods
from conadv_tf.analysis import staleness_probe
from conadv_tf.layers import network as networks
from conadv_tf.methods import method as methods_base
from conadv_tf.objectives import per_example
from conadv_tf.training import trainer as trainers
from tests.methods import running

_BATCH = 16


def batch(number: int) -> methods_base.Batch:
  rows = slice(number * _BATCH, (number + 1) * _BATCH)
  return methods_base.Batch(
      tf.constant(running.IMAGES[rows]), tf.constant(running.LABELS[rows]),
      tf.ones([_BATCH]))


def probe_of(trainer: trainers.Trainer, lags: Sequence[int]
             ) -> staleness_probe.StalenessProbe:
  return staleness_probe.StalenessProbe(
      trainer.network, trainer.attack,
      per_example.per_example_loss(running.LOSS),
      seed=trainer.seed, pixel_range=trainer.pixel_range, lags=lags)


@pytest.fixture(scope="module")
def trained() -> tuple[trainers.Trainer, staleness_probe.StalenessProbe,
                       list[list[np.ndarray]]]:
  """After 3 updates, each of them remembered; weights before the last."""
  trainer = running.make(methods.ConAdv(lag=1))
  probe = probe_of(trainer, (0, 1, 3))
  before = []

  def remember(*_: object, **__: object) -> None:
    before.append(networks.values(trainer.network.trainable_variables))
    probe.remember()

  remember()
  trainer.fit(running.dataset(_BATCH), steps_per_epoch=3, verbose=0,
              callbacks=[tf.keras.callbacks.LambdaCallback(
                  on_batch_end=remember)])
  return trainer, probe, before


def test_fresh_is_1_and_stale_is_not(trained: tuple) -> None:
  trainer, probe, weights = trained
  before = running.values(trainer)
  records = probe.measure(batch(3), batch(2), 3)
  np.testing.assert_array_equal(running.values(trainer), before)
  by = {(r.kind, r.branch, r.lag): r for r in records}
  # Three, two and one lag of the three kinds, in two branches.
  assert len(by) == len(records) == 2 * (3 + 2 + 1)
  moved = [float(np.sqrt(sum(np.sum((a - b)**2) for a, b in zip(
      weights[-1], weights[-1 - lag])))) for lag in (0, 1, 3)]
  for branch in trainer.network.branches:
    fresh, one, three = (
        by[staleness_probe.CONADV, branch, lag] for lag in (0, 1, 3))
    assert (fresh.strength, fresh.distance, fresh.sign_agreement,
            fresh.gradient_distance) == (1.0, 0.0, 1.0, 0.0)
    assert fresh.fresh_gain > 0
    assert [r.weight_distance for r in (fresh, one, three)] == pytest.approx(
        moved, rel=1e-5)
    assert 0 < one.gradient_distance < three.gradient_distance
    assert 0 < one.distance < three.distance < 2
    assert 0.5 < three.sign_agreement < one.sign_agreement < 1
  # Both signed steps end in the ball's corners, recycled starts at 0.
  recycled = by[staleness_probe.RECYCLED, "clean", 0]
  assert recycled.gradient_distance == 0.0
  # Without a random start the perturbation is longer, and this loss larger.
  assert recycled.strength > 1.0


def test_signs_and_distance_by_hand(trained: tuple) -> None:
  """Against the trainer's own attack, whose signs are the gradients'."""
  _, probe, _ = trained
  record = next(r for r in probe.measure(batch(3), batch(2), 3)
                if (r.kind, r.branch, r.lag) == ("conadv", "adversarial", 1))
  made = []
  for lag in (0, 1):
    probe._then.assign(probe._past[-1 - lag])  # pylint: disable=protected-access
    made.append(probe._made(batch(3), 3, "adversarial", "conadv")[0])  # pylint: disable=protected-access
  image = running.IMAGES[3 * _BATCH:4 * _BATCH]
  # Radius 16/255, 8 * 8 * 3 pixels.
  apart = [np.linalg.norm(a - b) for a, b in zip(*made)]
  assert record.distance == pytest.approx(
      np.mean(apart) / (16 / 255 * np.sqrt(192)), rel=1e-5)
  assert record.sign_agreement == np.mean(
      np.sign(made[0] - image) == np.sign(made[1] - image))


def test_at_learning_rate_0_every_lag_is_fresh(trained: tuple) -> None:
  _, probe, _ = trained
  for _ in range(3):  # three updates that change nothing
    probe.remember()
  records = probe.measure(batch(4), batch(3), 4)
  assert {r.lag for r in records} == {0, 1, 3}
  for record in records:
    assert record.weight_distance == 0.0
    if record.kind == staleness_probe.CONADV:
      assert (record.strength, record.distance, record.sign_agreement,
              record.gradient_distance) == (1.0, 0.0, 1.0, 0.0)
  same = [[r for r in records if (r.kind, r.lag) == (
      staleness_probe.RECYCLED, lag)] for lag in (0, 1)]
  for a, b in zip(*same):
    assert (a.gain, a.distance, a.sign_agreement) == (
        b.gain, b.distance, b.sign_agreement)
