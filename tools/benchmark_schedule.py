"""What a graph of operations takes on several processors; pure Python.

List scheduling: a processor that is free takes, of the operations whose inputs
are there, the one with the longest path to the end. An operation runs on one
processor from its start to its end, and moving data costs nothing.

`pass_graph` makes such graphs of training steps, for a network of many layers
that cost alike, in units of F, one forward pass of the clean batch.
"""

from collections.abc import Sequence
import dataclasses
import heapq

# Layers of `pass_graph`'s network: so many that one does not show.
LAYERS = 120
# Methods of `pass_graph`.
METHODS = ("vanilla", "disadv_joined", "disadv_separate", "conadv_joined",
           "conadv_separate", "recycled_lag0", "recycled_joined",
           "recycled_separate")


@dataclasses.dataclass(frozen=True)
class Graph:
  """Operations and what they wait for.

  Attributes:
    costs: of each operation, in any unit, at least 0.
    inputs: for each, the operations that must have ended; without cycles.
  """

  costs: Sequence[float]
  inputs: Sequence[Sequence[int]]

  @property
  def work(self) -> float:
    """What one processor takes."""
    return sum(self.costs)

  def users(self) -> list[list[int]]:
    """For each operation, those that wait for it."""
    users: list[list[int]] = [[] for _ in self.costs]
    for operation, inputs in enumerate(self.inputs):
      for earlier in inputs:
        users[earlier].append(operation)
    return users


def paths_to_end(graph: Graph) -> list[float]:
  """For each operation, the most costly path from its start to the end.

  Raises:
    ValueError: if the graph has a cycle.
  """
  users = graph.users()
  open_users = [len(later) for later in users]
  done = [i for i, count in enumerate(open_users) if not count]
  paths = [0.0] * len(graph.costs)
  for operation in done:  # grows meanwhile
    paths[operation] = graph.costs[operation] + max(
        (paths[later] for later in users[operation]), default=0.0)
    for earlier in graph.inputs[operation]:
      open_users[earlier] -= 1
      if not open_users[earlier]:
        done.append(earlier)
  if len(done) < len(paths):
    raise ValueError("the graph has a cycle")
  return paths


def longest_chain(graph: Graph) -> float:
  """What infinitely many processors take."""
  return max(paths_to_end(graph), default=0.0)


def schedule(graph: Graph, processors: int) -> float:
  """When the last operation ends on so many processors."""
  paths, users = paths_to_end(graph), graph.users()
  waits_for = [len(inputs) for inputs in graph.inputs]
  ready = [(-paths[i], i) for i, count in enumerate(waits_for) if not count]
  heapq.heapify(ready)
  running: list[tuple[float, int]] = []  # end and operation
  now = 0.0
  while ready or running:
    while ready and len(running) < processors:
      operation = heapq.heappop(ready)[1]
      heapq.heappush(running, (now + graph.costs[operation], operation))
    now = running[0][0]
    # All that end now, before anything starts: it may be more urgent.
    while running and running[0][0] == now:
      for later in users[heapq.heappop(running)[1]]:
        waits_for[later] -= 1
        if not waits_for[later]:
          heapq.heappush(ready, (-paths[later], later))
  return now


class _Layers:
  """Writes passes through equal layers into a graph."""

  def __init__(self, layers: int):
    self._layers = layers
    self.costs: list[float] = []
    self.inputs: list[list[int]] = []

  def _add(self, batch: float, after: int | None) -> int:
    self.costs.append(batch / self._layers)
    self.inputs.append([] if after is None else [after])
    return len(self.costs) - 1

  def attack(self, batch: float = 1.0, after: int | None = None) -> int:
    """Forward and backward to the input; returns the last operation."""
    for _ in range(2 * self._layers):
      after = self._add(batch, after)
    return after

  def training(self, batch: float = 1.0, after: int | None = None) -> int:
    """The same and the weights' gradients; returns the input's gradient."""
    for _ in range(self._layers):
      after = self._add(batch, after)
    for _ in range(self._layers):
      self._add(batch, after)  # of the layer's weights
      after = self._add(batch, after)  # of its input
    return after


def pass_graph(method: str, layers: int = LAYERS) -> Graph:
  """A step of one of `METHODS`, without optimizer and input.

  All gradients of a layer, to its weights and to its input, cost as much as
  its forward pass.
  """
  graph = _Layers(layers)
  kind, _, form = method.partition("_")
  first = graph.attack() if kind in ("conadv", "disadv") else None
  after = first if kind == "disadv" else None
  if kind == "vanilla":
    graph.training()
  elif form == "joined":
    graph.training(2.0, after)
  else:
    gradient = graph.training()
    graph.training(1.0, gradient if form == "lag0" else after)
  return Graph(graph.costs, graph.inputs)
