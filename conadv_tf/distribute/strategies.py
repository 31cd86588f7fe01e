"""`tf.distribute` strategies by name, and assignment under them."""

from collections.abc import Sequence
import functools

import tensorflow as tf

STRATEGIES = ("one_device", "mirrored")


@functools.cache
def get(name: str, num_replicas: int = 1) -> tf.distribute.Strategy:
  """The strategy object for a set of devices, one per process.

  Two MirroredStrategy objects on the same logical CPUs break each other's
  collectives, hence the cache.

  Args:
    name: one of STRATEGIES.
    num_replicas: GPUs, or logical CPUs where there are no GPUs.

  Raises:
    ValueError: if the name is unknown or there are too few devices.
  """
  kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
  if name == "one_device":
    return tf.distribute.OneDeviceStrategy(f"{kind}:0")
  if name != "mirrored":
    raise ValueError(f"unknown strategy {name!r}; known: {STRATEGIES}")
  devices = tf.config.list_logical_devices(kind)
  if len(devices) < num_replicas:
    raise ValueError(
        f"mirrored with {num_replicas} replicas needs {num_replicas} {kind}s; "
        f"there are {len(devices)}")
  return tf.distribute.MirroredStrategy(
      [f"{kind}:{i}" for i in range(num_replicas)])


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


def copy_variables(targets: Sequence[tf.Variable],
                   sources: Sequence[tf.Variable]) -> None:
  """Assigns sources to targets; in replica context.

  Mirrored variables can only be assigned across replicas; per-replica ones
  (moving statistics) only within.
  """
  mirrored = []
  for target, source in zip(targets, sources):
    if target.synchronization == tf.VariableSynchronization.ON_READ:
      target.assign(source.read_value())
    else:
      mirrored.append((target, source))

  def assign(strategy: tf.distribute.Strategy,
             pairs: list[tuple[tf.Variable, tf.Variable]]) -> None:
    for target, source in pairs:
      strategy.extended.update(
          target, lambda t, s: t.assign(s), args=(source,), group=False)

  tf.__internal__.distribute.interim.maybe_merge_call(
      assign, tf.distribute.get_strategy(), mirrored)
