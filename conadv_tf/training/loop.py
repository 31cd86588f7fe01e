"""The compiled loops around one replica's work."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Iterator = Any  # of a (distributed) dataset


class Loop:
  """Runs updates of `micro_batches` elements each on every replica."""

  def __init__(self, strategy: tf.distribute.Strategy, micro_batches: int, *,
               whole: Callable[[Any], None],
               accumulate: Callable[[Any, tf.Tensor], None],
               apply: Callable[[], None],
               prime: Callable[[Any, tf.Tensor], None],
               finish: Callable[[], dict[str, tf.Tensor]],
               count: tf.Variable, jit_compile: bool, run_eagerly: bool):
    """Wraps the parts; traces nothing yet.

    Args:
      strategy: runs the parts on its replicas.
      micro_batches: dataset elements per update, k.
      whole: an update of one element, used where k is 1.
      accumulate: (element's data, its index), for k > 1.
      apply: the update from what was accumulated.
      prime: (element's data, its index).
      finish: results to return after an execution.
      count: incremented with every update.
      jit_compile: compiles a whole update with XLA; each part where k > 1.
      run_eagerly: as in `tf.keras.Model.compile`.
    """
    if jit_compile:
      whole, accumulate, apply, prime = (
          tf.function(part, jit_compile=True, autograph=False)
          for part in (whole, accumulate, apply, prime))

    def each_element(part: Callable[[Any, tf.Tensor], None],
                     iterator: Iterator) -> None:
      def body(element: tf.Tensor) -> tf.Tensor:
        strategy.run(part, args=(next(iterator), element))
        return element + 1
      _repeat(body, micro_batches)

    def update(iterator: Iterator) -> None:
      if micro_batches == 1:
        strategy.run(whole, args=(next(iterator),))
      else:
        each_element(accumulate, iterator)
        strategy.run(apply)
      count.assign_add(1)

    def one(iterator: Iterator) -> dict[str, tf.Tensor]:
      update(iterator)
      return finish()

    def many(iterator: Iterator, updates: tf.Tensor) -> dict[str, tf.Tensor]:
      def body(i: tf.Tensor) -> tf.Tensor:
        update(iterator)
        return i + 1
      _repeat(body, updates)
      return finish()

    compiled = ((lambda f: f) if run_eagerly
                else lambda f: tf.function(f, autograph=False))
    self.one = compiled(one)
    self._many = compiled(many)
    # Priming is a call of its own: an optimizer cannot be used inside a
    # conditional under a strategy.
    self.prime = compiled(lambda iterator: each_element(prime, iterator))

  def run(self, iterator: Iterator, updates: int) -> dict[str, tf.Tensor]:
    """Makes updates; returns the results after the last."""
    if updates == 1:
      return self.one(iterator)
    return self._many(iterator, tf.constant(updates))


def _repeat(body: Callable[[tf.Tensor], tf.Tensor],
            times: int | tf.Tensor) -> None:
  if isinstance(times, int) and times == 1:
    body(tf.constant(0))
    return
  tf.while_loop(lambda i: i < times, body, (tf.constant(0),),
                parallel_iterations=1)
