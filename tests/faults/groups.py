"""One small job, alone or in a group of real workers, and what came of it."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from typing import Any, TextIO

import numpy as np

from tests import commands, tiny
from tests.faults import faulty

_REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# 12 updates of 6 virtual replicas with 4 examples each. An epoch is one
# update: training's figures, which start anew with every epoch and every
# start, are then those of an unbroken run.
SETTINGS = tiny.SETTINGS.replace(
    'global_batch_size=8', 'global_batch_size=24').replace(
        'schedule.epochs=2', 'schedule.epochs=12') + (
            ',evaluation.every_epochs=3,checkpoint.keep=2')
# TensorFlow's kernels add up in another order with other thread counts.
THREADS = {'TF_NUM_INTRAOP_THREADS': '1', 'TF_NUM_INTEROP_THREADS': '1'}
_WALL_CLOCK = ('seconds', 'examples_per_second')


@dataclasses.dataclass(frozen=True)
class Line:
  """Of the log of a group.

  Attributes:
    seconds: since the start.
    text: with the launcher's prefix.
  """

  seconds: float
  text: str


@dataclasses.dataclass(frozen=True)
class Ended:
  """How a group ended: the launcher's exit code and log."""

  code: int
  lines: list[Line]
  seconds: float

  def expect(self, code: int) -> 'Ended':
    """Fails with the log where the exit code is another."""
    assert self.code == code, f'code {self.code}\n{self}'
    return self

  def when(self, part: str, after: float = 0.0) -> float:
    """Seconds of the first line with this part from `after` on."""
    found = [x.seconds for x in self.lines
             if x.seconds >= after and part in x.text]
    assert found, f'no {part!r} after {after} s in\n{self}'
    return found[0]

  def count(self, part: str) -> int:
    """How many lines have this part."""
    return sum(part in x.text for x in self.lines)

  def __str__(self) -> str:
    return '\n'.join(f'{x.seconds:6.2f} {x.text}' for x in self.lines)


def run(model_dir: pathlib.Path, faults: str = '', *overrides: str,
        workers: int = 2, restarts: int = 0, grace_seconds: float = 10.0,
        timeout: float = 300.0, machine: str = '',
        **environment: str) -> Ended:
  """Runs the job in a group of workers until the launcher returns.

  A run that is begun must have two of them, to have 6 virtual replicas.

  Args:
    model_dir: of the run.
    faults: see faulty.py.
    *overrides: of the configuration.
    workers: how many.
    restarts: of all of them.
    grace_seconds: from SIGTERM to SIGKILL.
    timeout: seconds, then all are killed.
    machine: names one of several launchers that share a run.
    **environment: of the launcher.
  """
  command = [
      sys.executable, '-m', 'tools.local_cluster', f'--workers={workers}',
      f'--max_restarts={restarts}', f'--grace_seconds={grace_seconds}', '--',
      sys.executable, '-m', 'tests.faults.faulty', faults,
      str(_fresh_folder(model_dir, machine)), *flags(
          model_dir, 'runtime.strategy=multi_worker_mirrored',
          'runtime.micro_batches=3', *overrides)]
  lines: list[Line] = []
  begin = time.monotonic()
  process = subprocess.Popen(
      command, cwd=_REPOSITORY, text=True, stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT, env={**os.environ, **THREADS, **environment})
  reader = threading.Thread(target=_read, args=(process.stdout, begin, lines))
  reader.start()
  try:
    process.wait(timeout)
  finally:
    process.kill()  # and so its workers, if it is still there
    process.wait()
    reader.join()
  return Ended(process.returncode, lines, time.monotonic() - begin)


def flags(model_dir: pathlib.Path, *overrides: str) -> list[str]:
  """Those of the job."""
  return [f'--model_dir={model_dir}', *(
      f'--params_override={text}' for text in (SETTINGS, *overrides))]


def _read(stream: TextIO, begin: float, lines: list[Line]) -> None:
  with stream:
    for text in stream:
      lines.append(Line(time.monotonic() - begin, text.rstrip('\n')))


def alone(model_dir: pathlib.Path, *overrides: str,
          faults: str = '') -> commands.Finished:
  """The same job in one process, started once."""
  return commands.run(
      'conadv_tf.train',
      *flags(model_dir, 'runtime.micro_batches=6', *overrides),
      before=functools.partial(_prepare, faults, _fresh_folder(model_dir)))


def _prepare(faults: str, folder: pathlib.Path) -> None:
  os.environ.update(THREADS)
  faulty.prepare(faults, folder)


def _fresh_folder(model_dir: pathlib.Path, machine: str = '') -> pathlib.Path:
  """Where starts are counted, from 0."""
  folder = model_dir.with_name(f'{model_dir.name}_starts{machine}')
  folder.mkdir(exist_ok=True)
  for path in folder.iterdir():
    path.unlink()
  return folder


def finish(model_dir: pathlib.Path, *overrides: str) -> str:
  """Runs it alone to its end; returns what it wrote to stderr."""
  done = alone(model_dir, *overrides)
  assert done.code == 0, done.err
  return done.err


def state(model_dir: pathlib.Path) -> dict[str, np.ndarray]:
  """All arrays of the newest checkpoint, and its name."""
  newest = sorted((model_dir / 'checkpoints').glob('step-*'))[-1]
  with np.load(newest / 'state.npz') as arrays:
    return {'newest': np.array(newest.name), **arrays}


def records(model_dir: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of metrics.jsonl, but for what a clock measured."""
  lines = (model_dir / 'metrics.jsonl').read_text('utf-8').splitlines()
  return [{k: v for k, v in json.loads(line).items() if k not in _WALL_CLOCK}
          for line in lines]


def assert_same_end(one: pathlib.Path, other: pathlib.Path) -> None:
  """Weights and all bit for bit, and the same evaluations, each once."""
  expected, actual = state(one), state(other)
  assert expected.keys() == actual.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(actual[name], value, err_msg=name)
  for expected, actual in zip(records(one), records(other), strict=True):
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
      # Training's figures are added up in float32, over other replicas.
      tolerance = 1e-6 if name.startswith('train/') else 0
      np.testing.assert_allclose(
          actual[name], value, rtol=tolerance, atol=0,
          err_msg=f'{name} of update {expected["step"]}')
  assert (other / 'results.json').exists()
