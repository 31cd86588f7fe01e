"""ABS and ABSA: the batch size follows the curvature."""

import dataclasses
from typing import Any

import tensorflow as tf

from conadv_tf.attacks import gradient as gradient_attacks
from conadv_tf.layers import routing
from conadv_tf.methods import growth, method, passes

PAPER = "paper"
RELEASED = "released"


class Controller(growth.Growth):
  r"""Algorithm 1: when the batch grows, and how many rows are adversarial.

  Paper: Yao, Gholami, Arfeen, Liaw, Gonzalez, Keutzer, Mahoney, Large Batch
  Size Training of Neural Networks with Adversarial Training and Second-Order
  Information, 2018; Algorithm 1.

  | paper                  | here                    | configuration          |
  |------------------------|-------------------------|------------------------|
  | B, B_min               | one initial batch       | data.global_batch_size |
  | B_max / B_min          | `max_ratio`             | growth.max_batch_size  |
  | beta                   | `beta`                  | growth.factor          |
  | alpha                  | `alpha`                 | growth.decrease        |
  | kappa                  | `kappa`, in evaluations | growth.patience        |
  | n, samples             | of the driver           | curvature.every_samples|
  | gamma                  | `gamma`                 | method.gamma           |
  | omega                  | `omega`                 | method.gamma_decay     |
  | tau, a step            | `vanishes`, a position  | method.gamma_epochs    |
  | A, rho                 | of the schedule         | schedule.boundaries    |
  | epsilon_adv            | of the attack           | attack.radius          |
  | Eig, Duration Time     | `reference`, `duration` |                        |

  Silent in the paper: the first eigenvalue, which only becomes the reference;
  what "change lr" means, here the noise scale stays, so that the rate grows
  as the batch does, with the last step to B_max too. Algorithm 1 prints 2 for
  alpha and for omega. `gamma_rule="released"` does what the released code
  does: gamma shrinks with every growth, also that of line 17, and is 0 at
  B_max. That code differs in two more points: it counts the first evaluation
  into kappa, and an eigenvalue of exactly Eig / alpha grows the batch.

  The eigenvalue is signed: a negative one is below half of any positive
  reference, and in turn a reference that only lower ones undercut.
  """

  state_names = (*growth.Growth.state_names, "reference", "duration")

  def __init__(self, max_ratio: int, *, beta: int = 2, alpha: float = 2.0,
               kappa: int = 10, gamma: float = 0.0, omega: float = 2.0,
               vanishes: int | None = None, gamma_rule: str = PAPER):
    """Starts without a reference.

    Args:
      max_ratio: largest batch over the initial one.
      beta: growth of the batch, at least 2.
      alpha: fall of the eigenvalue, above 1.
      kappa: evaluations without such a fall, at least 1.
      gamma: initial share of adversarial rows, in [0, 1]; 0 is ABS.
      omega: fall of gamma, at least 1.
      vanishes: position from which gamma is 0; None means never.
      gamma_rule: "paper" or "released".

    Raises:
      ValueError: if an argument is out of range.
    """
    super().__init__(max_ratio, gamma, vanishes)
    for name, value, legal, text in (
        ("beta", beta, beta >= 2, "at least 2"),
        ("alpha", alpha, alpha > 1, "above 1"),
        ("kappa", kappa, kappa >= 1, "at least 1"),
        ("omega", omega, omega >= 1, "at least 1"),
        ("gamma_rule", gamma_rule, gamma_rule in (PAPER, RELEASED),
         f"{PAPER} or {RELEASED}")):
      if not legal:
        raise ValueError(f"{name} must be {text}, got {value}")
    self._beta, self._alpha, self._kappa = beta, alpha, kappa
    self._omega, self._is_released = omega, gamma_rule == RELEASED
    self.reference: float | None = None
    self.duration = 0

  @property
  def measures(self) -> bool:
    """Whether the batch can still grow, or gamma fall."""
    return self.ratio < self.max_ratio or self.gamma > 0

  def measured(self, eigenvalue: float, left: int) -> None:
    """Lines 9 to 18 of Algorithm 1."""
    if self.reference is None:
      self.reference = eigenvalue
      return
    if eigenvalue < self.reference / self._alpha:
      self._grow(self._beta, left)
      self.gamma /= self._omega
      self.reference = eigenvalue
      self.duration = 0
    else:
      self.duration += 1
    if self.duration == self._kappa:
      self._grow(self._beta, left)
      self.duration = 0
      if self._is_released:
        self.gamma /= self._omega
    if self._is_released and self.ratio == self.max_ratio:
      self.gamma = 0.0


class Absa(method.Method):
  """ABSA's training step: some rows of every micro batch are adversarial.

  Paper: see `Controller`; Algorithm 1, lines 4 to 6. With gamma 0 it is plain
  training, and under the `Controller` ABS.

  | paper                | here                                              |
  |----------------------|---------------------------------------------------|
  | x[:B gamma]          | first int(gamma * b) rows of each virtual replica |
  | gamma                | `ctx.gamma`, which never exceeds `gamma`          |
  | adversarial, Delta x | the attack, FGSM by default                       |
  | epsilon_adv = 0.005  | `attack.radius=1.275`, in 1/255                   |

  Adversarial rows take the place of clean ones; all rows go through batch
  normalisation together. The attack goes through moving statistics
  (`attack.mode`), which it never moves.

  Work: 3 + 2 gamma F a step, longest chain 4 F, and no attack at all once
  gamma * b is below 1. Memory: `lag` weight sets; holds nothing.

  Deviations. The paper prints the raw gradient and names FGSM; the default is
  the sign, as released. Images are clipped to the pixel range, in the
  released code to the batch's extremes. `lag` is not in the paper: attacks
  through weights that are `lag` updates old, as ConAdv's sequential
  execution.
  """

  longest_chain = 4.0
  terms = ("loss", "mixed_loss")

  def __init__(self, gamma: float = 0.2, lag: int = 0):
    """Makes the method.

    Args:
      gamma: largest share of adversarial rows, in [0, 1].
      lag: age of the attack's weights, in updates.

    Raises:
      ValueError: if an argument is out of range.
    """
    if not 0 <= gamma <= 1:
      raise ValueError(f"gamma must be in [0, 1], got {gamma}")
    method.check_count("lag", lag)
    self.gamma = float(gamma)
    self.attacks = gamma > 0
    self.lag = self.lagged_copies = lag
    self.passes_per_step = 3.0 + 2.0 * gamma

  def default_attack(self, attack: gradient_attacks.Pgd
                     ) -> gradient_attacks.Pgd:
    """Moving statistics, no random start; there is one branch."""
    return dataclasses.replace(
        attack, branch=routing.CLEAN, mode=attack.mode or "moving",
        random_start=attack.random_start or 0.0)

  def step(self, ctx: method.Context, batch: method.Batch,
           held: Any) -> method.StepResult:
    """One gradient on a batch whose first rows are adversarial."""
    del held
    rows = batch.image.shape[0]
    image = passes.as_float(batch.image)
    attacked = int(self.gamma * rows)
    if attacked:
      image = _replaced(ctx, batch, image, attacked)
    run = passes.train(
        ctx, [passes.Stream("mixed", image, batch.label, batch.weight, 1.0)],
        self.segments(rows))
    return method.StepResult(run.gradients, run.statistics, (), run.terms,
                             run.outputs, batch)


def _replaced(ctx: method.Context, batch: method.Batch, image: tf.Tensor,
              most: int) -> tf.Tensor:
  """Makes the first rows adversarial, gamma * b of at most `most`.

  Shapes are those of the largest share, so that gamma may change without
  another trace.
  """
  first = image[:most]
  count = tf.cast(ctx.gamma * float(image.shape[0]), tf.int32)
  adversarial = tf.cond(
      count > 0, lambda: passes.adversarial_images(ctx, batch, most),
      lambda: first)
  is_adversarial = tf.reshape(
      tf.range(most) < count, [most] + [1] * (image.shape.rank - 1))
  return tf.concat(
      [tf.where(is_adversarial, adversarial, first), image[most:]], axis=0)
