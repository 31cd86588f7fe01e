"""Cheaper adversaries: recycled, of the next batch, carried; parted passes."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import methods
from conadv_tf.attacks import gradient
from tests.methods import running

ConAdv = methods.ConAdv

# ---- Recycled adversaries, and the batch that they meet.

_RECYCLED_ATTACK = gradient.Pgd(radius=16, branch='clean', random_start=0.0)


@pytest.mark.parametrize('lag, direction', [
    (1, 'l2'), *(pytest.param(lag, direction, marks=pytest.mark.slow)
                 for lag, direction in (
                     (0, 'sign'), (0, 'raw'), (0, 'l2'), (1, 'sign'),
                     (1, 'raw')))])
def test_recycled_is_the_attack_through_the_clean_branch(
    lag: int, direction: str) -> None:
  fresh = (ConAdv(pairing='next_batch') if lag else methods.DisAdv())
  attack = dataclasses.replace(
      _RECYCLED_ATTACK, direction=direction,
      step_size=3e5 if direction == 'raw' else 200.0)
  options = dict(model=lambda: running.small_network(0), attack=attack,
                 options={'pixel_range': (0.0, 1.0)})
  expected = running.train(fresh, **options)
  recycled = running.train(methods.Recycled(lag=lag), **options)
  assert running.distance(recycled, expected) < 1e-5
  other = running.train(methods.DisAdv() if lag else ConAdv(), **options)
  assert running.distance(recycled, other) > 1e-4


def test_the_first_update_of_recycled_has_no_adversary() -> None:
  # Statistics of the other branch stay; the clean loss counts in full.
  model = lambda: running.small_network(0)
  recycled = running.train(methods.Recycled(), updates=1, model=model)
  plain = running.train(methods.Vanilla(), updates=1, model=model)
  start = running.make(methods.Recycled(), model=model)
  for layer, untouched in zip(recycled.network.layer_variables,
                              start.network.layer_variables, strict=True):
    for a, b in zip(layer['adversarial'].moving(),
                    untouched['adversarial'].moving(), strict=True):
      np.testing.assert_array_equal(a, b)
  for a, b in zip(recycled.network.model.weights, plain.network.model.weights,
                  strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_every_fit_of_recycled_begins_without_an_adversary() -> None:
  trainer = running.make(methods.Recycled())
  for _ in range(2):
    before = [v.numpy() for layer in trainer.network.layer_variables
              for v in layer['adversarial'].moving()]
    trainer.fit(running.dataset(32), steps_per_epoch=1, verbose=0)
    for old, new in zip(before, [
        v for layer in trainer.network.layer_variables
        for v in layer['adversarial'].moving()], strict=True):
      np.testing.assert_array_equal(old, new)


def test_recycled_with_a_random_start_steps_from_noise() -> None:
  # Half a radius from the noise: neither the corner nor the noise itself.
  def sizes(random_start: float) -> dict[str, list[float]]:
    trainer = running.make(
        methods.Recycled(lag=0), attack=gradient.Pgd(
            radius=16, step_size=8, random_start=random_start),
        optimizer=lambda: tf.keras.optimizers.SGD(0.0))
    return trainer.fit(running.dataset(32), steps_per_epoch=2,
                       verbose=0).history

  # Perturbations are (u + s/2) * radius, clipped to 1, with u uniform in
  # [-1, 1] and a sign s. E[min(|u + s/2|, 1)^2] = 1/2 (integral of (v^2) over
  # v in [-1/2, 1]) + 1/4 = 3/16 + 1/4 = 7/16.
  # Stride 2 without padding: there is no sign in the last row and column,
  # where E[u^2] = 1/3.
  seen, unseen = 7 * 7 * 3, 15 * 3
  assert sizes(0.0)['perturbation_l2'][0] == pytest.approx(
      8 * seen**0.5, rel=0.05)
  assert sizes(1.0)['perturbation_l2'][0] == pytest.approx(
      16 * (7 / 16 * seen + unseen / 3)**0.5, rel=0.05)


@pytest.mark.parametrize('lag', [
    1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_loss_scale_that_overflows_makes_no_adversary(lag: int) -> None:
  tf.keras.mixed_precision.set_global_policy('mixed_float16')
  trainer = running.make(
      methods.Recycled(lag=lag), attack=gradient.Pgd(radius=16),
      optimizer=lambda: tf.keras.mixed_precision.LossScaleOptimizer(
          tf.keras.optimizers.SGD(0.1), initial_scale=2.0**40))
  history = trainer.fit(running.dataset(32), steps_per_epoch=3,
                        verbose=0).history
  assert trainer.optimizer.loss_scale.numpy() < 2.0**40  # it did overflow
  assert history['perturbation_linf'][0] <= 16.01


@pytest.mark.parametrize('method', [
    methods.Recycled(), ConAdv(pairing='next_batch')])
def test_what_is_not_held_yet_cannot_be_nan(method: Any) -> None:
  def model() -> tf.keras.Model:
    inputs = tf.keras.Input((8, 8, 3))
    x = tf.keras.layers.Lambda(
        lambda x: x / tf.reduce_mean(x, [1, 2, 3], keepdims=True))(inputs)
    x = tf.keras.layers.Dense(5)(tf.keras.layers.Flatten()(x))
    return tf.keras.Model(inputs, x)

  assert np.isfinite(running.values(
      running.train(method, model=model, updates=1))).all()


def test_recycled_excludes_statistics_of_other_replicas() -> None:
  with pytest.raises(ValueError, match='bn.group_size'):
    running.make(methods.Recycled(), options={'bn_group_size': 0})


@pytest.mark.parametrize('changes, word', [
    (dict(target='random'), 'target=random'), (dict(mode='moving'), 'moving'),
    (dict(branch='adversarial'), 'branch'), (dict(steps=2), 'steps=2')])
def test_recycled_refuses_attacks_that_need_a_pass(
    changes: dict[str, Any], word: str) -> None:
  attack = gradient.Pgd(radius=4, **changes)
  with pytest.raises(ValueError, match=f'attack.*{word}'):
    methods.Recycled().default_attack(attack)


@pytest.mark.parametrize('make, word', [
    (lambda: methods.Recycled(lag=2), 'lag 0 or 1, got 2'),
    (lambda: methods.Recycled(bn_branches=1), 'lag 1 need bn_branches=2'),
    (lambda: methods.Recycled(adversarial_weight=1.0), 'adversarial_weight'),
    (lambda: ConAdv(lag=0, pairing='next_batch'), 'lag >= 1'),
    (lambda: ConAdv(pairing='later'), "got 'later'")])
def test_what_cannot_be_recycled_or_paired(make: Any, word: str) -> None:
  with pytest.raises(ValueError, match=word):
    make()


def test_the_cost_of_recycled() -> None:
  recycled = methods.Recycled
  assert (recycled().passes_per_step, recycled().longest_chain) == (6, 2)
  assert (recycled(lag=0).passes_per_step, recycled(lag=0).longest_chain) == (
      6, 4)
  assert recycled(adversarial_fraction=0.2).passes_per_step == pytest.approx(
      3.6)
  assert recycled(bn_branches=3).passes_per_step == 9


# ---- One joined training pass, or separate ones.


@pytest.mark.parametrize('name', [
    'conadv 3 streams', *(pytest.param(name, marks=pytest.mark.slow)
                          for name in ('disadv', 'recycled'))])
def test_separate_passes_change_nothing_but_rounding(name: str) -> None:
  # With dropout, and with losses of the model's own.
  def model() -> tf.keras.Model:
    tf.keras.utils.set_random_seed(1)
    i = x = tf.keras.Input((8, 8, 3))
    x = tf.keras.layers.Conv2D(
        6, 3, strides=2, activity_regularizer='l2',
        kernel_regularizer=tf.keras.regularizers.L2(0.1))(x)
    x = tf.keras.layers.BatchNormalization(momentum=0.9)(x)
    x = tf.keras.layers.Flatten()(tf.keras.layers.ReLU()(x))
    x = tf.keras.layers.Dropout(0.3)(x)
    return tf.keras.Model(i, tf.keras.layers.Dense(5)(x))

  joined, separate = (
      running.train(running.METHODS[name](), model=model, updates=3,
                    options={'training_pass': training_pass})
      for training_pass in ('joined', 'separate'))
  assert running.distance(joined, separate) < 1e-5


@pytest.mark.parametrize('method, usual', [
    (methods.DisAdv(), 'separate'), (ConAdv(), 'joined'),
    pytest.param(ConAdv(lag=0), 'separate', marks=pytest.mark.slow),
    pytest.param(ConAdv(execution='sequential'), 'joined',
                 marks=pytest.mark.slow),
    (methods.Recycled(), 'separate')])
def test_the_usual_training_pass(method: Any, usual: str) -> None:
  def chosen(**options: Any) -> str:
    return running.make(method, options=options).training_pass

  assert chosen() == usual
  if not method.recycles:
    assert chosen(bn_group_size=0) == 'joined'
  assert chosen(training_pass='joined') == 'joined'


def test_the_training_pass_is_checked() -> None:
  with pytest.raises(ValueError, match="got 'parted'"):
    running.make(ConAdv(), options={'training_pass': 'parted'})
  with pytest.raises(ValueError, match='bn.group_size'):
    running.make(ConAdv(), options={'training_pass': 'separate',
                                    'bn_group_size': 0})

  def synchronised() -> tf.keras.Model:
    return tf.keras.Sequential([
        tf.keras.layers.Dense(4, input_shape=(8, 8, 3)),
        tf.keras.layers.BatchNormalization(synchronized=True),
        tf.keras.layers.Flatten(), tf.keras.layers.Dense(5)])

  assert running.make(
      methods.DisAdv(), model=synchronised).training_pass == 'joined'
  with pytest.raises(ValueError, match='synchronized'):
    running.make(methods.DisAdv(), model=synchronised,
                 options={'training_pass': 'separate'})


# ---- Attacks every few batches.


@pytest.mark.parametrize('lag', [
    1, pytest.param(2, marks=pytest.mark.slow)])
def test_executions_agree_where_not_every_batch_is_attacked(lag: int) -> None:
  concurrent, sequential = (
      running.train(ConAdv(lag=lag, execution=execution, attack_every=3),
                    updates=6) for execution in ('concurrent', 'sequential'))
  assert running.distance(concurrent, sequential) == 0
  assert np.abs(running.values(concurrent) - running.values(
      running.train(ConAdv(lag=lag), updates=6))).max() > 1e-4


def test_a_fit_begins_with_an_attack() -> None:
  # Updates 0, 3, 4: without a new attack in the second fit, 4 would carry on.
  trainer = running.make(
      methods.DisAdv(attack_every=3),
      optimizer=lambda: tf.keras.optimizers.SGD(0.0))
  sizes = [trainer.fit(running.dataset(32), steps_per_epoch=steps,
                       verbose=0).history['perturbation_l2'][0]
           for steps in (1, 1, 2)]
  carried = 2 * sizes[2] - sizes[0]
  full = 16 * (8 * 8 * 3)**0.5
  assert sizes[0] == pytest.approx(sizes[1], rel=0.05)
  assert sizes[0] < 0.9 * full  # a random start, then a step
  assert 0.9 * full < carried < full


def test_attack_every_is_checked() -> None:
  with pytest.raises(ValueError, match='at least 1, got 0'):
    ConAdv(attack_every=0)
  with pytest.raises(ValueError, match='attack.norm=linf'):
    ConAdv(attack_every=2).default_attack(gradient.Pgd(norm='l2'))
  with pytest.raises(ValueError, match='nothing to leave out'):
    methods.Recycled(attack_every=2)
  assert ConAdv(attack_every=4).passes_per_step == 6.5


@pytest.mark.parametrize('options, step, expected', [
    (dict(), 7, 0), (dict(attack_every=3), 7, 1), (dict(attack_every=3), 6, 0),
    (dict(pairing='next_batch'), 7, 1),
    (dict(pairing='next_batch', attack_every=3), 7, 1),
    (dict(pairing='next_batch', attack_every=3), 6, 3),
    (dict(execution='sequential'), 7, 0),
    (dict(execution='sequential', attack_every=3), 6, 3)])
def test_how_far_back_a_resumed_run_begins(
    options: dict[str, Any], step: int, expected: int) -> None:
  assert ConAdv(**options).behind(step) == expected
