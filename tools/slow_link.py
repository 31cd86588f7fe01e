"""A loopback of limited speed, in a network namespace of this process alone.

Linux's token bucket (`tc ... tbf`) on `lo`: all traffic between processes of
this machine shares the rate, in both directions together, as on a bus. Needs
root, and the programs `unshare`, `ip` and `tc`.
"""

from collections.abc import Sequence
import os
import re
import shutil
import subprocess
import sys

from conadv_tf.config import InputError

_INSIDE = "CONADV_SLOW_LINK"
_PROGRAMS = ("unshare", "ip", "tc")
# A bucket takes whole packets, which are up to 64 KiB on `lo`; the queue holds
# what TCP sends ahead, so that nothing is dropped.
_BUCKET = ("burst", "256kb", "limit", "32mb")


def check(rate: str) -> None:
  """Refuses what cannot be done here.

  Args:
    rate: as `tc` writes it, for instance "100mbit".

  Raises:
    InputError: in one line.
  """
  if not re.fullmatch(r"[1-9][0-9]*[kmg]bit", rate):
    raise InputError(f"--rate={rate}: write it as tc does, for instance "
                     "100mbit")
  missing = [name for name in _PROGRAMS if not shutil.which(name)]
  if missing or subprocess.run(
      ["unshare", "-n", "true"], capture_output=True, check=False).returncode:
    raise InputError(
        "--rate needs root and the programs unshare, ip and tc"
        + (f"; missing: {', '.join(missing)}" if missing else "")
        + "; leave it out")


def enter(module: str, arguments: Sequence[str]) -> None:
  """Begins this program again in a namespace of its own, once."""
  if os.environ.get(_INSIDE):
    _run("ip", "link", "set", "lo", "up")
    return
  os.environ[_INSIDE] = "1"
  os.execvp("unshare", ["unshare", "-n", sys.executable, "-m", module,
                        *arguments])


def throttle(rate: str | None) -> None:
  """Limits the loopback from now on; None lifts the limit."""
  if rate:
    _run("tc", "qdisc", "replace", "dev", "lo", "root", "tbf", "rate", rate,
         *_BUCKET)
  else:
    _run("tc", "qdisc", "replace", "dev", "lo", "root", "noqueue")


def _run(*command: str) -> None:
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    raise InputError(
        f"{' '.join(command)} failed: {' '.join(done.stderr.split())}; leave "
        "--rate out")
