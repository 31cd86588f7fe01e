"""How codes of gradients travel between replicas; in replica context.

Only words of codes and norms cross the wire, as int32: the collectives of
TensorFlow's CPUs send neither uint8 nor int8.
"""

import dataclasses
import math
from typing import Any

import tensorflow as tf

from conadv_tf.distribute import compression, strategies


def gathered_sum(quantiser: compression.Quantiser, codes: tf.Tensor,
                 norms: tf.Tensor) -> tf.Tensor:
  """The sum float32 [d] of all replicas' vectors, whose codes all receive.

  Args:
    quantiser: of the codes.
    codes: int32 [d] of this replica.
    norms: float32 [m] of this replica.
  """
  replica = tf.distribute.get_replica_context()
  if replica.num_replicas_in_sync == 1:
    return quantiser.decode(codes, norms)
  return _decoded_sum(
      quantiser, _all_gather(quantiser.message(codes, norms)))


def _all_gather(words: tf.Tensor) -> tf.Tensor:
  """Words [r, w] of all replicas, from [w] of each."""
  replica = tf.distribute.get_replica_context()
  if can_scatter():
    # Without asking all for their shapes first, as `tf.distribute` does.
    gathered = _launcher()._all_gather(words[None], options=None)  # pylint: disable=protected-access
  else:
    gathered = replica.all_gather(words[None], axis=0)
  return tf.ensure_shape(
      gathered, [replica.num_replicas_in_sync, *words.shape])


def _decoded_sum(quantiser: compression.Quantiser,
                 messages: tf.Tensor) -> tf.Tensor:
  """Sum of messages [r, w], in their order, one at a time."""
  first = quantiser.decode_message(messages[0])
  return tf.while_loop(
      lambda i, _: i < messages.shape[0],
      lambda i, total: (
          i + 1, total + quantiser.decode_message(messages[i])),
      (tf.constant(1), first), parallel_iterations=1)[1]


def can_scatter() -> bool:
  """Whether there are other workers, and a collective that reaches them."""
  return strategies.has_workers(tf.distribute.get_strategy())


def scattered_sum(quantiser: compression.Quantiser, codes: tf.Tensor,
                  norms: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
  """As `gathered_sum`, quantised again, with less on the wire.

  Replica j receives the codes of part j of all vectors, sums what they stand
  for and quantises the sum, whose codes all receive.

  Args:
    quantiser: of the codes, with buckets: a part is whole buckets.
    codes: int32 [d] of this replica.
    norms: float32 [m] of this replica.
    uniform: float32 [d] on [0, 1), for quantising the sum; the same on every
      replica.
  """
  replica = tf.distribute.get_replica_context()
  count, bucket = replica.num_replicas_in_sync, quantiser.bucket
  whole = math.lcm(bucket, compression.WORD_BITS)
  size = -(-quantiser.length // (count * whole)) * whole
  part = dataclasses.replace(quantiser, sizes=(size,))

  def parts(values: tf.Tensor, length: int) -> tf.Tensor:
    """[count, length], zeros at the end."""
    padded = tf.pad(values, [[0, count * length - values.shape[0]]])
    return tf.reshape(padded, [count, length])

  total = _decoded_sum(part, _all_to_all(part.message(
      parts(codes, size), parts(norms, part.norms_length))))
  own = parts(uniform, size)[replica.replica_id_in_sync_group]
  messages = _all_gather(part.message(*part.encode(total, own)))
  decoded = [part.decode_message(messages[i]) for i in range(count)]
  return tf.concat(decoded, axis=0)[:quantiser.length]


def _launcher() -> Any:
  """What starts this replica's collectives between workers."""
  strategy = tf.distribute.get_strategy()
  replica = tf.distribute.get_replica_context()
  return strategy.extended._cross_device_ops._launchers[  # pylint: disable=protected-access
      replica._replica_id]  # pylint: disable=protected-access


def _all_to_all(words: tf.Tensor) -> tf.Tensor:
  """Row j of words [r, w] goes to replica j; returns what all sent here.

  `tf.distribute` has no such call. It has the collective, and these are the
  keys that its own calls use.
  """
  launcher = _launcher()
  # pylint: disable=protected-access
  with tf.device(launcher._device):
    received = tf.raw_ops.CollectiveAllToAllV2(
        input=words, group_size=launcher._group_size,
        group_key=launcher._group_key,
        instance_key=launcher._next_instance_key(),
        communication_hint=launcher._options.implementation.value.lower(),
        timeout_seconds=launcher._options.timeout_seconds or 0,
        ordering_token=[launcher._get_ordering_token()])
  # pylint: enable=protected-access
  received.set_shape(words.shape)
  return received
