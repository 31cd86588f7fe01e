"""When a run records, evaluates and saves; no training happens here."""

import pathlib
import time
import types
from typing import Any

import numpy as np
import pytest

from conadv_tf import config, exits
from conadv_tf.methods import growth
from conadv_tf.training import (
  callbacks,
  checkpoint,
  growing,
  guards,
  run_directory,
)
from conadv_tf.training import progress as progress_lib
from tests import tiny


class _Model:
  """What the callback needs of a trainer."""

  pixel_range = (0.0, 255.0)
  snapshot_next = False
  updates_next = None
  stop_training = False
  nonfinite = types.SimpleNamespace(first=np.int64(-1), skip=False)

  def __init__(self) -> None:
    self.resets = 0

  def reset_metrics(self) -> None:
    self.resets += 1


class _Clock:
  """Stands still unless told."""

  now = 0.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
  """Nothing to capture, and 10 seconds for that."""
  clock = _Clock()

  def capture(model: Any) -> dict[str, Any]:
    del model
    clock.now += 10.0
    return {}

  monkeypatch.setattr(checkpoint, 'capture', capture)
  monkeypatch.setattr(time, 'monotonic', lambda: clock.now)
  return clock


def _drive(path: pathlib.Path, clock: _Clock, overrides: str,
           num_examples: int = 24, start_step: int = 0,
           **options: Any) -> dict[str, Any]:
  """Goes through all executions as Keras would; returns what happened at.

  The first takes 20 seconds, the others 2, an evaluation 100.
  """
  def evaluate() -> dict[str, float]:
    clock.now += 100.0
    return {'loss': 1.0, 'accuracy': 0.5}

  resolved = config.resolve(tiny.load(overrides), num_examples)
  directory = run_directory.RunDirectory(str(path), keep=99)
  directory.open(resolved)
  model, snapshots = _Model(), []
  callback = callbacks.RunCallback(
      resolved, directory, evaluate, None,
      start_step=start_step, quiet=True, **options)
  callback.set_model(model)
  callback.on_train_begin()
  step = start_step
  while step < resolved.derived.total_steps:
    callback.on_train_batch_begin(step)
    step += model.updates_next
    clock.now += 2.0 if step > start_step + 1 else 20.0
    if model.snapshot_next:
      snapshots.append(step)
    callback.on_train_batch_end(step - 1, {'loss': 2.0})
  callback.on_train_end()
  saved = directory.checkpoints.steps()
  evaluated = [r['step'] for r in directory.metrics()]
  # Each was announced before its execution; an evaluation may be interrupted.
  assert snapshots == sorted({*saved, *evaluated})
  return {'saved': saved, 'resets': model.resets, 'evaluated': evaluated,
          'records': directory.metrics()}


@pytest.mark.parametrize('overrides, saved, evaluated', [
    # 3 updates an epoch, 4 epochs.
    ('seed=0', [3, 6, 9, 12], [3, 6, 9, 12]),
    ('checkpoint.every_epochs=2,evaluation.every_epochs=3', [6, 12], [9, 12]),
    ('checkpoint.every_epochs=0.5', [2, 3, 5, 6, 8, 9, 11, 12], [3, 6, 9, 12]),
    ('checkpoint.every_epochs=0.01', list(range(1, 13)), [3, 6, 9, 12]),
    ('checkpoint.every_epochs=100,evaluation.every_epochs=100', [12], [12]),
    ('evaluation.every_epochs=2,evaluation.offset_epochs=1', [3, 6, 9, 12],
     [3, 9, 12]),
    # Nothing before the offset.
    ('evaluation.offset_epochs=3', [3, 6, 9, 12], [9, 12]),
    # An execution that passes a boundary counts as reaching it.
    ('runtime.steps_per_execution=5', [5, 10, 12], [5, 10, 12]),
    ('runtime.steps_per_execution=2,evaluation.every_epochs=2',
     [4, 6, 10, 12], [6, 12]),
])
def test_positions(tmp_path: pathlib.Path, overrides: str, saved: list[int],
                   evaluated: list[int], clock: _Clock) -> None:
  happened = _drive(tmp_path, clock, f'schedule.epochs=4,{overrides}')
  assert happened['saved'] == saved
  assert happened['evaluated'] == evaluated


def test_epochs_of_a_broken_number_of_updates(
    tmp_path: pathlib.Path, clock: _Clock) -> None:
  # 20 / 8 = 2.5 updates an epoch: epochs end within updates 3, 5, 8, 10.
  happened = _drive(tmp_path, clock, 'schedule.epochs=4', num_examples=20)
  assert happened['saved'] == happened['evaluated'] == [3, 5, 8, 10]
  assert happened['resets'] == 4
  assert [r['epoch'] for r in happened['records']] == [1.2, 2.0, 3.2, 4.0]


def test_a_resumed_run_keeps_its_positions(
    tmp_path: pathlib.Path, clock: _Clock) -> None:
  happened = _drive(tmp_path, clock, 'schedule.epochs=4', num_examples=20,
                    start_step=4)
  assert happened['saved'] == happened['evaluated'] == [5, 8, 10]


def test_executions_of_a_resumed_run_end_where_they_would_have(
    tmp_path: pathlib.Path, clock: _Clock) -> None:
  happened = _drive(
      tmp_path, clock, 'schedule.epochs=4,runtime.steps_per_execution=5',
      start_step=3)
  assert happened['saved'] == happened['evaluated'] == [5, 10, 12]


def test_mode_train_evaluates_at_the_end_only(
    tmp_path: pathlib.Path, clock: _Clock) -> None:
  happened = _drive(tmp_path, clock, 'schedule.epochs=4', evaluates=False)
  assert happened['evaluated'] == [12]
  assert happened['saved'] == [3, 6, 9, 12]


def test_saving_by_the_clock(tmp_path: pathlib.Path, clock: _Clock) -> None:
  happened = _drive(
      tmp_path, clock, 'data.global_batch_size=1,checkpoint.every_epochs=100,'
      'evaluation.every_epochs=100,checkpoint.every_minutes=1')
  # 48 updates. After update 21 it is 60 seconds since the start, so that an
  # update later is followed by a save; 30 updates on it would be due again.
  assert happened['saved'] == [22, 48]


def test_records(tmp_path: pathlib.Path, clock: _Clock) -> None:
  records = _drive(tmp_path, clock, '', seconds=1000.0)['records']
  # The first update, which compiles, is left out of the speed: then 2 * 8
  # examples in 4 seconds. Evaluating and saving are in neither.
  assert [r['examples_per_second'] for r in records] == [4.0, 4.0]
  assert [r['seconds'] for r in records] == [1024.0, 1030.0]
  assert records[-1] == {
      'step': 6, 'epoch': 2.0, 'train/loss': 2.0, 'validation/loss': 1.0,
      'validation/accuracy': 0.5, 'updates': 6, 'batch_size': 8,
      'learning_rate': 0.0, 'examples_per_second': 4.0,
      'seconds': 1030.0}


class _Signalled(guards.Guard):
  """Was asked to stop once so many updates were made."""

  after = 10**9
  made = 0

  def tick(self, activity: str) -> None:
    self.made += activity.startswith('update')

  @property
  def signalled(self) -> bool:
    return self.made + 1 >= self.after

  def terminated(self, message: str) -> exits.Terminated:
    return exits.Terminated(message, 15)


def _grow(path: pathlib.Path, guard: guards.Guard) -> tuple[
    run_directory.RunDirectory, _Model, list[int]]:
  """12 initial batches of 8 examples; the batch doubles at 3 and at 6."""
  resolved = config.resolve(tiny.load('schedule.epochs=4'), 24)
  directory = run_directory.RunDirectory(str(path), keep=99)
  directory.open(resolved)
  model = _Model()
  driver = growing.Driver(
      growth.Scheduled(4, [3, 6], 2),
      types.SimpleNamespace(assign=lambda rule: None), total=12)
  callback = callbacks.RunCallback(
      resolved, directory, lambda: {'loss': 1.0, 'accuracy': 0.5}, None,
      start_step=0, quiet=True, driver=driver, guard=guard,
      learning_rate=lambda step: 100.0 + step)
  callback.set_model(model)
  callback.on_train_begin()
  ratios = []
  try:
    while not model.stop_training:
      callback.on_train_batch_begin(0)
      assert model.updates_next == 1
      ratios.append(driver.batch_ratio)
      callback.on_train_batch_end(0, {'loss': 2.0})
  finally:
    callback.close()
  return directory, model, ratios


def test_a_growing_batch(tmp_path: pathlib.Path) -> None:
  directory, model, ratios = _grow(tmp_path, guards.Guard())
  # 5 + 2 would reach beyond 6, so that update is a larger one, and 9 + 4
  # beyond the end: three initial batches are left.
  assert ratios == [1, 1, 1, 2, 4]
  assert directory.checkpoints.steps() == [3, 9]
  assert model.resets == 2
  assert [[r[key] for key in ('step', 'updates', 'batch_size', 'learning_rate')]
          for r in directory.metrics()] == [
              [3, 3, 8, 102.0], [9, 5, 32, 105.0]]
  # The evaluation at 9 comes after both growths.
  assert directory.growth() == [
      {'step': step, 'epoch': pytest.approx(step / 3, abs=1e-6),
       'updates': updates, 'batch_size': size, 'rate_factor': 1.0, 'gamma': 0.0}
      for step, updates, size in ((0, 0, 8), (3, 3, 16), (5, 4, 32))]


def test_a_growing_run_stops_after_the_update_that_is_due(
    tmp_path: pathlib.Path) -> None:
  guard = _Signalled()
  guard.after = 4
  with pytest.raises(exits.Terminated, match='checkpoint of update 5 saved'):
    _grow(tmp_path, guard)
  directory = run_directory.RunDirectory(str(tmp_path))
  latest = directory.checkpoints.latest()
  assert latest.step == 5
  assert latest.extra['growth'] == {
      'updates': 4, 'estimates': 0, 'latest': [2, 1.0, 0.0], 'ratio': 2,
      'rate_factor': 1.0, 'gamma': 0.0, 'passed': 1}
  assert growing.saved_ratio(latest.extra) == 2


def test_only_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str]) -> None:
  progress = progress_lib.Progress(total=4, start=0, quiet=False)
  progress.update(1, {'loss': 1.0})
  progress.line('epoch 1')
  progress_lib.Progress(total=4, start=0, quiet=True).line('epoch 1')
  assert capsys.readouterr().out == 'epoch 1\n'


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str],
                             monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr('sys.stdout.isatty', lambda: True)
  progress = progress_lib.Progress(total=6, start=2, quiet=False)
  progress.update(6, {'loss': 0.25, 'accuracy': 0.5, 'gradient_norm': 9.0})
  shown = capsys.readouterr().out
  assert '4/4 [' in shown and 'loss: 0.2500' in shown
  assert 'gradient_norm' not in shown
