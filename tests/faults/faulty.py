"""Trains, and hurts one worker of the job at chosen moments.

    python -m tests.faults.faulty FAULTS FOLDER FLAGS OF conadv_tf.train

FAULTS are worker:moment:count:what, joined by `+`; those for the next start of
the workers, which they count in FOLDER, come after a comma.

Moments are `start`, `met` (all workers have seen each other, TensorFlow has
not started), `update` (number `count` is made), `evaluation` (before the
`count`-th batch of this process) and `writing` (half of the `count`-th
checkpoint of this process is on the disk). What happens is a signal to the
process itself, `launcher` (SIGTERM to its parent), `stuck`, `full` (the
rest of the disk under FOLDER is filled), or so many seconds of sleep.
"""

from collections.abc import Callable
import contextlib
import functools
import json
import os
import pathlib
import runpy
import signal
import sys
import time
from typing import Any


def _attempt(folder: pathlib.Path, worker: int) -> int:
  """How often this worker was started before."""
  path = folder / f'started_{worker}'
  with open(path, 'a', encoding='utf-8') as file:
    file.write('x')
  return len(path.read_text('utf-8')) - 1


def _act(fault: str, folder: pathlib.Path) -> None:
  """Does what the fault says; a test finds its line in the log."""
  what = fault.rpartition(':')[2]
  print(f'FAULT {fault}', file=sys.__stderr__, flush=True)
  if what == 'stuck':
    time.sleep(3600)
  elif what == 'launcher':
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(1.5)  # all workers have got it before the next update
  elif what == 'full':
    _fill(folder / 'filler')
  elif what.isdigit():
    time.sleep(int(what))
  else:
    os.kill(os.getpid(), signal.Signals[what])


def _fill(path: pathlib.Path) -> None:
  with contextlib.suppress(OSError), open(path, 'wb', buffering=0) as file:
    while True:
      file.write(bytes(1024))


def _at_update(number: int, act: Callable[[], None]) -> None:
  from conadv_tf.training import callbacks
  original = callbacks.RunCallback.on_train_batch_end

  def patched(self: Any, batch: int, logs: Any = None) -> None:
    if self._step < number <= self._step + self._count:
      act()
    original(self, batch, logs)

  callbacks.RunCallback.on_train_batch_end = patched


def _at_evaluation(number: int, act: Callable[[], None]) -> None:
  from conadv_tf.training import guards
  original = guards.Guard.between_batches
  count = 0

  def patched(self: guards.Guard) -> None:
    nonlocal count
    count += 1
    if count == number:
      act()
    original(self)

  guards.Guard.between_batches = patched


def _at_meeting(number: int, act: Callable[[], None]) -> None:
  del number
  from conadv_tf.distribute import cluster
  original = cluster.meet

  def patched(*args: Any) -> None:
    original(*args)
    act()

  cluster.meet = patched


def _at_writing(number: int, act: Callable[[], None]) -> None:
  from conadv_tf.training import checkpoint
  original = checkpoint.write_arrays
  count = 0

  def patched(file: Any, arrays: dict[str, Any]) -> None:
    nonlocal count
    count += 1
    if count == number:
      original(file, dict(list(arrays.items())[:len(arrays) // 2]))
      file.flush()
      act()
    original(file, arrays)

  checkpoint.write_arrays = patched


_MOMENTS = {
    'start': lambda number, act: act(), 'met': _at_meeting,
    'update': _at_update, 'evaluation': _at_evaluation,
    'writing': _at_writing}


def prepare(faults: str, folder: pathlib.Path) -> None:
  """Patches this process where a fault of this start is its own."""
  task = json.loads(os.environ.get('TF_CONFIG', '{}')).get('task', {})
  worker = task.get('index', 0)
  starts = faults.split(',')
  attempt = _attempt(folder, worker)
  for fault in starts[attempt].split('+') if attempt < len(starts) else ():
    if fault:
      who, moment, count, _ = fault.split(':')
      if int(who) == worker:
        _MOMENTS[moment](int(count), functools.partial(_act, fault, folder))


if __name__ == '__main__':
  prepare(sys.argv[1], pathlib.Path(sys.argv[2]))
  sys.argv = ['conadv_tf.train', *sys.argv[3:]]
  runpy.run_module('conadv_tf.train', run_name='__main__', alter_sys=True)
