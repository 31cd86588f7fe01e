"""SIGTERM, and going on with other workers: the same weights, bit for bit."""

import json
import pathlib

import pytest

from tests.faults import groups

pytestmark = pytest.mark.slow


def _newest(model_dir: pathlib.Path) -> tuple[int, bool]:
  """Step of the newest checkpoint; whether its evaluation is to be made."""
  path = sorted((model_dir / 'checkpoints').iterdir())[-1] / 'manifest.json'
  manifest = json.loads(path.read_text('utf-8'))
  return manifest['step'], 'pending' in manifest['extra']


def test_two_then_three_then_two_workers_then_one_process(
    unbroken: pathlib.Path, tmp_path: pathlib.Path) -> None:
  path = tmp_path / 'run'
  saved = 'error: checkpoint of update {} saved after SIGTERM'

  # What a launcher does that a user or a machine stops; a late worker.
  ended = groups.run(path, '1:start:0:3+0:update:1:launcher', workers=2)
  fault = ended.expect(143).when('FAULT 0:update:1:launcher')
  for worker in (0, 1):
    line = ended.when(f'[worker {worker}] {saved.format(2)}')
    assert line - fault < 5
  assert ended.when('FAULT 1:start') < ended.when('data: synthetic')
  assert _newest(path) == (2, False)

  # To one worker of more only, before an update that an evaluation follows.
  ended = groups.run(path, '2:update:5:SIGTERM+2:update:5:SIGTERM', workers=3)
  assert ended.expect(143).count('resuming at update 2 of 12') == 1
  assert ended.when('runtime.micro_batches is 2, so that the 6 virtual')
  fault = ended.when('FAULT 2:update:5:SIGTERM')
  for worker in range(3):
    assert ended.when(f'[worker {worker}] {saved.format(6)}') - fault < 5
  assert _newest(path) == (6, True)

  # To one worker during an evaluation: the other one only loses it, by
  # heartbeats after 10 s, when the launcher must not have killed it yet. The
  # first batch is that of the evaluation which was left.
  ended = groups.run(path, '1:evaluation:2:SIGTERM', workers=2,
                     grace_seconds=20.0)
  fault = ended.expect(143).when('FAULT')
  assert ended.when('update 6/12') < fault
  assert ended.when('[worker 1] error: evaluation left after SIGTERM') > fault
  assert ended.when('[worker 0] error: lost another worker') - fault < 14
  assert _newest(path) == (9, True)

  warnings = groups.finish(path, 'runtime.micro_batches=1')
  assert 'runtime.micro_batches is 6, so that the 6 virtual' in warnings
  assert 'resuming at update 9 of 12' in warnings
  groups.assert_same_end(unbroken, path)
