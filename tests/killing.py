"""Kills the process it runs in at a chosen moment of a chosen save.

For `commands.run(before=...)`: the child patches itself, then trains.
"""

import os
import signal
from typing import Any

import numpy as np


def _die() -> None:
  os.kill(os.getpid(), signal.SIGKILL)


def while_writing(save: int) -> None:
  """Dies with half of the state of the `save`-th checkpoint on disk."""
  from conadv_tf.training import checkpoint
  write = checkpoint.write_arrays
  count = 0

  def half(file: Any, arrays: dict[str, np.ndarray]) -> None:
    nonlocal count
    count += 1
    if count < save:
      write(file, arrays)
      return
    write(file, dict(list(arrays.items())[:len(arrays) // 2]))
    file.flush()
    _die()

  checkpoint.write_arrays = half


def before_renaming(save: int) -> None:
  """Dies with the `save`-th checkpoint complete under its temporary name."""
  rename = os.rename
  count = 0

  def counted(source: str, target: str) -> None:
    nonlocal count
    if 'tmp-' in os.path.basename(source):
      count += 1
      if count == save:
        _die()
    rename(source, target)

  os.rename = counted


def after_recording(record: int) -> None:
  """Dies when the `record`-th evaluation is recorded, before its save."""
  from conadv_tf.training import run_directory
  append = run_directory.RunDirectory.append_metrics
  count = 0

  def counted(self: Any, line: dict[str, Any]) -> None:
    nonlocal count
    append(self, line)
    count += 1
    if count == record:
      with open(self.file('metrics.jsonl'), 'a', encoding='utf-8') as file:
        file.write('{"step": 5, "ep')  # and another torn line
      _die()

  run_directory.RunDirectory.append_metrics = counted
