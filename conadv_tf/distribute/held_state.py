"""Per-replica state that outlives a step: held batches and adversaries."""

from typing import Any

import tensorflow as tf

from conadv_tf.distribute import strategies


class HeldState:
  """A slot per micro batch for a nest of tensors, on every replica.

  The variables are deliberately not tracked by Keras: `tf.train.Checkpoint`
  would save one replica's value for all. They are made again on resume.
  """

  def __init__(self, spec: Any, slots: int):
    """Creates the variables, under the current strategy's scope.

    Args:
      spec: nest of TensorSpec with static shapes.
      slots: number of micro batches k.
    """
    self._spec = spec
    self._variables = [
        strategies.zeros_variable(
            [slots] + s.shape, s.dtype, trainable=False, name=f"held_{i}",
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
        for i, s in enumerate(tf.nest.flatten(spec))]

  def read(self, slot: tf.Tensor) -> Any:
    """The nest in one slot; in replica context."""
    # Raw ops on this replica's handle: distributed variables have no sparse
    # reads and writes of their own, and copying all slots would cost k times
    # as much.
    values = [
        tf.raw_ops.ResourceGather(resource=v.handle, indices=slot,
                                  dtype=v.dtype)
        for v in self._variables]
    for value, spec in zip(values, tf.nest.flatten(self._spec)):
      value.set_shape(spec.shape)
    return tf.nest.pack_sequence_as(self._spec, values)

  def write(self, slot: tf.Tensor, values: Any) -> None:
    """Replaces the nest in one slot; in replica context."""
    for variable, value in zip(self._variables, tf.nest.flatten(values)):
      tf.raw_ops.ResourceScatterUpdate(
          resource=variable.handle, indices=slot,
          updates=tf.cast(value, variable.dtype))
