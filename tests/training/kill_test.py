"""A killed run, continued, ends in the weights of an unbroken one."""

import functools
import json
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import commands, killing, tiny

_EVERY_UPDATE = 'checkpoint.every_epochs=0.33333,checkpoint.keep=2'


def _state(model_dir: pathlib.Path) -> dict[str, np.ndarray]:
  newest = sorted((model_dir / 'checkpoints').glob('step-*'))[-1]
  with np.load(newest / 'state.npz') as arrays:
    return {'newest': np.array(newest.name),
            **{name: arrays[name] for name in arrays.files}}


def _records(model_dir: pathlib.Path) -> list[tuple[int, float, float]]:
  lines = (model_dir / 'metrics.jsonl').read_text().splitlines()
  return [(r['step'], r['validation/loss'], r['validation/accuracy'])
          for r in map(json.loads, lines)]


def _assert_same_end(one: pathlib.Path, other: pathlib.Path) -> None:
  expected, actual = _state(one), _state(other)
  assert expected.keys() == actual.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(actual[name], value, err_msg=name)
  assert _records(other) == _records(one)


@pytest.mark.parametrize('method, kill, resumes_at', [
    ('method.lag=1', functools.partial(killing.while_writing, 4), 3),
    ('method.lag=2', functools.partial(killing.before_renaming, 5), 4),
    pytest.param(
        'method.lag=2,method.execution=sequential',
        functools.partial(killing.while_writing, 3), 2,
        marks=pytest.mark.slow),
    pytest.param(
        'method.name=disadv', functools.partial(killing.after_recording, 1), 2,
        marks=pytest.mark.slow),
    pytest.param(
        'method.name=vanilla,attack.radius=4,optimizer.name=adamw,'
        'schedule.peak_lr=0.01', functools.partial(killing.while_writing, 1),
        0, marks=pytest.mark.slow),
])
def test_sigkill(tmp_path: pathlib.Path, method: str,
                 kill: functools.partial, resumes_at: int) -> None:
  def train(name: str, before: functools.partial | None = None
            ) -> commands.Finished:
    return commands.run(
        'conadv_tf.train', f'--params_override={tiny.SETTINGS}',
        f'--params_override={method}', f'--params_override={_EVERY_UPDATE}',
        f'--model_dir={tmp_path / name}', '--quiet', before=before)

  unbroken = train('unbroken')
  assert unbroken.code == 0, unbroken.err
  killed = train('killed', kill)
  assert killed.code == -signal.SIGKILL
  assert not (tmp_path / 'killed' / 'results.json').exists()
  resumed = train('killed')
  assert resumed.code == 0, resumed.err
  message = f'resuming at update {resumes_at} of 6'
  assert (message in resumed.err) == (resumes_at > 0)
  _assert_same_end(tmp_path / 'unbroken', tmp_path / 'killed')
  names = [p.name for p in (tmp_path / 'killed' / 'checkpoints').iterdir()]
  assert sorted(names) == ['step-00000005', 'step-00000006']


@pytest.mark.slow
def test_random_kills(tmp_path: pathlib.Path) -> None:
  command = [
      sys.executable, '-m', 'conadv_tf.train', '--quiet',
      '--config_file=configs/digits/conadv.yaml', '--params_override='
      'runtime.deterministic=true,schedule.epochs=12,'
      'checkpoint.every_epochs=0.5,evaluation.every_epochs=3,method.lag=2']
  start = time.monotonic()
  subprocess.run([*command, f'--model_dir={tmp_path / "unbroken"}'],
                 check=True)
  seconds = time.monotonic() - start
  generator = random.Random(0)
  for _ in range(4):
    # Half of it is start-up, in which little can break.
    process = subprocess.Popen([*command, f'--model_dir={tmp_path / "killed"}'])
    try:
      process.wait(seconds * generator.uniform(0.4, 0.9))
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
  subprocess.run([*command, f'--model_dir={tmp_path / "killed"}'], check=True)
  _assert_same_end(tmp_path / 'unbroken', tmp_path / 'killed')
