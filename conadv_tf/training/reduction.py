"""The one reduction of an update: gradients and statistics over V.

An update averages over V = micro batches x replicas virtual replicas.
Everything travels as one flat vector, in as few pieces as is fast.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

Sum = Callable[[tf.Tensor], tf.Tensor]  # over the replicas, of [n]
Exchange = Callable[[tf.Tensor, Sum], tf.Tensor]  # of [n], given a sum


def in_packs(vector: tf.Tensor, pack_bytes: int,
             reduce: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
  """Reduces a long vector piece by piece, for which networks need less time.

  Args:
    vector: [n], n static.
    pack_bytes: of a piece, at most; 0 means one piece.
    reduce: an all-reduce.
  """
  length, size = vector.shape[0], pack_bytes // vector.dtype.size
  if not pack_bytes or length <= size:
    return reduce(vector)
  return tf.concat([reduce(vector[start:start + size])
                    for start in range(0, length, size)], axis=0)


class Packing:
  """Packs one virtual replica's contribution into a flat vector.

  The vector holds share * gradients, share * statistics and the share itself,
  where the share is the virtual replica's mean example weight (1 where
  nothing is padded).
  """

  def __init__(self, shapes: Sequence[tf.TensorShape], statistics: int,
               deterministic: bool, reduce_dtype: str = "float32",
               pack_mib: float = 0.0,
               exchange: Exchange | None = None):
    """Sets the layout.

    Args:
      shapes: of the gradients.
      statistics: length of the packed batch statistics.
      deterministic: sums in float64 and rounds once, so that every
        arrangement with the same V gives the same bits; else float32.
      reduce_dtype: of gradients between replicas.
      pack_mib: MiB that travel between replicas in one piece; 0 means all.
      exchange: sums gradients over the replicas, in place of `Sum`.

    Raises:
      ValueError: for a narrow dtype with `deterministic`, or a negative pack.
    """
    if pack_mib < 0:
      raise ValueError(f"reduce_pack_mib must be >= 0, got {pack_mib}")
    if deterministic and reduce_dtype != "float32":
      raise ValueError(f"reduce_dtype={reduce_dtype} excludes deterministic, "
                       "which sums in float64")
    self._exchange = exchange
    self._shapes = [tf.TensorShape(s) for s in shapes]
    self._sizes = [s.num_elements() for s in self._shapes] + [statistics, 1]
    self.size = sum(self._sizes)
    self._pack_bytes = int(pack_mib * 2**20)
    self.dtype = tf.float64 if deterministic else tf.float32
    self._reduce_dtype = (
        self.dtype if deterministic else tf.as_dtype(reduce_dtype))

  def pack(self, gradients: Sequence[tf.Tensor], statistics: tf.Tensor,
           share: tf.Tensor) -> tf.Tensor:
    """One vector [size] of `dtype`."""
    with tf.name_scope("reduction"):
      flat = [tf.reshape(g, [-1]) for g in gradients]
      flat = tf.cast(tf.concat(flat + [statistics], axis=0), self.dtype)
      share = tf.cast(share, self.dtype)
      return tf.concat([flat * share, tf.reshape(share, [1])], axis=0)

  def all_reduce(self, total: tf.Tensor) -> tf.Tensor:
    """Sums vectors [size] over the replicas; in replica context.

    Statistics and shares keep their dtype whatever the gradients travel in.
    """
    replica = tf.distribute.get_replica_context()
    alone = replica.num_replicas_in_sync == 1
    if alone and not self._exchange:
      return total

    def add(value: tf.Tensor) -> tf.Tensor:
      if alone:
        return value
      return in_packs(value, self._pack_bytes, lambda pack: replica.all_reduce(
          tf.distribute.ReduceOp.SUM, pack))

    gradients = sum(self._sizes[:-2])
    if self._exchange:
      return tf.concat([self._exchange(total[:gradients], add),
                        add(total[gradients:])], axis=0)
    if self._reduce_dtype == self.dtype:
      return add(total)
    narrow = add(tf.cast(total[:gradients], self._reduce_dtype))
    return tf.concat(
        [tf.cast(narrow, self.dtype), add(total[gradients:])], axis=0)

  def unpack(self, total: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Divides a sum of vectors by its share and rounds to float32.

    Returns:
      (gradients, statistics).
    """
    with tf.name_scope("reduction"):
      share = tf.maximum(total[-1], tf.cast(1e-30, self.dtype))
      mean = tf.cast(total[:-1] / share, tf.float32)
      parts = tf.split(mean, self._sizes[:-1])
      gradients = [tf.reshape(p, s) for p, s in zip(parts, self._shapes)]
      return gradients, parts[-1]
