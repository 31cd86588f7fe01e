"""Every test runs on CPU, seeded, with four logical devices in one process."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

from collections.abc import Iterator  # noqa: E402
import ctypes  # noqa: E402
import gc  # noqa: E402
import sys  # noqa: E402

import pytest  # noqa: E402
import tensorflow as tf  # noqa: E402

# Before anything initialises TensorFlow: the devices cannot change after that.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 4)


def _untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """What every iterator is made of, without the thread that tunes it.

  It sleeps for up to a minute before it sees that the iterator is gone, and
  whoever frees the iterator waits for it.
  """
  options = tf.data.Options()
  options.autotune.enabled = False
  return dataset.with_options(options)


tf.data.Dataset._apply_debug_options = _untuned  # pylint: disable=protected-access


_OF_PROCESSES = ("tests/distribute/", "tests/faults/", "local_cluster_test.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Marks what several processes do together: only whole machines show it."""
  for item in items:
    if any(part in item.nodeid for part in _OF_PROCESSES):
      item.add_marker(pytest.mark.processes)


def pytest_collection_finish() -> None:
  """What imports and collecting made stays: collections of garbage skip it."""
  gc.collect()
  gc.freeze()


@pytest.fixture(scope="session")
def mirrored() -> tf.distribute.Strategy:
  """The one MirroredStrategy, of two replicas, that this process may have."""
  # Here, so that collecting the tests of pure Python parts stays fast.
  from conadv_tf.distribute import strategies
  return strategies.get("mirrored", 2)


@pytest.fixture(autouse=True, scope="module")
def freed() -> Iterator[None]:
  """Frees what a file's fixtures held: frozen, they would stay for ever."""
  yield
  gc.unfreeze()
  gc.collect()
  gc.freeze()
  if sys.platform == "linux":
    ctypes.CDLL(None).malloc_trim(0)  # glibc would keep it


@pytest.fixture(autouse=True)
def fresh_keras() -> Iterator[None]:
  """Seeds Python, NumPy and TensorFlow; forgets the test's Keras state."""
  tf.keras.utils.set_random_seed(0)
  yield
  tf.keras.mixed_precision.set_global_policy("float32")
  tf.keras.backend.clear_session()
  gc.collect()
  gc.freeze()  # what outlives a test need not be looked at after each other
