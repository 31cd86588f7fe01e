"""Runs whose batch grows: what they leave, and how they go on."""

import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from conadv_tf import config, description, experiment, runs
from conadv_tf.analysis import curvature
from conadv_tf.training import growing
from tests import commands, events, killing, tiny
from tests import curved_models as curved

# 6 initial batches of 4 an epoch, in 2 virtual replicas, for 36 in all.
_SETTINGS = (
    'data.global_batch_size=4,schedule.epochs=6,schedule.name=constant,'
    'schedule.warmup_epochs=0,schedule.peak_lr=0.05,optimizer.name=sgd,'
    'method.name=absa,method.lag=0,method.gamma=0.5,method.gamma_epochs=5,'
    'attack.radius=16,growth.name=curvature,growth.max_batch_size=16,'
    'growth.patience=1,curvature.every_samples=20,curvature.examples=12,'
    'curvature.iterations=3,runtime.micro_batches=2,checkpoint.keep=99,'
    'checkpoint.every_epochs=0.01')
_LAGGED = 'method.lag=1,method.execution=sequential'
_MIRRORED = ('runtime.strategy=mirrored,runtime.num_replicas=2,'
             'runtime.micro_batches=1')


@pytest.fixture(scope='module')
def finished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """An unbroken run with a checkpoint after each of its updates."""
  path = tmp_path_factory.mktemp('finished')
  runs.run(tiny.load(_SETTINGS), str(path), quiet=True)
  return path


def _lines(path: pathlib.Path, name: str) -> list[dict[str, float]]:
  lines = (path / name).read_text(encoding='utf-8').splitlines()
  return [json.loads(line) for line in lines]


def _steps(path: pathlib.Path) -> list[int]:
  return sorted(int(p.name[5:]) for p in (path / 'checkpoints').iterdir())


def _as_after(path: pathlib.Path, step: int) -> pathlib.Path:
  """Forgets what was saved after a checkpoint; records stay, to be cut."""
  for later in _steps(path):
    if later > step:
      shutil.rmtree(path / 'checkpoints' / f'step-{later:08d}')
  (path / 'results.json').unlink(missing_ok=True)
  return path


def _assert_same_end(one: pathlib.Path, other: pathlib.Path,
                     exact: bool = True) -> None:
  """Compares weights bit for bit; figures of other arrangements closely."""
  last = f'checkpoints/step-{_steps(one)[-1]:08d}'
  assert _steps(other)[-1] == _steps(one)[-1]
  with np.load(one / last / 'state.npz') as expected, np.load(
      other / last / 'state.npz') as actual:
    assert expected.files == actual.files
    for name in expected.files:
      np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)
  for name in ('metrics.jsonl', 'curvature.jsonl', 'growth.jsonl'):
    # A resumed epoch's means begin anew.
    ours, theirs = ([{k: v for k, v in r.items() if k not in (
        'seconds', 'examples_per_second') and not k.startswith('train/')}
                     for r in _lines(p, name)] for p in (one, other))
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
      assert a == (b if exact else pytest.approx(b, rel=1e-4)), name
  manifests = [json.loads((p / last / 'manifest.json').read_text())['extra']
               for p in (one, other)]
  growths = [{k: v for k, v in m['growth'].items() if k != 'reference'}
             for m in manifests]
  assert growths[0] == growths[1]


def test_what_a_run_leaves(finished: pathlib.Path) -> None:
  estimates = _lines(finished, 'curvature.jsonl')
  # An estimate where a multiple of 5 initial batches is crossed, while gamma
  # can fall; patience 1 lets it grow at the second and the third.
  assert [(r['step'], r['updates'], r['batch_size']) for r in estimates] == [
      (5, 5, 4), (10, 10, 4), (16, 13, 8), (20, 14, 16), (28, 16, 16),
      (32, 17, 16)]
  assert [r['samples'] for r in estimates] == [20, 40, 64, 80, 112, 128]
  assert all(1 <= r['iterations'] <= 3 for r in estimates)
  assert [r['learning_rate'] for r in estimates] == pytest.approx(
      [0.05, 0.05, 0.1, 0.2, 0.2, 0.2])
  results = json.loads((finished / 'results.json').read_text())
  # 10 updates of 4, 3 of 8, 5 of 16: all of the 36.
  assert (results['step'], results['updates']) == (36, 18)
  assert (results['batch_size'], results['gamma']) == (16, 0.0)
  assert results['learning_rate'] == pytest.approx(0.2)
  assert results['epoch'] == 6.0 and 'stopped' not in results
  train = events.scalars(finished / 'train')
  assert {step: pytest.approx(value, rel=1e-6)
          for step, value in train['eigenvalue'].items()} == {
              r['step']: r['value'] for r in estimates}
  assert {int(v) for v in train['batch_size'].values()} == {4, 8, 16}
  assert _steps(finished)[-4:] == [24, 28, 32, 36]


def test_growth_is_written_where_it_takes_effect(
    finished: pathlib.Path) -> None:
  # Updates of 16 start at 16 + 4n, and gamma is 0 from 30 on.
  assert [(r['step'], r['updates'], r['batch_size'], r['rate_factor'],
           r['gamma']) for r in _lines(finished, 'growth.jsonl')] == [
               (0, 0, 4, 1.0, 0.5), (10, 10, 8, 2.0, 0.25),
               (16, 13, 16, 4.0, 0.25), (32, 17, 16, 4.0, 0.0)]


@pytest.mark.parametrize('step', [
    10, pytest.param(14, marks=pytest.mark.slow),
    pytest.param(3, marks=pytest.mark.slow),
    pytest.param(5, marks=pytest.mark.slow),
    pytest.param(16, marks=pytest.mark.slow),
    pytest.param(28, marks=pytest.mark.slow)])
def test_resuming_equals_an_unbroken_run_bit_for_bit(
    finished: pathlib.Path, tmp_path: pathlib.Path, step: int) -> None:
  # In the middle of a phase, right after a growth, right after an estimate.
  path = _as_after(shutil.copytree(finished, tmp_path / 'run'), step)
  runs.run(tiny.load(_SETTINGS), str(path), quiet=True)
  _assert_same_end(finished, path)


@pytest.mark.slow
def test_a_finished_run_says_so(
    finished: pathlib.Path, tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str]) -> None:
  # 37 initial batches: the last is smaller than an update.
  settings = tiny.load(_SETTINGS, 'schedule.epochs=6.2')
  path = tmp_path / 'run'
  first = runs.run(settings, str(path), quiet=True)
  assert (first['step'], first['updates']) == (36, 18)
  before = commands.digest(path)
  assert runs.run(settings, str(path)) == first
  assert 'finished already' in capsys.readouterr().out
  assert commands.digest(path) == before
  assert first['train/loss'] == pytest.approx(
      _lines(finished, 'metrics.jsonl')[-1]['train/loss'])


@pytest.mark.parametrize('overrides', [
    _MIRRORED, pytest.param(f'{_MIRRORED},{_LAGGED}', marks=pytest.mark.slow)])
def test_two_replicas_agree_bit_for_bit(
    finished: pathlib.Path, tmp_path: pathlib.Path, overrides: str) -> None:
  if _LAGGED in overrides:
    finished = tmp_path / 'one'
    runs.run(tiny.load(_SETTINGS, _LAGGED), str(finished), quiet=True)
  path = tmp_path / 'two'
  runs.run(tiny.load(_SETTINGS, overrides), str(path), quiet=True)
  _assert_same_end(finished, path, exact=False)


@pytest.mark.slow
def test_resuming_elsewhere(finished: pathlib.Path,
                            tmp_path: pathlib.Path) -> None:
  path = _as_after(shutil.copytree(finished, tmp_path / 'run'), 12)
  runs.run(tiny.load(_SETTINGS, _MIRRORED), str(path), quiet=True)
  _assert_same_end(finished, path, exact=False)


@pytest.mark.slow
def test_two_workers_agree_bit_for_bit(tmp_path: pathlib.Path) -> None:
  # Another number of threads sums in another order.
  environment = {**os.environ, 'TF_NUM_INTRAOP_THREADS': '1',
                 'TF_NUM_INTEROP_THREADS': '2'}

  def train(name: str, *launcher: str, overrides: str = '') -> None:
    done = subprocess.run(
        [sys.executable, *launcher, '-m', 'conadv_tf.train', '--quiet',
         f'--model_dir={tmp_path / name}',
         *(f'--params_override={o}'
           for o in (tiny.SETTINGS, _SETTINGS, overrides) if o)],
        env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]

  train('one')
  train('two', '-m', 'tools.local_cluster', '--workers=2', '--',
        sys.executable, overrides='runtime.strategy=multi_worker_mirrored,'
        'runtime.num_replicas=2,runtime.micro_batches=1')
  _assert_same_end(tmp_path / 'one', tmp_path / 'two', exact=False)


@pytest.mark.parametrize('kill, resumes_at', [
    ((killing.while_writing, 12), 12),
    pytest.param((killing.after_recording, 2), 10, marks=pytest.mark.slow)])
def test_sigkill_in_a_growing_run(finished: pathlib.Path,
                                  tmp_path: pathlib.Path, kill: tuple,
                                  resumes_at: int) -> None:
  def train(before: functools.partial | None = None) -> commands.Finished:
    return commands.run(
        'conadv_tf.train', f'--params_override={tiny.SETTINGS}',
        f'--params_override={_SETTINGS}', f'--model_dir={tmp_path / "run"}',
        '--quiet', before=before)

  assert train(functools.partial(*kill)).code == -signal.SIGKILL
  resumed = train()
  assert resumed.code == 0, resumed.err
  assert f'resuming at update {resumes_at} of 36' in resumed.err
  _assert_same_end(finished, tmp_path / 'run')


def test_without_growth_a_run_is_what_it_was(
    tmp_path: pathlib.Path) -> None:
  for name, overrides in (('plain', 'growth.name=none'),
                          ('limit', 'growth.max_batch_size=4')):
    runs.run(tiny.load(
        _SETTINGS, 'method.name=vanilla,checkpoint.every_epochs=9', overrides),
             str(tmp_path / name), quiet=True)
  plain, limit = (np.load(tmp_path / name / 'checkpoints' / 'step-00000036' /
                          'state.npz') for name in ('plain', 'limit'))
  for name in plain.files:
    np.testing.assert_array_equal(limit[name], plain[name], err_msg=name)
  assert not (tmp_path / 'limit' / 'curvature.jsonl').exists()
  assert not (tmp_path / 'plain' / 'growth.jsonl').exists()
  assert [r['step'] for r in _lines(tmp_path / 'limit', 'growth.jsonl')] == [0]
  results = _lines(tmp_path / 'plain', 'metrics.jsonl')[-1]
  assert results['updates'] == results['step'] == 36
  assert 'gamma' not in results


def test_monitoring_estimates_and_changes_nothing(
    tmp_path: pathlib.Path) -> None:
  for name, overrides in (
      ('plain', 'growth.name=none'),
      ('monitored', 'growth.name=none,curvature.monitor=true'),
      ('limit', 'growth.max_batch_size=4,curvature.monitor=true')):
    runs.run(tiny.load(
        _SETTINGS, 'method.name=vanilla,checkpoint.every_epochs=9', overrides),
             str(tmp_path / name), quiet=True)
  plain, *others = (
      np.load(tmp_path / name / 'checkpoints' / 'step-00000036' / 'state.npz')
      for name in ('plain', 'monitored', 'limit'))
  for other in others:
    for name in plain.files:
      np.testing.assert_array_equal(other[name], plain[name], err_msg=name)
  assert not (tmp_path / 'plain' / 'curvature.jsonl').exists()
  for name in ('monitored', 'limit'):
    records = _lines(tmp_path / name, 'curvature.jsonl')
    assert [r['step'] for r in records] == [5, 10, 15, 20, 25, 30, 35]
    assert all(r['iterations'] >= 2 and r['value'] != 0 for r in records)


def test_scheduled_growth(tmp_path: pathlib.Path) -> None:
  # Factor 2 at epochs 2, 4 and 5: 12 updates of 4, 6 of 8, then 16 is the
  # largest and takes 12; the third only decays the rate.
  results = runs.run(tiny.load(
      _SETTINGS, 'method.name=vanilla,growth.name=scheduled,'
      'growth.epochs=[2,4,5]'), str(tmp_path), quiet=True)
  assert (results['step'], results['updates']) == (36, 12 + 6 + 3)
  assert results['batch_size'] == 16
  assert results['learning_rate'] == pytest.approx(0.05 / 2)
  assert not (tmp_path / 'curvature.jsonl').exists()


def test_a_failed_estimate_does_not_stop_a_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture) -> None:
  def fail(*args: object, **options: object) -> None:
    raise curvature.NotFinite('not finite, first in layer conv2d')

  monkeypatch.setattr(curvature, 'figures', fail)
  results = runs.run(tiny.load(_SETTINGS, 'schedule.epochs=1'),
                     str(tmp_path), quiet=True)
  assert (results['step'], results['updates']) == (6, 6)
  assert [m for m in caplog.messages if 'first in layer conv2d' in m] == [
      'no eigenvalue after 5 initial batches: not finite, first in layer '
      'conv2d; training goes on with the batch as it is']
  (record,) = _lines(tmp_path, 'curvature.jsonl')
  assert record['value'] is record['iterations'] is None


def test_a_hessian_that_is_not_finite_does_not_stop_a_run(
    tmp_path: pathlib.Path) -> None:
  done = commands.run(
      'conadv_tf.train', f'--model_dir={tmp_path / "run"}', '--quiet',
      *(f'--params_override={o}' for o in (
          tiny.SETTINGS, _SETTINGS, f'model.name={curved.__name__}:kinked',
          'schedule.epochs=2')))
  assert done.code == 0, done.err
  assert [line.partition('warning: ')[2] for line in done.err.splitlines()
          if 'eigenvalue' in line] == [
              f'no eigenvalue after {n} initial batches: the Hessian product '
              "is not finite, first in layer 'kink'; training goes on with the "
              'batch as it is' for n in (5, 10)]
  assert [(r['value'], r['iterations'], r['batch_size']) for r in _lines(
      tmp_path / 'run', 'curvature.jsonl')] == [(None, None, 4)] * 2
  (*_, last) = _lines(tmp_path / 'run', 'metrics.jsonl')
  assert last['updates'] == 12
  assert np.isfinite([last['train/loss'], last['train/gradient_norm']]).all()


def test_estimates_are_the_same_for_a_seed_and_a_number() -> None:
  built = experiment.build(tiny.load(_SETTINGS))
  first, again, other = (built.estimate(n) for n in (0, 0, 1))
  assert first == again != other
  assert isinstance(first, growing.Estimate) and np.isfinite(first.value)
  block = experiment.build(tiny.load(_SETTINGS, 'curvature.last_layers=1'))
  # A Rayleigh quotient of a part is not above the top of the whole.
  assert 0 < block.estimate(0).value < first.value


@pytest.mark.parametrize('overrides, message', [
    ('growth.max_batch_size=2', '2 is below data.global_batch_size=4'),
    ('growth.max_batch_size=10', 'the nearest below is 8'),
    ('growth.max_batch_size=null', 'growth.name=curvature needs it'),
    ('growth.factor=1', 'growth.factor: must be at least 2, got 1'),
    ('growth.factor=1.5', 'growth.factor: expected an integer, got 1.5'),
    ('growth.decrease=1', 'growth.decrease: must be above 1'),
    ('growth.patience=0', 'growth.patience: must be at least 1'),
    ('growth.name=scheduled', 'growth.epochs: growth.name=scheduled needs'),
    ('growth.name=scheduled,growth.epochs=[3,2]', 'growth.epochs: must incr'),
    ('growth.name=curve', 'growth.name: expected one of none, scheduled'),
    ('curvature.every_samples=3', '3 is below data.global_batch_size=4'),
    ('curvature.examples=0', 'curvature.examples: must be at least 1'),
    ('curvature.tolerance=0', 'curvature.tolerance: must be above 0'),
    ('curvature.last_layers=-1', 'curvature.last_layers: must be 1 or more'),
    ('method.gamma=1.1', 'method.gamma: must be from 0 to 1'),
    ('method.gamma_decay=0.5', 'method.gamma_decay: must be at least 1'),
    ('method.gamma_rule=code', 'method.gamma_rule: expected one of paper'),
    ('method.lag=1', 'method.execution=sequential, or method.lag=0'),
    ('method.name=conadv,method.lag=1', 'method.execution: concurrent holds'),
    ('method.name=conadv,method.lag=1,method.pairing=next_batch',
     'set same_batch'),
    ('method.name=conadv,method.lag=1,method.adversary=recycled',
     'method.adversary: recycled holds'),
    ('method.name=disadv,method.attack_every=2', 'set 1'),
    ('runtime.steps_per_execution=2',
     'runtime.steps_per_execution: 2 and growth.name=curvature exclude'),
    ('runtime.steps_per_execution=2,growth.name=none',
     'runtime.steps_per_execution: 2 and method.name=absa exclude')])
def test_bad_input_is_one_line(overrides: str, message: str) -> None:
  with pytest.raises(config.InputError) as raised:
    config.validate(tiny.load(_SETTINGS, overrides))
  assert message in str(raised.value)
  assert len(str(raised.value).splitlines()) == 1


def test_input_that_only_data_or_model_show(tmp_path: pathlib.Path) -> None:
  for overrides, message in (
      ('curvature.examples=25', '25 of 24 training examples'),
      ('curvature.last_layers=9', 'the last 9 layers: model'),
      (f'model.name={curved.__name__}:normalised_by_response',
       'an operation without a second derivative'),
      (f'model.name={curved.__name__}:normalised_by_response,growth.name=none,'
       'curvature.monitor=true', 'an operation without a second derivative'),
      # 36 initial batches of 4.
      ('curvature.every_samples=144', '144 is not below the 144 examples of'),
      ('growth.max_batch_size=148', '148 exceeds the 144 examples of the run'),
      ('growth.name=scheduled,growth.epochs=[1],growth.max_batch_size=148',
       '148 exceeds the 144 examples of the run')):
    with pytest.raises(config.InputError, match=message):
      runs.run(tiny.load(_SETTINGS, overrides), str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('overrides', [
    'curvature.every_samples=143', 'growth.max_batch_size=144',
    'growth.name=none,curvature.every_samples=144',
    'growth.name=none,curvature.monitor=true,curvature.every_samples=144'])
def test_the_longest_that_a_run_bears(overrides: str) -> None:
  assert config.resolve(
      tiny.load(_SETTINGS, overrides), 24).derived.total_steps == 36


@pytest.mark.parametrize('overrides, least, most', [
    # 6.2 epochs are 37.2 batches: 37, and 1 is left over of the largest.
    ('schedule.epochs=6.2', 9, 37),
    # 6.1 are 36.6, rounded up.
    ('schedule.epochs=6.1', 9, 37),
    ('growth.max_batch_size=144', 1, 36)])
def test_the_bounds_that_are_described(overrides: str, least: int,
                                       most: int) -> None:
  text = description.describe_config(tiny.load(_SETTINGS, overrides))
  assert f'; {least} to {most} updates' in text
  assert f'\nupdates: {most} of 4 examples' in text


def test_keys_that_are_not_used_are_named() -> None:
  assert config.unused_keys(tiny.load(
      _SETTINGS, 'growth.epochs=[1]')) == ['growth.epochs']
  assert config.unused_keys(tiny.load(_SETTINGS, 'growth.name=none')) == [
      'growth.max_batch_size', 'growth.patience', 'curvature.every_samples',
      'curvature.examples', 'curvature.iterations']
  assert set(config.unused_keys(tiny.load(
      _SETTINGS, 'method.name=vanilla'))) >= {
          'method.gamma', 'method.gamma_epochs'}
