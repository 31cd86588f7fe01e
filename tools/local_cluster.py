"""Starts and watches the workers of one job on this machine.

    python -m tools.local_cluster --workers=2 -- COMMAND ...

runs COMMAND in that many processes. Each finds its part in TF_CONFIG, with
free ports of this machine, and each line that one writes begins with
`[worker i]`. When one fails, the others are stopped (SIGTERM, and SIGKILL
after --grace_seconds: a worker that waits for a lost one ignores SIGTERM),
and its exit code is returned, 128 + n after signal n.

With --max_restarts all are started again, as often, unless the code says that
it would not help (conadv_tf/exits.py). SIGTERM and Ctrl-C are passed on to the
workers as SIGTERM, so that they save a checkpoint, and nothing is restarted.

On several machines, start one on each, whose COMMAND has for instance
--worker_hosts=a:2222,b:2222 and its own --task_index; a single worker keeps
the TF_CONFIG of its caller:

    python -m tools.local_cluster --workers=1 --max_restarts=100 -- COMMAND ...

Beware: the workers' ports have no authentication and no encryption, are open
on all interfaces, and whoever reaches one can run code there. Use isolated
networks only.
"""

from collections.abc import Mapping, Sequence
import json
import os
import queue
import signal
import sys
import types
from typing import NoReturn

from absl import flags

from conadv_tf import command_line, exits
from conadv_tf.distribute import ports
from tools import workers

_WORKERS = flags.DEFINE_integer(
    "workers", 1, "How many processes run the command.", lower_bound=1)
_MAX_RESTARTS = flags.DEFINE_integer(
    "max_restarts", 0, "How often all are started again after a failure.",
    lower_bound=0)
_GRACE_SECONDS = flags.DEFINE_float(
    "grace_seconds", 30.0, "From SIGTERM to SIGKILL.", lower_bound=0.0)
_PAUSE_SECONDS = 1.0  # before a restart


def main(command: Sequence[str]) -> None:
  """Runs the command; exits with its code."""
  if not command:
    _refuse("no command; write it after --, for instance: python -m "
            "tools.local_cluster --workers=2 -- python -m conadv_tf.train ...")
  events = queue.SimpleQueue()

  def receive(signum: int, _: types.FrameType | None) -> None:
    events.put(signal.Signals(signum))

  for signum in (signal.SIGTERM, signal.SIGINT):
    signal.signal(signum, receive)
  sys.exit(_supervise(command, events))


def _supervise(command: Sequence[str], events: queue.SimpleQueue) -> int:
  """Runs the group, again and again if need be; returns the exit code."""
  restarts = 0
  while True:
    try:
      failed, code = _run(command, events)
    except OSError as error:
      _refuse(f"cannot start {command[0]!r}: {error.strerror}")
    if failed is None:
      return code
    restarts += 1
    is_last = code in exits.FINAL or restarts > _MAX_RESTARTS.value
    print(f"local_cluster: worker {failed} ended with code {code}" +
          ("" if is_last else "; starting all again (restart "
           f"{restarts} of {_MAX_RESTARTS.value})"),
          file=sys.stderr, flush=True)
    if is_last:
      return code
    try:
      return 128 + events.get(timeout=_PAUSE_SECONDS)
    except queue.Empty:
      pass  # no signal came meanwhile


def _run(command: Sequence[str],
         events: queue.SimpleQueue) -> tuple[int | None, int]:
  """Runs the group once.

  Returns:
    The worker that failed first, or None if none did or a signal ended the
    group, and the exit code.
  """
  environments = _environments(os.environ, _WORKERS.value)
  group = workers.Group(command, environments, events)
  ended: list[workers.Ended] = []
  signum = None
  stopping = False
  while len(ended) < len(environments):
    try:
      # Python runs a signal's handler between instructions of this thread,
      # and another thread may have received the signal.
      event = events.get(timeout=0.2)
    except queue.Empty:
      continue
    if isinstance(event, signal.Signals):
      signum = event
    else:
      ended.append(event)
    if not stopping and (signum or ended[-1].code):
      stopping = True
      group.stop(_GRACE_SECONDS.value)
  group.close()
  failed = next((end for end in ended if end.code), None)
  if signum:
    if any(end.code < 0 for end in ended):  # not by their own decision
      if any(end.code == -signal.SIGKILL for end in ended):
        print("local_cluster: killed what did not end within --grace_seconds; "
              "the newest checkpoint may be an older one", file=sys.stderr,
              flush=True)
      return None, 128 + signum
    return None, failed.code if failed else 0
  if not failed:
    return None, 0
  return failed.worker, failed.code if failed.code > 0 else 128 - failed.code


def _environments(environ: Mapping[str, str],
                  count: int) -> list[dict[str, str]]:
  """One for each worker; a single one keeps the caller's cluster."""
  # Through a pipe, Python would keep lines back until there are many.
  common = {"PYTHONUNBUFFERED": "1", **environ}
  if count == 1:
    return [common]
  threads = str(max(1, (os.cpu_count() or 1) // count))
  common = {"TF_NUM_INTRAOP_THREADS": threads,
            "TF_NUM_INTEROP_THREADS": threads, **common}
  cluster = {"worker": [f"127.0.0.1:{port}" for port in ports.choose(count)]}
  return [
      {**common, "TF_CONFIG": json.dumps(
          {"cluster": cluster, "task": {"type": "worker", "index": index}})}
      for index in range(count)]


def _refuse(message: str) -> NoReturn:
  print(f"error: {message}", file=sys.stderr)
  sys.exit(2)


def run() -> None:
  """Splits the command off, whose flags are not ours."""
  split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
  command = sys.argv[split + 1:]
  del sys.argv[split:]

  def start() -> None:
    main(command)

  command_line.start(start)


if __name__ == "__main__":
  run()
