import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import config
from conadv_tf.distribute import cluster, held_state, strategies


def test_strategies_are_one_object_per_device_set(
    mirrored: tf.distribute.Strategy) -> None:
  assert strategies.get('mirrored', 2) is mirrored
  assert mirrored.num_replicas_in_sync == 2
  assert strategies.get('one_device') is strategies.get('one_device')
  assert strategies.get('one_device').num_replicas_in_sync == 1


def test_unknown_names_and_too_few_devices_are_errors() -> None:
  with pytest.raises(ValueError, match='nonsense.*one_device.*mirrored'):
    strategies.get('nonsense')
  with pytest.raises(ValueError, match='64 replicas needs 64 CPUs'):
    strategies.get('mirrored', 64)


def test_fewer_logical_cpus_than_there_are_is_no_error() -> None:
  strategies.make_logical_cpus(2)
  with pytest.raises(RuntimeError):
    strategies.make_logical_cpus(50)


def test_copies_of_every_kind_of_variable(
    mirrored: tf.distribute.Strategy) -> None:
  kinds = [
      {}, dict(synchronization=tf.VariableSynchronization.ON_READ,
               aggregation=tf.VariableAggregation.MEAN, trainable=False)]
  with mirrored.scope():
    sources = [tf.Variable([1., 2.], **k) for k in kinds]
    targets = [tf.Variable([0., 0.], **k) for k in kinds]

  @tf.function
  def copy() -> None:
    def replica() -> None:
      number = tf.distribute.get_replica_context().replica_id_in_sync_group
      sources[1].assign_add(tf.fill([2], 10. * tf.cast(number, tf.float32)))
      strategies.assign(targets, [s.read_value() for s in sources])
    mirrored.run(replica)

  copy()
  local = lambda v: [
      t.numpy().tolist() for t in mirrored.experimental_local_results(v)]
  assert local(targets[0]) == [[1, 2], [1, 2]]
  assert local(targets[1]) == [[1, 2], [11, 12]]


def test_held_state_keeps_a_value_per_slot_and_replica(
    mirrored: tf.distribute.Strategy) -> None:
  spec = (tf.TensorSpec([2], tf.uint8), {'y': tf.TensorSpec([2, 1])})
  with mirrored.scope():
    held = held_state.HeldState(spec, slots=3)

  @tf.function
  def write(slot: tf.Tensor) -> None:
    def replica() -> None:
      number = tf.distribute.get_replica_context().replica_id_in_sync_group
      value = 10 * (slot + 1) + number
      held.write(slot, (tf.fill([2], tf.cast(value, tf.uint8)),
                        {'y': tf.fill([2, 1], tf.cast(value, tf.float32))}))
    mirrored.run(replica)

  @tf.function
  def read(slot: tf.Tensor) -> tf.Tensor:
    return mirrored.run(lambda: held.read(slot))

  for slot in (0, 2):
    write(tf.constant(slot))
  for slot, expected in ((0, [10, 11]), (1, [0, 0]), (2, [30, 31])):
    x, rest = read(tf.constant(slot))
    assert list(rest) == ['y']
    for value in (x, rest['y']):
      each = mirrored.experimental_local_results(value)
      assert [np.unique(v.numpy()).tolist() for v in each] == [
          [e] for e in expected]
    assert mirrored.experimental_local_results(x)[0].dtype == tf.uint8


def test_one_communication_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
  """Collectives of a second strategy would be taken for the first one's."""
  monkeypatch.setattr(strategies, '_communications', ['ring'])
  machines = strategies.Machines(cluster.Cluster(('localhost:1',), 0))
  with pytest.raises(config.InputError, match=(
      '^runtime.communication=auto: this process already has a strategy with '
      'ring; use one process for each$')):
    strategies.get('multi_worker_mirrored', None, 'auto', machines)
