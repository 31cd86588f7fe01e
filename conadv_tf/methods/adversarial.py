"""What methods that train on clean and adversarial images have in common."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import tensorflow as tf

from conadv_tf.attacks import compact
from conadv_tf.attacks import gradient as gradient_attacks
from conadv_tf.layers import routing
from conadv_tf.methods import method, passes


class AdversarialMethod(method.Method):
  """Options of training on a batch and its adversarial copy.

  Attributes:
    adversarial_fraction: r; the first round(r * b) rows of each virtual
      replica get an adversarial copy.
    adversarial_weight: w in (1 - w) * clean + w * adversarial loss.
    bn_branches: 2 splits batch normalisation; 1 normalises clean and
      adversarial rows together, once; 3 trains on an augmented view of the
      batch (`Batch.augmented`) as well, through statistics of its own.
    attack_every: k; every k-th batch is attacked, those between take the
      sign of the last perturbation, row by row, at full size.
    rebalance_branch_gradients: divides the gradients of each branch's own
      gamma and beta by the branch's share of the loss.
  """

  attacks = True
  longest_chain = 4.0  # the attack, then the training pass
  terms = ("loss", "clean_loss", "adversarial_loss", "adversarial_accuracy",
           "perturbation_linf", "perturbation_l2")

  def __init__(self, *, adversarial_fraction: float = 1.0,
               adversarial_weight: float | None = None, bn_branches: int = 2,
               attack_every: int = 1,
               rebalance_branch_gradients: bool = False):
    """Checks and keeps the options.

    Args:
      adversarial_fraction: in (0, 1].
      adversarial_weight: in [0, 1]; None weighs all streams alike: 1/2, and
        1/3 with three branches, whose augmented and clean rows share 1 - w.
      bn_branches: 1, 2 or 3.
      attack_every: at least 1; more needs a signed attack in an linf ball.
      rebalance_branch_gradients: needs split statistics and 0 < w < 1.

    Raises:
      ValueError: if an option is outside its range.
    """
    if not 0 < adversarial_fraction <= 1:
      raise ValueError("adversarial_fraction must be in (0, 1], got "
                       f"{adversarial_fraction}")
    if adversarial_weight is None:
      adversarial_weight = 1 / 3 if bn_branches == 3 else 1 / 2
    if not 0 <= adversarial_weight <= 1:
      raise ValueError("adversarial_weight must be in [0, 1], got "
                       f"{adversarial_weight}")
    if rebalance_branch_gradients and (
        bn_branches == 1 or adversarial_weight in (0, 1)):
      raise ValueError("rebalance_branch_gradients needs bn_branches=2 or 3 "
                       "and 0 < adversarial_weight < 1")
    if bn_branches not in routing.BRANCHES:
      raise ValueError(f"bn_branches must be 1, 2 or 3, got {bn_branches}")
    if attack_every < 1:
      raise ValueError(f"attack_every must be at least 1, got {attack_every}")
    self.attack_every = attack_every
    self.adversarial_fraction = adversarial_fraction
    self.adversarial_weight = adversarial_weight
    self.bn_branches = bn_branches
    self.rebalance_branch_gradients = rebalance_branch_gradients
    self.branches = routing.BRANCHES[bn_branches]
    self.augments = bn_branches == 3
    self.passes_per_step = (
        3.0 * (1 + self.augments)
        + (3.0 + 2.0 / attack_every) * adversarial_fraction)
    if self.augments:
      self.terms += ("augmented_loss",)

  def segments(self, rows: int) -> routing.Segments:
    """Clean rows, augmented ones, then adversarial copies."""
    copies = self.adversarial_rows(rows)
    if self.bn_branches == 1:
      return ((routing.CLEAN, rows + copies),)
    augmented = ((routing.AUGMENTED, rows),) if self.augments else ()
    return ((routing.CLEAN, rows), *augmented, (routing.ADVERSARIAL, copies))

  def adversarial_rows(self, rows: int) -> int:
    """How many of `rows` get an adversarial copy."""
    return passes.adversarial_rows(rows, self.adversarial_fraction)

  def default_attack(self, attack: gradient_attacks.Pgd
                     ) -> gradient_attacks.Pgd:
    """Adversarial branch, batch statistics, random start (section 4.1).

    Raises:
      ValueError: for an attack that the method cannot use.
    """
    if self.attack_every > 1 and (attack.norm, attack.direction) != (
        "linf", "sign"):
      raise ValueError(
          f"attack_every={self.attack_every} takes the sign of the last "
          "perturbation: it needs attack.norm=linf and attack.direction=sign")
    return dataclasses.replace(
        attack,
        branch=attack.branch or routing.ADVERSARIAL,
        mode=attack.mode or "batch",
        random_start=(1.0 if attack.random_start is None
                      else attack.random_start))

  def make_perturbation(self, ctx: method.Context, batch: method.Batch,
                        held: Any) -> tf.Tensor:
    """Attacks the received batch's first rows, every `attack_every` batches.

    Args:
      ctx: the context.
      batch: as received.
      held: with the last perturbation, where not every batch is attacked.
    """
    rows = self.adversarial_rows(batch.image.shape[0])
    if self.attack_every == 1:
      return passes.make_perturbation(ctx, batch, rows)
    return tf.cond(
        tf.equal((ctx.batch_index - ctx.first) % self.attack_every, 0),
        lambda: passes.make_perturbation(ctx, batch, rows),
        lambda: compact.sign(held.perturbation))

  def attack_then_train(self, ctx: method.Context, batch: method.Batch,
                        held: Any) -> method.StepResult:
    """Attacks the received batch and trains on the pair."""
    pair = method.Held(batch, self.make_perturbation(ctx, batch, held))
    return self.train_on_pair(ctx, batch, pair)._replace(held=pair)

  def held_spec(self, batch: method.Batch,
                attack: gradient_attacks.Pgd) -> method.Held:
    """A batch as it came and its perturbation, one or two bytes a pixel."""
    rows = self.adversarial_rows(batch.image.shape[0])
    return method.Held(batch, tf.TensorSpec(
        [rows] + batch.image.shape[1:], compact.dtype(attack)))

  def prime(self, ctx: method.Context, batch: method.Batch,
            held: Any) -> method.Held:
    """A batch and its perturbation; at first x_hat_0, made with theta_0."""
    return method.Held(batch, self.make_perturbation(ctx, batch, held))

  def train_on_pair(self, ctx: method.Context, batch: method.Batch,
                    attacked: method.Held) -> method.StepResult:
    """One gradient on a clean batch and on an attacked one.

    Args:
      ctx: the context.
      batch: the clean examples.
      attacked: the same batch or another, with its perturbation.
    """
    streams = self.streams(ctx, batch, attacked)
    run = passes.train(ctx, streams, self.segments(batch.image.shape[0]))
    return self.result(ctx, batch, attacked, streams, run)

  def streams(self, ctx: method.Context, batch: method.Batch,
              attacked: method.Held) -> list[passes.Stream]:
    """Clean and augmented rows, then adversarial ones."""
    image = passes.perturbed(ctx, attacked.batch, attacked.perturbation)
    share = 1.0 - self.adversarial_weight
    adversarial = passes.adversarial_stream(
        attacked.batch, image, self.adversarial_weight)
    if self.lookback:  # in the first update nothing is held
      share = tf.where(ctx.ready, share, 1.0)
      # Weight 0 does not silence an image of zeros that makes NaN.
      image = tf.where(ctx.ready, image, passes.as_float(
          batch.image[:image.shape[0]]))
      adversarial = adversarial._replace(
          image=image,
          weight=adversarial.weight * tf.cast(ctx.ready, tf.float32))
    return [*passes.natural_streams(batch, share), adversarial]

  def result(self, ctx: method.Context, batch: method.Batch,
             attacked: method.Held, streams: Sequence[passes.Stream],
             run: passes.Pass) -> method.StepResult:
    """What a step returns of its training pass, with nothing held."""
    terms = {**run.terms, **passes.perturbation_terms(
        ctx, attacked.batch, streams[-1])}
    gradients = run.gradients
    if self.rebalance_branch_gradients:
      share = dict(zip(self.branches, (stream.share for stream in streams)))
      gradients = [
          g if branch is None else g / share[branch] for g, branch in zip(
              gradients, ctx.network.trainable_branches())]
    return method.StepResult(
        gradients, run.statistics, (), terms, run.outputs, batch)
