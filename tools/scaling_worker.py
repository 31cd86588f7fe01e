"""A worker process of the benchmarks over several workers.

It has one core and one TensorFlow thread of each kind, builds what it is asked
for once and keeps it, and waits at its pipe, so that it costs the others
nothing in between.
"""

from collections.abc import Callable
import dataclasses
from multiprocessing import connection as connections
import os
import signal
import sys
import time
import traceback

KERAS, VANILLA, CONADV, DISADV = "Keras", "vanilla", "ConAdv", "DisAdv"
SPLIT = "split"  # ConAdv, whose last worker only attacks, for all others
ALL_REDUCE = "all-reduce"
# Bytes of all-reduces of one execution, so many that its own cost does not
# count.
_REDUCED = 20 * 2**22
_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Place:
  """Which worker a process is.

  Attributes:
    workers: host:port of all.
    index: of this one.
    core: that it runs on.
  """

  workers: tuple[str, ...]
  index: int
  core: int


@dataclasses.dataclass(frozen=True)
class Work:
  """What is timed.

  Attributes:
    name: a row of the benchmark, or ALL_REDUCE.
    size: clean examples of a step of a worker that trains, or bytes of the
      message.
    pack: bytes of a piece of the message; 0 means that it is one.
  """

  name: str
  size: int
  pack: int = 0

  @property
  def reductions(self) -> int:
    """All-reduces of one execution."""
    return min(20, max(1, _REDUCED // self.size))


def serve(pipe: connections.Connection, place: Place, model: str) -> None:
  """Says how many bytes the model's gradients have, then times what it gets.

  Receives (work, executions) and sends seconds an execution, until the other
  end is closed.
  """
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other end
  # Before TensorFlow starts its threads, which inherit it.
  os.sched_setaffinity(0, {place.core})
  try:
    worker = _Worker(place, model)
    pipe.send(worker.gradient_bytes)
    while True:
      work, executions = pipe.recv()
      pipe.send(worker.seconds(work, executions))
  except (EOFError, BrokenPipeError):
    os._exit(0)  # nobody is left who waits for a tidy end of TensorFlow
  except Exception:
    # Neither does a cluster let a worker that has failed end by itself.
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)


class _Worker:
  """A member of a cluster."""

  def __init__(self, place: Place, model: str):
    import tensorflow as tf

    from conadv_tf.distribute import cluster, strategies
    tf.get_logger().setLevel("ERROR")  # it warns of functions that are many
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    self._model_name = model
    self._strategy = strategies.get(
        "multi_worker_mirrored", machines=strategies.Machines(
            cluster.Cluster(place.workers, place.index)))
    self._steps: dict[Work, Callable[[], dict[str, tf.Tensor]]] = {}
    self.gradient_bytes = 4 * sum(
        int(tf.size(v)) for v in self._model().trainable_variables)

  def seconds(self, work: Work, executions: int) -> float:
    """Seconds an execution, after one that is not timed.

    With that one the workers come together; the first of all traces.
    """
    if work not in self._steps:
      self._steps[work] = (
          self._all_reduce(work) if work.name == ALL_REDUCE
          else self._training(work))
    step = self._steps[work]
    _read(step())
    start = time.perf_counter()
    for _ in range(executions):
      _read(step())
    return (time.perf_counter() - start) / executions

  def _model(self) -> object:
    from conadv_tf import components
    with self._strategy.scope():
      return components.MODELS[self._model_name]((32, 32, 3), _CLASSES)

  def _training(self, work: Work) -> Callable[[], dict]:
    import conadv_tf as ca
    from tools import benchmark_rows
    methods = {VANILLA: ca.methods.Vanilla, CONADV: ca.methods.ConAdv,
               DISADV: ca.methods.DisAdv}
    with self._strategy.scope():
      model, rows = self._model(), work.size
      if work.name == SPLIT:
        model = benchmark_rows.split_trainer(model)
        rows *= model.roles.group_size
      elif work.name != KERAS:
        model = benchmark_rows.trainer(methods[work.name](), model)
      return benchmark_rows.fit_step(model, self._data(rows))

  def _data(self, rows: int) -> object:
    """The same batch again and again, another one for each worker."""
    import numpy as np
    import tensorflow as tf

    def make(ctx: tf.distribute.InputContext) -> tf.data.Dataset:
      rng = np.random.default_rng(ctx.input_pipeline_id)
      images = rng.integers(0, 256, (rows, 32, 32, 3), np.uint8)
      labels = rng.integers(0, _CLASSES, rows).astype(np.int32)
      return tf.data.Dataset.from_tensors((images, labels)).repeat()

    return self._strategy.distribute_datasets_from_function(make)

  def _all_reduce(self, work: Work) -> Callable[[], dict]:
    """All-reduces, one after the other."""
    import tensorflow as tf

    from conadv_tf.training import reduction

    def reduce() -> tf.Tensor:
      replica = tf.distribute.get_replica_context()
      value = tf.ones([work.size // 4])  # float32
      for _ in range(work.reductions):
        value = reduction.in_packs(
            value, work.pack, lambda pack: replica.all_reduce(
                tf.distribute.ReduceOp.MEAN, pack))
      return value[0]

    def step() -> dict[str, tf.Tensor]:
      return {"first": self._strategy.run(reduce)}

    return tf.function(step, autograph=False)


def _read(results: dict[str, object]) -> None:
  """Reads them, since a step may return before it has run."""
  for value in results.values():
    float(value)
