"""A TensorBoard profile of some updates, and the phases that it shows.

Keras's `fit` marks every execution of the train function as a step
(`Trace("train", step_num=..., _r=1)`), from before `on_train_batch_begin`
until after `on_train_batch_end`. A mark is recorded only if the profiler runs
at both of its ends, so a profiler that starts and stops in these two hooks of
the executions that it is about loses the first mark and the last one. This one
starts before the first of them and stops after the last.
"""

import json
import logging
import os
import re

import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from conadv_tf import config
from conadv_tf.distribute import ports

# Name scopes of the training step. What is left is `other`: metrics, the held
# batch, the accumulator of micro batches.
PHASES = ("attack", "forward", "backward", "reduction", "update")
OTHER = "other"
MARK = "train"  # Keras's name for the mark of an execution
SUFFIX = ".xplane.pb"
UPDATES_FILE = "updates.json"
_FOLDER = os.path.join("plugins", "profile")  # where TensorBoard looks
# TensorFlow numbers scopes that are opened twice.
_SCOPE = re.compile(rf"({'|'.join(PHASES)})(_\d+)?")


def phase(op_name: str) -> str:
  """The phase of a traced op: one of PHASES, or OTHER.

  The outermost scope counts, since a layer may be called "update". Whatever
  scope a tape's gradient is asked for in, its ops are called
  gradient_tape/<scope of the forward op>.

  Args:
    op_name: with the names of the calls, loops and conditionals around it.
  """
  parts = op_name.split("/")
  for position, part in enumerate(parts):
    match = _SCOPE.fullmatch(part)
    if match:
      differentiated = "gradient_tape" in parts[:position]
      return ("backward" if differentiated and match[1] == "forward"
              else match[1])
  return OTHER


def parse_steps(text: str) -> tuple[int, int]:
  """Reads "a:b", the first and the last update, counted from 1.

  Raises:
    InputError: if they are not 1 <= a <= b.
  """
  match = re.fullmatch(r"(\d+):(\d+)", text.strip())
  first, last = (int(match[1]), int(match[2])) if match else (0, 0)
  if not 1 <= first <= last:
    raise config.InputError(
        f"--profile_steps={text}: write first:last with 1 <= first <= last, "
        "for instance 101:110")
  return first, last


def serve(port: int) -> None:
  """Lets other processes capture profiles of this one.

  Raises:
    InputError: if the port is taken, or this was called before.
  """
  # Where it cannot listen, TensorFlow's server says so in the log only.
  ports.listen(port, "--profiler_port").close()
  try:
    tf.profiler.experimental.server.start(port)
  except tf.errors.OpError as error:
    raise config.InputError(
        f"--profiler_port={port} cannot be used: {_message(error)}") from error


class StepProfiler:
  """Profiles the executions that make any of the updates first to last.

  Whole executions are traced. `begin`, `before`, `after` and `close` are for
  a callback's hooks of the same names; `close` also where `fit` was left by an
  exception. Nothing here stops a run: what fails is one warning.
  """

  def __init__(self, logdir: str, first: int, last: int):
    """Starts nothing yet.

    Args:
      logdir: gets `plugins/profile/<time>/`, so that TensorBoard finds it.
      first: update, counted from 1.
      last: update, not below `first`.
    """
    self._logdir = logdir
    self._first, self._last = first, last
    self._runs = False  # the profiler
    self._done = False
    self._executions: list[dict[str, int]] = []
    self._folders: set[str] = set()

  def begin(self, step: int, count: int) -> None:
    """Before an execution that is the first: of updates step+1..step+count."""
    if self._touches(step, count):
      logging.warning(
          "the profile of updates %d to %d holds the first execution, which "
          "traces and compiles; later ones say more", self._first, self._last)
    self._start_before(step, count)

  def before(self, step: int, count: int) -> None:
    """As an execution of updates step+1..step+count starts."""
    if self._runs and not self._touches(step, count):
      self._stop()

  def after(self, step: int, count: int) -> None:
    """As it ends; last in its hook, the next one will be as long."""
    if self._runs:
      self._executions.append({"step": step, "updates": count})
    self._start_before(step + count, count)

  def close(self) -> None:
    """After the last execution, however it ended; again does nothing."""
    if self._runs:
      self._stop()
    elif not self._done:
      logging.warning("no profile: updates %d to %d were not made",
                      self._first, self._last)
    self._done = True

  def _touches(self, step: int, count: int) -> bool:
    return step < self._last and step + count >= self._first

  def _start_before(self, step: int, count: int) -> None:
    if self._runs or self._done or not self._touches(step, count):
      return
    self._done = True
    try:
      self._folders = self._listed()
      tf.profiler.experimental.start(self._logdir)
    except (tf.errors.OpError, OSError, RuntimeError) as error:
      logging.warning("no profile: %s", _message(error))
      return
    self._runs = True

  def _stop(self) -> None:
    self._runs = False
    try:
      tf.profiler.experimental.stop()
      made = sorted(self._listed() - self._folders)
      if not made:
        raise OSError(f"nothing was written below {self._logdir}")
      folder = os.path.join(self._logdir, _FOLDER, made[-1])
      with tf.io.gfile.GFile(os.path.join(folder, UPDATES_FILE), "w") as file:
        file.write(json.dumps({"executions": self._executions}) + "\n")
      for path in tf.io.gfile.glob(os.path.join(folder, "*" + SUFFIX)):
        _flatten_loops(path)
    except (tf.errors.OpError, OSError, RuntimeError) as error:
      logging.warning("no profile: %s", _message(error))

  def _listed(self) -> set[str]:
    folder = os.path.join(self._logdir, _FOLDER)
    if not tf.io.gfile.isdir(folder):
      return set()
    return {name.rstrip("/") for name in tf.io.gfile.listdir(folder)}


def _flatten_loops(path: str) -> None:
  """Makes TensorBoard see the marked steps where steps hold while loops.

  Several updates an execution, micro batches and attacks of several steps are
  loops. TensorFlow 2.15 (`EventForest::CreateEventGroups`) takes the iterations
  of any loop for the steps instead of the marks, and then reports "No step
  marker observed" on a CPU. Without numbers of iterations it sees no loop.
  """
  space = xplane_pb2.XSpace()
  with tf.io.gfile.GFile(path, "rb") as file:
    space.ParseFromString(file.read())
  for plane in space.planes:
    numbers = {key for key, kind in plane.stat_metadata.items()
               if kind.name == "iter_num"}
    for line in plane.lines if numbers else ():
      for event in line.events:
        for stat in event.stats:
          if stat.metadata_id in numbers:
            stat.int64_value = 0
  with tf.io.gfile.GFile(path, "wb") as file:
    file.write(space.SerializeToString())


def _message(error: Exception) -> str:
  return getattr(error, "message", None) or str(error)
