"""Perturbations in one or two bytes a pixel."""

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.attacks import compact, gradient

_IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3))


def _attacked(attack: gradient.Pgd, images: tf.Tensor,
              pixel_range: tuple[float, float]) -> tf.Tensor:
  weights = np.random.default_rng(1).normal(size=(4, 8, 8, 3))
  return attack(lambda x: tf.reduce_sum(tf.sin(x) * weights), images,
                randomness.make_key(0, randomness.ATTACK_NOISE), pixel_range)


@pytest.mark.parametrize('pixel_range', [(0.0, 255.0), (-1.0, 1.0)])
@pytest.mark.parametrize('options', [
    {}, dict(step_size=2.0), dict(step_size=9.0), dict(radius=0.0)])
def test_one_signed_step_from_the_image_is_held_in_a_byte(
    options: dict[str, float], pixel_range: tuple[float, float]) -> None:
  attack = gradient.Pgd(**{'radius': 4.0, **options}, random_start=0.0)
  low, high = pixel_range
  images = tf.constant(low + _IMAGES * (high - low) / 255, tf.float32)
  adversarial = _attacked(attack, images, pixel_range)
  code = compact.encode(attack, adversarial, images, pixel_range)
  assert code.dtype == compact.dtype(attack) == tf.int8
  decoded = compact.decode(attack, code, images, pixel_range)
  np.testing.assert_allclose(decoded, adversarial, rtol=0, atol=2e-7 * high)
  moved = np.abs(decoded - images).max() * 255 / (high - low)
  assert moved == pytest.approx(min(attack.radius, attack.resolved_step_size),
                                abs=1e-4)


@pytest.mark.parametrize('options', [
    dict(random_start=1.0), dict(steps=3), dict(norm='l2', radius=400.0),
    dict(direction='raw', step_size=3e4),
    dict(norm='l2', direction='l2', radius=400.0)])
def test_others_are_held_in_two_bytes(options: dict[str, object]) -> None:
  attack = gradient.Pgd(**{'radius': 4.0, **options})
  images = tf.constant(_IMAGES, tf.float32)
  adversarial = _attacked(attack, images, (0.0, 255.0))
  code = compact.encode(attack, adversarial, images, (0.0, 255.0))
  assert code.dtype == compact.dtype(attack) == tf.bfloat16
  decoded = compact.decode(attack, code, images, (0.0, 255.0))
  np.testing.assert_allclose(
      decoded - images, adversarial - images, rtol=2.0**-7, atol=1e-4)
  assert np.abs(adversarial - images).max() > 1
  delta = (decoded - images).numpy().reshape(4, -1)
  size = (np.linalg.norm(delta, axis=1) if attack.norm == 'l2'
          else np.abs(delta).max(1))
  assert (size <= attack.radius * (1 + 1e-6)).all()
  assert decoded.numpy().min() >= 0 and decoded.numpy().max() <= 255
