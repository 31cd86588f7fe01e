"""The clusters that `python -m tools.benchmark scaling` measures."""

from collections.abc import Sequence
import contextlib
import multiprocessing
from multiprocessing import connection as connections
import os
from typing import Any

from conadv_tf import exits
from conadv_tf.config import InputError
from conadv_tf.distribute import ports
from tools import scaling_worker
from tools.scaling_worker import Place, Work


class Group:
  """The workers of one cluster."""

  def __init__(self, places: Sequence[Place], model: str):
    """Starts the processes; `gradient_bytes` waits for them."""
    # A new interpreter each: TensorFlow survives no fork.
    spawn = multiprocessing.get_context("spawn")
    self._pipes: list[connections.Connection] = []
    self._processes = []
    for place in places:
      pipe, theirs = spawn.Pipe()
      process = spawn.Process(
          target=scaling_worker.serve, args=(theirs, place, model))
      process.start()
      theirs.close()
      self._pipes.append(pipe)
      self._processes.append(process)

  def gradient_bytes(self) -> int:
    """What an update of the model reduces, once all have started."""
    return max(self.receive())

  def send(self, work: Work, executions: int) -> None:
    """Tells all to measure; `receive` then gives the seconds of each."""
    for pipe in self._pipes:
      pipe.send((work, executions))

  def seconds(self, work: Work, executions: int) -> float:
    """Seconds an execution, of the slowest."""
    self.send(work, executions)
    return max(self.receive())

  def receive(self) -> list[Any]:
    """One answer of each worker.

    Raises:
      exits.PeerLost: if one has ended.
    """
    answers = {}
    while len(answers) < len(self._pipes):
      # All at once: a worker whose peer has ended waits for ever.
      for pipe in connections.wait(set(self._pipes) - set(answers)):
        try:
          answers[pipe] = pipe.recv()
        except EOFError as error:
          raise exits.PeerLost(
              "a worker has ended; it says why above") from error
    return [answers[pipe] for pipe in self._pipes]

  def close(self) -> None:
    """Kills the workers: those of a cluster ignore SIGTERM."""
    for process in self._processes:
      process.kill()
    for process in self._processes:
      process.join()


class Clusters:
  """Two clusters of 1 worker and one of 2, on the same two cores."""

  def __init__(self, model: str, stack: contextlib.ExitStack):
    """Starts all; `stack` ends them."""
    cores = _cores()
    addresses = [f"127.0.0.1:{port}" for port in ports.choose(4)]

    def group(workers: Sequence[str], cores: Sequence[int]) -> Group:
      made = Group([Place(tuple(workers), index, core)
                    for index, core in enumerate(cores)], model)
      stack.callback(made.close)
      return made

    self.single = group(addresses[:1], cores[:1])
    self.neighbour = group(addresses[1:2], cores[1:])
    self.pair = group(addresses[2:], cores)
    self.gradient_bytes = max(
        group.gradient_bytes()
        for group in (self.single, self.neighbour, self.pair))

  def beside(self, work: Work, executions: int) -> float:
    """Seconds of a single worker beside another, of the slower."""
    self.single.send(work, executions)
    self.neighbour.send(work, executions)
    return max(*self.single.receive(), *self.neighbour.receive())


def _cores() -> list[int]:
  """Two cores that this process may use."""
  try:
    cores = sorted(os.sched_getaffinity(0))
  except AttributeError as error:
    raise InputError("scaling pins processes to cores, which this operating "
                     "system does not offer; use Linux") from error
  if len(cores) < 2:
    raise InputError("scaling needs 2 cores, one for each worker; there is "
                     "one")
  return cores[:2]
