"""`tf.distribute` strategies by name, and assignment under them."""

from collections.abc import Callable, Sequence
import concurrent.futures
import contextlib
import dataclasses
import functools
from typing import Any

import tensorflow as tf

from conadv_tf import config
from conadv_tf.distribute import cluster as clusters

STRATEGIES = ("one_device", "mirrored", "multi_worker_mirrored", "tpu")


@dataclasses.dataclass(frozen=True)
class Machines:
  """What a job runs on besides this process.

  Attributes:
    cluster: the workers of multi_worker_mirrored.
    tpu: "local", or the name of a TPU; for tpu.
    tpu_zone: of a named TPU; null asks the metadata server, as for the next.
    tpu_project: of a named TPU.
  """

  cluster: clusters.Cluster | None = None
  tpu: str | None = None
  tpu_zone: str | None = None
  tpu_project: str | None = None

  @property
  def is_chief(self) -> bool:
    """Whether this process is the one that writes."""
    return self.cluster is None or self.cluster.is_chief


ALONE = Machines()


def connect(runtime: config.RuntimeConfig, machines: Machines
            ) -> tf.distribute.Strategy:
  """The strategy of a run, whose `num_replicas` is filled in place.

  Before any tensor is made: that fixes the devices.

  Raises:
    InputError: as `get`.
  """
  strategy = get(runtime.strategy, runtime.num_replicas,
                 runtime.communication, machines)
  if runtime.num_replicas is None:
    runtime.num_replicas = strategy.num_replicas_in_sync
  return strategy


def plan(runtime: config.RuntimeConfig, machines: Machines) -> None:
  """Fills `num_replicas` in place, where it is null; sets up no device.

  Raises:
    InputError: if it is not as many as there will be, as far as is known.
  """
  if machines != ALONE:
    check_machines(runtime.strategy, machines)
  if runtime.num_replicas is None:
    runtime.num_replicas = planned_replicas(runtime.strategy, machines)
  elif machines.cluster and runtime.strategy == "multi_worker_mirrored":
    _check_count(runtime.strategy, runtime.num_replicas,
                 planned_replicas(runtime.strategy, machines))
  if runtime.jit_compile:
    try:
      check_jit(runtime.num_replicas)
    except ValueError as error:
      raise config.InputError(error) from error


def check_jit(replicas: int) -> None:
  """Raises ValueError where updates cannot be compiled replica by replica."""
  if replicas > 1 and not tf.config.list_physical_devices("GPU"):
    raise ValueError(
        "runtime.jit_compile (jit_compile of Trainer.compile) works on one "
        "CPU replica only: XLA reaches neither the variables of other logical "
        "CPUs nor other workers, and on a TPU it compiles everything anyway; "
        "leave it out")


def get(name: str, num_replicas: int | None = None,
        communication: str = "auto", machines: Machines = ALONE
        ) -> tf.distribute.Strategy:
  """The strategy object for a set of devices, one per process.

  Args:
    name: one of STRATEGIES.
    num_replicas: how many there must be in all; for mirrored also how many
      there shall be: GPUs, or logical CPUs where there are no GPUs. None
      takes every device (of CPUs, one a process).
    communication: between workers: auto, ring or nccl.
    machines: that take part.

  Raises:
    InputError: if the name is unknown, the machines are not those that it
      needs, the replicas are not as many as asked for, or this process
      already talks to the workers in another way.
  """
  check_machines(name, machines)
  if name == "mirrored":
    return _mirrored(num_replicas or planned_replicas(name, machines))
  strategy = _strategy(name, communication, machines)
  if num_replicas is not None:
    _check_count(name, num_replicas, strategy.num_replicas_in_sync)
  return strategy


def _check_count(name: str, asked: int, found: int) -> None:
  if asked != found:
    raise _refusal(f"runtime.num_replicas={asked}, but {name} has {found} "
                   "here; set it to that, or leave it out")


# Two MirroredStrategy objects on the same logical CPUs break each other's
# collectives, and workers and TPUs are connected to once: hence the caches.
@functools.cache
def _mirrored(num_replicas: int) -> tf.distribute.Strategy:
  with contextlib.suppress(RuntimeError):  # the count below says it better
    make_logical_cpus(num_replicas)
  kind = _kind()
  found = len(tf.config.list_logical_devices(kind))
  if found < num_replicas:
    raise _refusal(
        f"mirrored with {num_replicas} replicas needs {num_replicas} {kind}s; "
        f"there are {found}")
  return tf.distribute.MirroredStrategy(
      [f"{kind}:{i}" for i in range(num_replicas)])


_communications: list[str] = []  # of this process with other workers


@functools.cache
def _strategy(name: str, communication: str, machines: Machines
              ) -> tf.distribute.Strategy:
  if name == "one_device":
    return tf.distribute.OneDeviceStrategy(f"{_kind()}:0")
  if name == "tpu":
    return _tpu(machines)
  # Strategies number their collectives from the same number on.
  if _communications and communication not in _communications:
    raise config.InputError(
        f"runtime.communication={communication}: this process already has a "
        f"strategy with {_communications[0]}; use one process for each")
  _communications.append(communication)
  return _multi_worker(communication, machines.cluster)


def _refusal(message: str) -> config.InputError:
  return config.InputError(f"runtime.strategy: {message}")


def _kind() -> str:
  return "GPU" if tf.config.list_physical_devices("GPU") else "CPU"


def planned_replicas(name: str, machines: Machines) -> int:
  """How many replicas `get(name, None)` would have; sets up no device.

  Raises:
    InputError: if only the device knows, or the machines do not fit.
  """
  if name == "one_device":
    return 1
  if name == "tpu":
    raise _refusal("only the TPU knows how many cores it has; set "
                   "runtime.num_replicas")
  gpus = len(tf.config.list_physical_devices("GPU"))
  workers = 1
  if name == "multi_worker_mirrored":
    check_machines(name, machines)
    workers = len(machines.cluster.workers)
  return workers * max(1, gpus)


def check_machines(name: str, machines: Machines) -> None:
  """Raises InputError unless they are those that the strategy needs."""
  if name not in STRATEGIES:
    raise _refusal(f"unknown strategy {name!r}; known: {STRATEGIES}")
  cluster, tpu = machines.cluster, machines.tpu
  if name == "multi_worker_mirrored" and cluster is None:
    raise _refusal("multi_worker_mirrored needs its workers: set TF_CONFIG, "
                   "or --worker_hosts and --task_index")
  if name != "multi_worker_mirrored" and cluster and len(cluster.workers) > 1:
    raise _refusal(
        f"there are {len(cluster.workers)} workers, and {name} knows nothing "
        "of the others; set it to multi_worker_mirrored, or unset TF_CONFIG")
  if (name == "tpu") != bool(tpu):
    raise _refusal("tpu needs --tpu=local or --tpu=NAME" if name == "tpu" else
        f"--tpu={tpu} and {name} exclude each other; set it to tpu")


def _multi_worker(communication: str, cluster: clusters.Cluster
                  ) -> tf.distribute.Strategy:
  """One process a worker, worker 0 the chief."""
  implementation = tf.distribute.experimental.CommunicationImplementation
  return tf.distribute.MultiWorkerMirroredStrategy(
      cluster_resolver=tf.distribute.cluster_resolver.SimpleClusterResolver(
          tf.train.ClusterSpec({"worker": list(cluster.workers)}),
          task_type="worker", task_id=cluster.index, rpc_layer="grpc"),
      communication_options=tf.distribute.experimental.CommunicationOptions(
          implementation=implementation(communication.upper())))


def _tpu(machines: Machines) -> tf.distribute.Strategy:
  """All cores of a TPU; one process drives a whole pod.

  The steps of Model Garden's `distribute_utils` and of TensorFlow's guide.
  """
  try:
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
        tpu=machines.tpu, zone=machines.tpu_zone,
        project=machines.tpu_project)
    if machines.tpu != "local":
      tf.config.experimental_connect_to_cluster(resolver)
    tf.tpu.experimental.initialize_tpu_system(resolver)
  except (tf.errors.OpError, OSError, RuntimeError, ValueError) as error:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise _refusal(
        f"--tpu={machines.tpu} cannot be used ({reason}); --tpu=local is for "
        "a process on a TPU VM with TensorFlow's TPU build, docs/tpu.md"
    ) from error
  return tf.distribute.TPUStrategy(resolver)


def make_logical_cpus(count: int) -> None:
  """Splits the CPU into logical devices; before TensorFlow initialises.

  Raises:
    RuntimeError: if TensorFlow has initialised with fewer.
  """
  if tf.config.list_physical_devices("GPU"):
    return
  cpu = tf.config.list_physical_devices("CPU")[0]
  existing = tf.config.get_logical_device_configuration(cpu)
  if existing is not None and len(existing) >= count:
    return
  tf.config.set_logical_device_configuration(
      cpu, [tf.config.LogicalDeviceConfiguration()] * count)


def has_workers(strategy: tf.distribute.Strategy) -> bool:
  """Whether other processes run the same program."""
  return strategy.extended._in_multi_worker_mode()  # pylint: disable=protected-access


def shared_out(dataset: tf.data.Dataset, strategy: tf.distribute.Strategy
               ) -> tf.data.Dataset:
  """Prepares a dataset of global elements for several workers.

  Each takes its replicas' rows of every element. TensorFlow's default would
  share out files, and so give the rows of an element to other replicas, or
  fail where files are fewer than workers.
  """
  if not has_workers(strategy):
    return dataset
  if dataset.cardinality() > 0:
    # Else every element costs an all-reduce to ask whether all have one.
    dataset = dataset.repeat()
  options = tf.data.Options()
  options.experimental_distribute.auto_shard_policy = (
      tf.data.experimental.AutoShardPolicy.DATA)
  return dataset.with_options(options)


def counter(name: str, initial: int = 0) -> tf.Variable:
  """An int64 that is equal on all replicas, in the current scope."""
  return tf.Variable(
      initial, dtype=tf.int64, trainable=False, name=name,
      aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)


def zeros_variable(shape: Any, dtype: tf.DType, **options: Any) -> tf.Variable:
  """A variable of zeros under the current strategy, of any dtype.

  The chief of several workers sends them the initial value of each variable,
  which fails for uint8. Every worker has zeros of its own.

  Args:
    shape: static.
    dtype: of the variable.
    **options: of `tf.Variable`.
  """
  strategy = tf.distribute.get_strategy()
  if not has_workers(strategy):
    return tf.Variable(tf.zeros(shape, dtype), **options)

  def own(next_creator: Callable[..., tf.Variable], **kwargs: Any
          ) -> tf.Variable:
    kwargs["initial_value"] = lambda: tf.zeros(shape, dtype)
    return next_creator(**kwargs)

  def create() -> tf.Variable:
    with tf.variable_creator_scope(own), strategy.scope():
      return tf.Variable(tf.zeros(shape, dtype), **options)

  # Outside of the strategy's scope, which a thread of its own is.
  with concurrent.futures.ThreadPoolExecutor(1) as thread:
    return thread.submit(create).result()


def assign(variables: Sequence[tf.Variable],
           values: Sequence[tf.Tensor]) -> None:
  """Assigns a value to each variable; in replica context.

  Mirrored variables can only be assigned across replicas; per-replica ones
  (moving statistics) only within.
  """
  mirrored = []
  for variable, value in zip(variables, values, strict=True):
    if variable.synchronization == tf.VariableSynchronization.ON_READ:
      variable.assign(value)
    else:
      mirrored.append((variable, value))

  def update(strategy: tf.distribute.Strategy,
             pairs: list[tuple[tf.Variable, tf.Tensor]]) -> None:
    for variable, value in pairs:
      strategy.extended.update(
          variable, lambda v, x: v.assign(x), args=(value,), group=False)

  tf.__internal__.distribute.interim.maybe_merge_call(
      update, tf.distribute.get_strategy(), mirrored)
