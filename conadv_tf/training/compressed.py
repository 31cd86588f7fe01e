"""Gradients that are quantised before they are summed over replicas."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from conadv_tf import config as config_lib
from conadv_tf import randomness
from conadv_tf.distribute import compression as compressions
from conadv_tf.distribute import exchange, held_state


class CompressedGradients:
  """Quantises what each replica adds to an update; see `Compression`.

  Gradients are quantised times their share: a factor comes out as it went in.
  The random bits depend on (seed, update, replica or virtual replica).

  Attributes:
    options: that were asked for.
    snapshot: float32 [replicas, slots, d], what quantising has lost so far, of
      a checkpoint; empty without error feedback.
  """

  def __init__(self, options: compressions.Compression,
               variables: Sequence[tf.Variable], seed: int,
               step: tf.Variable, micro_batches: int):
    """Makes room for what is carried over, under the strategy's scope.

    Args:
      options: may be off.
      variables: that have gradients.
      seed: of the run.
      step: index of the next update.
      micro_batches: of an update.
    """
    self.options, self._seed, self._step = options, seed, step
    sizes = tuple(v.shape.num_elements() for v in variables)
    self._length = sum(sizes)
    self._quantiser = compressions.Quantiser(
        options.bits, sizes, options.bucket, options.norm)
    self._strategy = tf.distribute.get_strategy()
    self._residual: held_state.HeldState | None = None
    self._slots = micro_batches if options.per == "virtual_replica" else 1
    if options.is_on and options.error_feedback:
      self._residual = held_state.HeldState(
          tf.TensorSpec([self._length]), self._slots)
    self.snapshot = np.zeros([0], np.float32)

  # ---- In a replica.

  def contribution(self, packed: tf.Tensor, element: tf.Tensor,
                   replicas: int | None = None) -> tf.Tensor:
    """What a virtual replica adds, quantised where that is asked for.

    Args:
      packed: [n], gradients first; of float32 or float64.
      element: index of its micro batch.
      replicas: that train, where others do not.
    """
    if not self.options.is_on or self.options.travels:
      return packed
    replica = tf.distribute.get_replica_context()
    worker = (element * (replicas or replica.num_replicas_in_sync)
              + tf.cast(replica.replica_id_in_sync_group, tf.int32))
    codes, norms = self._encode(packed[:self._length], worker, element)
    quantised = self._quantiser.decode(codes, norms)
    return tf.concat([tf.cast(quantised, packed.dtype),
                      packed[self._length:]], axis=0)

  def sum(self, gradients: tf.Tensor,
          add: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """The sum over replicas of gradients [d], the same bits on each.

    Args:
      gradients: of this replica.
      add: sums what does not travel in codes.
    """
    if not self.options.travels:
      return self._again(add(gradients))
    replica = tf.distribute.get_replica_context()
    codes, norms = self._encode(
        gradients, replica.replica_id_in_sync_group, tf.constant(0))
    if self.options.exchange == "scatter" and exchange.can_scatter():
      return exchange.scattered_sum(
          self._quantiser, codes, norms, self._uniform_of_sums())
    return self._again(exchange.gathered_sum(self._quantiser, codes, norms))

  def _encode(self, gradients: tf.Tensor, worker: tf.Tensor,
              slot: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Codes and norms; carries over what is lost."""
    values = tf.cast(gradients, tf.float32)
    if self._residual:
      before = self._residual.read(slot)
      values += before
    codes, norms = self._quantiser.encode(
        values, self._uniform(randomness.COMPRESSION, worker))
    if self._residual:
      lost = values - self._quantiser.decode(codes, norms)
      finite = tf.reduce_all(tf.math.is_finite(lost))
      self._residual.write(slot, tf.where(finite, lost, before))
    return codes, norms

  def _again(self, total: tf.Tensor) -> tf.Tensor:
    """The sum, with two sides quantised once more."""
    if self.options.sides == 1:
      return total
    codes, norms = self._quantiser.encode(
        tf.cast(total, tf.float32), self._uniform_of_sums())
    return tf.cast(self._quantiser.decode(codes, norms), total.dtype)

  def _uniform_of_sums(self) -> tf.Tensor:
    return self._uniform(randomness.COMPRESSED_SUM, tf.constant(0))

  def _uniform(self, purpose: int, worker: tf.Tensor) -> tf.Tensor:
    key = randomness.make_key(
        self._seed, purpose, self._step.read_value(), worker)
    return randomness.uniform(key, [self._length])

  # ---- Around executions.

  def take_snapshot(self) -> None:
    """Copies all replicas' residuals, for a checkpoint; on every worker."""
    if self._residual:
      self.snapshot = self._gathered().numpy()

  @tf.function(autograph=False)
  def _gathered(self) -> tf.Tensor:
    def all_slots() -> tf.Tensor:
      replica = tf.distribute.get_replica_context()
      own = tf.stack([self._residual.read(tf.constant(slot))
                      for slot in range(self._slots)])
      return (own[None] if replica.num_replicas_in_sync == 1
              else replica.all_gather(own[None], axis=0))

    return self._strategy.experimental_local_results(
        self._strategy.run(all_slots))[0]

  def restore(self, values: np.ndarray | None) -> None:
    """Goes on from a checkpoint's snapshot; on every worker.

    Raises:
      InputError: if it is of other replicas or micro batches.
    """
    if not self._residual:
      return
    expected = (self._strategy.num_replicas_in_sync, self._slots, self._length)
    found = None if values is None else values.shape
    if found != expected:
      raise config_lib.InputError(
          "compression.error_feedback: the checkpoint holds residuals of the "
          f"shape {found} (replicas, micro batches, gradients), and here they "
          f"have {expected}; resume with the replicas and micro batches that "
          "it was written with")
    self._put(tf.constant(values))
    # A resumed run may save again before its first update.
    self.snapshot = values

  @tf.function(autograph=False)
  def _put(self, values: tf.Tensor) -> None:
    def put() -> None:
      replica = tf.distribute.get_replica_context()
      own = values[replica.replica_id_in_sync_group]
      for slot in range(self._slots):
        self._residual.write(tf.constant(slot), own[slot])

    self._strategy.run(put)
