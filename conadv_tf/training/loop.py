"""The compiled loops around one replica's work."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import tensorflow as tf

from conadv_tf.methods import method as methods

Iterator = Any  # of a (distributed) dataset


@dataclasses.dataclass(frozen=True)
class Parts:
  """One replica's work, in pieces.

  Attributes:
    whole: (data), an update of one element, used where k is 1.
    accumulate: (element's data, its index), for k > 1.
    apply: the update from what was accumulated.
    prime: (element's data, its index, updates since its batch).
  """

  whole: Callable[[Any], None]
  accumulate: Callable[[Any, tf.Tensor], None]
  apply: Callable[[], None]
  prime: Callable[[Any, tf.Tensor, tf.Tensor], None]

  def jit_compiled(self) -> "Parts":
    """The same, each compiled with XLA."""
    return Parts(*(
        tf.function(getattr(self, field.name), jit_compile=True,
                    autograph=False)
        for field in dataclasses.fields(self)))


def choose_training_pass(asked: str | None, method: methods.Method,
                         exchanges_statistics: bool) -> str:
  """What is asked for, or the method's usual one where that is possible.

  Args:
    asked: "joined", "separate" or None.
    method: that trains.
    exchanges_statistics: whether replicas share batch statistics.

  Raises:
    ValueError: where clean and adversarial rows cannot be parted, or attacks
      would go through statistics of other replicas.
  """
  if method.recycles and exchanges_statistics:
    raise ValueError(
        "recycled adversaries exclude replicas that share batch statistics "
        "(bn.group_size, synchronized batch normalisation): an attack is "
        "local, and theirs is the training pass's gradient")
  if asked is None:
    return "joined" if exchanges_statistics else method.training_pass
  if asked not in ("joined", "separate"):
    raise ValueError('training_pass must be "joined" or "separate", got '
                     f"{asked!r}")
  if asked == "separate" and exchanges_statistics:
    raise ValueError(
        "training_pass=separate excludes replicas that share batch statistics "
        "(bn.group_size, synchronized batch normalisation): passes side by "
        "side have no order in which to exchange them")
  return asked


class Loop:
  """Runs updates of k micro batches, or a multiple, on every replica."""

  def __init__(self, strategy: tf.distribute.Strategy, micro_batches: int,
               parts: Parts, finish: Callable[[], dict[str, tf.Tensor]],
               counters: Sequence[tf.Variable], run_eagerly: bool,
               ratio: tf.Variable | None = None):
    """Wraps the parts; traces nothing yet.

    Args:
      strategy: runs the parts on its replicas.
      micro_batches: dataset elements of an initial batch, k.
      parts: one replica's work.
      finish: results to return after an execution.
      counters: of initial batches, moved on with every update.
      run_eagerly: as in `tf.keras.Model.compile`.
      ratio: int64, initial batches that make an update; read anew for each,
        so that the batch grows without another trace. None means 1.
    """
    self._strategy = strategy
    self._micro_batches = micro_batches
    self._parts = parts
    self._finish = finish
    self._counters = counters
    self._ratio = ratio
    compiled = ((lambda f: f) if run_eagerly
                else lambda f: tf.function(f, autograph=False))
    self.one = compiled(self._one)
    self._many = compiled(self._several)
    # Priming is a call of its own: an optimizer cannot be used inside a
    # conditional under a strategy.
    self.prime = compiled(self._prime)

  def run(self, iterator: Iterator, updates: int) -> dict[str, tf.Tensor]:
    """Makes updates; returns the results after the last."""
    # Its end may wait up to a minute for a thread of TensorFlow 2.15 that
    # tunes it and sleeps; nobody needs to wait for that after the last update.
    self._iterator = iterator
    if updates == 1:
      return self.one(iterator)
    return self._many(iterator, tf.constant(updates))

  # Not a lambda: TPUStrategy makes names of the caller's, without `<`.
  def _prime(self, iterator: Iterator, behind: tf.Tensor) -> tf.Tensor:
    def part(data: Any, element: tf.Tensor) -> None:
      self._parts.prime(data, element, behind)
    return self._each_element(part, iterator)

  def _one(self, iterator: Iterator) -> dict[str, tf.Tensor]:
    self._update(iterator)
    return self._finish()

  def _several(self, iterator: Iterator,
               updates: tf.Tensor) -> dict[str, tf.Tensor]:
    def body(i: tf.Tensor) -> tf.Tensor:
      self._update(iterator)
      return i + 1
    _repeat(body, updates)
    return self._finish()

  def _each_element(self, part: Callable[[Any, tf.Tensor], None],
                    iterator: Iterator,
                    ratio: int | tf.Tensor = 1) -> tf.Tensor:
    def body(element: tf.Tensor) -> tf.Tensor:
      self._strategy.run(part, args=(next(iterator), element))
      return element + 1
    return _repeat(body, self._micro_batches * ratio)

  def _update(self, iterator: Iterator) -> None:
    ratio = 1 if self._ratio is None else self._ratio.read_value()
    if self._micro_batches == 1 and self._ratio is None:
      data = next(iterator)
      fetched = tf.nest.flatten(data, expand_composites=True)
      self._strategy.run(self._parts.whole, args=(data,))
    else:
      fetched = [self._each_element(self._parts.accumulate, iterator, ratio)]
      self._strategy.run(self._parts.apply)
    # Where the data have run out, nothing may count as an update.
    with tf.name_scope("update"), tf.control_dependencies(fetched):
      for counter in self._counters:
        counter.assign_add(ratio)


def _repeat(body: Callable[[tf.Tensor], tf.Tensor],
            times: int | tf.Tensor) -> tf.Tensor:
  """Calls `body` with 0, 1, ..., which it returns plus 1, in int32.

  Args:
    body: of the loop.
    times: of any integer type; a cast would keep a TPU's host busy.
  """
  if isinstance(times, int) and times == 1:
    return body(tf.constant(0))
  first = tf.constant(0, getattr(times, "dtype", tf.int32))
  return tf.while_loop(
      lambda count, _: count < times, lambda count, i: (count + 1, body(i)),
      (first, tf.constant(0)), parallel_iterations=1)[1]
