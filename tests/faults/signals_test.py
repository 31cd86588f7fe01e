"""SIGTERM to a single process; groups are in elastic_test.py."""

from collections.abc import Iterator
import json
import pathlib
import signal
import subprocess
import sys

import pytest

from conadv_tf import exits
from conadv_tf.training import interruption
from tests.faults import groups


def _interrupted(path: pathlib.Path, faults: str, options: str,
                 saved: int) -> None:
  """Is stopped by the fault; the newest checkpoint is after `saved`."""
  done = groups.alone(path, options, faults=faults)
  assert done.code == 143, (done.code, done.err)
  (line,) = [x for x in done.err.splitlines() if x.startswith('error: ')]
  assert line.endswith('after SIGTERM; the same command goes on from there')
  assert 'Traceback' not in done.err
  newest = sorted((path / 'checkpoints').iterdir())[-1]
  assert newest.name == f'step-{saved:08d}'
  is_pending = 'pending' in json.loads(
      (newest / 'manifest.json').read_text('utf-8'))['extra']
  assert is_pending == ('evaluation' in faults)


# Checkpoints only where the signal asks for one, evaluations after 9 and 12.
_SELDOM = 'checkpoint.every_epochs=100,evaluation.every_epochs=9,'


@pytest.mark.slow
@pytest.mark.parametrize('options, saved', [
    ('method.lag=1', (3, 9)),
    # Executions of updates 1 to 4, 5, which the signal has made shorter, 6 to
    # 8, and 9 to 12.
    ('method.lag=2,runtime.steps_per_execution=4', (5, 12)),
])
def test_sigterm_and_on(tmp_path: pathlib.Path, options: str,
                        saved: tuple[int, int]) -> None:
  options = _SELDOM + options
  groups.finish(tmp_path / 'unbroken', options)
  path = tmp_path / 'run'
  # Two signals: the launcher's and the machine's.
  _interrupted(path, '0:update:2:SIGTERM+0:update:2:SIGTERM', options,
               saved[0])
  _interrupted(path, '0:evaluation:1:SIGTERM', options, saved[1])
  assert f'resuming at update {saved[1]} of 12' in groups.finish(path, options)
  groups.assert_same_end(tmp_path / 'unbroken', path)


def test_only_a_second_ctrl_c_ends_at_once(
    monkeypatch: pytest.MonkeyPatch) -> None:
  before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
  killed = []
  monkeypatch.setattr(interruption.os, 'kill',
                      lambda pid, signum: killed.append(signum))
  with interruption.Interruption() as stop:
    stop.deferred = True
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert (stop.signum, killed) == (signal.SIGTERM, [])
    signal.raise_signal(signal.SIGINT)
    assert killed == [signal.SIGINT]
  assert [signal.getsignal(s)
          for s in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.fixture
def sigterm() -> Iterator[None]:
  """Puts the handler back that a run which was stopped has left."""
  handler = signal.getsignal(signal.SIGTERM)
  yield
  signal.signal(signal.SIGTERM, handler)


@pytest.mark.usefixtures('sigterm')
def test_sigterm_does_not_cut_a_stopped_run_short() -> None:
  # Another worker's signal has stopped this one. The launcher passes it on.
  before = signal.getsignal(signal.SIGINT)
  with pytest.raises(exits.Terminated, match='saved after SIGTERM'):
    with interruption.Interruption() as stop:
      raise stop.terminated('saved')
  signal.raise_signal(signal.SIGTERM)
  signal.raise_signal(signal.SIGTERM)
  assert stop.signum == signal.SIGTERM
  assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.usefixtures('sigterm')
def test_outside_of_updates_a_signal_ends_at_once() -> None:
  with pytest.raises(exits.Terminated, match='stopped after SIGINT') as error:
    with interruption.Interruption():
      signal.raise_signal(signal.SIGINT)
  assert error.value.exit_code == 130


_KEPT = """
import os, signal
from conadv_tf import exits
from conadv_tf.training import interruption

with interruption.kept_back() as deliver:
  os.kill(os.getpid(), signal.SIGTERM)
  with interruption.Interruption() as stop:
    assert stop.signum is None
    try:
      deliver()
    except exits.Terminated as error:
      print(error.exit_code, stop.signum == signal.SIGTERM)
"""


def test_a_signal_waits_for_a_handler_that_comes_later() -> None:
  # In a process of its own, whose only thread it is.
  done = subprocess.run([sys.executable, '-c', _KEPT], capture_output=True,
                        text=True, check=False)
  assert (done.returncode, done.stdout) == (0, '143 True\n'), done.stderr
