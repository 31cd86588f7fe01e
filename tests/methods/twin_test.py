"""Every method against an independent computation in NumPy."""

from collections.abc import Iterable
import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import methods
from conadv_tf.attacks import gradient
from conadv_tf.optimizers import lars
from conadv_tf.training import trainer as trainers
from tests.methods import running
from tests.reference import conadv as reference
from tests.reference import lars as lars_reference

_ROWS, _UPDATES = 12, 8
_random = np.random.default_rng(5)
_IMAGES = _random.random((_ROWS * (_UPDATES + 1), 4, 3, 2), np.float32)
# Learnable: the class is that of the brightest of three columns.
_LABELS = _IMAGES.mean((1, 3)).argmax(1).astype(np.int32)
_RADIUS = 20.0


def _keras_model(normalise: bool) -> tf.keras.Model:
  tf.keras.utils.set_random_seed(3)
  layers = [tf.keras.layers.Flatten(input_shape=(4, 3, 2)),
            tf.keras.layers.Dense(7)]
  if normalise:
    layers.append(tf.keras.layers.BatchNormalization())
  return tf.keras.Sequential(
      layers + [tf.keras.layers.Activation('tanh'), tf.keras.layers.Dense(3)])


def _lars_update(name: str, w: np.ndarray, m: np.ndarray,
                 g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  return lars_reference.update(
      w, m, g, learning_rate=2.0, momentum=0.9, weight_decay=1e-2, eeta=0.02,
      epsilon=0.0, nesterov=False, excluded=w.ndim < 2)


_OPTIMIZERS = {
    'sgd': (lambda: tf.keras.optimizers.SGD(0.2, momentum=0.9),
            reference.momentum_update(0.2, 0.9)),
    'lars': (lambda: lars.Lars(2.0, momentum=0.9, weight_decay=1e-2, eeta=0.02),
             _lars_update)}


def _twin(model: tf.keras.Model, normalise: bool, augments: bool,
          **options: Any) -> reference.Twin:
  values = [w.astype(np.float64) for w in model.get_weights()]
  weights = dict(w1=values[0], b1=values[1], w2=values[-2], b2=values[-1])
  moving = {}
  if normalise:
    shared = options.get('shared') or options.get('lag') is None
    for branch in ['clean'] + ['augmented'] * (
        augments and not options.get('shared')) + [
        'adversarial'] * (not shared):
      weights[f'gamma_{branch}'], weights[f'beta_{branch}'] = values[2:4]
      moving[f'mean_{branch}'], moving[f'variance_{branch}'] = values[4:6]
  kind = options.pop('kind', reference.Twin)
  return kind(weights, moving, normalise=normalise, radius=_RADIUS / 255,
              **options)


def _actual(trainer: trainers.Trainer, normalise: bool
            ) -> dict[str, np.ndarray]:
  values = trainer.network.model.get_weights()
  result = dict(w1=values[0], b1=values[1], w2=values[-2], b2=values[-1])
  if normalise:
    (layer,) = trainer.network.layer_variables
    for branch, v in layer.items():
      result[f'gamma_{branch}'] = v.gamma.numpy()
      result[f'beta_{branch}'] = v.beta.numpy()
      result[f'mean_{branch}'] = v.moving_mean.numpy()
      result[f'variance_{branch}'] = v.moving_variance.numpy()
  return result


def _compare(method: Any, optimizer: str, normalise: bool, *,
             training_pass: str = 'joined', **options: Any) -> None:
  model = _keras_model(normalise)
  twin = _twin(model, normalise, method.augments,
               update=_OPTIMIZERS[optimizer][1], **options)
  trainer = trainers.Trainer(
      model, method, gradient.Pgd(radius=_RADIUS, random_start=0.0),
      training_pass=training_pass)
  trainer.compile(_OPTIMIZERS[optimizer][0](), running.LOSS)
  augmented = _IMAGES[..., ::-1, :]
  data = running.untuned(tf.data.Dataset.from_tensor_slices((
      {'image': _IMAGES, 'augmented': augmented} if method.augments
      else _IMAGES, _LABELS))).batch(_ROWS, drop_remainder=True).repeat()
  trainer.fit(data, steps_per_epoch=_UPDATES, epochs=1, verbose=0)
  start = {name: w.copy() for name, w in twin.weights.items()}
  for t in range(_UPDATES):
    rows = slice(t * _ROWS, (t + 1) * _ROWS)
    views = [_IMAGES[rows], augmented[rows]][:1 + method.augments]
    images, *others = (v.reshape(_ROWS, -1).astype(np.float64) for v in views)
    twin.step(images, _LABELS[rows], *others)
  assert np.abs(twin.weights['w1'] - start['w1']).max() > 0.05
  expected = {**twin.weights, **twin.moving}
  actual = _actual(trainer, normalise)
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(
        actual[name], value, rtol=0, atol=1e-5, err_msg=name)


def _some(cases: Iterable[Any], fast: list[Any]) -> list[Any]:
  """All cases; those that prove nothing new are left to `make test-all`."""
  return [case if case in fast else pytest.param(
      *(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
          for case in cases]


_METHODS = [
    (methods.Vanilla, dict(lag=None)),
    (methods.DisAdv, dict(lag=0)),
    (lambda **o: methods.ConAdv(lag=0, **o), dict(lag=0)),
    (lambda **o: methods.ConAdv(lag=1, **o), dict(lag=1)),
    (lambda **o: methods.ConAdv(lag=2, **o), dict(lag=2)),
    (lambda **o: methods.ConAdv(lag=3, **o), dict(lag=3)),
    (lambda **o: methods.ConAdv(lag=2, execution='sequential', **o),
     dict(lag=2))]


@pytest.mark.parametrize('number, optimizer', _some(
    itertools.product(range(len(_METHODS)), ('sgd', 'lars')),
    [(0, 'sgd'), (0, 'lars'), (1, 'sgd'), (3, 'lars'), (5, 'sgd'),
     (6, 'lars')]))
def test_eight_updates_agree_with_numpy(number: int, optimizer: str) -> None:
  make, options = _METHODS[number]
  _compare(make(), optimizer, True, **options)


@pytest.mark.parametrize('number', _some([0, 1, 3], [0, 3]))
def test_without_batch_normalisation(number: int) -> None:
  make, options = _METHODS[number]
  _compare(make(), 'sgd', False, **options)


@pytest.mark.parametrize('weight', _some([0.0, 0.2, 0.9], [0.2]))
def test_the_adversarial_weight(weight: float) -> None:
  _compare(methods.ConAdv(adversarial_weight=weight), 'sgd', True, lag=1,
           adversarial_weight=weight)


@pytest.mark.parametrize('fraction', _some([0.01, 0.4, 0.75], [0.01, 0.4]))
def test_the_adversarial_fraction(fraction: float) -> None:
  _compare(methods.ConAdv(adversarial_fraction=fraction), 'sgd', True, lag=1,
           fraction=fraction)


@pytest.mark.parametrize('fraction', _some([0.5, 1.0], [0.5]))
def test_shared_statistics(fraction: float) -> None:
  _compare(methods.ConAdv(bn_branches=1, adversarial_fraction=fraction), 'sgd',
           True, lag=1, shared=True, fraction=fraction)


_STREAMS = [
    {}, dict(adversarial_weight=0.6), dict(adversarial_fraction=0.5)]


@pytest.mark.parametrize('lag, options', _some(
    itertools.product((0, 1, 2), _STREAMS), [*enumerate(_STREAMS)]))
def test_three_streams(lag: int, options: dict[str, float]) -> None:
  _compare(methods.ConAdv(lag=lag, bn_branches=3, **options), 'lars', True,
           lag=lag, fraction=options.get('adversarial_fraction', 1.0),
           adversarial_weight=options.get('adversarial_weight', 1 / 3))


@pytest.mark.parametrize('stream, training_pass', [
    ('shared', 'joined'), ('split', 'joined'), ('split', 'separate')])
def test_plain_training_on_two_views(stream: str, training_pass: str) -> None:
  _compare(methods.Vanilla(stream), 'lars', True, lag=None,
           shared=stream == 'shared', kind=reference.TwoViewsTwin,
           training_pass=training_pass)


_NEXT_BATCH = [
    (lambda **o: methods.ConAdv(pairing='next_batch', **o), dict(lag=1)),
    (lambda **o: methods.ConAdv(pairing='next_batch', lag=3, **o), dict(lag=3)),
    (lambda **o: methods.Recycled(lag=0, **o), dict(lag=0, recycled=True)),
    (lambda **o: methods.Recycled(**o), dict(lag=1, recycled=True))]


_PART = dict(adversarial_weight=0.3, adversarial_fraction=0.5)


@pytest.mark.parametrize('number, options', _some(
    itertools.product(range(len(_NEXT_BATCH)), ({}, _PART)),
    [(0, {}), (1, _PART), (2, _PART), (3, {})]))
def test_next_batch_and_recycled(number: int, options: dict[str, Any]) -> None:
  make, expected = _NEXT_BATCH[number]
  _compare(make(**options), 'lars', True, kind=reference.NextBatchTwin,
           fraction=options.get('adversarial_fraction', 1.0),
           adversarial_weight=options.get('adversarial_weight', 0.5),
           **expected)


@pytest.mark.parametrize('number', _some(range(len(_NEXT_BATCH)), [1, 3]))
def test_next_batch_and_recycled_with_three_streams(number: int) -> None:
  make, expected = _NEXT_BATCH[number]
  _compare(make(bn_branches=3), 'sgd', True, kind=reference.NextBatchTwin,
           adversarial_weight=1 / 3, **expected)


@pytest.mark.parametrize('optimizer, fraction', _some(
    itertools.product(('sgd', 'lars'), (0.5, 1.0)),
    [('sgd', 0.5), ('lars', 1.0)]))
def test_recycled_with_shared_statistics(optimizer: str,
                                         fraction: float) -> None:
  _compare(
      methods.Recycled(lag=0, bn_branches=1, adversarial_fraction=fraction),
      optimizer, True, kind=reference.NextBatchTwin, recycled=True, lag=0,
      shared=True, fraction=fraction)


@pytest.mark.parametrize('make, options', [
    (methods.DisAdv, dict(lag=0)),
    pytest.param(methods.ConAdv, dict(lag=1), marks=pytest.mark.slow),
    pytest.param(lambda: methods.ConAdv(bn_branches=1),
                 dict(lag=1, shared=True), marks=pytest.mark.slow),
    (lambda: methods.ConAdv(bn_branches=3),
     dict(lag=1, adversarial_weight=1 / 3)),
    (methods.Recycled, dict(lag=1, recycled=True,
                            kind=reference.NextBatchTwin))])
def test_separate_passes(make: Any, options: dict[str, Any]) -> None:
  _compare(make(), 'sgd', True, training_pass='separate', **options)


_EVERY = [
    (methods.DisAdv, dict(lag=0)), (methods.ConAdv, dict(lag=1)),
    (lambda **o: methods.ConAdv(lag=2, adversarial_fraction=0.5, **o),
     dict(lag=2, fraction=0.5)),
    (lambda **o: methods.ConAdv(lag=2, execution='sequential', **o),
     dict(lag=2))]


@pytest.mark.parametrize('number, every', _some(
    itertools.product(range(len(_EVERY)), (2, 3)),
    [(0, 3), (1, 2), (2, 3), (3, 2)]))
def test_attacks_every_few_batches(number: int, every: int) -> None:
  make, options = _EVERY[number]
  _compare(make(attack_every=every), 'sgd', True, every=every, **options)
