"""What one worker knows and all must act on alike, and when one is lost."""

from collections.abc import Iterator
import contextlib
import hashlib
import json
import re
from typing import Any

import tensorflow as tf

from conadv_tf import exits
from conadv_tf.distribute import strategies

# What TensorFlow raises in a worker when another one has gone.
_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError,
         tf.errors.DeadlineExceededError, tf.errors.CancelledError,
         tf.errors.InternalError)
_CHAFF = re.compile(r"\[\[|Restart your program|Additional GRPC|^[{:]")
_PEER = re.compile(r"onnect|peer|ocket|RPC|heartbeat", re.IGNORECASE)


def digest(facts: Any) -> str:
  """Of facts, as JSON, that all workers must have in common."""
  text = json.dumps(facts, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


class Agreement:
  """Flags that become true everywhere where they are true anywhere.

  Signals and clocks differ between workers, but a worker that saves or stops
  alone leaves the others waiting in their next collective. Between workers a
  question costs a small all-reduce, and the host waits for it.
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
    """Whether all workers bring the same number below 2^24; all must call."""
    if not self._several:
      return True
    replicas = self._strategy.num_replicas_in_sync
    # With all numbers equal, and only then, n * sum(x^2) = sum(x)^2.
    total, squares = self._sum(
        tf.constant([number, number * number], tf.int64)).numpy()
    return int(total) ** 2 == replicas * int(squares)


@contextlib.contextmanager
def naming_lost_peers(machines: strategies.Machines) -> Iterator[None]:
  """Turns TensorFlow's errors about other workers into one line.

  Raises:
    exits.PeerLost: in their place.
  """
  try:
    yield
  except _LOST as error:
    lines = [line.strip() for line in (error.message or "").splitlines()]
    # The cause comes last, after a stack and before what is always said.
    reasons = [line for line in lines if line and not _CHAFF.search(line)]
    reason = reasons[-1][:200] if reasons else type(error).__name__
    is_internal = isinstance(error, tf.errors.InternalError)
    if not machines.cluster or is_internal and not _PEER.search(reason):
      raise
    raise exits.PeerLost(
        f"lost another worker ({reason}); start all workers again with the "
        "same command, which goes on from the last checkpoint") from error
