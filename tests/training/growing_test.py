"""A batch that grows during training, without a run around it."""

from collections.abc import Sequence
import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import methods, optimizers
from conadv_tf.attacks import gradient
from conadv_tf.layers import network as networks
from conadv_tf.methods import absa, growth
from conadv_tf.training import growing
from conadv_tf.training import trainer as trainers
from tests.methods import running
from tests.reference import absa as reference

_EIGENVALUES = (8.0, 3.0, 2.9, 2.8, 1.0, 0.9, 0.8)


class _Drive(tf.keras.callbacks.Callback):
  """What a run's callback does for growth."""

  def __init__(self, driver: growing.Driver):
    super().__init__()
    self.driver, self.position = driver, 0
    self.made: list[tuple[int, float, float]] = []

  def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
    self._count = self.driver.before(self.position)

  def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
    self.position += self._count
    driver = self.driver
    self.made.append((driver.batch_ratio, driver.rate_factor, driver.gamma))
    driver.after(self.position, self._count)
    self.model.stop_training = driver.ends(self.position)


def _controller(gamma: float = 0.0) -> absa.Controller:
  return absa.Controller(4, kappa=2, gamma=gamma)


def _grow(trainer: trainers.Trainer, rule: growth.Growth, data: Any,
          total: int, eigenvalues: Sequence[float] = _EIGENVALUES) -> _Drive:
  """Trains over `total` initial batches, with an estimate after each two."""
  drive = _Drive(growing.Driver(
      rule, trainer.growing, total=total, every=2.0,
      estimate=lambda i: growing.Estimate(eigenvalues[i], 1)))
  trainer.fit(data, steps_per_epoch=total, verbose=0, callbacks=[drive])
  return drive


def _grown(method: Any, rule: growth.Growth, *, micro_batches: int = 1,
           total: int = 20, rows: int = 32, options: Any = None,
           **others: Any) -> trainers.Trainer:
  trainer = running.make(
      method, options={'micro_batches': micro_batches, 'grows': True,
                       **(options or {})}, **others)
  _grow(trainer, rule, running.dataset(rows // micro_batches), total)
  return trainer


def _ratio(trainer: trainers.Trainer) -> int:
  return int(networks.read(trainer.growing.ratio))


# ---- The twin.

_ROWS, _TOTAL, _RADIUS = 10, 26, 12.0
_random = np.random.default_rng(5)
_IMAGES = _random.random((_ROWS * _TOTAL, 4, 3, 2), np.float32)
_LABELS = _IMAGES.mean((1, 3)).argmax(1).astype(np.int32)


def _keras_model() -> tf.keras.Model:
  tf.keras.utils.set_random_seed(3)
  return tf.keras.Sequential([
      tf.keras.layers.Flatten(input_shape=(4, 3, 2)), tf.keras.layers.Dense(7),
      tf.keras.layers.BatchNormalization(),
      tf.keras.layers.Activation('tanh'), tf.keras.layers.Dense(3)])


def _twin(model: tf.keras.Model, **options: Any) -> reference.GrowingTwin:
  values = [w.astype(np.float64) for w in model.get_weights()]
  return reference.GrowingTwin(
      weights=dict(w1=values[0], b1=values[1], gamma_clean=values[2],
                   beta_clean=values[3], w2=values[-2], b2=values[-1]),
      moving=dict(mean_clean=values[4], variance_clean=values[5]),
      update=None, normalise=True, radius=_RADIUS / 255, **options)


@pytest.mark.parametrize('micro_batches, lag', [
    (2, 0), (1, 1), pytest.param(1, 0, marks=pytest.mark.slow)])
def test_a_training_agrees_with_its_twin(micro_batches: int,
                                         lag: int) -> None:
  model, micro_rows = _keras_model(), _ROWS // micro_batches
  twin = _twin(model, micro_rows=micro_rows, age=lag, rate=0.05)
  trainer = trainers.Trainer(
      model, methods.Absa(gamma=0.7, lag=lag), gradient.Pgd(radius=_RADIUS),
      micro_batches=micro_batches, grows=True)
  schedule = optimizers.Constant(0.05)
  trainer.compile(
      tf.keras.optimizers.SGD(growing.rate(
          schedule, trainer.step_counter, trainer.growing), momentum=0.9),
      running.LOSS)
  data = running.untuned(tf.data.Dataset.from_tensor_slices(
      (_IMAGES, _LABELS))).batch(micro_rows, drop_remainder=True).repeat()
  drive = _grow(trainer, absa.Controller(
      4, kappa=2, gamma=0.7, vanishes=20), data, _TOTAL)
  # Estimates after 2 (the reference), 4 (grows), 6, 8 (kappa: grows), 12 (only
  # gamma falls).
  assert drive.made == (
      [(1, 1.0, 0.7)] * 4 + [(2, 2.0, 0.35)] * 2 + [(4, 4.0, 0.35)]
      + [(4, 4.0, 0.175)] * 2 + [(4, 4.0, 0.0)])
  assert drive.position == 24 and drive.driver.updates == 10
  assert int(trainer.step_counter) == 24
  assert int(trainer.optimizer.iterations) == 10
  position = 0
  for ratio, rate_factor, gamma in drive.made:
    rows = slice(position * _ROWS, (position + ratio) * _ROWS)
    twin.grown_step(_IMAGES[rows].reshape(ratio * _ROWS, -1).astype(float),
                    _LABELS[rows], rate_factor, gamma)
    position += ratio
  values = trainer.network.model.get_weights()
  actual = dict(w1=values[0], b1=values[1], gamma_clean=values[2],
                beta_clean=values[3], w2=values[-2], b2=values[-1],
                mean_clean=values[4], variance_clean=values[5])
  expected = {**twin.weights, **twin.moving}
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(actual[name], value, rtol=0, atol=1e-5,
                               err_msg=name)


# ---- Off is plain training.


@pytest.mark.parametrize('micro_batches, deterministic', [
    (1, False), pytest.param(2, False, marks=pytest.mark.slow),
    pytest.param(1, True, marks=pytest.mark.slow)])
def test_gamma_0_is_vanilla_bit_for_bit(micro_batches: int,
                                        deterministic: bool) -> None:
  options = {'deterministic': deterministic}

  def train(method: Any) -> trainers.Trainer:
    return running.train(method, micro_batches=micro_batches, options=options)

  plain = train(methods.Vanilla())
  assert running.distance(train(methods.Absa(gamma=0.0)), plain) == 0
  # Gamma that leaves no whole row, and then one that does.
  for gamma, differs in ((1 / 33, False), (0.5, True)):
    trainer = running.make(methods.Absa(gamma=0.5), options={
        **options, 'micro_batches': micro_batches, 'grows': True})
    trainer.growing.gamma.assign(gamma)
    trainer.fit(running.dataset(32 // micro_batches), steps_per_epoch=4,
                verbose=0)
    assert (running.distance(trainer, plain) > 1e-4) == differs
    assert differs or running.distance(trainer, plain) == 0


@pytest.mark.parametrize('name', [
    'vanilla', *(pytest.param(name, marks=pytest.mark.slow)
                 for name in ('disadv', 'conadv sequential'))])
def test_a_batch_that_could_grow_and_does_not_changes_nothing(
    name: str) -> None:
  trainer = _grown(running.METHODS[name](), growth.Growth(), total=4)
  plain = running.train(running.METHODS[name]())
  assert running.distance(trainer, plain) == 0
  assert int(trainer.step_counter) == 4


def test_a_constant_ratio_is_more_micro_batches() -> None:
  # 3 initial batches of 32 an update = 3 micro batches of 96.
  # Without dropout, whose masks are keyed by the position.
  def make(**options: Any) -> trainers.Trainer:
    return running.make(methods.Vanilla(), options=options,
                        model=lambda: running.small_network(0.0))

  grown, plain = make(grows=True), make(micro_batches=3)
  drive = _grow(grown, growth.Scheduled(3, [0], 3), running.dataset(32), 14)
  assert drive.made == [(3, 1.0, 0.0)] * 4  # 2 are left over
  plain.fit(running.dataset(32), steps_per_epoch=4, verbose=0)
  assert running.distance(grown, plain) == 0


# ---- The contract under growth.


@pytest.mark.slow
@pytest.mark.parametrize('method', [
    lambda: methods.Absa(gamma=0.5, lag=2),
    lambda: methods.Absa(gamma=0.5), methods.DisAdv, methods.Vanilla])
def test_arrangements_of_equal_virtual_replicas_agree_bit_for_bit(
    method: Any, mirrored: tf.distribute.Strategy) -> None:
  one = _grown(method(), _controller(0.5), micro_batches=4)
  two = _grown(method(), _controller(0.5), micro_batches=2, strategy=mirrored)
  assert _ratio(one) == _ratio(two) == 4
  assert int(one.optimizer.iterations) == 4 + 2 + 3
  np.testing.assert_array_equal(running.values(one), running.values(two))
  other = _grown(method(), _controller(0.5), micro_batches=2)
  assert running.distance(one, other) > 1e-4  # other virtual replicas


def test_growth_makes_no_second_trace(
    mirrored: tf.distribute.Strategy) -> None:
  for strategy, expected in ((None, 1), (mirrored, 2)):
    method, calls = methods.Absa(gamma=0.5), []
    step = method.step

    def spy(*args: object, calls: list = calls, step: object = step) -> object:
      calls.append(tf.executing_eagerly())
      return step(*args)

    method.step = spy
    trainer = _grown(method, _controller(0.5), strategy=strategy)
    assert _ratio(trainer) == 4
    assert calls == [False] * expected
    # Gradients of all initial batches of an update sum up in one vector.
    assert trainer._accumulator.shape == [trainer._packing.size]


@pytest.mark.slow
def test_jit_compiled_training_agrees() -> None:
  options = {'deterministic': False}
  trained = [
      _grown(methods.Absa(gamma=0.5), _controller(0.5), total=6,
             options=options, **compiled)
      for compiled in ({}, {'jit_compile': True})]
  assert _ratio(trained[1]) == 2
  assert running.distance(*trained) < 1e-4


@pytest.mark.parametrize('method', [
    methods.ConAdv(lag=1), methods.ConAdv(pairing='next_batch'),
    methods.DisAdv(attack_every=2), methods.Recycled(lag=1)])
def test_methods_that_hold_a_batch_are_refused(method: Any) -> None:
  with pytest.raises(ValueError, match='hold a batch for the next update'):
    running.make(method, options={'grows': True})


# ---- The driver and the rate.


def _driver(every: float, ratio: int = 1, total: int = 1000,
            values: Any = lambda i: 1.0) -> tuple[growing.Driver, list[int]]:
  calls: list[int] = []

  def estimate(number: int) -> growing.Estimate:
    calls.append(number)
    return growing.Estimate(values(number), 3, 'because')

  rule = absa.Controller(64, kappa=1000)
  rule.ratio = ratio
  return growing.Driver(rule, None, total=total, every=every,
                        estimate=estimate), calls


@pytest.mark.parametrize('every, ratio, expected', [
    (5.0, 1, [5, 10, 15, 20]), (2.5, 1, [3, 5, 8, 10, 13, 15, 18, 20]),
    # Multiples of n that no update hits are crossed.
    (5.0, 3, [6, 12, 15]), (2.0, 8, [8, 16]), (100.0, 1, [])])
def test_an_estimate_is_due_where_a_multiple_of_n_is_crossed(
    every: float, ratio: int, expected: list[int]) -> None:
  driver, calls = _driver(every, ratio)
  made = []
  for position in range(ratio, 21, ratio):
    assert driver.before(position - ratio) == ratio
    if driver.after(position, ratio):
      made.append(position)
  assert made == expected
  assert calls == list(range(len(made)))


def test_there_is_no_estimate_after_the_last_update() -> None:
  driver, calls = _driver(1.0, ratio=4, total=14)
  for position in (4, 8, 12):
    assert not driver.ends(position - 4)
    driver.after(position, 4)
  assert driver.ends(12) and calls == [0, 1]


def test_a_failed_estimate_is_a_warning(
    caplog: pytest.LogCaptureFixture) -> None:
  driver, calls = _driver(1.0, values=lambda i: [8.0, math.nan, 1.0][i])
  for position in (1, 2):
    driver.after(position, 1)
  assert caplog.messages == [
      'no eigenvalue after 2 initial batches: because; training goes on with '
      'the batch as it is']
  assert driver.ratio == 1
  driver.after(3, 1)
  assert (driver.ratio, calls) == (2, [0, 1, 2])


def test_a_driver_goes_on_from_its_state() -> None:
  straight, _ = _driver(1.0, values=lambda i: 0.5**i)
  first, _ = _driver(1.0, values=lambda i: 0.5**i)
  second, calls = _driver(1.0, values=lambda i: 0.5**i)
  position = 0
  for turn in range(6):
    if turn == 3:
      second.restore(first.state())
      assert second.state() == first.state()
      assert growing.saved_ratio({'growth': first.state()}) == first.ratio
    count = straight.before(position)
    for driver in ((first, straight)[:1] if turn < 3 else (second,)):
      assert driver.before(position) == count
    position += count
    straight.after(position, count)
    (first if turn < 3 else second).after(position, count)
  assert second.state() == straight.state()
  assert calls == [3, 4, 5]
  assert growing.saved_ratio({}) == 1


def test_the_rate_follows_the_position_and_the_factor() -> None:
  batch = growing.GrowingBatch()
  position = tf.Variable(3, dtype=tf.int64)
  rate = growing.rate(
      optimizers.Piecewise(0.5, [4], [1.0, 0.1]), position, batch)
  assert float(rate(tf.constant(99))) == 0.5
  batch.rate_factor.assign(2.5)
  assert float(rate(0)) == 1.25
  position.assign(4)
  assert float(rate(0)) == pytest.approx(0.125)
  schedule = optimizers.Constant(1.0)
  assert growing.rate(schedule, position, None) is schedule
