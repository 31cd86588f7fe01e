"""Perturbations of word embeddings: start, step and projection."""

import dataclasses

import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.attacks import ball

_SENTENCE = (1, 2)  # axes of [b, L, d]
_STARTS = ("normal", "uniform", "sentence", "zero")
_DIRECTIONS = ("linf", "sign", "raw", "l2", "sentence")


@dataclasses.dataclass(frozen=True)
class Perturbation:
  """How embeddings are perturbed, in their own units.

  Attributes:
    radius: omega, of the ball that steps are projected into.
    norm: of that ball: "linf" clips every number, "l2" shortens a sentence.
    steps: of gradient ascent; 0 leaves the start as it is.
    step_size: rho.
    direction: what a step multiplies: "raw" gradient, its "sign", or the
      gradient divided by its largest size ("linf") or length ("l2") in each
      token, or by its length in the "sentence".
    start: "normal" noise of deviation `start_size`, "uniform" noise within
      it, "sentence": uniform within start_size / sqrt(tokens * d), or "zero".
    start_size: see `start`.
  """

  radius: float = 1e-5
  norm: str = ball.LINF
  steps: int = 1
  step_size: float = 1e-4
  direction: str = "linf"
  start: str = "normal"
  start_size: float = 1e-5

  def __post_init__(self) -> None:
    """Raises ValueError for a field outside its range."""
    for name in ("radius", "steps", "step_size", "start_size"):
      if not 0 <= getattr(self, name) < float("inf"):
        raise ValueError(f"perturbation {name} must be at least 0, got "
                         f"{getattr(self, name)}")
    for name, allowed in (("norm", (ball.LINF, ball.L2)),
                          ("direction", _DIRECTIONS), ("start", _STARTS)):
      if getattr(self, name) not in allowed:
        raise ValueError(f"perturbation {name} must be one of {allowed}, got "
                         f"{getattr(self, name)!r}")

  def begin(self, key: randomness.Key, embeddings: tf.Tensor,
            mask: tf.Tensor) -> tf.Tensor:
    """y_0, float32 [b, L, d], 0 at padding.

    Args:
      key: int32 [2].
      embeddings: [b, L, d], whose shape it has.
      mask: float32 [b, L, 1], 0 at padding.
    """
    shape = embeddings.shape
    if self.start == "zero":
      return tf.zeros(shape)
    if self.start == "normal":
      noise = randomness.normal(key, shape)
    else:
      noise = 2.0 * randomness.uniform(key, shape) - 1.0
    if self.start == "sentence":
      numbers = tf.reduce_sum(mask, _SENTENCE, keepdims=True) * shape[-1]
      noise *= tf.math.rsqrt(tf.maximum(numbers, 1.0))
    return self.start_size * noise * mask

  def move(self, current: tf.Tensor, gradient: tf.Tensor,
           mask: tf.Tensor) -> tf.Tensor:
    """y_{k+1}: one step up the gradient and back into the ball.

    Args:
      current: float32 [b, L, d].
      gradient: float32 [b, L, d], of the summed loss.
      mask: float32 [b, L, 1], 0 at padding.
    """
    moved = current + self.step_size * self._directed(gradient) * mask
    return ball.project(moved, self.radius, self.norm)

  def _directed(self, gradient: tf.Tensor) -> tf.Tensor:
    if self.direction == "raw":
      return gradient
    if self.direction == "sign":
      return tf.sign(gradient)
    axes = _SENTENCE if self.direction == "sentence" else -1
    size = (tf.reduce_max(tf.abs(gradient), axes, keepdims=True)
            if self.direction == "linf" else
            tf.sqrt(tf.reduce_sum(tf.square(gradient), axes, keepdims=True)))
    return tf.math.divide_no_nan(gradient, size)
