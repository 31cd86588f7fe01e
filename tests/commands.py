"""Runs the real commands, without TensorFlow's import for each of them.

A server process imports everything once and forks a child for every command,
which then does what `python -m <module>` does.
"""

from collections.abc import Callable
import dataclasses
import hashlib
import multiprocessing
import os
import pathlib
import runpy
import sys
import tempfile

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["conadv_tf.runs", "conadv_tf.saved_runs"])


@dataclasses.dataclass
class Finished:
  """How a command ended.

  Attributes:
    code: exit code; minus the signal where one killed it.
    out: what it printed.
    err: what it wrote to stderr.
  """

  code: int
  out: str
  err: str

  def refusal(self) -> str:
    """The one error line of a command that refused its input."""
    assert self.code == 2, (self.code, self.err)
    errors = [line for line in self.err.splitlines()
              if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in self.err, self.err
    return errors[0]


def run(module: str, *arguments: str,
        before: Callable[[], None] | None = None) -> Finished:
  """Runs `python -m module arguments`.

  Args:
    module: for instance "conadv_tf.train".
    *arguments: of its command line.
    before: a module's function that the child calls first.
  """
  with tempfile.TemporaryDirectory() as folder:
    process = _server.Process(
        target=_child, args=(module, arguments, folder, before))
    process.start()
    process.join()
    out, err = (pathlib.Path(folder, name).read_text(encoding="utf-8")
                for name in ("out", "err"))
  return Finished(process.exitcode, out, err)


def _child(module: str, arguments: tuple[str, ...], folder: str,
           before: Callable[[], None] | None) -> None:
  for descriptor, name in ((1, "out"), (2, "err")):
    file = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT)
    os.dup2(file, descriptor)
  sys.argv = [module, *arguments]
  if before:
    before()
  runpy.run_module(module, run_name="__main__", alter_sys=True)


def digest(folder: pathlib.Path) -> str:
  """One number for the names, contents and times of all files below."""
  sha = hashlib.sha256()
  for path in sorted(folder.rglob("*")):
    status = path.stat()
    sha.update(f"{path} {status.st_mtime_ns} {status.st_mode}".encode())
    if path.is_file():
      sha.update(path.read_bytes())
  return sha.hexdigest()
