"""From names and numbers of a configuration to the objects that they mean."""

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import components, config, experiment
from conadv_tf.analysis import curvature
from conadv_tf.training import perturbation
from tests import tiny


def _build(*overrides: str) -> experiment.Experiment:
  return experiment.build(tiny.load(*overrides))


@pytest.mark.parametrize('pairs, expected', [
    ('optimizer.name=lars,optimizer.momentum=0.8,optimizer.nesterov=true,'
     'optimizer.weight_decay=0.01,optimizer.eeta=0.002,optimizer.epsilon=1e-6',
     {'momentum': 0.8, 'nesterov': True, 'eeta': 0.002, 'epsilon': 1e-6}),
    ('optimizer.name=sgd,optimizer.momentum=0.8,optimizer.nesterov=true,'
     'optimizer.weight_decay=0.01',
     {'momentum': 0.8, 'nesterov': True, 'weight_decay': 0.01}),
    ('optimizer.name=adamw,optimizer.beta_1=0.8,optimizer.beta_2=0.9,'
     'optimizer.weight_decay=0.01,optimizer.epsilon=1e-6',
     {'beta_1': 0.8, 'beta_2': 0.9, 'weight_decay': 0.01, 'epsilon': 1e-6}),
    ('optimizer.name=adamw', {'epsilon': 1e-7}),
    ('optimizer.name=lars,optimizer.trust_clip=[0,10]',
     {'trust_clip': [0.0, 10.0]}),
    ('optimizer.name=lamb', {'epsilon': 1e-6, 'trust_clip': None}),
    ('optimizer.name=lamb,optimizer.beta_1=0.8,optimizer.beta_2=0.9,'
     'optimizer.weight_decay=0.01,optimizer.epsilon=1e-4,'
     'optimizer.trust_clip=[0,10],optimizer.bias_correction=false,'
     'optimizer.epsilon_placement=inside_root,'
     'optimizer.decay_placement=outside_update,optimizer.scope=layer,'
     'optimizer.scale_vectors=false,optimizer.decay_vectors=false,'
     'optimizer.clipvalue=2',
     {'beta_1': 0.8, 'beta_2': 0.9, 'weight_decay': 0.01, 'epsilon': 1e-4,
      'trust_clip': [0.0, 10.0], 'bias_correction': False,
      'epsilon_placement': 'inside_root', 'decay_placement': 'outside_update',
      'scope': 'layer', 'scale_vectors': False, 'decay_vectors': False,
      'clipvalue': 2.0}),
    ('optimizer.name=lars', {
        'clipnorm': None, 'clipvalue': None, 'global_clipnorm': None,
        'use_ema': False}),
    ('optimizer.name=lars,optimizer.ema_momentum=0.5,optimizer.clipvalue=2',
     {'use_ema': True, 'ema_momentum': 0.5, 'clipvalue': 2.0}),
    ('optimizer.name=sgd,optimizer.ema_momentum=0,optimizer.clipnorm=2',
     {'use_ema': True, 'ema_momentum': 0.0, 'clipnorm': 2.0}),
    ('optimizer.name=adamw,optimizer.global_clipnorm=2',
     {'use_ema': False, 'global_clipnorm': 2.0}),
])
def test_optimizers(pairs: str, expected: dict[str, float]) -> None:
  optimizer = _build(pairs).trainer.optimizer
  made = optimizer.get_config()
  assert {key: made[key] for key in expected} == expected
  schedule = optimizer._learning_rate  # pylint: disable=protected-access
  assert isinstance(
      schedule, tf.keras.optimizers.schedules.LearningRateSchedule)


@pytest.mark.parametrize('pairs, rates', [
    # Of updates 0 to 5; the first two are warm-up.
    ('schedule.name=constant', [0, 0.5, 1, 1, 1, 1]),
    ('schedule.name=polynomial,schedule.power=1,schedule.end_lr=0',
     [0, 0.5, 1, 0.75, 0.5, 0.25]),
    ('schedule.name=cosine,schedule.end_lr=0',
     [0, 0.5, 1, 0.853553, 0.5, 0.146447]),
    ('schedule.name=piecewise,schedule.boundaries=[1,1.4],'
     'schedule.values=[1,0.5,0.1]', [0, 0.5, 1, 0.5, 0.1, 0.1]),
    ('schedule.name=cyclic', None),
])
def test_schedules(pairs: str, rates: list[float] | None) -> None:
  schedule = _build(pairs).schedule
  made = [float(schedule(step)) for step in range(6)]
  if rates is None:
    assert max(made) <= 1.0 and made[0] < made[2] > made[5]
  else:
    np.testing.assert_allclose(made, rates, rtol=1e-5)


@pytest.mark.parametrize('pairs, expected', [
    ('method.name=vanilla', (0, 0, 0, ('clean',))),
    ('method.name=disadv', (0, 0, 0, ('clean', 'adversarial'))),
    ('method.lag=0', (0, 0, 0, ('clean', 'adversarial'))),
    ('method.lag=3', (3, 1, 2, ('clean', 'adversarial'))),
    ('method.lag=3,method.execution=sequential',
     (3, 0, 3, ('clean', 'adversarial'))),
    ('method.bn_branches=1', (1, 1, 0, ('clean',))),
])
def test_methods(pairs: str, expected: tuple[object, ...]) -> None:
  method = _build(pairs).trainer.method
  assert (method.lag, method.lookahead, method.lagged_copies,
          method.branches) == expected


def test_the_attack_is_that_of_the_configuration() -> None:
  attack = _build(
      'attack.radius=3,attack.steps=5,attack.norm=l2,attack.direction=raw,'
      'attack.random_start=0.8,attack.target=random,attack.branch=clean,'
      'attack.mode=moving').trainer.attack
  assert (attack.radius, attack.steps, attack.norm, attack.direction,
          attack.random_start, attack.target, attack.branch, attack.mode) == (
              3.0, 5, 'l2', 'raw', 0.8, 'random', 'clean', 'moving')


def test_smoothed_labels_reach_training_and_pictures() -> None:
  built = _build('objective.label_smoothing=0.3')
  images, labels, _ = next(iter(built.train_dataset(0)))
  assert labels.shape == (8, 3)
  np.testing.assert_allclose(np.sort(labels, axis=1), [[0.1, 0.1, 0.8]] * 8,
                             rtol=1e-6)
  perturbed = perturbation.Perturb(built.trainer)(images, labels)
  assert perturbed.shape == (8, 4, 4, 3)
  # Figures of evaluation are those of the true labels.
  _, labels, _ = next(iter(built.evaluation_dataset('validation')))
  assert labels.dtype == tf.int32


def test_the_precision_is_of_this_experiment_only() -> None:
  model = _build('runtime.precision=mixed_bfloat16').trainer.network.model
  assert model.layers[2].compute_dtype == 'bfloat16'
  assert tf.keras.mixed_precision.global_policy().name == 'float32'


def test_the_seed_makes_the_weights() -> None:
  first, same, other = (
      _build(pairs).trainer.network.variables[0].numpy()
      for pairs in ('seed=3', 'seed=3', 'seed=4'))
  np.testing.assert_array_equal(first, same)
  assert np.abs(first - other).max() > 0.01


@pytest.mark.parametrize('pairs, message', [
    ('data.name=cifar', 'data.name=cifar: unknown; known are digits'),
    ('method.name=convad', 'known are absa, dat, vanilla, disadv, conadv, '
     'smooth_at, scala, freelb; did you mean conadv'),
    ('model.name=resnet9', 'known are resnet8, resnet20, resnet32, resnet56'),
    ('evaluation.attacks=[apgd5]', 'apgd5'),
])
def test_unknown_names(pairs: str, message: str) -> None:
  with pytest.raises(config.InputError) as raised:
    components.check_names(tiny.load(pairs))
  assert message in str(raised.value)


def _dense_hessian(model: tf.keras.Model, images: tf.Tensor,
                   labels: tf.Tensor) -> np.ndarray:
  """Column blocks by Jacobians of the gradient; labels [b, classes]."""
  variables = model.trainable_variables
  with tf.GradientTape(persistent=True) as outer:
    with tf.GradientTape() as inner:
      losses = tf.nn.softmax_cross_entropy_with_logits(
          labels, model(tf.cast(images, tf.float32), training=False))
      loss = tf.reduce_mean(losses)
    gradient = tf.concat([
        tf.reshape(g, [-1]) for g in inner.gradient(loss, variables)], 0)
  return np.concatenate([
      np.reshape(outer.jacobian(gradient, v), [len(gradient), -1])
      for v in variables], axis=1)


def test_curvature_is_that_of_the_training_loss() -> None:
  """With smoothed labels; the draw is of all 24 examples."""
  built = _build('objective.label_smoothing=0.3,data.augment=crop_flip')
  found = built.curvature(examples=24, eigenvalues=2)
  images, labels, _ = next(iter(built.evaluation_dataset('train').rebatch(24)))
  dense = _dense_hessian(
      built.trainer.merge(), images, tf.one_hot(labels, 3) * 0.7 + 0.1)
  values = np.linalg.eigvalsh(dense)
  values = values[np.argsort(-np.abs(values))]
  assert found['top_eigenvalue'] == pytest.approx(values[0], rel=0.01)
  assert found['eigenvalues'] == pytest.approx(values[:2], rel=0.01)
  assert (found['converged'], found['examples'], found['layers'],
          found['parameters']) == (True, 24, 3, 171)
  block = built.curvature(examples=24, last_layers=1)
  assert block['top_eigenvalue'] == pytest.approx(
      np.linalg.eigvalsh(dense[-51:, -51:])[-1], rel=0.01)
  assert (block['layers'], block['parameters']) == (1, 51)


def test_curvature_draws_by_seed_and_number_and_moves_nothing() -> None:
  built = _build()
  before = [v.numpy() for v in built.trainer.network.variables]
  first, same, other = (
      built.curvature(examples=9, number=number)['top_eigenvalue']
      for number in (0, 0, 1))
  assert first == same
  assert abs(first - other) > 1e-3 * abs(first)
  assert built.curvature(examples=100)['examples'] == 24  # all there are
  for old, new in zip(before, built.trainer.network.variables):
    np.testing.assert_array_equal(old, new.numpy())
  seeded = _build('seed=1')
  mine, others = (made._drawn(9, 0)[0].numpy() for made in (built, seeded))  # pylint: disable=protected-access
  assert (mine != others).any()


def test_curvature_under_two_replicas(mirrored: tf.distribute.Strategy) -> None:
  del mirrored  # it must exist before the experiment asks for it
  one, two = (_build(pairs).curvature(examples=9)['top_eigenvalue']
              for pairs in ('', 'runtime.strategy=mirrored,'
                            'runtime.num_replicas=2'))
  assert two == pytest.approx(one, rel=1e-5)


def test_curvature_that_cannot_be() -> None:
  built = _build()
  for options, part in (({'last_layers': 9}, 'has 3 with trainable weights'),
                        ({'examples': 0}, 'at least 1'),
                        ({'iterations': 0}, 'at least 1 product'),
                        ({'eigenvalues': 172, 'iterations': 200},
                         'a matrix of 171 rows')):
    with pytest.raises(config.InputError, match=part):
      built.curvature(**options)
  built.trainer.network.model.trainable_variables[0].assign(
      tf.fill([3, 3, 3, 4], np.nan))
  with pytest.raises(curvature.NotFinite, match="first in layer 'conv2d"):
    built.curvature()
