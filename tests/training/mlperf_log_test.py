"""The log is judged by MLPerf's own checker."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from conadv_tf import config, experiment, runs
from conadv_tf.training import mlperf_log
from tests import tiny

_CLOSED = ('mlperf.log=true,mlperf.organization=us,mlperf.platform=cpu,'
           'schedule.power=2,schedule.end_lr=1e-4,optimizer.weight_decay=2e-4')


@pytest.fixture(autouse=True)
def package() -> None:
  pytest.importorskip('mlperf_logging', reason='the optional extra is absent')


def _complaints(log: pathlib.Path) -> str:
  """What the checker says against a log; nothing if it passes."""
  done = subprocess.run(
      [sys.executable, '-m', 'mlperf_logging.compliance_checker', '--usage',
       'training', '--ruleset', '4.0.0', '--werror', '--log_output',
       str(log.with_name('checker.log')), str(log)],
      capture_output=True, text=True, check=False)
  log.with_name('checker.log').unlink()
  assert ('SUCCESS' in done.stderr) == (done.returncode == 0)
  return '' if done.returncode == 0 else done.stderr


def _events(log: pathlib.Path) -> list[dict[str, Any]]:
  return [json.loads(line.removeprefix(':::MLLOG '))
          for line in log.read_text().splitlines()]


def _resolved(*overrides: str) -> config.ExperimentConfig:
  return config.resolve(tiny.load(_CLOSED, *overrides), 24)


def _write(path: pathlib.Path, *overrides: str, accuracy: float = 0.8,
           end: bool = True) -> None:
  """A log of 6 updates, 3 an epoch, without a run."""
  log = mlperf_log.MlperfLog(str(path), _resolved(*overrides), 6)
  log.open(0, True, 1e9)
  log.start_run()
  for step in (3, 6):
    log.start_block(step - 3)
    log.start_evaluation(step)
    log.stop_evaluation(step, accuracy - 0.3 if step == 3 else accuracy,
                        log._head['eval_samples'])
  if end:
    log.stop_run(6, accuracy)
  log.close()


def test_a_real_run_complies(tmp_path: pathlib.Path) -> None:
  """LARS on digits, an evaluation every 4 epochs from the second on."""
  results = runs.run(config.load([], [
      'data.name=digits,data.global_batch_size=64,method.name=vanilla,'
      f'model.name={tiny.__name__}:model,{_CLOSED},schedule.epochs=16,'
      'schedule.peak_lr=8,schedule.warmup_epochs=2,evaluation.every_epochs=4,'
      'evaluation.offset_epochs=2,evaluation.target_accuracy=0.9']),
      str(tmp_path), quiet=True)
  assert 0.9 <= results['validation/accuracy'] < 1
  assert results['stopped'] == 'target_accuracy'
  assert _complaints(tmp_path / 'mlperf.log') == ''
  events = _events(tmp_path / 'mlperf.log')
  accuracies = [e for e in events if e['key'] == 'eval_accuracy']
  assert accuracies[-1]['value'] == results['validation/accuracy']
  assert [e['metadata']['epoch_num'] for e in accuracies] == [
      2, 6, 10, 14][:len(accuracies)]
  times = [e['time_ms'] for e in events]
  assert times == sorted(times)


@pytest.mark.parametrize('optimizer', [
    'optimizer.name=lars', 'optimizer.name=sgd,schedule.peak_lr=0.128'])
def test_closed_logs_comply(tmp_path: pathlib.Path, optimizer: str) -> None:
  _write(tmp_path / 'log', optimizer)
  events = _events(tmp_path / 'log')
  # cache_clear and init_start come when the process begins.
  for event in events[:2]:
    assert event.pop('time_ms') == 10**12
    event['time_ms'] = events[2]['time_ms'] - 1000
  (tmp_path / 'log').write_text(
      ''.join(f':::MLLOG {json.dumps(e)}\n' for e in events))
  assert _complaints(tmp_path / 'log') == ''


@pytest.mark.parametrize('change, complaint', [
    ({'accuracy': 0.5}, 'eval_accuracy'), ({'end': False}, 'run_stop'),
])
def test_the_checker_can_fail(
    tmp_path: pathlib.Path, change: dict[str, Any], complaint: str) -> None:
  _write(tmp_path / 'log', **change)
  assert complaint in _complaints(tmp_path / 'log')


def test_order_and_values(tmp_path: pathlib.Path) -> None:
  _write(tmp_path / 'log', 'optimizer.name=lars,optimizer.momentum=0.95,'
         'schedule.convention=mlperf,runtime.micro_batches=2,seed=7,'
         'mlperf.cache_cleared=true')
  events = _events(tmp_path / 'log')
  head = 'cache_clear init_start '
  body = ('init_stop run_start ' + 'block_start eval_start eval_stop '
          'eval_accuracy block_stop ' * 2 + 'run_stop run_final').split()
  keys = [e['key'] for e in events]
  assert keys[:2] == head.split() and keys[-len(body):] == body
  assert {e['key']: e['value'] for e in events[2:-len(body)]} == {
      'submission_benchmark': 'resnet', 'submission_division': 'closed',
      'submission_org': 'us', 'submission_platform': 'cpu',
      'submission_status': 'research', 'seed': 7, 'global_batch_size': 8,
      'train_samples': 24, 'eval_samples': 6, 'model_bn_span': 4,
      'gradient_accumulation_steps': 2, 'opt_name': 'lars',
      'lars_epsilon': 0.0, 'lars_opt_base_learning_rate': 1.0,
      'lars_opt_learning_rate_warmup_epochs': 0.5,
      'lars_opt_end_learning_rate': 1e-4,
      'lars_opt_learning_rate_decay_poly_power': 2.0,
      # 6 updates less 1 of warm-up (0.5 * 3 cut off) plus 1.
      'lars_opt_learning_rate_decay_steps': 6,
      'lars_opt_momentum': 0.95, 'lars_opt_weight_decay': 2e-4}
  assert events[0]['value'] is True
  by_key = {e['key']: e for e in events}
  assert by_key['init_start']['event_type'] == 'INTERVAL_START'
  assert by_key['init_stop']['event_type'] == 'INTERVAL_END'
  assert by_key['block_start']['metadata'].items() >= {
      'first_epoch_num': 2, 'epoch_count': 1}.items()
  assert by_key['run_stop']['metadata']['status'] == 'success'


@pytest.mark.parametrize('options, groups, replicas, span', [
    ('', 1, 1, 8), ('', 1, 2, 4), ('', 2, 2, 8), ('', 0, 2, 8),
    ('runtime.micro_batches=2', 0, 2, 4)])
def test_bn_span(options: str, groups: int, replicas: int, span: int) -> None:
  resolved = _resolved(
      f'runtime.strategy=mirrored,runtime.num_replicas={replicas},'
      f'bn.group_size={groups},{options}'.rstrip(','))
  assert mlperf_log.head(resolved, 6)['model_bn_span'] == span


@pytest.mark.parametrize('every, offset, epochs, blocks', [
    (4, 2, 12, [(1, 2), (3, 4), (7, 4), (11, 2)]),
    (4, 0, 9, [(1, 4), (5, 4), (9, 1)]),
    (3, 5, 4, [(1, 4)]), (1, 0, 2.5, [(1, 1), (2, 1), (3, 0.5)])])
def test_blocks_reach_from_evaluation_to_evaluation(
    tmp_path: pathlib.Path, every: int, offset: int, epochs: float,
    blocks: list[tuple[int, float]]) -> None:
  resolved = _resolved(
      f'evaluation.every_epochs={every},evaluation.offset_epochs={offset},'
      f'schedule.epochs={epochs},data.global_batch_size=6')
  log = mlperf_log.MlperfLog(str(tmp_path / 'log'), resolved, 6)
  log.open(0, True, 1e9)
  for first, count in blocks:
    log.start_block(round(4 * (first - 1)))
    log.stop_evaluation(round(4 * (first - 1 + count)), 0.5,
                        log._head['eval_samples'])
  log.close()
  starts = [e['metadata'] for e in _events(tmp_path / 'log')
            if e['key'] == 'block_start']
  assert [(m['first_epoch_num'], m['epoch_count']) for m in starts] == blocks


def test_a_block_that_is_not_trained_is_taken_back(
    tmp_path: pathlib.Path) -> None:
  path = tmp_path / 'log'
  log = mlperf_log.MlperfLog(str(path), _resolved(), 6)
  log.open(0, True, 1e9)
  log.start_run()
  log.start_block(0)
  log.stop_evaluation(3, 0.8, 6)
  log.start_block(3)
  log.close()
  # Killed here; by a lower target the run has ended already.
  log = mlperf_log.MlperfLog(str(path), _resolved(), 6)
  log.open(3, False, 2e9)
  log.stop_run(3, 0.8)
  log.close()
  assert [e['key'] for e in _events(path)][-5:] == [
      'eval_stop', 'eval_accuracy', 'block_stop', 'run_stop', 'run_final']


def test_an_evaluation_without_some_images_is_refused(
    tmp_path: pathlib.Path) -> None:
  log = mlperf_log.MlperfLog(str(tmp_path / 'log'), _resolved(), 6)
  log.open(0, True, 1e9)
  log.start_block(0)
  with pytest.raises(config.InputError, match='5 of 6 validation examples'):
    log.stop_evaluation(3, 0.8, 5.0)
  log.close()


@pytest.mark.parametrize('target, accuracy, status', [
    (0.6, 0.6, 'success'), (0.9, 0.8, 'aborted'), (None, 0.759, 'success'),
    (None, 0.758, 'aborted')])
def test_status(tmp_path: pathlib.Path, target: float | None, accuracy: float,
                status: str) -> None:
  _write(tmp_path / 'log', f'evaluation.target_accuracy={target}',
         accuracy=accuracy)
  assert _events(tmp_path / 'log')[-2]['metadata']['status'] == status


def test_a_log_is_cut_back_and_continued(tmp_path: pathlib.Path) -> None:
  path = tmp_path / 'log'
  _write(path)
  whole = [(e['key'], e['metadata']['step']) for e in _events(path)]
  with open(path, 'a', encoding='utf-8') as file:
    file.write(':::MLLOG {"key": "torn')
  log = mlperf_log.MlperfLog(str(path), _resolved(), 6)
  log.check(4, [3])
  log.open(4, True, 2e9)
  assert _events(path)[-1]['key'] == 'block_start'  # of updates 4 to 6
  log.start_run()
  log.start_block(4)  # it is open already
  log.start_evaluation(6)
  log.stop_evaluation(6, 0.8, log._head['eval_samples'])
  log.stop_run(6, 0.8)
  log.stop_run(6, 0.8)
  log.close()
  assert [(e['key'], e['metadata']['step']) for e in _events(path)] == whole


def test_a_finished_run_that_goes_on_has_no_end(tmp_path: pathlib.Path) -> None:
  path = tmp_path / 'log'
  _write(path)
  again = mlperf_log.MlperfLog(str(path), _resolved(), 6)
  for trains, last in ((False, 'run_final'), (True, 'block_stop')):
    again.open(6, trains, 2e9)
    assert _events(path)[-1]['key'] == last
    again.close()


@pytest.mark.parametrize('overrides, evaluated, problem', [
    ('data.global_batch_size=4', [3],
     r'another head \(global_batch_size: 8 -> 4'),
    ('mlperf.organization=them', [3], 'submission_org: "us" -> "them"'),
    ('seed=0', [2, 3], 'misses evaluations'), ('seed=0', [], 'misses')])
def test_a_log_that_would_be_false_is_refused(
    tmp_path: pathlib.Path, overrides: str, evaluated: list[int],
    problem: str) -> None:
  _write(tmp_path / 'log')
  log = mlperf_log.MlperfLog(
      str(tmp_path / 'log'), _resolved(overrides), 6)
  log.check(0, evaluated)  # a new beginning
  with pytest.raises(config.InputError, match=problem):
    log.check(4, evaluated)


def test_a_log_does_not_begin_in_the_middle(tmp_path: pathlib.Path) -> None:
  log = mlperf_log.MlperfLog(str(tmp_path / 'log'), _resolved(), 6)
  with pytest.raises(config.InputError, match='started without mlperf.log'):
    log.check(3, [3])


def test_an_interrupted_run_has_one_log(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  figures: dict[int, Any] = {3: 0.5, 6: KeyboardInterrupt()}

  def evaluate(self: experiment.Experiment, *args: Any, **kwargs: Any
               ) -> dict[str, float]:
    del args, kwargs
    value = figures[int(self.trainer.step_counter)]
    if isinstance(value, BaseException):
      raise value
    return {'accuracy': value, 'loss': 1.0,
            'examples': float(self.splits.validation.num_examples)}

  monkeypatch.setattr(experiment.Experiment, 'evaluate', evaluate)
  settings = tiny.load(_CLOSED, 'method.name=vanilla,optimizer.name=lars,'
                       'checkpoint.every_epochs=0.3')
  with pytest.raises(KeyboardInterrupt):
    runs.run(settings, str(tmp_path), quiet=True)
  path = tmp_path / 'mlperf.log'
  assert [e['key'] for e in _events(path)][-1] == 'eval_start'
  figures[6] = 0.8
  runs.run(settings, str(tmp_path), quiet=True)
  assert _complaints(path) == ''
  keys = [e['key'] for e in _events(path)]
  assert [keys.count(key) for key in (
      'run_start', 'eval_start', 'block_stop', 'run_stop')] == [1, 2, 2, 1]


@pytest.mark.parametrize('overrides, message', [
    ('optimizer.name=adamw', 'closed takes optimizer.name lars or sgd'),
    ('schedule.name=cosine', 'got lars and cosine; set mlperf.division=open'),
])
def test_closed_is_closed(overrides: str, message: str) -> None:
  with pytest.raises(config.InputError, match=message):
    mlperf_log.check(tiny.load(_CLOSED, overrides))
  mlperf_log.check(tiny.load(_CLOSED, overrides, 'mlperf.division=open'))


def test_the_missing_package_is_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setitem(sys.modules, 'mlperf_logging', None)
  with pytest.raises(config.InputError,
                     match='pip install mlperf-logging==4.1.68'):
    runs.run(tiny.load('mlperf.log=true'), str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()
  mlperf_log.check(tiny.load())  # needs nothing


def test_the_named_version_is_the_pinned_one() -> None:
  root = pathlib.Path(__file__).resolve().parents[2]
  assert mlperf_log._PACKAGE in (
      root / 'requirements-extra.txt').read_text().splitlines()
