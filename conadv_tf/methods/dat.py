"""DAT: distributed adversarial training on worst-case losses."""

import dataclasses
from typing import Any

import tensorflow as tf

from conadv_tf.attacks import compact
from conadv_tf.attacks import gradient as gradient_attacks
from conadv_tf.layers import routing
from conadv_tf.methods import method, passes
from conadv_tf.objectives import per_example

CROSS_ENTROPY = "cross_entropy"
TRADES = "trades"


class Dat(method.Method):
  r"""Distributed adversarial training.

  Paper: Zhang, Lu, Zhang, Chen, Chen, Fan, Martie, Horesh, Hong, Liu,
  Distributed Adversarial Training to Robustify Deep Neural Networks at Scale,
  UAI 2022; equation 2, Algorithm A1, lines 4 to 6.

  | paper                     | here                                        |
  |---------------------------|---------------------------------------------|
  | worker i, B_t^(i)         | a virtual replica, `batch`                  |
  | lambda                    | `clean_weight`                              |
  | phi                       | `regularizer`                               |
  | oracle (A1), PGD or FGSM  | `ctx.attack`, `attack.steps` > 1 or 1       |
  | epsilon                   | `attack.radius`                             |
  | g_t^(i) (A2)              | `StepResult.gradients`                      |
  | Q (A3), the optimizer (A4)| of the trainer, not of the method           |

  phi is the training loss at the adversarial image ("cross_entropy"), or
  `trades_weight` * KL(clean || adversarial) of the outputs ("trades", Zhang
  et al., 2019), which the attack ascends as well, with the clean outputs as
  constants, and which the training pass differentiates to both.

  The paper's DAT, AT and Fast AT have lambda 0: every row is adversarial, and
  no clean pass is in the graph but TRADES' own. The metrics of `compile` are
  then those of adversarial images.

  Means: every one is over all rows of the batch. A row without a label
  (class -1) adds 0 to the clean loss and to a cross-entropy phi, but counts
  in their denominators, so that an update is the same whichever virtual
  replica it falls to; it counts fully in TRADES' phi. In terms and metrics
  losses and accuracies are means over labelled rows.

  `lag` is in no paper: adversaries of weights max(0, t - lag), held by
  `execution="concurrent"` for one update beside which the next batch is
  attacked, or made and used at once from a copy ("sequential"), as in ConAdv.
  Both give the same weights; lag 0 is DAT.

  Work: attack 2 k F for k steps (TRADES: 1 F more), training pass 3 F, and
  3 F more for clean rows (lambda > 0, TRADES). Longest chain: attack and then
  2 F; concurrent: the longer one of both. Memory: concurrent, a batch with
  its perturbation and lag - 1 weight sets; sequential, lag weight sets.
  Degenerates to plain training at radius 0 and lambda 0; with lambda 1 it is
  DisAdv with `bn_branches=1`, times 2.

  Theory: Theorem 2 bounds the gradient's norm with kappa = c_u / c_l and
  1 / c_l, the clip of the layer-wise rates. The paper uses c_l = 0, where
  both are infinite: the bound says nothing about the settings that were run.
  The term of the batch, (1 + lambda) sigma^2 / (M B), does hold of what is
  here: the variance of the update's gradient falls as 1 / (M B).

  Deviations. Clean and adversarial rows are normalised together (as with
  `bn_branches=1`); the released code takes them through one after the other,
  in two training passes, each with its own batch statistics. FGSM's attack
  goes through batch statistics, PGD's through moving ones, as released
  (`attack.mode`), but here no attack moves a statistic: in the released code
  FGSM's does. Released PGD clips to the pixels and then to the ball, ours to
  the ball and then to the pixels: the same set. TRADES' start is projected
  into the ball and clipped to the pixels. Not the paper's: data are shuffled
  over all workers, not in fixed shards.
  """

  attacks = True

  def __init__(self, *, clean_weight: float = 0.0,
               regularizer: str = CROSS_ENTROPY, trades_weight: float = 6.0,
               trades_start_std: float = 0.255, lag: int = 0,
               execution: str = method.CONCURRENT):
    """Makes the method.

    Args:
      clean_weight: lambda, at least 0; the paper's is 0, the released code's
        1 for PGD and 0 for FGSM.
      regularizer: phi, "cross_entropy" or "trades", which needs logits and
        lambda above 0.
      trades_weight: beta, at least 0.
      trades_start_std: of the normal noise that TRADES' attack starts from,
        in 1/255; 0 leaves the start to the attack.
      lag: age of the attack's weights, in updates.
      execution: "concurrent" or "sequential", where lag is at least 1.

    Raises:
      ValueError: if an option is outside its range.
    """
    for name, value in (("clean_weight", clean_weight),
                        ("trades_weight", trades_weight),
                        ("trades_start_std", trades_start_std)):
      method.check_weight(name, value)
    method.check_choice("regularizer", regularizer, CROSS_ENTROPY, TRADES)
    method.check_choice(
        "execution", execution, method.CONCURRENT, method.SEQUENTIAL)
    method.check_count("lag", lag)
    if regularizer == TRADES and not clean_weight:
      raise ValueError("clean_weight must be above 0 with regularizer "
                       "'trades': without labels constant outputs are best")
    self.clean_weight, self.regularizer = clean_weight, regularizer
    self.trades_weight = trades_weight
    self.trades_start_std = trades_start_std
    self.lag = lag
    self.lookahead = int(lag >= 1 and execution == method.CONCURRENT)
    self.lagged_copies = lag - self.lookahead
    self._phi = per_example.kl_divergence if regularizer == TRADES else None
    self.terms = ("loss", "adversarial_loss", "adversarial_accuracy",
                  "perturbation_linf", "perturbation_l2")
    self.terms += ("clean_loss",) * bool(clean_weight)
    self.terms += ("trades_loss",) * bool(self._phi)
    self.passes_per_step, self.longest_chain = self.passes(
        gradient_attacks.Pgd())

  def passes(self, attack: gradient_attacks.Pgd) -> tuple[float, float]:
    """Forward passes F of a step, and of those in a row, with an attack."""
    attacking = 2.0 * attack.steps + bool(self._phi)
    training = 6.0 if self.clean_weight else 3.0
    chain = max(attacking, 2.0) if self.lookahead else attacking + 2.0
    return attacking + training, chain

  def segments(self, rows: int) -> routing.Segments:
    """Clean rows, where there are any, and adversarial ones, in one."""
    return ((routing.CLEAN, 2 * rows if self.clean_weight else rows),)

  def default_attack(self, attack: gradient_attacks.Pgd
                     ) -> gradient_attacks.Pgd:
    """Random start; one step through batch statistics, more through moving.

    Raises:
      ValueError: for an attack that the regulariser cannot use.
    """
    attack = dataclasses.replace(
        attack, branch=routing.CLEAN,
        mode=attack.mode or ("batch" if attack.steps == 1 else "moving"),
        random_start=(1.0 if attack.random_start is None
                      else attack.random_start))
    if not self._phi:
      return attack
    if attack.target != "none":
      raise ValueError("regularizer='trades' has no classes that "
                       f"attack.target={attack.target} could be of")
    if not self.trades_start_std:
      return attack
    return gradient_attacks.PgdFromNoise(**{
        **dataclasses.asdict(attack), "random_start": 1.0,
        "start_std": self.trades_start_std})

  def held_spec(self, batch: method.Batch,
                attack: gradient_attacks.Pgd) -> method.Held:
    """A batch as it came and its perturbation, one or two bytes a pixel."""
    return method.Held(
        batch, tf.TensorSpec(batch.image.shape, compact.dtype(attack)))

  def prime(self, ctx: method.Context, batch: method.Batch,
            held: Any) -> method.Held:
    """The first batch, attacked with the first weights."""
    del held
    return self._attacked(ctx, batch)

  def step(self, ctx: method.Context, batch: method.Batch,
           held: Any) -> method.StepResult:
    """Algorithm A1, one worker i, one iteration t."""
    if not self.lookahead:
      return self._train(ctx, self._attacked(ctx, batch))
    # The gradient at theta_t on B_t; meanwhile the adversary of B_{t+1}.
    result = self._train(ctx, held)
    return result._replace(held=self._attacked(ctx, batch))

  def _attacked(self, ctx: method.Context,
                batch: method.Batch) -> method.Held:
    """The oracle (A1) on every example."""
    known = batch if self._phi else _labelled(batch)
    return method.Held(batch, passes.make_perturbation(
        ctx, known, batch.image.shape[0], self._phi))

  def _train(self, ctx: method.Context,
             attacked: method.Held) -> method.StepResult:
    """The gradient (A2)."""
    batch, known = attacked.batch, _labelled(attacked.batch)
    total = tf.reduce_sum(batch.weight)
    share = tf.math.divide_no_nan(tf.reduce_sum(known.weight), total)
    image = passes.perturbed(ctx, batch, attacked.perturbation)
    streams = (passes.natural_streams(known, self.clean_weight * share)
               if self.clean_weight else [])
    streams.append(passes.adversarial_stream(
        known, image, 0.0 if self._phi else share))
    coupling = passes.Coupling(
        "trades_loss", self._phi, batch.weight, self.trades_weight
        ) if self._phi else None
    run = passes.train(ctx, streams, self.segments(batch.image.shape[0]),
                       coupling=coupling)
    terms = {**run.terms, "loss": (run.terms["loss"][0], total),
             **passes.perturbation_terms(ctx, batch, streams[-1])}
    return method.StepResult(
        run.gradients, run.statistics, (), terms, run.outputs,
        batch._replace(label=known.label), known.weight)


def _labelled(batch: method.Batch) -> method.Batch:
  """The batch with a weight of 0, and some class, where there is no label."""
  is_labelled = per_example.is_labelled(batch.label)
  label = batch.label
  if label.dtype.is_integer:
    label = tf.maximum(label, tf.zeros([], label.dtype))
  return batch._replace(label=label, weight=batch.weight * is_labelled)
