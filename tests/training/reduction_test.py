import itertools

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.training import reduction

_SHAPES = [(3, 2), (4,), ()]


def _parts(count: int) -> list[tuple[list[np.ndarray], np.ndarray, float]]:
  random = np.random.default_rng(0)
  return [([random.normal(size=s).astype(np.float32) for s in _SHAPES],
           random.normal(size=5).astype(np.float32), share)
          for share in random.random(count).astype(np.float32)]


def _total(packing: reduction.Packing, parts: list) -> tf.Tensor:
  return sum(packing.pack([tf.constant(g) for g in gradients],
                          tf.constant(statistics), tf.constant(share))
             for gradients, statistics, share in parts)


def test_the_mean_is_weighted_by_shares() -> None:
  for deterministic in (False, True):
    packing = reduction.Packing(_SHAPES, 5, deterministic)
    assert packing.size == 6 + 4 + 1 + 5 + 1
    parts = _parts(3)
    gradients, statistics = packing.unpack(_total(packing, parts))
    shares = np.array([p[2] for p in parts], np.float64)
    for i, g in enumerate(gradients):
      assert g.dtype == tf.float32 and g.shape == _SHAPES[i]
      expected = np.average([p[0][i] for p in parts], 0, shares)
      np.testing.assert_allclose(g, expected, rtol=1e-5, atol=1e-7)
    expected = np.average([p[1] for p in parts], 0, shares)
    np.testing.assert_allclose(statistics, expected, rtol=1e-5, atol=1e-7)


def test_deterministic_sums_do_not_depend_on_the_order() -> None:
  packing = reduction.Packing(_SHAPES, 5, True)
  assert packing.dtype == tf.float64
  parts = _parts(4)
  first = packing.unpack(_total(packing, parts))
  for order in itertools.permutations(parts):
    other = packing.unpack(_total(packing, list(order)))
    for a, b in zip(tf.nest.flatten(first), tf.nest.flatten(other),
                    strict=True):
      np.testing.assert_array_equal(a, b)


def test_empty_shares_give_zeros_and_no_statistics_are_fine() -> None:
  packing = reduction.Packing(_SHAPES, 0, False)
  gradients, statistics = packing.unpack(tf.zeros([packing.size]))
  assert statistics.shape == [0]
  for g in gradients:
    np.testing.assert_array_equal(g, tf.zeros_like(g))


def test_one_whole_part_comes_back_bit_for_bit() -> None:
  ((gradients, statistics, _),) = _parts(1)
  for deterministic in (False, True):
    packing = reduction.Packing(_SHAPES, 5, deterministic)
    actual = packing.unpack(_total(packing, [(gradients, statistics, 1.0)]))
    for a, b in zip(tf.nest.flatten(actual), gradients + [statistics],
                    strict=True):
      np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_gradients_travel_in_the_reduce_dtype_and_nothing_else_does(
    dtype: str, mirrored: tf.distribute.Strategy) -> None:
  parts = _parts(2)

  def run(packing: reduction.Packing) -> list[np.ndarray]:
    def replica_sum() -> tf.Tensor:
      index = tf.distribute.get_replica_context().replica_id_in_sync_group
      vectors = tf.stack([_total(packing, [part]) for part in parts])
      return packing.all_reduce(vectors[index])
    total = mirrored.run(tf.function(replica_sum))
    return [v.numpy() for v in mirrored.experimental_local_results(total)]

  exact = run(reduction.Packing(_SHAPES, 5, False))
  narrow = run(reduction.Packing(_SHAPES, 5, False, dtype))
  np.testing.assert_array_equal(narrow[0], narrow[1])
  np.testing.assert_array_equal(narrow[0][11:], exact[0][11:])
  np.testing.assert_allclose(narrow[0][:11], exact[0][:11], atol=0.03)
  # Sums of two narrow numbers, so no more bits than those have.
  np.testing.assert_array_equal(
      narrow[0][:11], tf.cast(tf.cast(narrow[0][:11], dtype), tf.float32))
  assert (narrow[0][:11] != exact[0][:11]).any()


def _messages(packing: reduction.Packing,
              strategy: tf.distribute.Strategy) -> tuple[np.ndarray, int]:
  """A sum of what differs by replica, and its collectives in a replica."""
  vectors = tf.stack([_total(packing, [part]) for part in _parts(2)])

  @tf.function
  def replica_sum() -> tf.Tensor:
    index = tf.distribute.get_replica_context().replica_id_in_sync_group
    return packing.all_reduce(vectors[index])

  step = tf.function(lambda: strategy.run(replica_sum))
  nodes = [node.op for function in step.get_concrete_function(
  ).graph.as_graph_def().library.function for node in function.node_def]
  total = strategy.experimental_local_results(step())[0].numpy()
  return total, nodes.count('CollectiveReduceV2') // 2


@pytest.mark.parametrize('deterministic', [False, True])
def test_packs_change_no_sum(deterministic: bool,
                             mirrored: tf.distribute.Strategy) -> None:
  # 17 values: packs of 5 of them are four messages.
  value = 8 if deterministic else 4
  one, packs, whole = (
      _messages(reduction.Packing(_SHAPES, 5, deterministic, pack_mib=mib),
                mirrored) for mib in (0, 5 * value / 2**20, 17 * value / 2**20))
  assert (one[1], packs[1], whole[1]) == (1, 4, 1)
  np.testing.assert_array_equal(packs[0], one[0])
  np.testing.assert_array_equal(whole[0], one[0])


def test_a_negative_pack_is_refused() -> None:
  with pytest.raises(ValueError, match='reduce_pack_mib must be >= 0, got -1'):
    reduction.Packing(_SHAPES, 5, False, pack_mib=-1)


def test_a_narrow_dtype_excludes_deterministic_sums() -> None:
  with pytest.raises(ValueError, match='bfloat16 excludes deterministic'):
    reduction.Packing(_SHAPES, 5, True, 'bfloat16')
