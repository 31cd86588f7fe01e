"""Smooth-AT: training for a certificate by randomised smoothing."""

from collections.abc import Callable
import dataclasses
from typing import Any

import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.attacks import gradient as gradient_attacks
from conadv_tf.layers import routing
from conadv_tf.methods import method, passes


class SmoothAt(method.Method):
  r"""Attacks the smoothed classifier, trains on noisy copies of the adversary.

  Papers: Salman et al., Provably Robust Deep Learning via Adversarially
  Trained Smoothed Classifiers (NeurIPS 2019), section 2.2; Distributed
  Adversarial Training to Robustify Deep Neural Networks at Scale (DAT),
  section 6.2, "Adversarially trained smooth classifier".

  | paper                    | here                                         |
  |--------------------------|----------------------------------------------|
  | sigma                    | `sigma`, a share of the pixel range          |
  | m (Salman), N (DAT)      | `noise_copies`                               |
  | epsilon, T               | `attack.radius` in 1/255, `attack.steps`     |
  | J(x') = -log mean_i F_y  | `_smoothed_gradient`                         |
  | delta_i, drawn once      | keys (seed, batch, virtual replica, copy)    |

  Each image gets N noises, once: the attack climbs -log of the mean over them
  of the label's probability, in an l2 ball around the image and through
  moving statistics, and the same noises are added to what it finds. The loss
  is the mean cross entropy of the N copies. Noise is not clipped to pixels.

  The copies are taken one after another, in the attack and in training, each
  with batch statistics and dropout masks of its own, and noise is drawn again
  where it is needed: N costs time in proportion and no memory. A batch of b
  images is b images whatever N is; gradients and statistics are means over
  the copies, as over virtual replicas.

  Work: N (2 steps + 3) F a step, nearly all in a row. Holds nothing. With
  radius 0 it is Gaussian augmentation (Cohen et al., 2019), with N = 1 and
  sigma 0 as well plain training.

  Deviations. Where there are soft labels the label's probability is
  exp(-loss). An attack's step goes back into the ball and then into the pixel
  range, in the released code the other way round; both end inside both. That
  code makes N updates on N parts of a batch of N b copies; here they are one
  update, as DAT's larger batch is. Its rise of epsilon over the first 10
  epochs is left out. Its step size 2 epsilon / T is `attack.step_size`, not
  the default.
  """

  attacks = True
  terms = ("loss", "noisy_loss", "perturbation_linf", "perturbation_l2")

  def __init__(self, sigma: float = 0.25, noise_copies: int = 2):
    """Makes the method.

    Args:
      sigma: deviation of the noise in every pixel, a share of the pixel range
        (0.25 is 63.75 of 255), NOT in 1/255 as radii are; 0 means no noise.
      noise_copies: N, at least 1.

    Raises:
      ValueError: if an argument is out of range.
    """
    if not 0 <= sigma <= 1:
      raise ValueError(f"sigma must be in [0, 1], got {sigma}")
    if noise_copies < 1:
      raise ValueError(f"noise_copies must be at least 1, got {noise_copies}")
    self.sigma = float(sigma)
    self.noise_copies = noise_copies
    self.passes_per_step, self.longest_chain = self.passes(
        gradient_attacks.Pgd())

  def passes(self, attack: gradient_attacks.Pgd) -> tuple[float, float]:
    """Forward passes F of a step, and of those in a row, with an attack."""
    attacking = 2.0 * attack.steps if attack.radius else 0.0
    return (self.noise_copies * (attacking + 3.0),
            self.noise_copies * (attacking + 2.0))

  def default_attack(self, attack: gradient_attacks.Pgd
                     ) -> gradient_attacks.Pgd:
    """Clean branch, moving statistics, start at the image.

    Raises:
      ValueError: for an attack in another ball or through batch statistics.
    """
    if attack.radius:
      for name, legal, reason in (
          ("norm", "l2", "the certificate is in l2"),
          ("direction", "l2", "its steps have the length step_size in l2"),
          ("target", "none", "it climbs the loss of the true labels")):
        if getattr(attack, name) != legal:
          raise ValueError(
              f"attack.{name}={getattr(attack, name)} does not suit smooth_at: "
              f"{reason}; set attack.{name}={legal}")
    if attack.mode == "batch":
      raise ValueError(
          "attack.mode=batch does not suit smooth_at: copies are attacked one "
          "after another, each image by itself; leave it out")
    return dataclasses.replace(
        attack, branch=routing.CLEAN, mode="moving",
        random_start=attack.random_start or 0.0)

  def step(self, ctx: method.Context, batch: method.Batch,
           held: Any) -> method.StepResult:
    """One gradient, the mean over the noisy copies of the adversary."""
    del held
    image = _adversary(ctx, batch, self._noisy, self.noise_copies)

    def train(copy: tf.Tensor) -> passes.Pass:
      # A copy draws its dropout masks as a virtual replica of its own.
      own = dataclasses.replace(ctx, virtual_replica=(
          ctx.virtual_replica * self.noise_copies + copy))
      stream = passes.Stream("noisy", self._noisy(ctx, image, copy),
                             batch.label, batch.weight, 1.0)
      return passes.train(own, [stream], self.segments(batch.image.shape[0]))

    run = _mean(train, self.noise_copies)
    perturbation = passes.perturbation_terms(ctx, batch, passes.Stream(
        "noisy", image, batch.label, batch.weight, 1.0))
    return method.StepResult(
        run.gradients, run.statistics, (), {**run.terms, **perturbation},
        run.outputs, batch)

  def _noisy(self, ctx: method.Context, image: tf.Tensor, copy: tf.Tensor
             ) -> tf.Tensor:
    """`image` [b, h, w, c] with this batch's noise number `copy`."""
    if not self.sigma:
      return image
    low, high = ctx.pixel_range
    key = randomness.make_key(ctx.seed, randomness.SMOOTHING, ctx.batch_index,
                              ctx.virtual_replica, copy)
    return image + self.sigma * (high - low) * randomness.normal(
        key, image.shape)


def _adversary(ctx: method.Context, batch: method.Batch,
               noisy: Callable[..., tf.Tensor], copies: int) -> tf.Tensor:
  """The images after the attack on the smoothed network, float32."""
  attack, image = ctx.attack, passes.as_float(batch.image)
  if attack.radius == 0:
    return image

  def ascend(step: tf.Tensor, current: tf.Tensor
             ) -> tuple[tf.Tensor, tf.Tensor]:
    gradient = _smoothed_gradient(ctx, batch, current, noisy, copies)
    return step + 1, attack.move(image, current, gradient, ctx.pixel_range)

  with tf.name_scope("attack"):
    start = attack.start(image, passes.noise_key(ctx), ctx.pixel_range)
    _, found = tf.while_loop(
        lambda step, _: step < attack.steps, ascend, (tf.constant(0), start),
        parallel_iterations=1, maximum_iterations=attack.steps)
  return tf.stop_gradient(found)


def _smoothed_gradient(ctx: method.Context, batch: method.Batch,
                       image: tf.Tensor, noisy: Callable[..., tf.Tensor],
                       copies: int) -> tf.Tensor:
  r"""Gradient to the images of -log mean_i exp(-loss_i), summed over rows.

  It is sum_i w_i grad loss_i with w = softmax(-loss). With moving statistics
  rows do not meet, so that one backward pass gives every row's grad loss_i,
  and numerator and denominator add up copy by copy, relative to the smallest
  loss so far.

  Returns:
    float32 [b, h, w, c].
  """
  rows = image.shape[0]

  def add(copy: tf.Tensor, least: tf.Tensor, total: tf.Tensor,
          gradient: tf.Tensor) -> tuple[tf.Tensor, ...]:
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      tape.watch(image)
      outputs = ctx.attack_network.logits(
          noisy(ctx, image, copy), ((routing.CLEAN, rows),), routing.Mode.EVAL)
      losses = ctx.loss(batch.label, outputs)
      summed = tf.reduce_sum(losses * batch.weight)
    new = tf.minimum(least, losses)
    before, now = tf.exp(new - least), tf.exp(new - losses)
    shape = [rows] + [1] * (image.shape.rank - 1)
    return (copy + 1, new, before * total + now,
            tf.reshape(before, shape) * gradient
            + tf.reshape(now, shape) * tape.gradient(summed, image))

  _, _, total, gradient = tf.while_loop(
      lambda copy, *_: copy < copies, add,
      (tf.constant(0), tf.fill([rows], float("inf")), tf.zeros([rows]),
       tf.zeros_like(image)),
      parallel_iterations=1, maximum_iterations=copies)
  return gradient / tf.reshape(total, [rows] + [1] * (image.shape.rank - 1))


def _mean(train: Callable[[tf.Tensor], passes.Pass], copies: int
          ) -> passes.Pass:
  """Means over the copies' passes, one after another."""
  first = train(tf.constant(0))
  if copies == 1:
    return first

  def add(copy: tf.Tensor, total: passes.Pass) -> tuple[tf.Tensor, passes.Pass]:
    return copy + 1, tf.nest.map_structure(tf.add, total, train(copy))

  _, total = tf.while_loop(
      lambda copy, _: copy < copies, add, (tf.constant(1), first),
      parallel_iterations=1, maximum_iterations=copies - 1)
  return tf.nest.map_structure(lambda x: x / copies, total)
