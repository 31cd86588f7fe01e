"""Updates that are not finite: found on the device, told to the host.

Under XLA `tf.debugging.check_numerics` is silently dropped, so the step hands
out a flag.
"""

from collections.abc import Sequence

import tensorflow as tf

from conadv_tf.distribute import strategies
from conadv_tf.layers import network as networks


class FiniteUpdates:
  """Remembers the first update that was not finite.

  Attributes:
    first: int64 variable, that update's index, or -1.
    count: int64 variable, how many there were.
  """

  def __init__(self, skip: bool):
    """Creates the variables under the current strategy's scope.

    Args:
      skip: whether such an update leaves the variables as they are.
    """
    self.skip = skip
    self.first = strategies.counter("first_nonfinite", -1)
    self.count = strategies.counter("nonfinite")

  def check(self, gradients: Sequence[tf.Tensor],
            variables: Sequence[tf.Variable], step: tf.Tensor,
            is_expected: tf.Tensor | bool) -> tf.Tensor:
    """Whether an update was finite that has been made; in a replica.

    Args:
      gradients: reduced, equal on all replicas.
      variables: what the update changed, equal on all replicas. Finite
        gradients may be too large for them, or for their squares.
      step: int, the update's index.
      is_expected: whether an overflow is no sign of divergence: while
        a loss scale is still being lowered.

    Returns:
      bool [].
    """
    values = [*gradients, *(v.read_value() for v in variables)]
    finite = tf.reduce_all(tf.stack([
        tf.reduce_all(tf.math.is_finite(x)) for x in values]))
    counts = ~(finite | is_expected)
    first = self.first.read_value()
    strategies.assign([self.first, self.count], [
        tf.where(counts & (first < 0), tf.cast(step, tf.int64), first),
        self.count.read_value() + tf.cast(counts, tf.int64)])
    return finite


def take_back(finite: tf.Tensor, variables: Sequence[tf.Variable],
              values: Sequence[tf.Tensor]) -> None:
  """Puts values back where an update was not finite; in a replica.

  An optimizer can take no part in a `tf.cond` under a strategy, hence the
  selection between old and new values.
  """
  strategies.assign(variables, [
      tf.where(finite, v.read_value(), old)
      for v, old in zip(variables, values, strict=True)])


def changed_by_an_update(
    network: networks.Network, optimizer: tf.keras.optimizers.Optimizer
) -> list[tf.Variable]:
  """Weights, statistics and slots; the count of updates goes on."""
  optimizer = getattr(optimizer, "inner_optimizer", optimizer)
  return network.variables + [
      v for v in optimizer.variables if v is not optimizer.iterations]
