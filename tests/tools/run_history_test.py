"""What a run did, read back from its directory."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from conadv_tf import config, runs
from tests import tiny
from tools import run_history

# 6 initial batches of 4 an epoch, 36 in all; evaluated every third epoch.
_SETTINGS = (
    'data.global_batch_size=4,schedule.epochs=6,schedule.name=piecewise,'
    'schedule.warmup_epochs=0,schedule.peak_lr=0.05,schedule.boundaries=[4],'
    'schedule.values=[1,0.5],optimizer.name=sgd,method.name=vanilla,'
    'evaluation.every_epochs=3')
_GROWS = ('growth.name=scheduled,growth.epochs=[2,4.6666667],growth.factor=2,'
          'growth.max_batch_size=16')


def _trained(path: pathlib.Path, *overrides: str) -> run_history.Run:
  runs.run(tiny.load(_SETTINGS, *overrides), str(path), quiet=True)
  return run_history.read(str(path), 'a run')


def _at(points: tuple[np.ndarray, np.ndarray], epoch: float) -> float:
  epochs, values = points
  return values[np.searchsorted(epochs, epoch, side='right') - 1]


def test_growth_is_where_it_was(tmp_path: pathlib.Path,
                                caplog: pytest.LogCaptureFixture) -> None:
  run = _trained(tmp_path, _GROWS)
  # At initial batches 12 and 28: neither is an evaluation.
  assert [r['epoch'] for r in run.metrics] == [3.0, 6.0]
  epochs, sizes = run.batch_sizes()
  assert (epochs * 6).tolist() == pytest.approx([0, 12, 28, 36])
  assert sizes.tolist() == [4, 8, 16, 16]
  rates = run.learning_rates()
  # Growth in place of a decay leaves the rate; the schedule decays at 4.
  assert [_at(rates, epoch) for epoch in (0, 1.9, 2, 3.9, 4, 6)] == (
      pytest.approx([0.05, 0.05, 0.05, 0.05, 0.025, 0.025]))
  assert rates[0][0] == 0 and rates[0][-1] == 6

  lines = (tmp_path / 'growth.jsonl').read_text().splitlines()
  (tmp_path / 'growth.jsonl').write_text(''.join(
      json.dumps({**json.loads(line), 'rate_factor': 3.0**i}) + '\n'
      for i, line in enumerate(lines)))
  rates = run_history.read(str(tmp_path), '').learning_rates()
  assert [_at(rates, epoch) for epoch in (1.9, 2, 3.9, 4, 4.6, 4.7)] == (
      pytest.approx([0.05, 0.15, 0.15, 0.075, 0.075, 0.225]))
  assert 'constant' not in caplog.text
  (tmp_path / 'growth.jsonl').unlink()  # as a run of an earlier version
  old = run_history.read(str(tmp_path), '')
  assert 'shown as constant' in caplog.text
  assert old.batch_sizes()[1].tolist() == [4, 4]


def test_a_constant_batch_and_its_whole_schedule(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
  run = _trained(tmp_path, 'schedule.name=polynomial,schedule.power=1,'
                 'schedule.end_lr=0,schedule.warmup_epochs=1')
  assert not (tmp_path / 'growth.jsonl').exists()
  assert [points.tolist() for points in run.batch_sizes()] == [[0, 6], [4, 4]]
  epochs, rates = run.learning_rates()
  # Update i of 36, from 0: up to the peak in 6, then down in 30.
  i = np.arange(36)
  np.testing.assert_allclose(epochs, np.arange(37) / 6)
  np.testing.assert_allclose(rates[:-1], 0.05 * np.where(
      i < 6, i / 6, 1 - (i - 6) / 30), rtol=1e-5)
  assert 'constant' not in caplog.text

  shutil.rmtree(tmp_path / 'checkpoints')  # all is in the small files
  (tmp_path / 'params.yaml').write_text('seed: 1')
  with pytest.raises(config.InputError, match='no derived.num_examples'):
    run_history.read(str(tmp_path), '')


def test_correlations() -> None:
  # Ranks 1, 2.5, 2.5, 4 beside 1, 3, 2, 4.
  spearman, pearson = run_history.correlations([0, 2, 2, 9], [1, 5, 4, 6])
  assert spearman == pytest.approx(4.5 / np.sqrt(4.5 * 5))
  x, y = np.array([0, 2, 2, 9]) - 3.25, np.array([1, 5, 4, 6]) - 4.0
  assert pearson == pytest.approx(x @ y / np.sqrt((x @ x) * (y @ y)))
  assert run_history.correlations([1, 2, 3], [8, 1, -9])[0] == (
      pytest.approx(-1))
  assert np.isnan(run_history.correlations([1, 1], [1, 2])).all()
