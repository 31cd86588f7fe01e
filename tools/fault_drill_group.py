"""A group of workers that is watched from outside, for `tools.fault_drill`."""

from collections.abc import Callable, Sequence
import dataclasses
import json
import pathlib
import re
import subprocess
import sys
import threading
import time
from typing import Any, IO, TypeVar

_RESTART = re.compile(
    r"local_cluster: worker \d+ ended with code (\d+); starting all again")
_UPDATE = re.compile(r"\[worker 0\] epoch \S+, update (\d+)/")

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Restart:
  """All workers have ended and are about to be started again.

  Attributes:
    seconds: when, by `time.monotonic`.
    code: of the worker that ended first.
  """

  seconds: float
  code: int


class Group:
  """A context: workers under `tools.local_cluster`, killed at the end."""

  def __init__(self, command: Sequence[str], workers: int, max_restarts: int,
               log: pathlib.Path):
    """Starts them; what they write goes to the log."""
    self._restarts: list[Restart] = []
    self._updates: list[tuple[float, int]] = []  # when, which
    self._changed = threading.Condition()
    self._process = subprocess.Popen(
        [sys.executable, "-m", "tools.local_cluster", f"--workers={workers}",
         f"--max_restarts={max_restarts}", "--grace_seconds=3", "--",
         *command],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    self._reader = threading.Thread(
        target=self._read, args=(self._process.stdout, log), daemon=True)
    self._reader.start()

  def __enter__(self) -> "Group":
    """Nothing more to do."""
    return self

  def __exit__(self, *error: Any) -> None:
    """Kills the launcher, and so its workers, where they are left."""
    self._process.kill()
    self._process.wait()
    self._reader.join()

  @property
  def restarts(self) -> int:
    """How many there were."""
    return len(self._restarts)

  def wait_for_update(self, since: float, update: int,
                      timeout: float) -> float:
    """When an evaluation after at least so many updates was printed.

    Args:
      since: earlier ones do not count.
      update: how many at least.
      timeout: seconds to wait.
    """
    return self._wait(lambda: next(
        (seconds for seconds, made in self._updates
         if seconds >= since and made >= update), None),
                      f"an evaluation after update {update}", timeout)

  def wait_for_restart(self, since: float, timeout: float) -> Restart:
    """The first restart after that time."""
    return self._wait(
        lambda: next((r for r in self._restarts if r.seconds >= since), None),
        "a restart", timeout)

  def worker(self, index: int, timeout: float) -> int:
    """The process id of a worker, which may just be started.

    Raises:
      RuntimeError: if it does not come.
    """
    end = time.monotonic() + timeout
    while time.monotonic() < end:
      for path in pathlib.Path("/proc").glob("[0-9]*"):
        if _is_worker(path, self._process.pid, index):
          return int(path.name)
      time.sleep(0.05)
    raise RuntimeError(f"worker {index} was not there in {timeout:g} s")

  def wait_for_end(self, timeout: float) -> None:
    """Returns when all has ended well.

    Raises:
      RuntimeError: if it does not.
    """
    try:
      code = self._process.wait(timeout)
    except subprocess.TimeoutExpired:
      raise RuntimeError(f"the job did not end in {timeout:g} s") from None
    if code:
      raise RuntimeError(f"the job ended with code {code}")

  def _wait(self, find: Callable[[], T | None], what: str,
            timeout: float) -> T:
    end = time.monotonic() + timeout
    with self._changed:
      while (found := find()) is None:
        left = end - time.monotonic()
        if left <= 0 or self._process.poll() is not None:
          raise RuntimeError(
              f"waited in vain for {what}" if left <= 0 else
              f"the job ended before {what}, with code "
              f"{self._process.returncode}")
        self._changed.wait(min(left, 0.2))
    return found

  def _read(self, stream: IO[str], log: pathlib.Path) -> None:
    with stream, open(log, "w", encoding="utf-8") as file:
      for line in stream:
        now = time.monotonic()
        file.write(f"{time.strftime('%H:%M:%S')} {line}")
        file.flush()
        with self._changed:
          if match := _RESTART.match(line):
            self._restarts.append(Restart(now, int(match[1])))
          elif match := _UPDATE.match(line):
            self._updates.append((now, int(match[1])))
          self._changed.notify_all()


def _is_worker(process: pathlib.Path, launcher: int, index: int) -> bool:
  """Whether /proc/PID is the worker `index` of a launcher."""
  try:
    status = (process / "stat").read_text("utf-8").rpartition(")")[2].split()
    if status[0] == "Z" or int(status[1]) != launcher:
      return False
    environment = (process / "environ").read_bytes().split(b"\0")
  except (OSError, IndexError):
    return False
  (text,) = [x for x in environment if x.startswith(b"TF_CONFIG=")] or [b"="]
  config = json.loads(text.partition(b"=")[2] or b"{}")
  # Before its exec it still has the launcher's environment.
  return config.get("task", {}).get("index") == index
