"""ScaLA: perturbed word embeddings as a regulariser of large batches."""

from typing import Any

import tensorflow as tf

from conadv_tf.attacks import embeddings as embedding_attacks
from conadv_tf.attacks import gradient as gradient_attacks
from conadv_tf.layers import routing
from conadv_tf.methods import embedded, method, passes
from conadv_tf.objectives import per_example

OUTPUTS = "outputs"
LABELS = "labels"


class Scala(method.Method):
  r"""Scalable large-batch adversarial perturbation.

  Paper: Zhang et al., ScaLA: Accelerating Adaptation of Pre-Trained
  Transformer-Based Language Models via Efficient Large-Batch Adversarial
  Noise (arXiv 2201.12469); equation 1, section 3.1, Algorithm 1.

  | paper                       | here                                      |
  |-----------------------------|-------------------------------------------|
  | worker p, xi_p              | a virtual replica, `batch`                |
  | x_t, Phi                    | `ctx.network`                             |
  | gamma = Phi(x, xi_p)        | `_target`: outputs, constant to the attack|
  | y_0, rho, omega, PGA-T      | `perturbation` (start, step_size, radius, |
  |                             | steps)                                    |
  | r, KL_sym                   | `_distance`; squared error for regression |
  | lambda, t_s                 | `weight`, `delay` (updates)               |
  | nu, group-wise rates        | the optimizer, LAMB                       |

  The loss is f + lambda r: the clean pass of plain training, and r between
  its outputs and those at the perturbed word embeddings, before positions,
  types and layer norm are added; padding is not perturbed. r is
  KL(gamma || p) + KL(p || gamma), the first of each a constant, so that its
  gradients reach both passes. The attack ascends the same two terms with
  gamma alone a constant. Perturbations stay float32: 1e-5 is below what half
  precision resolves.

  `target="labels"`: the ablation GT. A one-hot gamma has an infinite KL, so
  f itself is ascended, and lambda weighs f at the perturbed embeddings.
  `steps=0`: y_0 as it is, the ablation "Gaussian noise".

  `delay`: updates before it are plain training, bit for bit and at its cost,
  but for one: concurrent, the last of them attacks for the next, and has a
  perturbed pass, of weight 0, which no term counts. The first of the others
  is number t_s * (updates of an epoch), rounded.

  `lag` is in no paper: perturbations of weights max(0, t - lag), by
  `execution` "concurrent" (held for one update beside which the next batch is
  attacked) or "sequential" (made and used at once, from a copy), as in
  ConAdv. Both give the same weights; lag 0 is ScaLA. The attack then has a
  clean pass of its own, for gamma.

  Work: training 6 F (clean and perturbed pass), attack 2 T F, and F more for
  gamma at a lag: PGA-1 has 8 F, plain training 3 F. Longest chain: 1 + 2 T
  + 2 F; concurrent, the longer one of 1 + 2 T F and 2 F. Memory: concurrent,
  a batch with its perturbation (float32 [b, L, d], d / 2 times the size of
  the tokens) and lag - 1 weight sets; sequential, lag weight sets.
  Degenerates to plain training at `weight` 0 or radius 0, which build no
  other pass.

  Theory: Theorem 2 prescribes batches of 16 T L^2 Z^2 / U^2, with L and U
  the clips of the layer-wise rates. L = 0, as used, makes that 0: the theorem
  says nothing of the settings that were run. Lemma 3 (PGA-T converges
  geometrically on strongly concave functions) does hold of `perturbation`,
  with its raw direction.

  Where the paper is silent: y_0 is normal noise of deviation 1e-5, as in the
  code of SMART, whose r it takes: from y_0 = 0 without dropout the gradient
  is exactly 0. The raw gradient that Algorithm 1 prints makes steps 1e4 to
  1e5 times smaller than omega; the default divides it by its largest size in
  each token, SMART's rule. Dropout masks are new in each pass, so r measures
  their noise too ("shared" does not). The optimizer is LAMB: rows without
  PGA-1 equal those of LAMB digit for digit.

  Deviations. Algorithm 1 mixes x_t and x_(t-1); here an update has one set of
  weights. It sums the workers' means over B; here the mean is over all
  examples. y_0 is not projected (nor is it in Algorithm 1), so with
  `steps=0` noise exceeds omega. Batch statistics of the perturbed pass, where
  a model has any, move nothing.
  """

  def __init__(self, perturbation: embedding_attacks.Perturbation | None = None,
               *, weight: float = 1.0, target: str = OUTPUTS, delay: int = 0,
               dropout_masks: str = embedded.INDEPENDENT, lag: int = 0,
               execution: str = method.CONCURRENT):
    """Makes the method.

    Args:
      perturbation: start, steps and ball; None is the paper's.
      weight: lambda, at least 0.
      target: gamma, the clean "outputs" or the "labels".
      delay: first update with a perturbation, from 0.
      dropout_masks: of an update's passes, "independent" or "shared".
      lag: age of the attack's weights, in updates.
      execution: "concurrent" or "sequential", where lag is at least 1.

    Raises:
      ValueError: if an option is outside its range.
    """
    method.check_weight("weight", weight)
    method.check_choice("target", target, OUTPUTS, LABELS)
    method.check_choice(
        "execution", execution, method.CONCURRENT, method.SEQUENTIAL)
    method.check_count("lag", lag)
    self.perturbation = perturbation or embedding_attacks.Perturbation()
    self.weight, self.target = weight, target
    self._shares_masks = embedded.check_masks(dropout_masks)
    self.perturbs = bool(weight and self.perturbation.radius)
    if not self.perturbs:
      return
    method.check_count("delay", delay)
    self.delay = delay
    if self.perturbation.steps:  # noise needs no weights
      self.lag = lag
      self.lookahead = int(lag >= 1 and execution == method.CONCURRENT)
      self.lagged_copies = lag - self.lookahead
    self.terms = ("loss", "clean_loss", "perturbed_loss", "perturbation_linf",
                  "perturbation_l2")
    steps = 2.0 * self.perturbation.steps
    target_passes = float(target == OUTPUTS and steps > 0)
    self.passes_per_step = 6.0 + steps + target_passes * bool(self.lag)
    attack = target_passes + steps
    self.longest_chain = (
        max(attack, 2.0) if self.lookahead else attack + 2.0)

  def held_spec(self, batch: method.Batch,
                attack: gradient_attacks.Pgd) -> method.Held:
    """A batch as it came and its perturbation, float32 [b, L, d]."""
    del attack
    return method.Held(batch, tf.TensorSpec(
        [*batch.image.shape[:2], self.embedding_width]))

  def prime(self, ctx: method.Context, batch: method.Batch,
            held: Any) -> method.Held:
    """The first batch, perturbed with the first weights."""
    del held
    return self._hold(ctx, batch)

  def step(self, ctx: method.Context, batch: method.Batch,
           held: Any) -> method.StepResult:
    """Algorithm 1, lines 6 to 11, one worker p, one mini-batch."""
    if not self.lookahead:
      if ctx.is_delayed or not self.perturbs:
        return self._train_plainly(ctx, batch)
      perturbation = self._perturb(ctx, batch) if self.lag else None
      return self._train(ctx, batch, perturbation)
    # The gradient at x_t on B_t; meanwhile the perturbation of B_{t+1}.
    result = (self._train_plainly(ctx, held.batch) if ctx.is_delayed
              else self._train(ctx, held.batch, held.perturbation))
    return result._replace(held=self._hold(ctx, batch))

  def _hold(self, ctx: method.Context, batch: method.Batch) -> method.Held:
    if ctx.is_delayed:
      return method.Held(batch, tf.zeros(
          [*batch.image.shape[:2], self.embedding_width]))
    return method.Held(batch, self._perturb(ctx, batch))

  def _train_plainly(self, ctx: method.Context,
                     batch: method.Batch) -> method.StepResult:
    return embedded.train_plainly(
        ctx, batch, self.segments(batch.image.shape[0]), self.terms)

  # ---- The inner maximisation.

  def _perturb(self, ctx: method.Context, batch: method.Batch,
               gamma: tf.Tensor | None = None) -> tf.Tensor:
    """Line 8: PGA from y_0.

    Args:
      ctx: of the received batch.
      batch: as received.
      gamma: [b, classes], where the clean pass has been made.

    Returns:
      float32 [b, L, d], without gradient.
    """
    network, pga = ctx.attack_network, self.perturbation
    segments = self.segments(batch.image.shape[0])
    key = embedded.mask_keys(ctx, ctx.batch_index, self._shares_masks)
    with tf.name_scope("attack"):
      xi = network.embed(batch.image)
      mask = network.token_mask(batch.image)
      y = pga.begin(passes.noise_key(ctx), xi, mask)
      if not pga.steps:
        return y
      if gamma is None and self.target == OUTPUTS:
        gamma, _ = network.logits(
            batch.image, segments, routing.Mode.TRAIN, key(0))

      def ascend(step: int | tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
          tape.watch(y)
          outputs, _ = network.logits_from(
              xi + y, batch.image, segments, routing.Mode.TRAIN, key(step + 1))
          r = tf.reduce_sum(
              self._ascended(ctx, batch, gamma, outputs) * batch.weight)
        return pga.move(y, tape.gradient(r, y), mask)

      if pga.steps == 1:
        return tf.stop_gradient(ascend(0, y))
      _, y = tf.while_loop(
          lambda step, _: step < pga.steps,
          lambda step, y: (step + 1, ascend(step, y)),
          (tf.constant(0), y), parallel_iterations=1,
          maximum_iterations=pga.steps)
      return tf.stop_gradient(y)

  def _ascended(self, ctx: method.Context, batch: method.Batch,
                gamma: tf.Tensor | None, outputs: tf.Tensor) -> tf.Tensor:
    """r(x_t, y) of each example, gamma being a constant."""
    if self.target == LABELS:
      return ctx.loss(batch.label, outputs)
    gamma = tf.stop_gradient(gamma)
    if _is_regression(outputs):
      return per_example.squared_error(gamma, outputs)
    return (per_example.kl_divergence(gamma, outputs)
            + per_example.kl_divergence(outputs, gamma))

  # ---- The outer minimisation.

  def _distance(self, ctx: method.Context, batch: method.Batch,
                gamma: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """r(x_t) of each example, differentiated to both passes."""
    if self.target == LABELS:
      return ctx.loss(batch.label, outputs)
    if _is_regression(outputs):
      return per_example.squared_error(gamma, outputs)
    return per_example.symmetric_kl(gamma, outputs)

  def _train(self, ctx: method.Context, batch: method.Batch,
             perturbation: tf.Tensor | None) -> method.StepResult:
    """Lines 9 to 11, and line 8 where there is no perturbation yet."""
    network, weight = ctx.network, self.weight
    segments = self.segments(batch.image.shape[0])
    key = embedded.mask_keys(ctx, ctx.step, self._shares_masks)
    count = counted = tf.reduce_sum(batch.weight)
    if self.first_active < self.delay:
      # A traced update may still come before the delay's end.
      is_active = tf.cast(ctx.step >= self.delay, tf.float32)
      weight, counted = weight * is_active, count * is_active
    with tf.name_scope("forward"), tf.GradientTape() as tape:
      gamma, statistics = network.logits(
          batch.image, segments, routing.Mode.TRAIN, key(0))
      own = network.regularisation()
      if perturbation is None:
        with tape.stop_recording():
          perturbation = self._perturb(ctx, batch, gamma)
      outputs, _ = network.logits_from(
          network.embed(batch.image) + perturbation, batch.image, segments,
          routing.Mode.TRAIN, key(self.perturbation.steps + 1))
      f = per_example.weighted_mean(
          ctx.loss(batch.label, gamma), batch.weight)
      r = per_example.weighted_mean(
          self._distance(ctx, batch, gamma, outputs), batch.weight)
      loss = own + f + weight * r
      scaled = ctx.scale_loss(loss)
    with tf.name_scope("backward"):
      gradients = passes.gradients_of(
          ctx, tape, scaled, network.trainable_variables)
    terms = {"loss": (loss, count), "clean_loss": (f, count),
             "perturbed_loss": (r, counted),
             **embedded.sizes(perturbation, batch.weight, counted)}
    return method.StepResult(gradients, statistics, (), terms, gamma, batch)


def _is_regression(outputs: tf.Tensor) -> bool:
  return outputs.shape[-1] == 1
