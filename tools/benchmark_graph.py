"""What a step's graphs say: its work, and the times of its operations."""

from collections.abc import Callable, Iterator
import contextlib
import glob
import os
import statistics
import tempfile
import time
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from tools import benchmark_schedule
from tools.benchmark_rows import Row

# ---- Work, from the traced graph.


def work_and_chain(graph: tf.Graph, loops: int = 1) -> tuple[float, float]:
  """FLOPs of a graph, and of its most costly chain of operations.

  The counts are those of `tf.compat.v1.profiler`, a multiply-add as 2; it
  counts convolutions, matrix products, pooling, sums, means and common
  elementwise operations, but neither batch normalisation nor ReLU nor random
  bits. Only operations that the outputs or side effects need are counted:
  differentiation leaves others, which never run. Functions that are called
  count with what is in them, a conditional with its most costly branch.

  Args:
    graph: of a concrete function, all shapes static.
    loops: how often each while loop runs.
  """
  flops = _flops(graph)
  operations = _needed(graph)
  number = {op: i for i, op in enumerate(operations)}
  work, chain = [], []
  for op in operations:
    own = [flops.get(op.name, 0.0)] * 2
    inner = [work_and_chain(body, loops) for body in _bodies(op)]
    if inner:
      times = loops if op.type in ("While", "StatelessWhile") else 1
      own = [times * max(values) for values in zip(*inner)]
    work.append(own[0])
    chain.append(own[1])
  inputs = [sorted({number[i] for i in _inputs(op)}) for op in operations]
  return sum(work), benchmark_schedule.longest_chain(
      benchmark_schedule.Graph(chain, inputs))


def _inputs(op: tf.Operation) -> Iterator[tf.Operation]:
  yield from (tensor.op for tensor in op.inputs)
  yield from op.control_inputs


def _needed(graph: Any) -> list[tf.Operation]:
  """Operations that a call of this function runs."""
  stack = [tensor.op for tensor in graph.outputs] + list(graph.control_outputs)
  found = dict.fromkeys(stack)
  while stack:
    for op in _inputs(stack.pop()):
      if op not in found:
        found[op] = None
        stack.append(op)
  return list(found)


def _bodies(op: tf.Operation) -> list[tf.Graph]:
  """Graphs of the functions that an operation runs, but loops' conditions."""
  names = []
  for key, value in op.node_def.attr.items():
    if key != "cond":
      names += [f.name for f in (value.func, *value.list.func) if f.name]
  # pylint: disable-next=protected-access
  return [op.graph._get_function(name).graph for name in names]


def _flops(graph: tf.Graph) -> dict[str, float]:
  profiler = tf.compat.v1.profiler
  options = profiler.ProfileOptionBuilder(
      profiler.ProfileOptionBuilder.float_operation()
  ).with_empty_output().build()
  found = {}
  stack = [profiler.profile(graph, cmd="scope", options=options)]
  while stack:
    node = stack.pop()
    found[node.name] = float(node.float_ops)
    stack.extend(node.children)
  for op in graph.get_operations():
    if op.type.startswith("Conv2DBackprop"):
      found[op.name] = _backward_convolution(op)
  return found


def _backward_convolution(op: tf.Operation) -> float:
  """As many as forward.

  TensorFlow's formula has the image's size for that of the result, so it
  counts padding where that is an operation of its own.
  """
  kernel = (op.inputs[1] if op.type == "Conv2DBackpropInput"
            else op.outputs[0]).shape
  return 2.0 * op.inputs[2].shape.num_elements() * np.prod(kernel[:3])


def forward_flops(model: tf.keras.Model, shape: tuple[int, ...]) -> float:
  """F: of one forward pass with batch statistics, of float32 images."""
  forward = tf.function(lambda image: model(image, training=True),
                        autograph=False)
  concrete = forward.get_concrete_function(tf.TensorSpec(shape))
  return work_and_chain(concrete.graph)[0]


def row_work_and_chain(row: Row, loops: int) -> tuple[float, float]:
  """`work_and_chain` of a row's step, which has run before."""
  concrete = row.function.get_concrete_function(row.iterator)
  return work_and_chain(concrete.graph, loops)


# ---- Times, on the graph that runs.


class TracedStep(NamedTuple):
  """One execution of a step.

  Attributes:
    seconds: by operation.
    wall: seconds of the step.
  """

  seconds: dict[str, float]
  wall: float


def build(make: Callable[[], Row]) -> tuple[Row, tf.compat.v1.GraphDef]:
  """A row, and its function's graph as TensorFlow has optimised it.

  That graph is what runs: calls of functions are inlined and constants folded
  in it. It is found as the largest that making and running the row has made.
  """
  eager = context.context()
  eager.enable_run_metadata()
  row = make()
  row.step()
  made = eager.export_run_metadata()
  eager.disable_run_metadata()
  graphs = [graph for function in made.function_graphs
            for graph in function.partition_graphs]
  return row, max(graphs, key=lambda graph: len(graph.node))


def trace(step: Callable[[], None],
          graph: tf.compat.v1.GraphDef) -> TracedStep:
  """Times the operations of one execution of `step`, which must wait for it.

  A loop's operations count with the sum of their executions.
  """
  names = {node.name for node in graph.node}
  seconds: dict[str, float] = {}
  with tempfile.TemporaryDirectory() as folder:
    with _profiler(folder):
      start = time.perf_counter()
      step()
      wall = time.perf_counter() - start
    path, = glob.glob(os.path.join(folder, "**", "*.xplane.pb"),
                      recursive=True)
    with open(path, "rb") as file:
      space = xplane_pb2.XSpace.FromString(file.read())
  for plane in space.planes:
    for line in plane.lines:
      for event in line.events:
        # Operations are called name:Type.
        name = plane.event_metadata[event.metadata_id].name.rpartition(":")[0]
        if name in names:
          seconds[name] = seconds.get(name, 0.0) + event.duration_ps * 1e-12
  return TracedStep(seconds, wall)


@contextlib.contextmanager
def _profiler(folder: str) -> Iterator[None]:
  # The third level has cheap operations as well.
  tf.profiler.experimental.start(
      folder, tf.profiler.experimental.ProfilerOptions(
          host_tracer_level=3, python_tracer_level=0, device_tracer_level=0))
  try:
    yield
  finally:
    tf.profiler.experimental.stop()


def timed_graph(graph: tf.compat.v1.GraphDef, steps: list[TracedStep]
                ) -> tuple[benchmark_schedule.Graph, float]:
  """A graph with the median seconds of its operations.

  Returns:
    The graph, and the median share of a step's time that its operations
    cover. What is not in a trace (constants, returned values) costs nothing.
  """
  number = {node.name: i for i, node in enumerate(graph.node)}
  costs = [statistics.median(step.seconds.get(node.name, 0.0)
                             for step in steps) for node in graph.node]
  # A loop's way back is no input of its first round.
  back = {node.name for node in graph.node if node.op == "NextIteration"}
  names = [{name.lstrip("^").partition(":")[0] for name in node.input} - back
           for node in graph.node]
  inputs = [sorted(number[name] for name in given) for given in names]
  coverage = statistics.median(
      sum(step.seconds.values()) / step.wall for step in steps)
  return benchmark_schedule.Graph(costs, inputs), coverage
