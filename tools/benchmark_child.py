"""A process of `python -m tools.benchmark`: one regime and one model.

The number of TensorFlow's threads belongs to a process. All rows are built
first; then each round runs all of them, there and back, so that a drift of the
machine's speed hits all alike and no row follows the same one always.
"""

from collections.abc import Callable, Iterator
from multiprocessing import connection as connections
import os
import signal
import sys
import time
import traceback
from typing import Any
import warnings

from absl import logging

from tools import benchmark_plan

_CLASSES = 10

Measured = dict[str, Any]


def serve(pipe: connections.Connection, job: benchmark_plan.Job) -> None:
  """Sends messages of progress (str), then what was measured (dict)."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other end
  warnings.filterwarnings("ignore", module="google")
  try:
    pipe.send(_Child(job, pipe.send).run())
    pipe.close()
  except BrokenPipeError:
    pass  # nobody is left to tell
  except Exception:
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)
  os._exit(0)  # TensorFlow's threads may take a minute to end


class _Child:
  """Builds and measures the rows of a job."""

  def __init__(self, job: benchmark_plan.Job,
               tell: Callable[[str], None]):
    import tensorflow as tf
    # TensorFlow warns of functions that are many, NSL of labels it leaves be.
    tf.get_logger().setLevel("ERROR")
    logging.set_verbosity(logging.ERROR)
    tf.config.threading.set_intra_op_parallelism_threads(job.regime.intra_op)
    tf.config.threading.set_inter_op_parallelism_threads(job.regime.inter_op)
    self._job, self._tell = job, tell
    self._data = self._batches()

  def run(self) -> Measured:
    """Measures what the job asks for."""
    return self._operations() if self._job.traces else self._steps()

  def _batches(self) -> Any:
    """One batch, again and again."""
    import numpy as np
    import tensorflow as tf
    model, rng = self._job.model, np.random.default_rng(0)
    rows = model.batch_size // self._job.regime.micro_batches
    images = rng.integers(
        0, 256, (rows, model.image_size, model.image_size, 3), np.uint8)
    labels = rng.integers(0, _CLASSES, rows).astype(np.int32)
    options = tf.data.Options()
    # Else every iterator has a thread that tunes it, for which its end waits.
    options.autotune.enabled = False
    return tf.data.Dataset.from_tensors(
        (images, labels)).repeat().with_options(options)

  def _model(self) -> Any:
    from conadv_tf import components
    model = self._job.model
    shape = (model.image_size, model.image_size, 3)
    if model.name == "tiny":
      return _tiny(shape)
    return components.MODELS[model.name](shape, _CLASSES)

  def _row(self, name: str) -> Any:
    import tensorflow as tf
    policies = tf.keras.mixed_precision
    before = policies.global_policy()
    if name.endswith("_bfloat16"):
      policies.set_global_policy("mixed_bfloat16")
    try:
      return self._made(name)
    finally:
      policies.set_global_policy(before)

  def _made(self, name: str) -> Any:
    from tools import benchmark_peers, benchmark_rows
    if name in benchmark_peers.PEERS:
      return benchmark_peers.PEERS[name](self._model(), self._data)
    regime = self._job.regime
    return benchmark_rows.ours(
        name, self._model(), self._data, training_pass=regime.training_pass,
        micro_batches=regime.micro_batches)

  def _building(self) -> Iterator[str]:
    for number, name in enumerate(self._job.rows, 1):
      self._tell(f"building {number} of {len(self._job.rows)}: {name}")
      yield name

  def _turns(self) -> Iterator[tuple[bool, str]]:
    """(whether it counts, row), round by round; the first warms up."""
    for number in range(self._job.rounds + 1):
      self._tell(f"round {number} of {self._job.rounds}")
      for name in self._job.rows[::-1 if number % 2 else 1]:
        yield number > 0, name

  def _steps(self) -> Measured:
    """Seconds, work, memory and state of each row."""
    from tools import benchmark_graph
    model = self._job.model
    rows = {name: self._row(name) for name in self._building()}
    forward = benchmark_graph.forward_flops(self._model(), (
        model.batch_size, model.image_size, model.image_size, 3))
    self._tell("counting FLOPs")
    found: dict[str, Measured] = {}
    loops = self._job.regime.micro_batches
    for name, row in rows.items():
      work, chain = benchmark_graph.row_work_and_chain(row, loops)
      found[name] = {"seconds": [], "flops": work, "chain_flops": chain,
                     **state_bytes(row.trainer)}
    for counts, name in self._turns():
      start = time.perf_counter()
      for _ in range(model.steps):
        result = rows[name].step()
      read(result)
      taken = (time.perf_counter() - start) / model.steps
      if counts:
        found[name]["seconds"].append(taken)
    self._tell("memory")
    for name, row in rows.items():
      found[name]["peak_bytes"] = peak_bytes(lambda row=row: read(row.step()))
    return {"forward_flops": forward, "rows": found}

  def _operations(self) -> Measured:
    """Schedules of each row's graph with the times of its operations."""
    from tools import benchmark_graph, benchmark_schedule
    rows, graphs = {}, {}
    for name in self._building():
      rows[name], graphs[name] = benchmark_graph.build(
          lambda name=name: self._row(name))
    steps: dict[str, list[Any]] = {name: [] for name in rows}
    for counts, name in self._turns():
      traced = benchmark_graph.trace(
          lambda name=name: read(rows[name].step()), graphs[name])
      if counts:
        steps[name].append(traced)
    found = {}
    for name, traced in steps.items():
      graph, coverage = benchmark_graph.timed_graph(graphs[name], traced)
      found[name] = {
          "coverage": coverage, "operations": len(graph.costs),
          "seconds": [step.wall for step in traced],
          "scheduled": {
              str(count): benchmark_schedule.schedule(graph, count)
              for count in benchmark_plan.PROCESSORS},
          "chain": benchmark_schedule.longest_chain(graph)}
    return {"rows": found}


def read(results: dict[str, Any]) -> None:
  """Reads them, since a step may return before it has run."""
  for value in results.values():
    float(value)


def state_bytes(trainer: Any) -> dict[str, int]:
  """Bytes that a trainer keeps besides weights, statistics and slots.

  Args:
    trainer: a `conadv_tf.Trainer`, or None for other people's.
  """
  def size(variables: Any) -> int:
    return sum(v.shape.num_elements() * v.dtype.size for v in variables)

  if trainer is None:
    return {"held_bytes": 0, "lagged_bytes": 0}
  state = trainer.staleness
  held, weights = state._held, [*(state.lagged.sets if state.lagged else ())]  # pylint: disable=protected-access
  if state.attack_weights:
    weights.append(state.attack_weights.variables)
  return {"held_bytes": size(held._variables) if held else 0,  # pylint: disable=protected-access
          "lagged_bytes": sum(map(size, weights))}


def peak_bytes(step: Callable[[], None]) -> int | None:
  """Most memory in use during a step above what was before it.

  TensorFlow's allocator says so, for blocks of 256 KiB or more where it is
  oneDNN's; the operating system does not see it, since that one keeps what is
  freed. None where the allocator does not count.
  """
  import tensorflow as tf
  memory, device = tf.config.experimental, "CPU:0"
  try:
    memory.reset_memory_stats(device)
    before = memory.get_memory_info(device)["current"]
  except (ValueError, tf.errors.OpError):
    return None
  step()
  return memory.get_memory_info(device)["peak"] - before


def _tiny(shape: tuple[int, int, int]) -> Any:
  """A convolution, its batch normalisation and a classifier: fast to trace."""
  import tensorflow as tf
  layers = tf.keras.layers
  return tf.keras.Sequential([
      layers.Input(shape), layers.Rescaling(1 / 255),
      layers.Conv2D(4, 3, use_bias=False), layers.BatchNormalization(),
      layers.ReLU(), layers.GlobalAveragePooling2D(), layers.Dense(_CLASSES)])
