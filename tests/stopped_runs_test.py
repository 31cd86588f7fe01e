"""Runs that end before their last update, and how they go on."""

import functools
import json
import pathlib
import shutil
import signal
from typing import Any

import numpy as np
import pytest

from conadv_tf import config, experiment, runs, saved_runs
from tests import commands, killing, tiny

# One update an epoch, 6 in all; nothing but what stopping needs is saved.
_SETTINGS = ('data.global_batch_size=24,schedule.epochs=6,'
             'schedule.warmup_epochs=1,checkpoint.every_epochs=100,'
             'checkpoint.keep=1,method.name=vanilla')
_ACCURACY = {1: 0.2, 2: 0.5, 3: 0.4, 4: 0.45, 5: 0.9, 6: 0.6}


class _Interrupted(Exception):
  """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
  """What evaluations say after each update; an exception is raised."""
  script: dict[int, Any] = dict(_ACCURACY)

  def evaluate(self: experiment.Experiment, *args: Any, **kwargs: Any
               ) -> dict[str, float]:
    del args, kwargs
    value = script[int(self.trainer.step_counter)]
    if isinstance(value, Exception):
      raise value
    return {'accuracy': value, 'loss': -value, 'examples': 6.0}

  monkeypatch.setattr(experiment.Experiment, 'evaluate', evaluate)
  monkeypatch.setattr(runs, '_pictures', lambda _: None)  # another trace
  return script


def _run(path: pathlib.Path, *overrides: str) -> dict[str, Any]:
  return runs.run(tiny.load(_SETTINGS, *overrides), str(path), quiet=True)


def _saved(path: pathlib.Path) -> list[int]:
  return sorted(int(p.name[-2:]) for p in (path / 'checkpoints').iterdir())


def _state(path: pathlib.Path, step: int) -> dict[str, np.ndarray]:
  with np.load(path / f'checkpoints/step-{step:08d}/state.npz') as state:
    return dict(state)


def _assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]
                  ) -> None:
  assert one.keys() == other.keys()
  for name, value in one.items():
    np.testing.assert_array_equal(other[name], value, err_msg=name)


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A run that nothing stops; every update is saved."""
  path = tmp_path_factory.mktemp('whole')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(experiment.Experiment, 'evaluate',
                  lambda *args, **kwargs: {'accuracy': 0.0, 'loss': 0.0})
    _run(path, 'checkpoint.every_epochs=1,checkpoint.keep=9')
  return path


@pytest.fixture(scope='module')
def reached(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A run that its target has stopped after update 2."""
  path = tmp_path_factory.mktemp('reached')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
        experiment.Experiment, 'evaluate', lambda self, *args, **kwargs: {
            'accuracy': _ACCURACY[int(self.trainer.step_counter)],
            'loss': 0.0})
    _run(path, 'evaluation.target_accuracy=0.5')
  return path


@pytest.fixture
def copied(reached: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
  return shutil.copytree(reached, tmp_path / 'run')


def test_a_target_stops_the_run(
    whole: pathlib.Path, reached: pathlib.Path) -> None:
  results = json.loads((reached / 'results.json').read_text())
  assert (results['step'], results['stopped']) == (2, 'target_accuracy')
  assert 'best_step' not in results
  assert _saved(reached) == [2]
  _assert_equal(_state(whole, 2), _state(reached, 2))
  assert 'stopped' not in json.loads((whole / 'results.json').read_text())


def test_a_stopped_run_is_finished(
    copied: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
  before = commands.digest(copied)
  for target in (0.5, 0.45):
    runs.run(tiny.load(
        _SETTINGS, f'evaluation.target_accuracy={target}'), str(copied))
    assert capsys.readouterr().out.startswith('finished already')
  assert commands.digest(copied) == before


@pytest.mark.parametrize('change, end', [
    ('evaluation.target_accuracy=0.7', 5), ('seed=0', 6)])
def test_a_higher_target_or_none_goes_on(
    whole: pathlib.Path, copied: pathlib.Path, change: str, end: int) -> None:
  results = _run(copied, change)
  assert results['step'] == end
  assert results.get('stopped') == ('target_accuracy' if end < 6 else None)
  _assert_equal(_state(whole, end), _state(copied, end))


def test_killed_before_the_results(copied: pathlib.Path) -> None:
  expected = (copied / 'results.json').read_text()
  (copied / 'results.json').unlink()
  state = (copied / 'checkpoints/step-00000002/state.npz').stat().st_mtime_ns
  _run(copied, 'evaluation.target_accuracy=0.5')
  assert (copied / 'results.json').read_text() == expected
  assert (copied / 'checkpoints/step-00000002/state.npz'
          ).stat().st_mtime_ns == state  # no update was made


@pytest.mark.slow
def test_a_stale_result_does_not_end_a_run_that_went_on(
    copied: pathlib.Path, figures: dict[int, Any]) -> None:
  figures[5] = _Interrupted()
  with pytest.raises(_Interrupted):
    _run(copied, 'checkpoint.every_epochs=1')
  assert not (copied / 'results.json').exists()
  figures[5] = 0.9
  assert _run(copied)['step'] == 6


def test_patience_keeps_the_best(
    whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
  results = _run(tmp_path, 'evaluation.patience=2,evaluation.monitor=loss')
  assert (results['step'], results['stopped'], results['best_step']) == (
      4, 'patience', 2)
  assert _saved(tmp_path) == [2, 4]
  _assert_equal(_state(whole, 2), _state(tmp_path, 2))
  restored, checkpoint = saved_runs.restore(str(tmp_path))
  assert checkpoint.step == int(restored.trainer.step_counter) == 2
  # More patience goes on from the last update, not from the best.
  results = _run(tmp_path, 'evaluation.patience=3')
  assert (results['step'], results['best_step']) == (6, 5)
  assert 'stopped' not in results
  _assert_equal(_state(whole, 6), _state(tmp_path, 6))
  assert saved_runs.restore(str(tmp_path))[1].step == 5


def test_patience_keeps_the_best_of_robust_accuracy(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch,
    figures: dict[int, Any]) -> None:
  robust = {1: 0.1, 2: 0.3, 3: 0.2, 4: 0.25}  # while accuracy still rises

  def evaluate(self: experiment.Experiment, attacks: list[str],
               **kwargs: Any) -> dict[str, float]:
    del kwargs
    assert list(attacks) == ['pgd2']
    step = int(self.trainer.step_counter)
    return {'accuracy': 0.1 * step, 'loss': 1.0, 'examples': 6.0,
            'robust_accuracy_pgd2': robust[step]}

  monkeypatch.setattr(experiment.Experiment, 'evaluate', evaluate)
  results = _run(
      tmp_path, 'method.name=dat,method.lag=0,evaluation.attacks=[pgd2],'
      'evaluation.patience=2,evaluation.monitor=robust_accuracy_pgd2')
  assert (results['step'], results['stopped'], results['best_step']) == (
      4, 'patience', 2)
  assert results['validation/robust_accuracy_pgd2'] == 0.25
  assert _saved(tmp_path) == [2, 4]
  assert saved_runs.restore(str(tmp_path))[1].step == 2


@pytest.mark.slow
def test_patience_counts_on_after_a_break(
    whole: pathlib.Path, tmp_path: pathlib.Path,
    figures: dict[int, Any]) -> None:
  options = 'evaluation.patience=2,checkpoint.every_epochs=1'
  figures[4] = _Interrupted()
  with pytest.raises(_Interrupted):
    _run(tmp_path, options)
  assert _saved(tmp_path) == [2, 3]
  figures[4] = _ACCURACY[4]
  results = _run(tmp_path, options)
  assert (results['step'], results['best_step']) == (4, 2)
  _assert_equal(_state(whole, 4), _state(tmp_path, 4))


@pytest.mark.slow
def test_long_executions_stop_as_exactly(
    whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
  results = _run(tmp_path, 'runtime.steps_per_execution=2,'
                 'evaluation.every_epochs=2,evaluation.target_accuracy=0.45')
  assert results['step'] == 2
  _assert_equal(_state(whole, 2), _state(tmp_path, 2))


@pytest.mark.slow
def test_mode_train_says_that_nothing_stops(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
  results = runs.run(tiny.load(_SETTINGS, 'evaluation.target_accuracy=0.1'),
                     str(tmp_path), evaluates=False, quiet=True)
  assert results['step'] == 6 and 'stopped' not in results
  assert 'evaluates at the end only' in caplog.text


def test_an_unknown_monitor_writes_nothing(tmp_path: pathlib.Path) -> None:
  with pytest.raises(config.InputError, match='evaluation.monitor'):
    _run(tmp_path / 'run', 'evaluation.patience=1,evaluation.monitor=f1')
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_adversaries_of_a_stopped_run_are_made_again(
    tmp_path: pathlib.Path) -> None:
  """The stop is known after the attack: its weights must be at hand."""
  ends = []
  for name, *stops in (('one', 'seed=0'), (
      'two', 'evaluation.target_accuracy=0.5', 'seed=0')):
    for stop in stops:
      _run(tmp_path / name, 'method.name=conadv,method.lag=2', stop)
    ends.append(_state(tmp_path / name, 6))
  assert any(name.startswith('snapshot/') for name in ends[0])
  _assert_equal(*ends)


@pytest.mark.slow
def test_sigkill_at_the_end(tmp_path: pathlib.Path) -> None:
  """The evaluation that ends the run is recorded, its weights are not."""
  def train(name: str, before: functools.partial | None = None
            ) -> commands.Finished:
    return commands.run(
        'conadv_tf.train', f'--params_override={tiny.SETTINGS}',
        '--params_override=evaluation.target_accuracy=0,'
        'checkpoint.every_epochs=0.33333,evaluation.patience=3',
        f'--model_dir={tmp_path / name}', '--quiet', before=before)

  assert train('unbroken').code == 0
  assert train('killed', functools.partial(killing.after_recording, 1)
               ).code == -signal.SIGKILL
  assert not (tmp_path / 'killed/results.json').exists()
  resumed = train('killed')
  assert 'resuming at update 2 of 6' in resumed.err
  one, other = (json.loads((tmp_path / name / 'results.json').read_text())
                for name in ('unbroken', 'killed'))
  assert (other['step'], other['stopped'], other['best_step']) == (
      3, 'target_accuracy', 3)
  assert one['validation/loss'] == other['validation/loss']
  _assert_equal(_state(tmp_path / 'unbroken', 3),
                _state(tmp_path / 'killed', 3))
