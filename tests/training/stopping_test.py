"""When a run stops, from its records alone."""

import math

import pytest

from conadv_tf import config
from conadv_tf.training import stopping


def _options(**values: object) -> config.EvaluationConfig:
  return config.EvaluationConfig(**values)


def _records(*accuracies: float, key: str = 'accuracy') -> list[dict]:
  """One evaluation every 10 updates."""
  return [{'step': 10 * i, f'validation/{key}': value}
          for i, value in enumerate(accuracies, start=1)]


def _stop(options: config.EvaluationConfig, *values: float,
          key: str = 'accuracy') -> tuple[int, str] | None:
  """Where a run with these figures stops, and why."""
  records = _records(*values, key=key)
  for i, record in enumerate(records, start=1):
    reason = stopping.reason(options, records[:i], record['step'])
    if reason:
      return record['step'], reason
  return None


@pytest.mark.parametrize('target, stop', [
    (0.5, (20, 'target_accuracy')),  # reaching it is enough
    (0.51, (40, 'target_accuracy')), (0.0, (10, 'target_accuracy')),
    (0.8, None), (None, None)])
def test_target(target: float | None, stop: tuple[int, str] | None) -> None:
  assert _stop(_options(target_accuracy=target), 0.2, 0.5, 0.4, 0.7) == stop


@pytest.mark.parametrize('patience, values, stop, best', [
    (1, (0.1, 0.2, 0.2, 0.3), 30, 20),  # equal is not better
    (2, (0.1, 0.2, 0.2, 0.3), None, 40),
    (2, (0.1, 0.2, 0.1, 0.15, 0.9), 40, 20),
    (3, (0.3, 0.2, 0.25, 0.26), 40, 10),
    (1, (0.3,), None, 10),
    (2, (math.nan, 0.2, math.nan, math.nan), 40, 20),
    (2, (math.nan, math.nan), 20, None)])
def test_patience(patience: int, values: tuple[float, ...], stop: int | None,
                  best: int | None) -> None:
  options = _options(patience=patience)
  expected = None if stop is None else (stop, 'patience')
  assert _stop(options, *values) == expected
  seen = _records(*values)[:stop // 10 if stop else None]
  assert stopping.best_step(options, seen) == best


@pytest.mark.parametrize('monitor, best', [
    ('loss', 20), ('generalization_gap', 20), ('robust_accuracy_pgd2', 30),
    ('top_5_accuracy', 30)])
def test_direction(monitor: str, best: int) -> None:
  options = _options(patience=9, monitor=monitor)
  records = _records(0.5, 0.1, 0.9, key=monitor)
  assert stopping.best_step(options, records) == best


def test_only_a_record_of_these_weights_stops() -> None:
  options = _options(target_accuracy=0.5, patience=1)
  records = _records(0.6, 0.6)
  assert stopping.reason(options, records, 20) == 'target_accuracy'
  assert stopping.reason(options, records, 25) is None
  assert stopping.reason(options, [], 0) is None


def test_off_is_off() -> None:
  assert not stopping.is_possible(_options())
  assert stopping.reason(_options(), _records(1.0, 0.0, 0.0), 30) is None
  assert stopping.best_step(_options(), _records(1.0, 0.0)) is None
  stopping.check(_options(monitor='anything'), 10)


def test_a_monitor_that_is_asked_for_later() -> None:
  options = _options(patience=1, monitor='loss')
  records = _records(0.5, 0.6) + [{'step': 30, 'validation/loss': 2.0}]
  assert stopping.best_step(options, records) == 30
  assert stopping.reason(options, records, 30) is None


@pytest.mark.parametrize('monitor, options, message', [
    ('acuracy', {}, "'acuracy' is no figure of this run's evaluations, which "
     'are accuracy, loss$'),
    ('top_5_accuracy', {}, 'which are accuracy, loss$'),
    ('generalization_gap', {}, 'it needs evaluation.train_examples'),
    ('robust_accuracy_pgd5', {'attacks': ['pgd2']},
     'robust_accuracy_pgd2; name its attack in evaluation.attacks')])
def test_unknown_monitors(monitor: str, options: dict, message: str) -> None:
  with pytest.raises(config.InputError, match=message):
    stopping.check(_options(patience=1, monitor=monitor, **options), 5)


@pytest.mark.parametrize('monitor, options', [
    ('top_5_accuracy', {}), ('generalization_gap', {'train_examples': 8}),
    ('robust_accuracy_pgd5', {'attacks': ['pgd2', 'pgd5']}), ('loss', {})])
def test_known_monitors(monitor: str, options: dict) -> None:
  stopping.check(_options(patience=1, monitor=monitor, **options), 6)
