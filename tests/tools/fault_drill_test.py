"""The drill notices what differs, and three faults leave no trace."""

import collections
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from tools import fault_drill_job, fault_drill_plan

_REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def test_plan() -> None:
  faults = fault_drill_plan.plan(400, seed=3, workers=3)
  assert faults == fault_drill_plan.plan(400, seed=3, workers=3)
  assert faults != fault_drill_plan.plan(400, seed=4, workers=3)
  kinds = collections.Counter(fault.kind for fault in faults)
  # 0.7 and 0.15 of 400, within four standard deviations.
  assert abs(kinds[signal.SIGKILL] - 280) < 37
  assert abs(kinds[signal.SIGTERM] - 60) < 29
  assert sum(kinds.values()) == 400 and len(kinds) == 3
  assert {fault.worker for fault in faults} == {0, 1, 2}
  updates = [f.update for f in faults if f.update is not None]
  assert abs(len(updates) - 320) < 32
  assert updates == sorted(set(updates))
  # Over the whole run, which is 30 updates longer.
  assert 15 <= updates[0] < 200 and 11700 < updates[-1] < 12000


def _finished(model_dir: pathlib.Path) -> pathlib.Path:
  checkpoint = model_dir / 'checkpoints' / 'step-00000003'
  checkpoint.mkdir(parents=True)
  np.savez(checkpoint / 'state.npz', a=np.array([1.0, np.nan]), b=np.zeros(2))
  (model_dir / 'metrics.jsonl').write_text(
      '{"step": 1, "x": 0.1, "seconds": 5}\n{"step": 3, "x": 0.2}\n', 'utf-8')
  return model_dir


def test_differences(tmp_path: pathlib.Path) -> None:
  one, other = (_finished(tmp_path / name) for name in ('one', 'other'))
  assert fault_drill_job.differences(one, other) == []
  metrics = other / 'metrics.jsonl'
  text = metrics.read_text('utf-8')
  metrics.write_text(text.replace('5', '6'), 'utf-8')  # of a clock
  assert fault_drill_job.differences(one, other) == []
  metrics.write_text(text.replace('0.2', '0.21') + '{"step": 3}\n', 'utf-8')
  np.savez(other / 'checkpoints' / 'step-00000003' / 'state.npz',
           a=np.array([1.0, np.nan]), b=np.array([0.0, -0.0]), c=0)
  assert fault_drill_job.differences(one, other) == [
      'array b', 'array c', 'metrics.jsonl has 3 lines instead of 2',
      'metrics.jsonl, line 2']


def test_table() -> None:
  def fault(kind: signal.Signals, update: int | None, stopped: float,
            code: int) -> fault_drill_plan.Fault:
    return fault_drill_plan.Fault(
        kind, 0, update, 0.5, stopped, 10 * stopped, code)

  assert fault_drill_plan.table([
      fault(signal.SIGTERM, None, 4.0, 143),
      *(fault(signal.SIGKILL, 7, x, 137) for x in (1.0, 9.0, 2.0))
  ]).splitlines()[2:] == [
      '| SIGKILL | 3 | 2.0, 9.0 | 20.0, 90.0 | 137 |',
      '| SIGTERM while starting | 1 | 4.0, 4.0 | 40.0, 40.0 | 143 |']


@pytest.mark.slow
def test_three_faults(tmp_path: pathlib.Path) -> None:
  """With this seed one of each kind, of both workers, one at the start."""
  output = tmp_path / 'drill.json'
  done = subprocess.run(
      [sys.executable, '-m', 'tools.fault_drill', '--kills=3', '--seed=103',
       f'--output={output}'], cwd=_REPOSITORY, capture_output=True, text=True,
      timeout=900, check=False, env={**os.environ, 'TMPDIR': str(tmp_path)})
  assert done.returncode == 0, done.stdout + done.stderr
  assert 'the end is that of the unbroken run, bit for bit' in done.stdout
  result = json.loads(output.read_text('utf-8'))
  assert result['differences'] == [] and result['restarts'] >= 3
  assert {fault['kind'] for fault in result['faults']} == {
      'SIGKILL', 'SIGTERM', 'SIGSTOP'}
  for fault in result['faults']:
    assert 0 < fault['stopped'] < fault['trained'] < 120
