"""What holds for every method, whatever it computes."""

import functools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import methods
from conadv_tf.training import checkpoint
from conadv_tf.training import trainer as trainers
from tests.methods import running

# `make test-all` does not leave any out.
_SLOW = ('disadv', 'conadv sequential', 'conadv lag 2', 'dat', 'recycled lag 0',
         'smooth at', 'scala', 'freelb', 'conadv lag 3', 'conadv 3 streams',
         'conadv next batch', 'conadv every 3', 'dat paper', 'dat trades',
         'recycled', 'recycled shared', 'vanilla shared', 'vanilla split')


def _marks(name: str) -> list[pytest.MarkDecorator]:
  return [pytest.mark.slow] if name in _SLOW else []


def _most(*left_out: str) -> Any:
  return pytest.mark.parametrize('name', [
      pytest.param(name, marks=_marks(name))
      for name in sorted(running.METHODS) if name not in left_out])


_MOST = _most()
_FEW = pytest.mark.parametrize('name', [
    pytest.param(name, marks=_marks(name) or (
        [] if name == 'conadv' else [pytest.mark.slow]))
    for name in sorted(running.METHODS)])


@functools.cache
def _values(name: str, micro_batches: int, deterministic: bool) -> np.ndarray:
  """The reference: one device, one execution a step."""
  trainer = running.train(
      running.METHODS[name](), micro_batches=micro_batches,
      updates=4 if deterministic else 3,
      options={'deterministic': deterministic})
  return running.values(trainer)


@_MOST
def test_arrangements_of_equal_virtual_replicas_agree_bit_for_bit(
    name: str, mirrored: tf.distribute.Strategy) -> None:
  trainer = running.train(running.METHODS[name](), strategy=mirrored,
                          micro_batches=2)
  expected = _values(name, 4, True)
  assert np.isfinite(expected).all()
  np.testing.assert_array_equal(running.values(trainer), expected)
  # Other virtual replicas have other statistics: the comparison can fail.
  assert np.abs(_values(name, 1, True) - expected).max() > 1e-4


@pytest.mark.parametrize('name', [
    'vanilla', pytest.param('conadv', marks=pytest.mark.slow)])
def test_arrangements_agree_closely_without_deterministic(
    name: str, mirrored: tf.distribute.Strategy) -> None:
  trainer = running.train(
      running.METHODS[name](), strategy=mirrored, micro_batches=2, updates=3,
      options={'deterministic': False})
  np.testing.assert_allclose(
      running.values(trainer), _values(name, 4, False), rtol=0, atol=1e-5)


@_MOST
@pytest.mark.parametrize('steps', [
    3, pytest.param(4, marks=pytest.mark.slow)])
def test_steps_per_execution_changes_nothing(name: str, steps: int) -> None:
  # 4 updates: 3 and a partial last one, or one whole execution.
  trainer = running.train(running.METHODS[name](), steps_per_execution=steps)
  np.testing.assert_array_equal(
      running.values(trainer), _values(name, 1, True))
  assert int(trainer.step_counter) == 4
  assert int(trainer.optimizer.iterations) == 4


@_FEW
@pytest.mark.parametrize('replicas', [
    1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_method_is_traced_once(
    name: str, replicas: int, mirrored: tf.distribute.Strategy) -> None:
  method = running.METHODS[name]()
  calls = []
  step = method.step

  def spy(*args: object) -> object:
    calls.append(tf.executing_eagerly())
    return step(*args)

  method.step = spy
  trainer = running.make(method, strategy=mirrored if replicas == 2 else None)
  data = running.dataset(16, method=method)
  trainer.fit(data, steps_per_epoch=3, epochs=3, verbose=0)
  assert calls == [False] * replicas
  trainer.fit(data, steps_per_epoch=2, epochs=1, verbose=0)
  assert calls == [False] * replicas, 'a second fit traced again'


@_FEW
def test_jit_compiled_training_agrees(name: str) -> None:
  trainer = running.train(
      running.METHODS[name](), updates=3, jit_compile=True,
      options={'deterministic': False})
  plain = running.train(
      running.METHODS[name](), updates=3, options={'deterministic': False})
  assert running.distance(trainer, plain) < 1e-4


@pytest.mark.parametrize('name', [
    'vanilla', 'conadv', pytest.param('conadv lag 2', marks=pytest.mark.slow)])
def test_running_eagerly_changes_nothing(name: str) -> None:
  trainer = running.train(running.METHODS[name](), run_eagerly=True)
  np.testing.assert_allclose(
      running.values(trainer), _values(name, 1, True), rtol=0, atol=1e-6)


# Of noisy images, and of token ids: NumPy twins have them.
@_most('smooth at', 'scala', 'freelb')
@pytest.mark.parametrize('micro_batches', [
    pytest.param(1, marks=pytest.mark.slow), 2])
def test_statistics_take_one_step_an_update(
    name: str, micro_batches: int) -> None:
  # A batch normalisation on the images themselves and learning rate 0: each
  # update sees the same statistics s, so moving = m^n init + (1 - m^n) s.
  def model() -> tf.keras.Model:
    return tf.keras.Sequential([
        tf.keras.layers.BatchNormalization(momentum=0.8,
                                           input_shape=(8, 8, 3)),
        tf.keras.layers.Flatten(), tf.keras.layers.Dense(5)])

  trainer = running.train(
      running.METHODS[name](), micro_batches=micro_batches, updates=5,
      batch_size=160, model=model,
      optimizer=lambda: tf.keras.optimizers.SGD(0.0))
  slices = running.IMAGES.reshape(micro_batches, -1, 3).astype(np.float64)
  kept = 0.8**5
  (layer,) = trainer.network.layer_variables
  # Shared statistics are the mean of these and of those of adversarial rows,
  # a radius of 16/255 around, or mirrored; a NumPy twin has them exactly.
  shared = 'shared' in name or name.startswith('dat')
  np.testing.assert_allclose(
      layer['clean'].moving_mean, (1 - kept) * slices.mean((0, 1)),
      atol=8 / 255 * (1 - kept) if shared else 1e-6)
  variance = slices.var(1, ddof=1).mean(0)  # the fused kernel's correction
  np.testing.assert_allclose(
      (layer['clean'].moving_variance.numpy() - kept) / (1 - kept), variance,
      rtol=0.1 if shared else 1e-5)
  if 'adversarial' in layer:
    kept = 0.8**(5 - trainer.method.lookback)  # nothing held at first
    # radius 16/255 around the same images, other noise each update.
    np.testing.assert_allclose(
        layer['adversarial'].moving_mean, (1 - kept) * slices.mean((0, 1)),
        atol=16 / 255 * (1 - kept))
    adversarial_variance = (
        layer['adversarial'].moving_variance.numpy() - kept) / (1 - kept)
    assert (adversarial_variance > variance * 0.9).all()
    assert (adversarial_variance < variance * 1.2).all()
    assert not np.array_equal(
        layer['adversarial'].moving_mean, layer['clean'].moving_mean)


def _padded(rows: int) -> tf.data.Dataset:
  """Batches of 16 examples and `rows` rubbish ones of weight 0."""
  images = running.IMAGES.reshape(10, 16, 8, 8, 3)
  labels = running.LABELS.reshape(10, 16)
  weights = np.ones((10, 16 + rows), np.float32)
  weights[:, 16:] = 0
  images = np.concatenate(
      [images, np.full((10, rows, 8, 8, 3), 0.9, np.float32)], 1)
  labels = np.concatenate([labels, np.full((10, rows), 3, np.int32)], 1)
  return running.untuned(tf.data.Dataset.from_tensor_slices(
      (images, labels, weights))).repeat()


# Of 'smooth at' the noise, too, depends on the number of rows; sentences have
# a test of their own.
@_most('dat trades', 'smooth at', 'scala', 'freelb')
def test_rows_of_weight_0_do_not_count(name: str) -> None:
  # Without batch normalisation, which sees all rows, and without a random
  # start, whose bits depend on the number of rows (TRADES needs one).
  trained = []
  for rows in (0, 8):
    trainer = running.make(
        running.METHODS[name](),
        model=lambda: running.small_network(0, False, 'tanh'),
        attack=running.gradient.Pgd(radius=16, random_start=0.0))
    history = trainer.fit(running.with_views(_padded(rows), trainer.method),
                          steps_per_epoch=4, epochs=1, verbose=0)
    trained.append((running.values(trainer), history.history))
  np.testing.assert_allclose(trained[0][0], trained[1][0], rtol=0, atol=1e-6)
  for key in ('loss', trainer.method.terms[1], 'gradient_norm'):
    np.testing.assert_allclose(trained[0][1][key], trained[1][1][key],
                               rtol=1e-5)


@pytest.mark.parametrize('name, policy', [
    ('conadv', 'mixed_float16'), ('vanilla', 'mixed_bfloat16'),
    pytest.param('conadv', 'mixed_bfloat16', marks=pytest.mark.slow),
    pytest.param('vanilla', 'mixed_float16', marks=pytest.mark.slow)])
def test_half_precision_trains(name: str, policy: str) -> None:
  tf.keras.mixed_precision.set_global_policy(policy)
  try:
    optimizer = tf.keras.optimizers.SGD(0.1, momentum=0.9)
    if policy == 'mixed_float16':
      optimizer = tf.keras.mixed_precision.LossScaleOptimizer(optimizer)
    trainer = running.make(
        running.METHODS[name](), optimizer=lambda: optimizer,
        model=lambda: running.small_network(0.0))
    history = trainer.fit(
        running.dataset(32), steps_per_epoch=5, epochs=4, verbose=0).history
  finally:
    tf.keras.mixed_precision.set_global_policy('float32')
  assert history['clean_loss'][-1] < 0.8 * history['clean_loss'][0]
  assert np.isfinite(history['gradient_norm']).all()
  assert np.isfinite(running.values(trainer)).all()


def test_global_batches_must_divide(mirrored: tf.distribute.Strategy) -> None:
  trainer = running.make(running.METHODS['vanilla'](), strategy=mirrored)
  assert isinstance(trainer, trainers.Trainer)
  with pytest.raises(ValueError, match='15 examples.*2 replicas'):
    trainer.fit(running.dataset(15), steps_per_epoch=1, verbose=0)


# ---- Resume.


class _Snapshot(tf.keras.callbacks.Callback):
  """Asks for a snapshot before the last execution, as a checkpoint does."""

  def __init__(self, last: int):
    super().__init__()
    self._last = last

  def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
    if batch == self._last:
      self.model.snapshot_next = True


def _state(trainer: trainers.Trainer) -> list[tf.Variable]:
  """Everything that a checkpoint holds."""
  variables = list(trainer.network.variables)
  lagged = trainer.staleness.lagged
  for copy in lagged.sets if lagged else ():
    variables += copy
  return variables + trainer.optimizer.variables + [trainer.step_counter]


_RESUMED = {
    **{f'{execution} {lag}': functools.partial(
        methods.ConAdv, lag=lag, execution=execution)
       for execution in ('concurrent', 'sequential') for lag in (1, 2, 3)},
    **{f'next batch {lag}': functools.partial(
        methods.ConAdv, lag=lag, pairing='next_batch') for lag in (1, 2, 3)},
    **{f'{name}, every {every}': functools.partial(make, attack_every=every)
       for every in (2, 3, 4) for name, make in (
           ('disadv', methods.DisAdv), ('conadv', methods.ConAdv),
           ('conadv 2', functools.partial(methods.ConAdv, lag=2)),
           ('sequential', functools.partial(
               methods.ConAdv, execution='sequential')),
           ('next batch', functools.partial(
               methods.ConAdv, pairing='next_batch')))},
    'recycled': methods.Recycled,
    'recycled 0.3': lambda: methods.Recycled(adversarial_weight=0.3),
}


@functools.cache
def _straight(name: str) -> np.ndarray:
  return running.values(running.train(_RESUMED[name](), updates=6))


@pytest.mark.parametrize('name, steps_per_execution', [
    ('concurrent 2', 1), ('recycled', 1),
    *(pytest.param(name, steps, marks=pytest.mark.slow) for name, steps in (
        ('concurrent 1', 1), ('concurrent 1', 3), ('sequential 1', 1),
        ('next batch 2', 1), ('conadv, every 2', 1), ('disadv, every 2', 1),
        ('concurrent 3', 1), ('sequential 2', 1), ('concurrent 2', 3),
        ('concurrent 3', 3), ('sequential 3', 1), ('recycled', 3),
        ('recycled 0.3', 1), ('next batch 1', 1), ('next batch 3', 3),
        ('conadv, every 3', 1), ('conadv 2, every 4', 3),
        ('sequential, every 4', 1), ('next batch, every 4', 1),
        ('disadv, every 3', 3)))])
def test_resuming_at_3_equals_straight_to_6(
    name: str, steps_per_execution: int) -> None:
  make = lambda: running.make(
      _RESUMED[name](), steps_per_execution=steps_per_execution)
  first = make()
  first.fit(running.dataset(32), steps_per_epoch=3, verbose=0,
            callbacks=[_Snapshot(3 - steps_per_execution)])
  second = make()
  for target, source in zip(_state(second), _state(first), strict=True):
    target.assign(source)
  assert bool(first.staleness.snapshot) == first.method.holds
  second.staleness.restore_snapshot(first.staleness.snapshot)
  offset = 32 * (3 - first.method.behind(3))
  second.fit(running.dataset(32, offset), steps_per_epoch=3, verbose=0)
  np.testing.assert_array_equal(running.values(second), _straight(name))


@pytest.mark.parametrize('name', [
    'concurrent 1', pytest.param('recycled', marks=pytest.mark.slow)])
def test_a_resumed_run_may_save_again_before_its_first_update(
    name: str) -> None:
  # It does where an evaluation was left over: the second checkpoint must
  # hold the weights that made what is held, as the first one did.
  first = running.make(_RESUMED[name]())
  first.fit(running.dataset(32), steps_per_epoch=3, verbose=0,
            callbacks=[_Snapshot(2)])
  saved = checkpoint.capture(first)
  second = running.make(_RESUMED[name]())
  checkpoint.restore(second, saved)
  again = checkpoint.capture(second)
  assert [n for n in again if n.startswith('snapshot/')]
  assert again.keys() == saved.keys()
  for key, value in saved.items():
    np.testing.assert_array_equal(again[key], value)


@pytest.mark.slow
def test_resume_without_the_snapshot_would_differ() -> None:
  first = running.train(methods.ConAdv(lag=2), updates=3)
  second = running.make(methods.ConAdv(lag=2))
  for target, source in zip(_state(second), _state(first), strict=True):
    target.assign(source)
  second.fit(running.dataset(32, 96), steps_per_epoch=3, verbose=0)
  assert np.abs(
      running.values(second) - _straight('concurrent 2')).max() > 1e-5
