"""A TPUStrategy without a TPU: it traces what a TPU would run, and no more."""

import types

import tensorflow as tf
from tensorflow.python.tpu import tpu_system_metadata


class _Resolver(tf.distribute.cluster_resolver.ClusterResolver):
  """Describes one host with TPU cores."""

  def __init__(self, cores: int):
    self._cores = cores

  def get_tpu_system_metadata(self) -> tpu_system_metadata.TPUSystemMetadata:
    """What the strategy asks for: the cores."""
    return tpu_system_metadata.TPUSystemMetadata(
        num_cores=self._cores, num_hosts=1, num_of_cores_per_host=self._cores,
        topology=None, devices=[types.SimpleNamespace(name=_device("TPU", i))
                                for i in range(self._cores)])

  def cluster_spec(self) -> None:
    """There is no cluster."""

  def master(self, *args: object, **kwargs: object) -> str:
    """There is no session."""
    return ""


def _device(kind: str, index: int) -> str:
  return f"/job:localhost/replica:0/task:0/device:{kind}:{index}"


def strategy(replicas: int) -> tf.distribute.TPUStrategy:
  """A TPUStrategy that keeps its variables on logical CPUs.

  All of its Python runs as on a TPU: its variables, reductions and contexts,
  and the ops that it would send to a core (they have an attribute
  "_tpu_replicate"). What cannot be is running them: only trace.

  Args:
    replicas: at most as many as there are logical CPUs.
  """
  made = tf.distribute.TPUStrategy(_Resolver(replicas))
  extended = made.extended
  cpus = [_device("CPU", i) for i in range(replicas)]
  extended._tpu_devices[:, 0] = cpus  # pylint: disable=protected-access
  for name in ("_device_input_worker_devices", "_host_input_worker_devices"):
    workers = getattr(extended, name)
    for host in workers:
      workers[host] = list(cpus)
  return made
