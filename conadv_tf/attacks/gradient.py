"""Gradient attacks: FGSM, PGD and their variants, in pixel units."""

from collections.abc import Callable
import dataclasses

import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.attacks import ball

LossOfX = Callable[[tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Pgd:
  """Projected gradient ascent on the loss (Madry et al., 2018).

  One step without a random start is FGSM (Goodfellow et al., 2015); one step
  from a random point is the attack of ConAdv section 4.1. `direction="raw"`
  is the update that ConAdv prints in equations 3 and 5.

  Attributes:
    radius: of the ball, in 1/255 of the pixel range; 0 turns the attack off.
    steps: gradient computations, at least 1.
    step_size: in 1/255; None means `radius` for one step, else
      2.5 * radius / steps. With `direction="raw"` it multiplies the gradient
      with respect to an image whose range is 1.
    norm: "linf" or "l2"; for "l2" the radius bounds the whole image's norm.
    direction: "sign", "raw" or "l2" (the gradient over its norm).
    random_start: probability, for each virtual replica's batch, of starting
      at a uniform point of the ball; None means the method's default.
    target: "none" ascends the loss of the true labels; "random" descends
      that of a random other class. Read by the method.
    branch: whose batch normalisation the attack runs through, "adversarial"
      or "clean"; None means the method's default. Read by the method.
    mode: "batch" or "moving" statistics; never updated. None means the
      method's default. Read by the method.

  Raises:
    ValueError: if a value is outside its range.
  """

  radius: float = 4.0
  steps: int = 1
  step_size: float | None = None
  norm: str = ball.LINF
  direction: str = "sign"
  random_start: float | None = None
  target: str = "none"
  branch: str | None = None
  mode: str | None = None

  def __post_init__(self) -> None:
    if not self.radius >= 0:
      raise ValueError(f"attack radius must be >= 0, got {self.radius}")
    if self.steps < 1:
      raise ValueError(f"attack steps must be >= 1, got {self.steps}")
    if self.step_size is not None and not self.step_size >= 0:
      raise ValueError(f"attack step_size must be >= 0, got {self.step_size}")
    if self.random_start is not None and not 0 <= self.random_start <= 1:
      raise ValueError("attack random_start is a probability, got "
                       f"{self.random_start}")
    for name, allowed in (("norm", (ball.LINF, ball.L2)),
                          ("direction", ("sign", "raw", "l2")),
                          ("target", ("none", "random")),
                          ("branch", (None, "adversarial", "clean")),
                          ("mode", (None, "batch", "moving"))):
      if getattr(self, name) not in allowed:
        raise ValueError(f"attack {name} must be one of {allowed}, got "
                         f"{getattr(self, name)!r}")

  @property
  def resolved_step_size(self) -> float:
    """The step size in 1/255, with the default filled in."""
    if self.step_size is not None:
      return self.step_size
    return self.radius if self.steps == 1 else 2.5 * self.radius / self.steps

  def __call__(self, loss_of_x: LossOfX, x: tf.Tensor, key: randomness.Key,
               pixel_range: tuple[float, float] = (0.0, 1.0)) -> tf.Tensor:
    """Moves `x` up the loss, inside the ball and the pixel range.

    Args:
      loss_of_x: maps a tensor like `x` to a float32 scalar. It should be a
        sum over examples: a mean over a large batch underflows in float16.
      x: float32 [b, ...].
      key: int32 [2], for the random start.
      pixel_range: smallest and largest value of a pixel; its width / 255 is
        the unit of radius and step size.

    Returns:
      float32 [b, ...], without gradient. Exactly `x` if the radius is 0.
    """
    if self.radius == 0:
      return tf.stop_gradient(x)

    def ascend(current: tf.Tensor) -> tf.Tensor:
      with tf.GradientTape() as tape:
        tape.watch(current)
        loss = loss_of_x(current)
      gradient = tape.gradient(loss, current)
      return self.move(x, current, gradient, pixel_range)

    current = self.start(x, key, pixel_range)
    if self.steps == 1:
      return tf.stop_gradient(ascend(current))
    counted = tf.while_loop(
        lambda step, _: step < self.steps,
        lambda step, current: (step + 1, ascend(current)),
        (tf.constant(0), current), maximum_iterations=self.steps)
    return tf.stop_gradient(counted[1])

  def move(self, x: tf.Tensor, current: tf.Tensor, gradient: tf.Tensor,
           pixel_range: tuple[float, float]) -> tf.Tensor:
    """One step from `current` up a gradient, back into ball and pixel range.

    Args:
      x: float32 [b, ...], the ball's centre.
      current: float32 [b, ...], inside the ball.
      gradient: float32 [b, ...], of the summed loss.
      pixel_range: smallest and largest value of a pixel.

    Returns:
      float32 [b, ...].
    """
    low, high = pixel_range
    unit = ball.unit(pixel_range)
    step_size = self.resolved_step_size * unit
    if self.direction == "raw":
      # d loss / d (x / width) = width * d loss / d x, for any pixel range.
      step_size *= high - low
    moved = current + step_size * ball.direction(gradient, self.direction)
    inside = x + ball.project(moved - x, self.radius * unit, self.norm)
    return tf.clip_by_value(inside, low, high)

  def start(self, x: tf.Tensor, key: randomness.Key,
            pixel_range: tuple[float, float]) -> tf.Tensor:
    """Where the ascent begins: `x`, or a random point of the ball around it.

    Args:
      x: float32 [b, ...].
      key: int32 [2].
      pixel_range: smallest and largest value of a pixel.
    """
    probability = self.random_start or 0.0
    if probability == 0:
      return x
    noise = self.noise(randomness.fold(key, 0), x, pixel_range)
    if probability < 1:
      chosen = randomness.uniform(randomness.fold(key, 1), []) < probability
      noise = tf.where(chosen, noise, tf.zeros_like(noise))
    return tf.clip_by_value(x + noise, *pixel_range)

  def noise(self, key: randomness.Key, like: tf.Tensor,
            pixel_range: tuple[float, float]) -> tf.Tensor:
    """A random point of the ball, float32 like `like` [b, ...]."""
    return ball.random_point(
        key, like, self.radius * ball.unit(pixel_range), self.norm)


@dataclasses.dataclass(frozen=True)
class PgdFromNoise(Pgd):
  """`Pgd` whose random start is normal noise, projected into the ball.

  Attributes:
    start_std: of the noise, in 1/255; TRADES has 0.255, of images in 0..1
      0.001.
  """

  start_std: float = 0.255

  def noise(self, key: randomness.Key, like: tf.Tensor,
            pixel_range: tuple[float, float]) -> tf.Tensor:
    """Normal noise, float32 like `like` [b, ...]."""
    unit = ball.unit(pixel_range)
    return ball.project(
        self.start_std * unit * randomness.normal(key, tf.shape(like)),
        self.radius * unit, self.norm)
