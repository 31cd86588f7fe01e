"""Recycled adversaries: the training pass pays for the attack."""

import dataclasses
from typing import Any

import tensorflow as tf

from conadv_tf.attacks import compact
from conadv_tf.attacks import gradient as gradient_attacks
from conadv_tf.layers import routing
from conadv_tf.methods import adversarial, method, passes


class Recycled(adversarial.AdversarialMethod):
  """ConAdv without an attack pass.

  The clean half of the training pass on B_t computes a gradient that is one
  small operation away from its images. That gradient makes the adversary of
  B_t; there is no other attack.

  * lag 0: the adversary of B_t is trained on in the same update, in a second
    pass. Work is saved by reuse; two passes run one after another.
  * lag 1: it is held and trained on in the next update, beside the clean
    B_{t+1}. One pass; reuse and staleness.

  This is of this project: no paper has it for large batches. A pipelined
  FreeAdv with split batch normalisation. Relatives:

  | | what it reuses |
  |---|---|
  | FreeAdv, Shafahi et al. 2019 | both gradients, on the same batch m times |
  | YOPO, Zhang et al. 2019 | the gradient to the first layer's output |
  | FreeLB, Zhu et al. 2020 | the attack's weight gradients, accumulated |
  | Fast AdvProp, Mei et al. 2022 | the attack's weight gradient |

  Work: 6 F a step against ConAdv's 8 F: forward and backward on twice the
  rows, and the first layer's gradient to its input. Longest chain: 4 F at
  lag 0, 2 F at lag 1. With fraction r, 3 F + 3 r F.
  Memory, lag 1: one batch as it came and its perturbation.

  Lag 1 equals `ConAdv(lag=1, pairing="next_batch")`, lag 0 equals `DisAdv`,
  with the attack through the clean branch, batch statistics, no random start
  and no target, for a network without dropout and adversarial_fraction 1:
  with less the gradient goes through statistics of all rows, an attack's
  through those of the rows that it is for. Compared with the paper's
  ConAdv it changes, each with a knob there: whose statistics the gradient
  goes through (`attack.branch`), the start (`attack.random_start`; at equal
  radius a start at zero gives perturbations a third larger), and at lag 1
  which batches meet in an update (`pairing`). The gradient is that of its
  training pass: with dropout masks, and with activity regularisers.

  A random start means here: noise is added to the image before the step, and
  the step takes the gradient at the image without noise, since that is the
  gradient there is. It does not mean the attack of ConAdv's section 4.1.

  Deviations: the first update of lag 1 has no adversary: the clean loss
  counts in full and the auxiliary statistics stay as they are. With
  `bn_branches=1`, at lag 0 alone, gamma, beta and moving statistics are
  shared, but the clean pass comes before there are adversarial rows: each
  pass is normalised by its own rows, and the moving statistics take the mean
  of both, as of any layer that is called twice.
  """

  recycles = True
  training_pass = "separate"

  def __init__(self, lag: int = 1, **options: Any):
    """Makes the method.

    Args:
      lag: updates between making an adversary and training on it, 0 or 1.
      **options: of `AdversarialMethod`.

    Raises:
      ValueError: if an option is outside its range.
    """
    super().__init__(**options)
    if lag not in (0, 1):
      raise ValueError(f"recycled adversaries have lag 0 or 1, got {lag}")
    if self.bn_branches == 1 and lag:
      raise ValueError(
          f"recycled adversaries of lag {lag} need bn_branches=2 or 3: with "
          "shared statistics the gradient of clean images depends on the "
          "others")
    if self.attack_every > 1:
      raise ValueError("recycled adversaries cost no attack: attack_every has "
                       f"nothing to leave out, got {self.attack_every}")
    if self.adversarial_weight == 1:
      raise ValueError("recycled adversaries need adversarial_weight below 1: "
                       "without a clean loss there is nothing to recycle")
    self.lag = self.lookback = lag
    self.passes_per_step = 3.0 * (1 + self.augments + self.adversarial_fraction)
    self.longest_chain = 2.0 if lag else 4.0

  def segments(self, rows: int) -> routing.Segments:
    """As of any adversarial method; each pass has a segment of its own."""
    if self.bn_branches == 1:
      return ((routing.CLEAN, rows),
              (routing.CLEAN, self.adversarial_rows(rows)))
    return super().segments(rows)

  def default_attack(self, attack: gradient_attacks.Pgd
                     ) -> gradient_attacks.Pgd:
    """Clean branch, no random start.

    Raises:
      ValueError: for an attack that needs a pass of its own.
    """
    for name, value, reason in (
        ("target", "random", "their loss is that of the true labels"),
        ("mode", "moving", "they come from a training pass"),
        ("branch", routing.ADVERSARIAL, "they come from the clean rows")):
      if getattr(attack, name) == value:
        raise ValueError(f"attack.{name}={value} cannot make recycled "
                         f"adversaries: {reason}; leave it out")
    if attack.steps > 1:
      raise ValueError(
          f"attack.steps={attack.steps} cannot make recycled adversaries: "
          "there is one gradient; set attack.steps=1")
    return dataclasses.replace(
        attack, branch=routing.CLEAN, random_start=attack.random_start or 0.0)

  def prime(self, ctx: method.Context, batch: method.Batch,
            held: Any) -> method.Held:
    """The adversary that the batch's own update has made."""
    return self.step(ctx, batch, held).held

  def step(self, ctx: method.Context, batch: method.Batch,
           held: Any) -> method.StepResult:
    """One gradient on clean B_t and, at lag 1, on the adversary of B_{t-1}."""
    if not self.lag:
      return self._in_the_same_update(ctx, batch)
    streams = self.streams(ctx, batch, held)
    run = passes.train(ctx, streams, self.segments(batch.image.shape[0]),
                       to_images=True)
    perturbation = self._recycle(ctx, batch, run.image_gradient)
    return self.result(ctx, batch, held, streams, run)._replace(
        held=method.Held(batch, perturbation))

  def _in_the_same_update(self, ctx: method.Context,
                          batch: method.Batch) -> method.StepResult:
    """A pass on clean B_t, then one on its adversary; their sum."""
    segments = self.segments(batch.image.shape[0])
    total = sum(rows for _, rows in segments)
    copies = segments[-1][1]
    natural = passes.natural_streams(batch, 1.0 - self.adversarial_weight)
    first = passes.train(ctx, natural, segments[:-1], to_images=True,
                         regularisation=1.0 - copies / total)
    attacked = method.Held(
        batch, self._recycle(ctx, batch, first.image_gradient))
    streams = self.streams(ctx, batch, attacked)
    second = passes.train(ctx, streams[-1:], segments[-1:],
                          regularisation=copies / total)
    (loss, count), (more, _) = first.terms["loss"], second.terms["loss"]
    statistics = (
        (first.statistics + second.statistics) / 2.0 if self.bn_branches == 1
        else tf.concat([first.statistics, second.statistics], axis=0))
    return self.result(ctx, batch, attacked, streams, passes.Pass(
        [a + b for a, b in zip(first.gradients, second.gradients)], statistics,
        {**first.terms, **second.terms, "loss": (loss + more, count)},
        first.outputs, ()))

  def _recycle(self, ctx: method.Context, batch: method.Batch,
               gradient: tf.Tensor) -> tf.Tensor:
    """The perturbation of a batch's first rows from their gradient."""
    rows = self.adversarial_rows(batch.image.shape[0])
    attack, image = ctx.attack, passes.as_float(batch.image[:rows])
    with tf.name_scope("attack"):
      start = attack.start(image, passes.noise_key(ctx), ctx.pixel_range)
      # A loss scale that is too large yet makes no adversary.
      known = tf.where(tf.math.is_finite(gradient[:rows]), gradient[:rows], 0.0)
      moved = attack.move(image, start, tf.stop_gradient(known),
                          ctx.pixel_range)
      return compact.encode(attack, moved, image, ctx.pixel_range)
