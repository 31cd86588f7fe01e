"""Perturbations in one or two bytes a pixel, as they wait for their update.

Every training method takes its adversarial images through this form, whether
it holds them or not, so that all executions train on the same bits.
"""

import tensorflow as tf

from conadv_tf.attacks import ball, gradient

# Rounding to bfloat16's 8 bits must not leave an l2 ball.
_INSIDE = 1.0 - 2.0**-8


def dtype(attack: gradient.Pgd) -> tf.DType:
  """int8 where the perturbation is a multiple of a sign, else bfloat16."""
  one_sign = (attack.steps == 1 and attack.direction == "sign"
              and attack.norm == ball.LINF and not attack.random_start)
  return tf.int8 if one_sign or attack.radius == 0 else tf.bfloat16


def encode(attack: gradient.Pgd, adversarial: tf.Tensor, image: tf.Tensor,
           pixel_range: tuple[float, float]) -> tf.Tensor:
  """The perturbation of `image`, int8 signs or bfloat16 shares of the radius.

  Args:
    attack: that made it.
    adversarial: float32 [b, ...], in ball and pixel range.
    image: float32 [b, ...], the ball's centre.
    pixel_range: smallest and largest value of a pixel.

  Returns:
    [b, ...] of `dtype(attack)`.
  """
  delta = adversarial - image
  if dtype(attack) == tf.int8:
    return tf.cast(tf.sign(delta), tf.int8)
  share = delta / (attack.radius * ball.unit(pixel_range))
  return tf.cast(share * (_INSIDE if attack.norm == ball.L2 else 1.0),
                 tf.bfloat16)


def decode(attack: gradient.Pgd, code: tf.Tensor, image: tf.Tensor,
           pixel_range: tuple[float, float]) -> tf.Tensor:
  """The adversarial image again.

  Exact for int8; within radius / 256 a pixel for bfloat16.

  Args:
    attack: that made it.
    code: from `encode`.
    image: float32 [b, ...], the same as there.
    pixel_range: smallest and largest value of a pixel.

  Returns:
    float32 [b, ...] in ball and pixel range.
  """
  if attack.radius == 0:
    return image
  size = attack.radius
  if dtype(attack) == tf.int8:
    size = min(size, attack.resolved_step_size)
  delta = size * ball.unit(pixel_range) * tf.cast(code, tf.float32)
  return tf.clip_by_value(image + delta, *pixel_range)


def sign(code: tf.Tensor) -> tf.Tensor:
  """The perturbation's sign in every pixel, at full size, in the same form."""
  return tf.cast(tf.sign(tf.cast(code, tf.float32)), code.dtype)
