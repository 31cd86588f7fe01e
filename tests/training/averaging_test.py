"""Averaged weights: computed by Keras, shown and exported by us."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import experiment, methods, runs, saved_runs
from conadv_tf.layers import network as networks
from conadv_tf.training import averaging, checkpoint, trainer
from tests import tiny
from tests.methods import running

_SETTINGS = ('optimizer.ema_momentum=0.75,checkpoint.every_epochs=0.33333,'
             'checkpoint.keep=9,method.name=vanilla')


def _sgd(**options: Any) -> tf.keras.optimizers.Optimizer:
  return tf.keras.optimizers.SGD(0.5, momentum=0.9, **options)


def _values(model: trainer.Trainer) -> list[np.ndarray]:
  return [networks.read(v) for v in model.network.trainable_variables]


def _averages(model: trainer.Trainer) -> list[np.ndarray]:
  order = {id(v): i for i, v in enumerate(model.network.variables)}
  averages = averaging.averages(model)
  return [networks.read(averages[order[id(v)]])
          for v in model.network.trainable_variables]


def _assert_equal(ones: list[np.ndarray], others: list[np.ndarray]) -> None:
  for one, other in zip(ones, others, strict=True):
    np.testing.assert_array_equal(one, other)


def test_the_recursion() -> None:
  """And `fit` ends with the averages in place, as Keras's own."""
  model = running.make(methods.Vanilla(), optimizer=lambda: _sgd(
      use_ema=True, ema_momentum=0.75))
  seen = [_values(model)]
  model.fit(running.dataset(16), steps_per_epoch=3, verbose=0, callbacks=[
      tf.keras.callbacks.LambdaCallback(
          on_train_batch_end=lambda *_: seen.append(_values(model)))])
  expected = seen[0]
  for weights in seen[1:]:
    expected = [0.75 * a + 0.25 * w for a, w in zip(expected, weights)]
  assert max(np.abs(a - w).max()
             for a, w in zip(expected, seen[-1])) > 1e-3
  for mine, twin in zip(_averages(model), expected, strict=True):
    np.testing.assert_allclose(mine, twin, rtol=1e-5, atol=1e-7)
  _assert_equal(_values(model), _averages(model))


@pytest.mark.slow
def test_averaging_leaves_training_alone() -> None:
  """The weights before the last are those of a run without averages."""
  ends = []
  for options in ({}, {'use_ema': True}):
    model = running.make(methods.Vanilla(), optimizer=lambda o=options: (
        _sgd(**o)))
    seen = []
    model.fit(running.dataset(16), steps_per_epoch=3, verbose=0, callbacks=[
        tf.keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda *_, m=model, s=seen: s.append(
                _values(m)))])
    ends.append(seen[-1])
  _assert_equal(*ends)


def _built(*overrides: str) -> trainer.Trainer:
  """Averages are 1, 2, ... and differ from all weights."""
  model = experiment.build(tiny.load(
      'optimizer.ema_momentum=0.9', *overrides)).trainer
  for i, average in enumerate(averaging.averages(model).values(), start=1):
    average.assign(tf.fill(average.shape, float(i)))
  return model


def test_in_place_and_back() -> None:
  model = _built('runtime.precision=mixed_float16')
  before = checkpoint.capture(model)
  with pytest.raises(KeyError), averaging.averaged_weights(model):
    _assert_equal(_values(model), _averages(model))
    raise KeyError
  after = checkpoint.capture(model)
  _assert_equal(list(before.values()), list(after.values()))


def test_off_does_nothing() -> None:
  model = experiment.build(tiny.load()).trainer
  assert averaging.averages(model) == {}
  assert not [name for name in checkpoint.capture(model)
              if name.startswith('average')]
  before = _values(model)
  with averaging.averaged_weights(model):
    _assert_equal(before, _values(model))


def test_a_checkpoint_holds_both() -> None:
  one, other, third = _built(), _built(), _built()
  for variable in one.network.trainable_variables:
    variable.assign(-tf.ones_like(variable))
  state = checkpoint.capture(one)
  for average in averaging.averages(other).values():
    average.assign(tf.zeros_like(average))
  checkpoint.restore(other, state)
  _assert_equal(_values(other), _values(one))
  _assert_equal(_averages(other), _averages(one))
  checkpoint.restore(third, state, weights_only=True)
  _assert_equal(_values(third), _averages(one))


@pytest.fixture(scope='module')
def finished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('averaged')
  runs.run(tiny.load(_SETTINGS, 'runtime.micro_batches=2'), str(path),
           quiet=True)
  return path


def _state(path: pathlib.Path) -> dict[str, np.ndarray]:
  with np.load(path / 'checkpoints/step-00000006/state.npz') as state:
    return dict(state)


def _figures(path: pathlib.Path) -> dict[str, float]:
  results = json.loads((path / 'results.json').read_text())
  return {key: value for key, value in results.items()
          if key.startswith('validation/')}


def test_figures_are_of_the_averages(finished: pathlib.Path) -> None:
  restored, _ = saved_runs.restore(str(finished))
  evaluated = restored.evaluate()
  assert {f'validation/{k}': v for k, v in evaluated.items()} == (
      _figures(finished))
  raw = {name: value for name, value in _state(finished).items()
         if not name.startswith('average/')}
  checkpoint.restore(restored.trainer, raw, weights_only=True)
  assert abs(restored.evaluate()['loss'] - evaluated['loss']) > 1e-4


@pytest.mark.parametrize('change', [
    '', pytest.param('runtime.strategy=mirrored,runtime.num_replicas=2',
                     marks=pytest.mark.slow)])
def test_resume_is_exact(
    finished: pathlib.Path, tmp_path: pathlib.Path, mirrored: object,
    monkeypatch: pytest.MonkeyPatch, change: str) -> None:
  """After an interruption, and on other hardware."""
  del mirrored  # it must exist before the run asks for it
  save = checkpoint.Checkpoints.save

  def interrupt(self: Any, step: int, *args: Any, **kwargs: Any) -> str:
    path = save(self, step, *args, **kwargs)
    if step == 4:
      raise KeyboardInterrupt
    return path

  with monkeypatch.context() as patched:
    patched.setattr(checkpoint.Checkpoints, 'save', interrupt)
    with pytest.raises(KeyboardInterrupt):
      runs.run(tiny.load(_SETTINGS, 'runtime.micro_batches=2'),
               str(tmp_path), quiet=True)
  runs.run(tiny.load(_SETTINGS, *([change] if change else [
      'runtime.micro_batches=2'])), str(tmp_path), quiet=True)
  one, other = _state(finished), _state(tmp_path)
  assert one.keys() == other.keys()
  assert any(name.startswith('average/') for name in one)
  for name, value in one.items():
    np.testing.assert_array_equal(other[name], value, err_msg=name)
  assert _figures(finished) == _figures(tmp_path)
