"""Ends a process in which nothing moves: TensorFlow waits for ever.

A peer that is alive but stuck is never noticed by TensorFlow's heartbeats, and
a collective without its peers never returns. Every worker therefore watches
itself: where no update, evaluated batch or checkpoint is finished in time, it
says so, prints where all its threads stand, and exits.
"""

import faulthandler
import os
import sys
import threading
import time
from typing import Any

from conadv_tf import exits

# The second watch, in C: TensorFlow holds the interpreter's lock while it
# waits for peers at the start, so no Python thread runs then.
_LATER = 5.0


class Watchdog:
  """A context in which `tick` must be called again and again.

  There can be one at a time in a process.
  """

  def __init__(self, seconds: float | None):
    """Args: seconds: without a tick; None watches nothing."""
    self._seconds = seconds
    self._stop = threading.Event()
    self._last = (time.monotonic(), "start")

  def __enter__(self) -> "Watchdog":
    """Starts to watch."""
    if self._seconds is not None:
      threading.Thread(target=self._watch, daemon=True).start()
    self.tick("start")
    return self

  def __exit__(self, *error: Any) -> None:
    """Watches no more."""
    self._stop.set()
    if self._seconds is not None:
      faulthandler.cancel_dump_traceback_later()

  def tick(self, activity: str) -> None:
    """Something has moved; `activity` is what comes next, for the message."""
    self._last = (time.monotonic(), activity)
    if self._seconds is not None and not self._stop.is_set():
      faulthandler.dump_traceback_later(
          self._seconds + _LATER, exit=True, file=sys.__stderr__)

  def _watch(self) -> None:
    while not self._stop.wait(min(1.0, self._seconds / 4)):
      since, activity = self._last
      if time.monotonic() - since < self._seconds:
        continue
      faulthandler.dump_traceback(all_threads=True, file=sys.__stderr__)
      print(f"error: nothing has moved for {self._seconds:g} s "
            f"(runtime.stall_seconds), last at: {activity}; a peer or the "
            "input is stuck. The same command goes on from the last "
            "checkpoint", file=sys.__stderr__, flush=True)
      os._exit(exits.PeerLost.exit_code)  # pylint: disable=protected-access
