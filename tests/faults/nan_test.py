"""Updates that are not finite: the run stops, or leaves them out."""

from collections.abc import Callable, Sequence
import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import methods
from conadv_tf.attacks import gradient
from conadv_tf.layers import network as networks
from conadv_tf.methods import method as method_lib
from conadv_tf.optimizers import lars
from conadv_tf.training import trainer as trainers
from tests import commands, tiny
from tests.methods import running
from tests.reference import conadv as reference

_ROWS = 16
_SKIPPED = 2


def _batches(count: int, poisoned: int | None = None) -> list[Any]:
  images = [running.IMAGES[i * _ROWS:(i + 1) * _ROWS].copy()
            for i in range(count)]
  if poisoned is not None:
    images.insert(poisoned, images[poisoned].copy())
    images[poisoned][3, 2, 2, 1] = np.nan
  labels = running.LABELS[:_ROWS]
  return [(x, labels) for x in images]


def _without_dropout() -> tf.keras.Model:
  return running.small_network(dropout=0.0)


def _train(batches: Sequence[Any], method: method_lib.Method,
           skip: bool = True, strategy: Any = None,
           model: Callable[[], tf.keras.Model] = _without_dropout,
           optimizer: Any = None, **compile_options: Any) -> trainers.Trainer:
  """One update of two micro batches a batch; the last one is attacked only."""
  trainer = running.make(
      method, strategy=strategy, model=model, optimizer=optimizer,
      attack=gradient.Pgd(radius=16, random_start=0.0),
      options={'skip_nonfinite': skip, 'micro_batches': 2},
      **compile_options)
  images, labels = (np.concatenate(x) for x in zip(*batches))
  data = running.untuned(tf.data.Dataset.from_tensor_slices(
      (images, labels))).batch(_ROWS // 2, drop_remainder=True)
  trainer.fit(data.repeat(), steps_per_epoch=len(batches) - 1, verbose=0)
  return trainer


def _slots(trainer: trainers.Trainer) -> list[np.ndarray]:
  return [networks.read(v) for v in trainer.optimizer.variables
          if v is not trainer.optimizer.iterations]


def _assert_left_out(method: type, **options: Any) -> None:
  """As if the bad batch had not been there, but for the counters."""
  skipping = _train(_batches(5, _SKIPPED), method(), **options)
  without = _train(_batches(5), method(), **options)
  assert int(networks.read(skipping.nonfinite.first)) == _SKIPPED
  assert int(networks.read(skipping.nonfinite.count)) == 1
  assert int(networks.read(without.nonfinite.count)) == 0
  assert int(networks.read(skipping.step_counter)) == 5
  assert int(networks.read(skipping.optimizer.iterations)) == 5
  assert np.isfinite(running.values(skipping)).all()
  np.testing.assert_array_equal(
      running.values(skipping), running.values(without))
  for one, other in zip(_slots(skipping), _slots(without), strict=True):
    np.testing.assert_array_equal(one, other)
  assert np.isfinite([float(m.result()) for m in skipping.metrics]).all()


@pytest.mark.parametrize('method, options', [
    (methods.Vanilla, {}),
    pytest.param(
        methods.DisAdv, {'optimizer': lambda: lars.Lars(2.0, momentum=0.9)},
        marks=pytest.mark.slow),
    pytest.param(methods.DisAdv, {'jit_compile': True},
                 marks=pytest.mark.slow),
])
def test_a_skipped_update_is_left_out(
    method: type, options: dict[str, Any]) -> None:
  _assert_left_out(method, **options)


@pytest.mark.slow
def test_mirrored(mirrored: tf.distribute.Strategy) -> None:
  """The bad image is in the first of two replicas."""
  _assert_left_out(methods.DisAdv, strategy=mirrored)


@pytest.mark.parametrize('options', [
    {}, pytest.param({'jit_compile': True}, marks=pytest.mark.slow),
    pytest.param({'strategy': True}, marks=pytest.mark.slow)])
def test_without_them_skipping_changes_nothing(
    options: dict[str, Any], request: pytest.FixtureRequest) -> None:
  if 'strategy' in options:
    options = {'strategy': request.getfixturevalue('mirrored')}
  stops, skips = (_train(_batches(4), methods.ConAdv(lag=1), skip, **options)
                  for skip in (False, True))
  # XLA rounds products and sums that it joins once: another program, other
  # last bits.
  tolerance = 3e-7 if 'jit_compile' in options else 0
  np.testing.assert_allclose(running.values(stops), running.values(skips),
                             rtol=0, atol=tolerance)
  for one, other in zip(_slots(stops), _slots(skips), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


def _dense() -> tf.keras.Model:
  tf.keras.utils.set_random_seed(3)
  layers = tf.keras.layers
  return tf.keras.Sequential([
      layers.Flatten(input_shape=(8, 8, 3)), layers.Dense(7, 'tanh'),
      layers.Dense(5)])


def test_finite_gradients_whose_squares_are_not() -> None:
  """Adam's second moment would stay infinite, its steps 0 for ever."""
  steep = tf.keras.Sequential([_dense(), tf.keras.layers.Rescaling(1e21)])
  before = steep.get_weights()
  trainer = _train(_batches(3), methods.Vanilla(), model=lambda: steep,
                   optimizer=lambda: tf.keras.optimizers.Adam(0.1))
  assert int(networks.read(trainer.nonfinite.count)) == 2
  for one, other in zip(before, trainer.network.model.get_weights()):
    np.testing.assert_array_equal(one, other)
  for slot in _slots(trainer):
    assert not slot.any()


def test_conadv_with_a_skipped_update_equals_numpy() -> None:
  """The next adversaries are made with weights of one update ago: the same."""
  model = _dense()
  values = [w.astype(np.float64) for w in model.get_weights()]
  twin = reference.Twin(
      dict(zip(('w1', 'b1', 'w2', 'b2'), values)), {},
      reference.momentum_update(0.5, 0.9), normalise=False, lag=1,
      radius=16 / 255)
  batches = _batches(6, _SKIPPED)
  trainer = _train(batches, methods.ConAdv(lag=1), model=lambda: model)
  for x, labels in batches[:-1]:
    if np.isnan(x).any():
      twin._history.append(dict(twin.weights))
    else:
      twin.step(x.reshape(_ROWS, -1).astype(np.float64), labels)
  assert int(networks.read(trainer.nonfinite.count)) == 1
  for name, value in zip(('w1', 'b1', 'w2', 'b2'),
                         trainer.network.model.get_weights()):
    np.testing.assert_allclose(value, twin.weights[name], atol=2e-6,
                               err_msg=name)


def _run(model_dir: pathlib.Path, *overrides: str) -> commands.Finished:
  return commands.run(
      'conadv_tf.train', f'--model_dir={model_dir}', *(
          f'--params_override={text}' for text in (
              tiny.SETTINGS, 'checkpoint.every_epochs=0.33333', *overrides)))


@pytest.mark.parametrize('rate', [
    '1e20', pytest.param('3.3e38', marks=pytest.mark.slow)])
def test_a_run_that_diverges(tmp_path: pathlib.Path, rate: str) -> None:
  done = _run(tmp_path, f'schedule.peak_lr={rate},schedule.warmup_epochs=0,'
              'optimizer.name=sgd')
  assert done.code == 3, done.err
  (line,) = [x for x in done.err.splitlines() if x.startswith('error: ')]
  assert 'Traceback' not in done.err
  newest = sorted((tmp_path / 'checkpoints').glob('step-*'))[-1]
  saved = int(newest.name[-8:])
  assert line.startswith(f'error: update {saved + 1} (epoch ')
  assert f'the last good checkpoint is that of update {saved}' in line
  with np.load(newest / 'state.npz') as arrays:
    for name in arrays.files:
      assert np.isfinite(arrays[name]).all(), name
