"""DAT: its update in NumPy, what it degenerates to, rows without labels."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import methods, randomness
from conadv_tf.attacks import gradient
from conadv_tf.methods import method as methods_base
from conadv_tf.objectives import per_example
from conadv_tf.training import trainer as trainers
from tests.methods import running
from tests.reference import conadv as reference
from tests.reference import dat as dat_reference

Dat = methods.Dat
_ROWS, _UPDATES, _RADIUS = 12, 6, 20.0
_random = np.random.default_rng(5)
# Away from the ends of the pixel range by the radius: no clipping, so that a
# perturbation at full size is held exactly.
_IMAGES = _random.uniform(
    0.1, 0.9, (_ROWS * (_UPDATES + 1), 4, 3, 2)).astype(np.float32)
_LABELS = _IMAGES.mean((1, 3)).argmax(1).astype(np.int32)
_PARTLY = np.where(np.arange(len(_LABELS)) % 3 == 1, -1, _LABELS)
_STD = 20.0  # of TRADES' start; noise of 0.255 leaves signs to rounding


def _model() -> tf.keras.Model:
  tf.keras.utils.set_random_seed(3)
  return tf.keras.Sequential([
      tf.keras.layers.Flatten(input_shape=(4, 3, 2)),
      tf.keras.layers.Dense(7), tf.keras.layers.BatchNormalization(),
      tf.keras.layers.Activation('tanh'), tf.keras.layers.Dense(3)])


def _starts(t: int, shape: tuple[int, ...]) -> np.ndarray:
  """The noise of virtual replica 0 on batch t."""
  key = randomness.fold(
      randomness.make_key(0, randomness.ATTACK_NOISE, t, 0), 0)
  attack = gradient.PgdFromNoise(radius=_RADIUS, start_std=_STD)
  return attack.noise(key, tf.zeros(shape), (0., 1.)).numpy()


_TRADES = dict(clean_weight=0.5, regularizer='trades', trades_weight=4.0,
               trades_start_std=_STD)


@pytest.mark.parametrize('options, steps, labels', [
    (dict(clean_weight=1.0), 1, _PARTLY), (dict(lag=1), 2, _LABELS),
    ({**_TRADES, 'lag': 2}, 1, _PARTLY),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ({}, 1, _PARTLY), (dict(clean_weight=0.3, lag=2), 1, _PARTLY),
        (dict(clean_weight=1.0, lag=1, execution='sequential'), 2, _PARTLY),
        (_TRADES, 2, _PARTLY), (_TRADES, 1, _LABELS)))])
def test_updates_agree_with_numpy(options: dict[str, Any], steps: int,
                                  labels: np.ndarray) -> None:
  method, model = Dat(**options), _model()
  values = [w.astype(np.float64) for w in model.get_weights()]
  trades = options.get('regularizer') == 'trades'
  twin = dat_reference.DatTwin(
      dict(w1=values[0], b1=values[1], w2=values[-2], b2=values[-1],
           gamma_clean=values[2], beta_clean=values[3]),
      dict(mean_clean=values[4], variance_clean=values[5]),
      reference.momentum_update(0.2, 0.9), True, radius=_RADIUS / 255,
      clean_weight=method.clean_weight, lag=method.lag, steps=steps,
      trades_weight=4.0 if trades else None,
      **(dict(starts=lambda t, shape: _starts(
          t, (shape[0], 4, 3, 2)).reshape(shape)) if trades else {}))
  trainer = trainers.Trainer(model, method, gradient.Pgd(
      radius=_RADIUS, random_start=0.0, steps=steps, step_size=2 * _RADIUS,
      mode='batch'))
  trainer.compile(tf.keras.optimizers.SGD(0.2, momentum=0.9), running.LOSS)
  data = running.untuned(tf.data.Dataset.from_tensor_slices(
      (_IMAGES, labels))).batch(_ROWS, drop_remainder=True).repeat()
  trainer.fit(data, steps_per_epoch=_UPDATES, epochs=1, verbose=0)
  for t in range(_UPDATES):
    rows = slice(t * _ROWS, (t + 1) * _ROWS)
    twin.step(_IMAGES[rows].reshape(_ROWS, -1).astype(np.float64),
              labels[rows])
  assert np.abs(twin.weights['w1'] - values[0]).max() > 0.05
  names = ('w1', 'b1', 'gamma_clean', 'beta_clean', 'w2', 'b2', 'mean_clean',
           'variance_clean')
  expected = {**twin.weights, **twin.moving}
  actual = trainer.network.model.get_weights()
  order = [0, 1, 2, 3, 6, 7, 4, 5]
  for name, index in zip(names, order, strict=True):
    np.testing.assert_allclose(actual[index], expected[name], rtol=0,
                               atol=2e-5, err_msg=name)


# ---- What it degenerates to.


def test_radius_0_and_lambda_0_is_plain_training() -> None:
  plain = running.train(methods.Vanilla())
  trainer = running.train(Dat(), attack=gradient.Pgd(radius=0))
  assert running.distance(trainer, plain) == 0


def test_lambda_1_is_disadv_with_shared_statistics_times_2() -> None:
  rate = lambda lr: lambda: tf.keras.optimizers.SGD(lr, momentum=0.9)
  disadv = running.train(methods.DisAdv(bn_branches=1), optimizer=rate(0.5))
  trainer = running.train(Dat(clean_weight=1.0), optimizer=rate(0.25))
  assert running.distance(trainer, disadv) == 0


@pytest.mark.slow
@pytest.mark.parametrize('lag, options', [
    (1, {}), (2, dict(clean_weight=1.0)),
    (2, dict(clean_weight=1.0, regularizer='trades'))])
def test_concurrent_and_sequential_execution_agree(
    lag: int, options: dict[str, Any]) -> None:
  concurrent, sequential = (
      running.train(Dat(lag=lag, **more), updates=5) for more in (
          options, dict(options, execution='sequential')))
  assert running.distance(concurrent, sequential) == 0


@pytest.mark.slow
def test_trades_weight_0_is_plain_training_but_for_statistics() -> None:
  model = lambda: running.small_network(0, False)
  plain = running.train(methods.Vanilla(), model=model)
  trainer = running.train(
      Dat(clean_weight=1.0, regularizer='trades', trades_weight=0.0),
      model=model)
  assert running.distance(trainer, plain) < 1e-6


# ---- Rows without a label.


def _fit(method: methods_base.Method, data: tf.data.Dataset,
         **options: Any) -> tuple[np.ndarray, dict[str, list[float]]]:
  trainer = running.make(
      method, model=lambda: running.small_network(0, False),
      optimizer=lambda: tf.keras.optimizers.SGD(0.5),
      attack=gradient.Pgd(radius=16, random_start=0.0), options=options,
      weighted_metrics=[
          tf.keras.metrics.SparseCategoricalAccuracy('labelled_accuracy')])
  history = trainer.fit(data, steps_per_epoch=1, verbose=0).history
  return running.values(trainer), history


def test_they_add_0_but_count_in_the_mean() -> None:
  images, labels = running.IMAGES[:16], running.LABELS[:16]
  partly = np.where(np.arange(16) < 12, labels, -1)
  data = lambda n, y: running.untuned(tf.data.Dataset.from_tensor_slices(
      (images[:n], y[:n]))).batch(n).repeat()
  start = running.values(running.make(
      Dat(), model=lambda: running.small_network(0, False)))
  whole, history = _fit(Dat(clean_weight=1.0), data(16, partly))
  part, expected = _fit(Dat(clean_weight=1.0), data(12, labels))
  np.testing.assert_allclose(
      whole - start, 0.75 * (part - start), rtol=0, atol=1e-6)
  assert np.abs(part - start).max() > 0.01
  for key in ('clean_loss', 'adversarial_loss', 'labelled_accuracy',
              'adversarial_accuracy'):  # means over labelled rows
    assert history[key][0] == pytest.approx(expected[key][0], abs=1e-6)
  assert history['loss'][0] == pytest.approx(0.75 * expected['loss'][0])
  # Whichever micro batch they fall to: all four are in the second one.
  halves, _ = _fit(Dat(clean_weight=1.0), data(16, partly).unbatch().batch(8),
                   micro_batches=2)
  np.testing.assert_allclose(halves, whole, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_trades_needs_no_label() -> None:
  # lambda is small: labels hardly matter, but KL's gradient is the same.
  method = Dat(clean_weight=1e-9, regularizer='trades', trades_start_std=16.0)
  data = lambda y: running.untuned(tf.data.Dataset.from_tensor_slices(
      (running.IMAGES[:16], y))).batch(16).repeat()
  labelled, _ = _fit(method, data(running.LABELS[:16]))
  without, history = _fit(method, data(np.full(16, -1, np.int32)))
  np.testing.assert_allclose(labelled, without, rtol=0, atol=1e-6)
  assert history['trades_loss'][0] > 1e-3
  assert history['clean_loss'][0] == 0


# ---- The pass, the attack, options.


@pytest.mark.parametrize('clean_weight, rows', [
    (0.0, {16}), pytest.param(1.0, {16, 32}, marks=pytest.mark.slow)])
def test_lambda_0_has_no_clean_pass(clean_weight: float,
                                    rows: set[int]) -> None:
  trainer = running.make(Dat(clean_weight=clean_weight))
  batch = methods_base.Batch(
      tf.constant(running.IMAGES[:16]), tf.constant(running.LABELS[:16]),
      tf.ones([16]))
  step = tf.function(lambda: trainer.method.step(
      _context(trainer), batch, ()).gradients, autograph=False)
  convolutions = [op.outputs[0].shape[0]
                  for op in step.get_concrete_function().graph.get_operations()
                  if op.type == 'Conv2D']
  assert len(convolutions) == 2 and set(convolutions) == rows


def _context(trainer: trainers.Trainer) -> methods_base.Context:
  return methods_base.Context(
      network=trainer.network, attack_network=trainer.network,
      attack=trainer.attack, loss=per_example.per_example_loss(running.LOSS),
      seed=0, step=tf.constant(0), batch_index=tf.constant(0),
      virtual_replica=tf.constant(0), pixel_range=(0., 1.))


@pytest.mark.parametrize('steps, mode', [(1, 'batch'), (2, 'moving')])
def test_the_attack_that_the_method_makes(steps: int, mode: str) -> None:
  attack = Dat().default_attack(gradient.Pgd(radius=8, steps=steps))
  assert (attack.mode, attack.random_start, attack.branch) == (
      mode, 1.0, 'clean')
  given = gradient.Pgd(steps=steps, mode='moving', random_start=0.8)
  assert Dat().default_attack(given).mode == 'moving'
  assert Dat().default_attack(given).random_start == 0.8
  trades = Dat(clean_weight=1.0, regularizer='trades')
  assert trades.default_attack(given).start_std == 0.255
  off = Dat(clean_weight=1.0, regularizer='trades', trades_start_std=0.0)
  assert type(off.default_attack(given)) is gradient.Pgd


@pytest.mark.parametrize('options, steps, expected', [
    ({}, 1, (5, 4)), ({}, 10, (23, 22)), (dict(clean_weight=1.0), 1, (8, 4)),
    (dict(lag=1), 1, (5, 2)), (dict(lag=1), 4, (11, 8)),
    (dict(lag=1, execution='sequential'), 1, (5, 4)),
    (dict(clean_weight=1.0, regularizer='trades'), 10, (27, 23))])
def test_passes(options: dict[str, Any], steps: int,
                expected: tuple[int, int]) -> None:
  assert Dat(**options).passes(gradient.Pgd(steps=steps)) == expected


@pytest.mark.parametrize('options', [
    dict(clean_weight=-1.0), dict(clean_weight=float('nan')), dict(lag=-1),
    dict(regularizer='mse'), dict(execution='parallel'),
    dict(trades_weight=-1.0), dict(trades_start_std=-0.1),
    dict(clean_weight=0.0, regularizer='trades')])
def test_bad_options_are_named(options: dict[str, Any]) -> None:
  with pytest.raises(ValueError, match=next(iter(options))):
    Dat(**options)


def test_trades_has_no_target() -> None:
  with pytest.raises(ValueError, match='attack.target=random'):
    Dat(clean_weight=1.0, regularizer='trades').default_attack(
        gradient.Pgd(target='random'))


# ---- Theory.


@pytest.mark.slow
def test_the_gradient_s_variance_falls_as_1_over_m_b() -> None:
  # Batches drawn with replacement, no batch normalisation: each update's
  # gradient is a mean of M B independent ones, of variance sigma^2 each.
  trainer = running.make(
      Dat(clean_weight=1.0), model=lambda: running.small_network(0, False),
      attack=gradient.Pgd(radius=16, random_start=0.0))

  @tf.function(autograph=False, reduce_retracing=False)
  def gradient_of(image: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
    result = trainer.method.step(_context(trainer), methods_base.Batch(
        image, label, tf.ones([image.shape[0]])), ())
    return tf.concat([tf.reshape(g, [-1]) for g in result.gradients], 0)

  def at(rows: np.ndarray) -> np.ndarray:
    return gradient_of(tf.constant(running.IMAGES[rows]),
                       tf.constant(running.LABELS[rows])).numpy()

  examples = np.stack([at(np.array([i])) for i in range(40)])
  mean = examples.mean(0)
  variance = np.square(examples - mean).sum(1).mean()
  random = np.random.default_rng(0)
  for workers, rows in ((1, 2), (1, 16), (4, 4)):
    found = np.mean([np.square(np.mean([
        at(random.integers(0, 40, rows)) for _ in range(workers)], 0)
        - mean).sum() for _ in range(200)])
    assert found * workers * rows == pytest.approx(variance, rel=0.15)
