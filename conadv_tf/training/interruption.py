"""SIGTERM and Ctrl-C as a wish to stop, so that work can be saved first.

A preempted machine sends SIGTERM. TensorFlow's own handler does nothing on
TPU VMs, and a multi-worker process swallows the signal altogether unless a
handler is installed after the strategy was made.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import signal
import threading
from typing import Any

from conadv_tf import exits

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def kept_back() -> Iterator[Callable[[], None]]:
  """Keeps SIGTERM for whoever installs a handler inside.

  While TensorFlow makes a multi-worker strategy it takes the signal away and
  forgets it. Blocked, it waits; TensorFlow's threads inherit that.

  Yields:
    What delivers it, if it has come.
  """
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

  def deliver() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)

  try:
    yield deliver
  finally:
    deliver()


class Interruption:
  """A context in which the signals are noticed.

  Outside of updates there is nothing to save, and the first signal raises
  `exits.Terminated`. While `deferred` is set it is only remembered. A second
  Ctrl-C ends the process at once; a second SIGTERM does not, since a machine
  that shuts down sends it to every process and a launcher passes it on.

  Attributes:
    deferred: set while updates are made.
    signum: of the signal that came, or None.
  """

  def __init__(self) -> None:
    self.deferred = False
    self.signum: int | None = None
    self._previous: dict[int, Any] = {}

  def __enter__(self) -> "Interruption":
    """Installs the handlers; only the main thread can, others go without."""
    if threading.current_thread() is threading.main_thread():
      self._previous = {
          s: signal.signal(s, self._handle) for s in _SIGNALS}
    return self

  def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
    """Puts the previous handlers back.

    Not that of SIGTERM when the process is to end because of a signal: it
    would not outlive the one that a launcher sends as soon as the first
    worker has ended, and its last line and exit code would be lost.
    """
    del kind, traceback
    if isinstance(error, exits.Terminated):
      self.deferred = True
      self._previous.pop(signal.SIGTERM, None)
    for signum, handler in self._previous.items():
      signal.signal(signum, handler)

  def terminated(self, message: str) -> exits.Terminated:
    """The error that ends the process for the signal that came.

    Another worker may have got it: then it counts as SIGTERM.
    """
    signum = self.signum or signal.SIGTERM
    return exits.Terminated(
        f"{message} after {signal.Signals(signum).name}; the same command "
        "goes on from there", signum)

  def _handle(self, signum: int, frame: Any) -> None:
    del frame
    if self.signum is not None:
      if signum == signal.SIGINT:
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
      return
    self.signum = signum
    if not self.deferred:
      raise self.terminated("stopped")
