"""Runs a module of the tests in processes of its own."""

import os
import pathlib
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def run(module: str, *arguments: str, workers: int = 1, timeout: float) -> None:
  """Runs `python -m module arguments`, on several workers of a cluster.

  Args:
    module: of the tests.
    *arguments: of its command line.
    workers: on the loopback; 1 is one process without a cluster.
    timeout: in seconds.
  """
  command = [sys.executable, "-m", module, *arguments]
  if workers > 1:
    command = [sys.executable, "-m", "tools.local_cluster",
               f"--workers={workers}", "--", *command]
  # Another number of threads sums in another order.
  environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": "1",
                 "TF_NUM_INTEROP_THREADS": "2"}
  done = subprocess.run(command, cwd=REPOSITORY, env=environment,
                        capture_output=True, text=True, timeout=timeout)
  assert done.returncode == 0, done.stderr[-3000:]
