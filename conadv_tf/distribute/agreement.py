"""What one worker knows and all must act on alike."""

import tensorflow as tf

from conadv_tf.distribute import strategies


class Agreement:
  """Flags that become true everywhere where they are true anywhere.

  Signals and clocks differ between workers, but a worker that saves or stops
  alone leaves the others waiting in their next collective.
  """

  def __init__(self, strategy: tf.distribute.Strategy):
    """Keeps the strategy; a single process agrees with itself for nothing."""
    self._strategy = strategy
    self._several = strategies.has_workers(strategy)
    self._sum = tf.function(self._summed, autograph=False)

  def _summed(self, flags: tf.Tensor) -> tf.Tensor:
    def replica() -> tf.Tensor:
      # The identity gives the tensor this replica's device.
      return tf.distribute.get_replica_context().all_reduce(
          tf.distribute.ReduceOp.SUM, tf.identity(flags))

    return self._strategy.experimental_local_results(
        self._strategy.run(replica))[0]

  def any(self, *flags: bool) -> tuple[bool, ...]:
    """Of each flag, whether any worker has it; all workers must call."""
    if not self._several:
      return flags
    total = self._sum(tf.constant(flags, tf.int32)).numpy()
    return tuple(bool(n) for n in total)

  def same(self, number: int) -> bool:
    """Whether all workers bring the same number; all must call."""
    if not self._several:
      return True
    replicas = self._strategy.num_replicas_in_sync
    # With all numbers equal, and only then, n * sum(x^2) = sum(x)^2.
    total, squares = self._sum(
        tf.constant([number, number * number], tf.int64)).numpy()
    return int(total) ** 2 == replicas * int(squares)
