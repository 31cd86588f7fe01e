"""Workers wait for each other over TCP, on the ports they will train on.

Every worker listens and greets every other until it answers; then it tells
worker 0 that it is ready, and worker 0 lets all go once all are ready. So none
stops listening before everybody has seen everybody.

A message is a line of words: the magic word, `hello` or `ready`, the sender's
index, a digest of the list of workers, a digest of the token. Either is
answered by `hello`. A ready worker keeps its connection, on which worker 0
writes `wait` and the indices of those it waits for, every second, and at last
`go`, or `lost` or `refused` and why. Whoever sends anything else is a stranger
and ignored. A worker without others greets itself, as TensorFlow will.
"""

from collections.abc import Callable, Sequence
import contextlib
import hashlib
import socket
import threading
import time

from absl import logging

from conadv_tf import exits
from conadv_tf.distribute import ports

_MAGIC = "conadv_tf-meeting-1"
_LONGEST_LINE = 1 << 16  # names a thousand workers
_PATIENCE = 5.0  # seconds that one connection may take to connect, to answer
_RETRY = 0.25
_LOG_EVERY = 10.0


class Meeting:
  """What one worker knows of the others; threads learn it, `hold` waits."""

  def __init__(self, workers: Sequence[str], index: int, token: str,
               timeout_seconds: float):
    """Does nothing yet; the arguments are those of `cluster.meet`."""
    self._workers, self._index = workers, index
    self._others = [i for i in range(len(workers)) if i != index]
    self._digests = [
        hashlib.sha256(text.encode()).hexdigest()[:16]
        for text in (",".join(workers), token)]
    # Oneself is there already: listening, or not at that address.
    self._seconds = timeout_seconds if self._others else _PATIENCE
    self._end = time.monotonic() + self._seconds
    self._over = threading.Event()
    self._changed = threading.Condition()  # guards all that follows
    self._why = {  # those not greeted
        i: "no answer" for i in self._others or [index]}
    self._ready: dict[int, socket.socket] = {}  # at worker 0
    self._awaited = [0]  # by worker 0, at the others; empty: it let us go
    self._failure: tuple[str, str] | None = None
    self._accepted: set[socket.socket] = set()

  def hold(self) -> None:
    """Meets; raises what `cluster.meet` documents."""
    with ports.listen(self._port(self._index),
                      self._name(self._index)) as listener:
      listener.settimeout(0.1)  # so that the accepting thread sees the end
      accepting = _start(self._accept, listener)
      try:
        for worker in list(self._why):
          _start(self._greet, worker)
        self._wait_for(lambda: list(self._why))
        if self._index == 0:
          self._wait_for(
              lambda: [i for i in self._others if i not in self._ready])
          self._over.set()
          self._tell("go")
        else:
          _start(self._follow)
          self._wait_for(lambda: self._awaited)
      finally:
        self._over.set()
        accepting.join()  # the port is not free while a thread accepts on it
        self._hang_up()

  def _wait_for(self, missing: Callable[[], list[int]]) -> None:
    """Returns when `missing` is empty; raises what the threads found."""
    log_at = time.monotonic() + _LOG_EVERY
    with self._changed:
      while True:
        absent = missing()
        if not self._failure and not absent:
          return
        left = self._end - time.monotonic()
        if left <= 0:
          self._give_up(absent)
        if self._failure:
          self._tell(" ".join(self._failure))
          break
        if time.monotonic() >= log_at:
          log_at += _LOG_EVERY
          logging.warning("waiting for %s; %.0f s left", self._names(absent),
                          left)
        self._tell(f"wait {' '.join(map(str, absent))}")
        self._changed.wait(min(left, 1.0))
    raise _error(*self._failure)

  def _give_up(self, absent: list[int]) -> None:
    if self._others:
      self._fail("lost", f"waited {self._seconds:g} s in vain for "
                 f"{self._names(absent)}; start all workers with the same "
                 "command, where they can reach each other")
    else:
      self._fail("refused", f"{self._names(absent)}; alone it must reach "
                 "itself there: write an address of this machine")

  def _tell(self, text: str) -> None:
    """Writes a line to every worker that told this one it is ready."""
    for connection in self._ready.values():
      # Whoever is gone is noticed by the thread that listens to it.
      with contextlib.suppress(OSError):
        connection.sendall(f"{_MAGIC} {text}\n".encode())

  def _follow(self) -> None:
    """Tells worker 0 that this worker is ready, and hears what it says."""
    while not self._over.is_set():
      try:
        connection = self._call(0, "ready")
      except (OSError, UnicodeError):
        self._over.wait(_RETRY)
        continue
      with connection:
        try:
          while self._awaited and not self._failure:
            self._obey(_read(connection, self._end - time.monotonic() + 1))
        except OSError:
          self._fail("lost", f"{self._name(0)} went away while the workers "
                     "gathered")
      return

  def _obey(self, words: list[str]) -> None:
    if words[0] in ("lost", "refused"):
      self._fail(words[0],
                 f"{' '.join(words[1:])} (so says {self._name(0)})")
    elif words[0] in ("wait", "go"):
      with self._changed:
        self._awaited = [int(i) for i in words[1:]]
        self._changed.notify()

  def _greet(self, other: int) -> None:
    """Greets another worker until it answers."""
    while not self._over.is_set():
      try:
        self._call(other, "hello").close()
        with self._changed:
          self._why.pop(other)
          self._changed.notify()
        return
      except (OSError, UnicodeError) as error:
        self._why[other] = getattr(error, "strerror", None) or str(error)
      self._over.wait(_RETRY)

  def _call(self, other: int, verb: str) -> socket.socket:
    """A connection on which the other worker has answered; or OSError."""
    host = self._workers[other].rpartition(":")[0].strip("[]")
    connection = socket.create_connection((host, self._port(other)), _PATIENCE)
    try:
      # Linux may join a socket to itself where nobody listens yet.
      if connection.getsockname() == connection.getpeername():
        raise ConnectionRefusedError("nobody listens")
      connection.sendall(self._introduction(verb))
      words = _read(connection, _PATIENCE)
      index = self._sender(words, self._name(other))
      if index not in (other, None):
        self._fail("refused", f"{self._name(other)} answers as worker {index}: "
                   "give each worker an address and a task index of its own")
    except BaseException:
      connection.close()
      raise
    return connection

  def _accept(self, listener: socket.socket) -> None:
    while not self._over.is_set():
      try:
        connection, _ = listener.accept()
      except OSError:  # the timeout, or a caller that hung up
        continue
      with self._changed:
        self._accepted.add(connection)
      _start(self._serve, connection)

  def _serve(self, connection: socket.socket) -> None:
    """Answers one caller, whoever it is."""
    with contextlib.suppress(OSError), connection:
      words = _read(connection, _PATIENCE)
      connection.sendall(self._introduction("hello"))
      index = self._sender(
          words, f"the worker at {connection.getpeername()[0]}")
      if words[0] == "ready" and self._index == 0 and index in self._others:
        self._attend(index, connection)
    with self._changed:
      self._accepted.discard(connection)

  def _attend(self, index: int, connection: socket.socket) -> None:
    """Holds a ready worker's connection, of which only the end is awaited."""
    with self._changed:
      self._ready[index] = connection
      self._changed.notify()
    connection.settimeout(None)
    with contextlib.suppress(OSError):
      connection.recv(1)
    # After `go` nobody reads this any more.
    also = [i for i in self._why if i != index]
    self._fail("lost", f"{self._name(index)} went away while the workers "
               "gathered" +
               (f"; still missing: {self._names(also)}" if also else ""))

  def _introduction(self, verb: str) -> bytes:
    return " ".join(
        [_MAGIC, verb, str(self._index), *self._digests]).encode() + b"\n"

  def _sender(self, words: list[str], name: str) -> int | None:
    """Who introduced itself; None, and a failure, if it cannot join us.

    Raises:
      OSError: if it is a stranger.
    """
    if (len(words) != 4 or words[0] not in ("hello", "ready") or
        not words[1].isdigit()):
      raise ConnectionError("something else answers there")
    if words[2] != self._digests[0]:
      self._fail("refused", f"{name} has another list of workers; start all "
                 "workers with the same --worker_hosts or TF_CONFIG cluster")
      return None
    index = int(words[1]) % len(self._workers)
    if words[3] != self._digests[1]:
      self._fail("refused", f"{self._name(index)} runs another configuration; "
                 "start all workers with the same command")
      return None
    return index

  def _fail(self, verb: str, text: str) -> None:
    """The first failure ends the meeting; the verb is worker 0's word."""
    with self._changed:
      self._failure = self._failure or (verb, text)
      self._changed.notify()

  def _hang_up(self) -> None:
    """Closes what was accepted, however busy its thread is with it."""
    with self._changed:
      accepted = list(self._accepted)
    for connection in accepted:
      with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
      connection.close()

  def _port(self, index: int) -> int:
    return int(self._workers[index].rpartition(":")[2])

  def _name(self, index: int) -> str:
    return f"worker {index} ({self._workers[index]})"

  def _names(self, indices: Sequence[int]) -> str:
    return ", ".join(
        f"{self._name(i)}: {self._why.get(i, 'it still waits')}"
        for i in indices)


def _read(connection: socket.socket, seconds: float) -> list[str]:
  """The words of one line after the magic one.

  Byte by byte: lines are few and short, and what follows stays unread.

  Raises:
    OSError: if none of ours came in time.
  """
  end = time.monotonic() + seconds
  line = b""
  while not line.endswith(b"\n"):
    left = end - time.monotonic()
    if left <= 0:
      raise TimeoutError("it does not answer")
    connection.settimeout(left)
    byte = connection.recv(1)
    if not byte:
      raise ConnectionError("it hung up")
    line += byte
    if len(line) > _LONGEST_LINE:
      raise ConnectionError("something else answers there")
  words = line.decode("ascii", "replace").split()
  if words[:1] != [_MAGIC] or len(words) < 2:
    raise ConnectionError("something else answers there")
  return words[1:]


def _start(work: Callable[..., None], *args: object) -> threading.Thread:
  thread = threading.Thread(target=work, args=args, daemon=True)
  thread.start()
  return thread


def _error(verb: str, text: str) -> Exception:
  if verb == "lost":
    return exits.PeerLost(text)
  # Its module imports TensorFlow, so only when needed.
  from conadv_tf.config import InputError
  return InputError(text)
