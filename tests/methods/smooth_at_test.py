"""Smooth-AT: against NumPy, and what it degenerates to."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import methods, randomness
from conadv_tf.attacks import gradient
from tests.methods import running
from tests.reference import conadv as reference
from tests.reference import smooth_at as smooth_reference

_ROWS, _UPDATES, _SIGMA, _COPIES = 12, 5, 0.3, 3
_random = np.random.default_rng(5)
_IMAGES = _random.random((_ROWS * _UPDATES, 4, 3, 2), np.float32)
_LABELS = _IMAGES.mean((1, 3)).argmax(1).astype(np.int32)
_OFF = gradient.Pgd(radius=0)


def _noise(batch: int, copy: int, shape: tuple[int, ...]) -> np.ndarray:
  key = randomness.make_key(0, randomness.SMOOTHING, batch, 0, copy)
  return randomness.normal(key, list(shape)).numpy()


def _two_layers() -> tf.keras.Model:
  tf.keras.utils.set_random_seed(3)
  return tf.keras.Sequential([
      tf.keras.layers.Flatten(input_shape=(4, 3, 2)), tf.keras.layers.Dense(7),
      tf.keras.layers.BatchNormalization(),
      tf.keras.layers.Activation('tanh'), tf.keras.layers.Dense(3)])


def test_updates_agree_with_numpy() -> None:
  model = _two_layers()
  values = [w.astype(np.float64) for w in model.get_weights()]
  names = ('w1', 'b1', 'gamma_clean', 'beta_clean', 'mean_clean',
           'variance_clean', 'w2', 'b2')
  start = dict(zip(names, values, strict=True))
  moving = {name: start.pop(name) for name in ('mean_clean', 'variance_clean')}
  twin = smooth_reference.SmoothAtTwin(
      dict(start), moving, reference.momentum_update(0.2, 0.9), True,
      radius=100 / 255, step_size=60 / 255, steps=3)
  trainer = running.make(
      methods.SmoothAt(_SIGMA, _COPIES), model=lambda: model,
      optimizer=lambda: tf.keras.optimizers.SGD(0.2, momentum=0.9),
      attack=gradient.Pgd(radius=100, step_size=60, steps=3, norm='l2',
                          direction='l2'))
  data = running.untuned(tf.data.Dataset.from_tensor_slices(
      (_IMAGES, _LABELS))).batch(_ROWS).repeat()
  history = trainer.fit(
      data, steps_per_epoch=_UPDATES, epochs=1, verbose=0).history
  sizes = []
  for t in range(_UPDATES):
    rows = slice(t * _ROWS, (t + 1) * _ROWS)
    x = _IMAGES[rows].reshape(_ROWS, -1).astype(np.float64)
    noises = _SIGMA * np.stack([
        _noise(t, copy, (_ROWS, 4, 3, 2)).reshape(_ROWS, -1)
        for copy in range(_COPIES)]).astype(np.float64)
    adversary = twin.noisy_step(x, _LABELS[rows], noises)
    sizes.append(np.linalg.norm(adversary - x, axis=1).mean())
  found = dict(zip(names, trainer.network.model.get_weights()))
  for name, value in {**twin.weights, **twin.moving}.items():
    np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-6,
                               err_msg=name)
  assert np.abs(twin.weights['w1'] - start['w1']).max() > 0.01
  assert history['perturbation_l2'][0] == pytest.approx(
      255 * np.mean(sizes), rel=1e-5)
  assert 80 < history['perturbation_l2'][0] <= 100


def _train(method: Any, **options: Any) -> Any:
  return running.train(method, **{'updates': 3, **options})


def test_one_copy_without_noise_or_attack_is_vanilla_bit_for_bit() -> None:
  trainer = _train(methods.SmoothAt(0.0, 1), attack=_OFF)
  assert running.distance(trainer, _train(methods.Vanilla())) == 0


def test_radius_0_is_training_on_noisy_images() -> None:
  images = running.IMAGES[:96].reshape(3, 32, 8, 8, 3)
  noisy = np.stack([
      x + 0.2 * _noise(t, 0, x.shape) for t, x in enumerate(images)])
  assert noisy.min() < -0.3  # not clipped
  plain = running.make(methods.Vanilla())
  plain.fit(running.untuned(tf.data.Dataset.from_tensor_slices(
      (noisy, running.LABELS[:96].reshape(3, 32)))).repeat(),
            steps_per_epoch=3, epochs=1, verbose=0)
  trainer = _train(methods.SmoothAt(0.2, 1), attack=_OFF)
  assert running.distance(trainer, plain) < 1e-6


@pytest.mark.slow
def test_equal_copies_are_one() -> None:
  # Without noise and dropout all copies are the same.
  options = dict(model=lambda: running.small_network(0))
  one, four = (_train(methods.SmoothAt(0.0, copies), **options)
               for copies in (1, 4))
  assert running.distance(one, four) < 1e-5
  clean = _train(methods.Vanilla(), **options)
  assert running.distance(one, clean) > 1e-3


@pytest.mark.slow
def test_the_pixel_range_scales_noise_and_radius() -> None:
  scaled = running.make(methods.SmoothAt(0.2, 2), options=dict(
      pixel_range=(0.0, 255.0)), model=_scaled)
  plain = running.make(methods.SmoothAt(0.2, 2),
                       model=lambda: running.small_network(0))
  scaled.fit(running.dataset(32).map(lambda x, y: (255.0 * x, y)),
             steps_per_epoch=2, epochs=1, verbose=0)
  plain.fit(running.dataset(32), steps_per_epoch=2, epochs=1, verbose=0)
  assert running.distance(scaled, plain) < 1e-4


def _scaled() -> tf.keras.Model:
  inputs = tf.keras.Input((8, 8, 3))
  return tf.keras.Model(inputs, running.small_network(0)(inputs / 255.0))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_copies() -> None:
  def operations(copies: int) -> list[str]:
    method = methods.SmoothAt(0.1, copies)
    trainer = running.make(method)
    data = running.dataset(16)
    trainer._prepare_state(data.element_spec)
    function = tf.function(
        lambda x, y: trainer.train_step((x, y), tf.constant(0)).gradients,
        autograph=False)
    graph = function.get_concrete_function(*data.element_spec).graph
    return sorted(node.op for part in graph.as_graph_def().library.function
                  for node in part.node_def)

  assert 'Conv2D' in operations(2)
  assert operations(2) == operations(20)


@pytest.mark.parametrize('radius, steps, work', [
    (64, 10, 20 * 23), (64, 1, 20 * 5), (0, 10, 20 * 3)])
def test_the_work_of_a_step(radius: float, steps: int, work: float) -> None:
  method = methods.SmoothAt(noise_copies=20)
  attack = method.default_attack(gradient.Pgd(
      radius=radius, steps=steps, norm='l2', direction='l2'))
  assert method.passes(attack) == (work, work - 20)


@pytest.mark.parametrize('attack, part', [
    (dict(), 'attack.norm=linf does not suit smooth_at'),
    (dict(norm='l2'), 'set attack.direction=l2'),
    (dict(norm='l2', direction='l2', target='random'), 'attack.target=random'),
    (dict(radius=0, mode='batch'), 'attack.mode=batch')])
def test_attacks_that_do_not_suit(attack: dict[str, Any], part: str) -> None:
  with pytest.raises(ValueError, match=part):
    methods.SmoothAt().default_attack(gradient.Pgd(**attack))


@pytest.mark.parametrize('options', [
    dict(sigma=-0.1), dict(sigma=64.0), dict(noise_copies=0)])
def test_bad_options_are_named(options: dict[str, Any]) -> None:
  with pytest.raises(ValueError, match=next(iter(options))):
    methods.SmoothAt(**options)
