"""Processes of one command, their output, and how all of them are ended."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import ctypes
import dataclasses
import os
import queue
import re
import select
import signal
import subprocess
import sys
import threading
import time
from typing import BinaryIO

_PARTIAL_SECONDS = 0.1  # how long the rest of a line may take
_PR_SET_PDEATHSIG = 1


@dataclasses.dataclass(frozen=True)
class Ended:
  """A worker is gone.

  Attributes:
    worker: its number.
    code: its exit code, or minus the signal that killed it.
  """

  worker: int
  code: int


class Group:
  """Workers, each in a session of its own."""

  def __init__(self, command: Sequence[str],
               environments: Sequence[Mapping[str, str]],
               events: queue.SimpleQueue):
    """Starts one worker for each environment.

    Args:
      command: what each of them runs.
      environments: of the workers, in their order.
      events: receives an Ended for each, in the order of their ends.

    Raises:
      OSError: if the command cannot be started.
    """
    self._processes: list[subprocess.Popen] = []
    dies_with_us = _dies_with(os.getpid())
    try:
      for environment in environments:
        self._processes.append(subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True, preexec_fn=dies_with_us))
    except OSError:
      self.stop(0)
      raise
    # Threads only now: forking a process that has some is not safe.
    self._pumps = []
    out, err = _Output(sys.stdout.fileno()), _Output(sys.stderr.fileno())
    for worker, process in enumerate(self._processes):
      threading.Thread(target=_report, args=(worker, process, events),
                       daemon=True).start()
      for source, output in ((process.stdout, out), (process.stderr, err)):
        self._pumps.append(threading.Thread(
            target=_pump, args=(source, output, f"[worker {worker}] "),
            daemon=True))
        self._pumps[-1].start()

  def stop(self, grace_seconds: float) -> None:
    """SIGTERM, then SIGKILL for what is left after the grace."""
    self._signal(signal.SIGTERM)
    end = time.monotonic() + grace_seconds
    # Signal 0 asks whether anything is left, a worker's children included.
    while self._signal(0) and time.monotonic() < end:
      time.sleep(0.05)
    self._signal(signal.SIGKILL)
    for process in self._processes:
      process.wait()

  def close(self) -> None:
    """After the last end: kills what workers left behind, writes the rest."""
    self._signal(signal.SIGKILL)
    for pump in self._pumps:
      pump.join(timeout=1)  # for ever, if something has escaped with the pipe

  def _signal(self, signum: int) -> bool:
    """Whether any process was there to receive it."""
    found = False
    for process in self._processes:
      with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signum)
        found = True
    return found


class _Output:
  """One of our own streams, on which all workers write lines."""

  def __init__(self, descriptor: int):
    self._descriptor = descriptor
    self._lock = threading.Lock()
    self._owner: str | None = None  # the prefix of the unfinished line
    self._returned = False  # whether that line is to be written over
    self._cut: set[str] = set()  # those whose line another one has ended

  def write(self, prefix: str, text: bytes) -> None:
    """Writes at once; `text` may begin and end within a line."""
    with self._lock:
      pieces = []
      if prefix in self._cut:
        self._cut.discard(prefix)
        text = text.removeprefix(b"\n")
      if text and self._owner not in (None, prefix):
        self._cut.add(self._owner)
        self._owner = None
        pieces.append(b"\n")
      for piece in re.findall(rb"[^\r\n]+|\r|\n", text):
        is_text = piece not in (b"\r", b"\n")
        if (self._owner is None and piece != b"\r" or
            self._returned and is_text):
          pieces.append(prefix.encode())
        pieces.append(piece)
        self._owner = None if piece == b"\n" else prefix
        self._returned = piece == b"\r"
      self._write_all(b"".join(pieces))

  def _write_all(self, data: bytes) -> None:
    # When nobody reads any more, the workers go on.
    with contextlib.suppress(OSError):
      while data:
        data = data[os.write(self._descriptor, data):]


def _pump(source: BinaryIO, output: _Output, prefix: str) -> None:
  """Passes a worker's stream on until its end."""
  held, until = b"", 0.0
  while True:
    # Many programs write a line and its end apart: wait a moment for the rest.
    left = max(0.0, until - time.monotonic())
    if held and not select.select([source], [], [], left)[0]:
      output.write(prefix, held)
      held = b""
    chunk = os.read(source.fileno(), 1 << 16)
    if not held:
      until = time.monotonic() + _PARTIAL_SECONDS
    held += chunk
    end = max(held.rfind(b"\n"), held.rfind(b"\r")) + 1
    output.write(prefix, held[:end])
    held = held[end:]
    if not chunk:
      break
  output.write(prefix, held)
  source.close()


def _report(worker: int, process: subprocess.Popen,
            events: queue.SimpleQueue) -> None:
  events.put(Ended(worker, process.wait()))


def _dies_with(parent: int) -> Callable[[], None] | None:
  """Has a child killed when its parent is, where that is Linux."""
  if not sys.platform.startswith("linux"):
    return None
  prctl = ctypes.CDLL(None).prctl

  def prepare() -> None:
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
      os._exit(1)  # it was killed before the line above

  return prepare
