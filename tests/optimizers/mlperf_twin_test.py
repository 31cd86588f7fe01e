"""Schedule and LARS against a twin of the MLPerf reference, by the recipes.

The project computes in float32, the twin in float64. A rate is a handful of
float32 operations on whole numbers below 2**24, so it is off by some 2**-24 =
6e-8 each. Weights collect one rounding of that size in every update, relative
to the tensor's largest entries: after 20 updates some 3e-7.
"""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import components, config
from conadv_tf.optimizers import trust_ratio
from tests.reference import mlperf

_CONFIGS = pathlib.Path(__file__).resolve().parents[2] / 'configs/imagenet'
# From the reference convergence points of mlcommons/logging 4.0.0.
_POINTS = {
    4096: mlperf.Point(4096, 10.0, 5, 42, 0.9, 2e-4),
    32768: mlperf.Point(32768, 21.2, 16, 58, 0.94, 2.5e-5),
    65536: mlperf.Point(65536, 24.699, 31, 88.9, 0.951807, 1e-4),
}
_SHAPES = {'conv1/kernel': (3, 3, 8, 16), 'bn_conv1/gamma': (16,),
           'fc1000/kernel': (16, 10), 'fc1000/bias': (10,)}


def _recipe(batch: int) -> config.ExperimentConfig:
  loaded = config.load([str(_CONFIGS / f'mlperf_{batch}.yaml')])
  return config.resolve(loaded, 1_281_167)


def _schedule(recipe: config.ExperimentConfig) -> components.Schedule:
  return components.SCHEDULES[recipe.schedule.name](
      recipe.schedule, recipe.derived)


def _first_and_last(point: mlperf.Point) -> list[int]:
  total = point.train_steps()
  return [*range(10), *range(total - 10, total)]


@pytest.mark.parametrize('batch, per_epoch, total, warmup', [
    (4096, 312, 13104, 1560), (32768, 39, 2262, 624), (65536, 19, 1689, 589)])
def test_steps(batch: int, per_epoch: int, total: int, warmup: int) -> None:
  derived, point = _recipe(batch).derived, _POINTS[batch]
  assert (derived.steps_per_epoch, derived.total_steps,
          derived.warmup_steps) == (per_epoch, total, warmup)
  assert (point.steps_per_epoch(), point.train_steps(),
          point.warmup_steps()) == (per_epoch, total, warmup)


@pytest.mark.parametrize('batch', _POINTS)
def test_learning_rates(batch: int) -> None:
  schedule, point = _schedule(_recipe(batch)), _POINTS[batch]
  warmup = point.warmup_steps()
  steps = _first_and_last(point) + list(range(warmup - 2, warmup + 3))
  np.testing.assert_allclose(
      [float(schedule(tf.constant(s, tf.int64))) for s in steps],
      [point.learning_rate(s) for s in steps], rtol=1e-6, atol=0)
  # The first is 0; the last is two updates short of the end's.
  assert float(schedule(0)) == 0.0
  last = float(schedule(point.train_steps() - 1))
  left = 2 / (point.train_steps() - warmup + 1)
  assert last - 1e-4 == pytest.approx(
      (point.peak_lr - 1e-4) * left**2, rel=1e-3)


@pytest.mark.parametrize('batch', _POINTS)
def test_lars(batch: int) -> None:
  recipe, point = _recipe(batch), _POINTS[batch]
  random = np.random.default_rng(0)
  start = {name: random.normal(0, 0.1, shape).astype(np.float32)
           for name, shape in _SHAPES.items()}
  start['bn_conv1/gamma'] += 1.0
  variables = [tf.Variable(w, name=name) for name, w in start.items()]
  optimizer = components.OPTIMIZERS['lars'](
      recipe.optimizer, _schedule(recipe))
  optimizer.build(variables)
  excluded = [name.split(':')[0]
              for name in optimizer.excluded_names(variables)]
  assert excluded == [name for name in _SHAPES if mlperf.is_excluded(name)]

  weights = {name: w.astype(np.float64) for name, w in start.items()}
  slots = {name: np.zeros_like(w) for name, w in weights.items()}
  for step in _first_and_last(point):
    # Such that the excluded tensors, at a rate of up to 10, stay of order 1.
    gradients = [random.normal(0, 0.1, w.shape).astype(np.float32)
                 for w in start.values()]
    optimizer.iterations.assign(step)
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    for variable, (name, w), g in zip(
        variables, weights.items(), gradients, strict=True):
      weights[name], slots[name] = mlperf.lars(
          name, w, slots[name], g.astype(np.float64), point, step)
      np.testing.assert_allclose(
          variable.numpy(), weights[name], rtol=0,
          atol=1e-6 * np.abs(weights[name]).max(), err_msg=f'{name} {step}')
  moved = [np.abs(weights[name] - w).max() / np.abs(w).max()
           for name, w in start.items()]
  assert min(moved) > 1e-4


def test_the_reference_s_epsilon_of_0_is_1e_7() -> None:
  """Ours is 0, as logged; the two part where a gradient nearly vanishes."""
  w = np.full([4, 4], 0.25)  # norm 1
  for g_norm, share in ((1.0, 1e-7), (1e-3, 1e-4), (1e-7, 0.5)):
    g = w * g_norm
    ours = float(trust_ratio.trust_ratio(
        tf.constant(w, tf.float32), tf.constant(g, tf.float32), 0.0,
        mlperf.EETA, _recipe(4096).optimizer.epsilon))
    theirs = mlperf.trust_ratio(w, g, 0.0)
    assert 1 - theirs / ours == pytest.approx(share, rel=0.01, abs=2e-7)
