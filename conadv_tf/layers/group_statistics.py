"""Batch statistics over groups of replicas.

Ying et al., "Image classification at supercomputer scale" (2018), normalise
over groups where a core's own share of the batch is too small for good
statistics; the MLPerf submissions on TPUs use groups of 4 and 8.
"""

import tensorflow as tf


def check(group_size: int, num_replicas: int) -> None:
  """Refuses groups that do not fit.

  Args:
    group_size: replicas in a group; 0 means all.
    num_replicas: that there are.

  Raises:
    ValueError: if the groups do not divide the replicas.
  """
  if group_size < 0 or num_replicas % (group_size or num_replicas):
    raise ValueError(
        f"groups of {group_size} replicas for batch statistics do not divide "
        f"the {num_replicas} that there are")


def moments(mean: tf.Tensor, variance: tf.Tensor, weight: tf.Tensor,
            reference: tf.Tensor, group_size: int
            ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Mean and variance over this replica's group; in replica context.

  Group g holds replicas g * n .. g * n + n - 1. One all-reduce carries the
  sums of all groups, each in a row of its own, so that it works under every
  strategy and its gradient is the strategy's own.

  Args:
    mean: of this replica's rows, float [..., channels].
    variance: of this replica's rows, biased, shape of `mean`.
    weight: number of values behind each of them, float scalar.
    reference: roughly the mean, equal on all replicas and without gradient:
      squares are taken of distances to it, since E[x^2] - E[x]^2 cancels
      where the mean is large.
    group_size: replicas in a group, n; 0 means all.

  Returns:
    (mean, biased variance, number of values) of the group.
  """
  replica = tf.distribute.get_replica_context()
  count = replica.num_replicas_in_sync
  if count == 1:
    return mean, variance, weight
  reference = tf.stop_gradient(tf.cast(reference, mean.dtype))
  offset = mean - tf.reshape(reference, tf.shape(mean))
  sums = tf.stack([offset, variance + tf.square(offset),
                   tf.ones_like(offset)]) * weight
  groups = count // (group_size or count)
  if groups > 1:
    group = replica.replica_id_in_sync_group // group_size
    row = tf.one_hot(group, groups, dtype=sums.dtype)
    row = tf.reshape(row, [groups] + [1] * sums.shape.rank)
    sums = replica.all_reduce(tf.distribute.ReduceOp.SUM, row * sums)[group]
  else:
    sums = replica.all_reduce(tf.distribute.ReduceOp.SUM, sums)
  total = tf.reshape(sums[2], [-1])[0]
  offset, square = sums[0] / total, sums[1] / total
  return (offset + tf.reshape(reference, tf.shape(mean)),
          square - tf.square(offset), total)
