"""Batch statistics over groups of replicas."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import methods
from conadv_tf.attacks import gradient
from conadv_tf.layers import group_statistics
from conadv_tf.methods import method as methods_base
from conadv_tf.training import trainer as trainers
from tests.methods import running

# With moving statistics and no noise an adversary depends on its own image
# alone, so that whole batches and shares of them have the same.
_ATTACK = gradient.Pgd(radius=16, mode='moving', random_start=0.0)


def _train(method: methods_base.Method,
           **options: object) -> trainers.Trainer:
  return running.train(
      method, updates=3, batch_size=16, attack=_ATTACK,
      model=lambda: running.small_network(0), **options)


@pytest.mark.parametrize('method', [
    methods.Vanilla(),
    pytest.param(methods.ConAdv(), marks=pytest.mark.slow),
    pytest.param(methods.ConAdv(bn_branches=1), marks=pytest.mark.slow)])
def test_a_group_of_all_equals_one_big_batch(
    method: methods_base.Method, mirrored: tf.distribute.Strategy) -> None:
  grouped = _train(method, strategy=mirrored, options={'bn_group_size': 0})
  whole = _train(method)
  np.testing.assert_allclose(
      running.values(grouped), running.values(whole), rtol=0, atol=1e-5)
  # Each replica for itself is another computation: the check can fail.
  alone = _train(method, strategy=mirrored)
  assert running.distance(alone, whole) > 1e-3
  assert running.distance(
      _train(method, strategy=mirrored, options={'bn_group_size': 1}),
      alone) == 0


@pytest.mark.slow
@pytest.mark.parametrize('group_size', [0, 2])
def test_only_the_training_pass_talks_to_other_replicas(
    group_size: int, mirrored: tf.distribute.Strategy) -> None:
  trainer = running.train(
      methods.ConAdv(), strategy=mirrored, updates=1,
      options={'bn_group_size': group_size})
  graph = trainer._loop.one.get_concrete_function(
      iter(mirrored.experimental_distribute_dataset(running.dataset(32)))).graph
  names = [op.name for op in graph.get_operations() if re.search(
      'AllReduce|Collective|NcclAll', op.type)]
  assert [n for n in names if 'forward' in n]
  assert not [n for n in names if 'attack' in n]


def test_the_variance_survives_a_large_mean(
    mirrored: tf.distribute.Strategy) -> None:
  x = np.random.default_rng(0).normal(1e3, 1, (2, 64, 3)).astype(np.float32)

  def moments() -> tuple[tf.Tensor, ...]:
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    mean, variance = tf.nn.moments(tf.gather(x, replica), [0])
    return group_statistics.moments(
        mean, variance, tf.constant(64.), tf.fill([3], 999.5), 0)

  for mean, variance, size in zip(*(
      mirrored.experimental_local_results(value)
      for value in mirrored.run(tf.function(moments)))):
    whole = x.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(mean, whole.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, whole.var(0), rtol=1e-4)
    assert float(size) == 128


@pytest.mark.parametrize('size, replicas', [(3, 4), (-1, 2), (4, 2)])
def test_groups_that_do_not_fit_are_errors(size: int, replicas: int) -> None:
  with pytest.raises(ValueError, match=f'groups of {size} replicas'):
    group_statistics.check(size, replicas)


def _compare_groups() -> None:
  """Four replicas in groups of two against two micro batches."""
  strategy = tf.distribute.MirroredStrategy([f'CPU:{i}' for i in range(4)])
  for method in (methods.Vanilla(), methods.ConAdv()):
    grouped = _train(method, strategy=strategy, options={'bn_group_size': 2})
    halves = _train(method, micro_batches=2)
    whole = _train(method)
    print(running.distance(grouped, halves), running.distance(whole, halves))


@pytest.mark.slow
def test_groups_of_two_among_four_replicas() -> None:
  # In a process of its own: another number of devices.
  code = ('from conadv_tf.distribute import strategies\n'
          'strategies.make_logical_cpus(4)\n'
          'from tests.layers import group_statistics_test as this\n'
          'this._compare_groups()\n')
  result = subprocess.run(
      [sys.executable, '-c', code], check=True, text=True, capture_output=True,
      cwd=pathlib.Path(__file__).resolve().parents[2])
  lines = result.stdout.strip().splitlines()
  assert len(lines) == 2
  for line in lines:
    grouped, whole = map(float, line.split())
    assert grouped < 1e-5 < 1e-3 < whole
