"""What the methods degenerate to, and their options."""

from collections.abc import Callable
import functools
import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import methods, randomness
from conadv_tf.attacks import gradient
from conadv_tf.layers import routing
from conadv_tf.methods import method as methods_base
from conadv_tf.methods import passes
from tests.methods import running

ConAdv = methods.ConAdv


@functools.cache
def _sequential(lag: int) -> np.ndarray:
  return running.values(running.train(
      ConAdv(lag=lag, execution='sequential'), updates=6))


@pytest.mark.parametrize('execution', [
    'concurrent', pytest.param('sequential', marks=pytest.mark.slow)])
def test_lag_0_is_disadv(execution: str) -> None:
  disadv = running.values(running.train(methods.DisAdv(), updates=6))
  trainer = running.train(ConAdv(lag=0, execution=execution), updates=6)
  np.testing.assert_array_equal(running.values(trainer), disadv)
  assert np.abs(_sequential(1) - disadv).max() > 1e-4


@pytest.mark.parametrize('lag', [
    2, *(pytest.param(lag, marks=pytest.mark.slow) for lag in (1, 3))])
def test_concurrent_and_sequential_execution_agree(lag: int) -> None:
  concurrent = running.train(ConAdv(lag=lag), updates=6)
  np.testing.assert_array_equal(running.values(concurrent), _sequential(lag))
  assert np.abs(_sequential(lag) - _sequential(lag - 1 or 3)).max() > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize('attack', [
    gradient.Pgd(radius=16, mode='moving'),
    gradient.Pgd(radius=16, branch='clean', target='random', steps=2)])
def test_executions_agree_on_two_replicas_for_other_attacks(
    attack: gradient.Pgd, mirrored: tf.distribute.Strategy) -> None:
  a, b = (running.train(ConAdv(lag=2, execution=execution), attack=attack,
                        strategy=mirrored, micro_batches=2)
          for execution in ('concurrent', 'sequential'))
  assert running.distance(a, b) == 0


def test_radius_0_with_shared_statistics_is_training_on_twice_the_batch(
    ) -> None:
  model = lambda: running.small_network(0)
  trainer = running.train(ConAdv(bn_branches=1), model=model,
                          attack=gradient.Pgd(radius=0))
  plain = running.make(methods.Vanilla(), model=model)
  doubled = running.dataset(32).map(
      lambda x, y: (tf.concat([x, x], 0), tf.concat([y, y], 0)))
  plain.fit(doubled, steps_per_epoch=4, epochs=1, verbose=0)
  assert running.distance(trainer, plain) < 1e-6


@pytest.mark.slow
def test_learning_rate_0_makes_every_lag_equal() -> None:
  histories = []
  for lag, execution in [(0, 'concurrent'), *itertools.product(
      (1, 3), ('concurrent', 'sequential'))]:
    trainer = running.make(
        ConAdv(lag=lag, execution=execution),
        optimizer=lambda: tf.keras.optimizers.SGD(0.0))
    histories.append(trainer.fit(
        running.dataset(16), steps_per_epoch=3, epochs=2, verbose=0).history)
  for history in histories[1:]:
    assert history == histories[0]
  assert histories[0]['perturbation_linf'] == pytest.approx([16, 16], abs=.01)


def test_adversarial_weight_0_trains_clean_weights_as_vanilla() -> None:
  model = lambda: running.small_network(0)
  trainer = running.train(ConAdv(adversarial_weight=0.0), model=model)
  plain = running.train(methods.Vanilla(), model=model)
  for a, b in zip(trainer.network.model.weights, plain.network.model.weights,
                  strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_branches_see_their_own_share_unless_rebalanced() -> None:
  # One SGD update at rate 1, radius 0: both branches see the same images, so
  # beta's gradient is the branch's share of the clean loss's.
  def change(**options: Any) -> dict[str, np.ndarray]:
    trainer = running.train(
        methods.DisAdv(adversarial_weight=0.25, **options), updates=1,
        model=lambda: running.small_network(0),
        optimizer=lambda: tf.keras.optimizers.SGD(1.0),
        attack=gradient.Pgd(radius=0))
    variables = trainer.network.layer_variables[1]
    return {b: v.beta.numpy() for b, v in variables.items()}

  plain = change()
  np.testing.assert_allclose(plain['clean'], 3 * plain['adversarial'],
                             rtol=1e-4, atol=1e-7)
  rebalanced = change(rebalance_branch_gradients=True)
  np.testing.assert_allclose(rebalanced['clean'], plain['clean'] / 0.75,
                             rtol=1e-4, atol=1e-7)
  np.testing.assert_allclose(rebalanced['clean'], rebalanced['adversarial'],
                             rtol=1e-4, atol=1e-7)


def _context(**changes: Any) -> methods_base.Context:
  trainer = running.make(methods.DisAdv(), **changes)
  return methods_base.Context(
      network=trainer.network, attack_network=trainer.network,
      attack=trainer.attack, loss=trainer._per_example_loss, seed=0,
      step=tf.constant(0), batch_index=tf.constant(0),
      virtual_replica=tf.constant(0), pixel_range=(0., 1.))


_usual_context = functools.cache(_context)


@pytest.mark.parametrize('form', [
    lambda y: y, lambda y: y[:, None], lambda y: y.astype(np.int64),
    lambda y: y.astype(np.float32), lambda y: y[:, None].astype(np.float32),
    lambda y: np.eye(5, dtype=np.float32)[y],
    lambda y: np.eye(5, dtype=np.int32)[y]],
    ids=['int32', 'column', 'int64', 'float', 'float column', 'one-hot',
         'integer one-hot'])
def test_random_targets_are_other_classes_in_the_same_form(
    form: Callable[[np.ndarray], np.ndarray]) -> None:
  labels = running.LABELS[:100]
  given = form(labels)
  key = randomness.make_key(0, randomness.ATTACK_TARGET, 1, 0)
  actual = passes.random_other_class(
      tf.constant(given), key, _usual_context()).numpy()
  assert actual.dtype == given.dtype and actual.shape == given.shape
  if given.ndim == 2 and given.shape[1] == 5:
    np.testing.assert_array_equal(actual.sum(1), 1)
    classes = actual.argmax(1)
  else:
    classes = actual.reshape(-1).astype(int)
  assert classes.min() >= 0 and classes.max() < 5
  assert (classes != labels).all()
  # Uniform over the four others, independently for each example.
  offsets = np.bincount((classes - labels) % 5, minlength=5)
  assert offsets[1:].min() > 10


def test_a_targeted_attack_falls_towards_its_target() -> None:
  ctx = _context(attack=gradient.Pgd(
      radius=16, target='random', random_start=0.0, steps=5))
  batch = methods_base.Batch(
      tf.constant(running.IMAGES[:32]), tf.constant(running.LABELS[:32]),
      tf.ones([32]))
  adversary = passes.perturbed(
      ctx, batch, passes.make_perturbation(ctx, batch, 32))
  key = randomness.make_key(0, randomness.ATTACK_TARGET, 0, 0)
  target = passes.random_other_class(batch.label, key, ctx)
  before, after = (
      float(tf.reduce_mean(ctx.loss(target, ctx.network.logits(
          x, (('adversarial', 32),), routing.Mode.PROBE))))
      for x in (batch.image, adversary))
  assert after < before - 0.1


def test_a_float16_network_is_attacked_everywhere() -> None:
  tf.keras.mixed_precision.set_global_policy('mixed_float16')
  ctx = _context(attack=gradient.Pgd(radius=16, random_start=0.0),
                 model=lambda: running.small_network(0))
  batch = methods_base.Batch(
      tf.constant(running.IMAGES[:32]), tf.constant(running.LABELS[:32]),
      tf.ones([32]))
  moved = passes.make_perturbation(ctx, batch, 32) != 0
  # Stride 2 without padding: the last row and column are not looked at.
  assert moved.numpy()[:, :7, :7].mean() > 0.98


@pytest.mark.parametrize('name, rows, expected', [
    ('concurrent', 1, (1, 1, 0)), ('concurrent', 3, (3, 1, 2)),
    ('sequential', 3, (3, 0, 3)), ('concurrent', 0, (0, 0, 0))])
def test_what_a_method_asks_for(
    name: str, rows: int, expected: tuple[int, int, int]) -> None:
  method = ConAdv(lag=rows, execution=name)
  assert (method.lag, method.lookahead, method.lagged_copies) == expected
  assert method.passes_per_step == 8
  assert ConAdv(adversarial_fraction=0.5).passes_per_step == 5.5


def test_segments() -> None:
  assert methods.Vanilla().segments(8) == (('clean', 8),)
  assert ConAdv().segments(8) == (('clean', 8), ('adversarial', 8))
  assert ConAdv(adversarial_fraction=0.3).segments(8) == (
      ('clean', 8), ('adversarial', 2))
  assert ConAdv(adversarial_fraction=0.01).segments(8) == (
      ('clean', 8), ('adversarial', 1))
  assert ConAdv(bn_branches=1).segments(8) == (('clean', 16),)
  assert ConAdv(bn_branches=3, adversarial_fraction=0.5).segments(8) == (
      ('clean', 8), ('augmented', 8), ('adversarial', 4))


def test_three_streams_weigh_a_third_each_and_cost_three_passes_more() -> None:
  method = ConAdv(bn_branches=3)
  assert method.adversarial_weight == pytest.approx(1 / 3)
  assert (method.passes_per_step, method.longest_chain) == (11, 2)
  assert ConAdv().adversarial_weight == 0.5


@pytest.mark.parametrize('bn_branches', [2, 3])
def test_the_views_that_a_method_needs_are_checked(bn_branches: int) -> None:
  trainer = running.make(ConAdv(bn_branches=bn_branches))
  data = running.dataset(16)
  if bn_branches == 2:
    data = data.map(lambda x, y: ({'image': x, 'augmented': x}, y))
  message = 'two views' if bn_branches == 3 else r'\(x, y\)'
  with pytest.raises(ValueError, match=message):
    trainer.fit(data, steps_per_epoch=1, verbose=0)


@pytest.mark.parametrize('options', [
    dict(lag=-1), dict(execution='parallel'), dict(adversarial_fraction=0),
    dict(adversarial_fraction=1.5), dict(adversarial_weight=1.1),
    dict(adversarial_weight=-0.1), dict(bn_branches=0), dict(bn_branches=4)])
def test_bad_options_are_named(options: dict[str, Any]) -> None:
  with pytest.raises(ValueError, match=next(iter(options))):
    ConAdv(**options)


@pytest.mark.slow
def test_the_attack_contains_no_collective(
    mirrored: tf.distribute.Strategy) -> None:
  trainer = running.train(ConAdv(), strategy=mirrored, updates=1)
  graph = trainer._loop.one.get_concrete_function(
      iter(mirrored.experimental_distribute_dataset(running.dataset(32)))).graph
  names = [op.name for op in graph.get_operations()
           if 'AllReduce' in op.type or 'Collective' in op.type
           or 'NcclAll' in op.type]
  assert not [n for n in names if 'attack' in n]
