"""FreeLB: every ascent step's gradient trains the weights as well."""

import dataclasses
from typing import Any

import tensorflow as tf

from conadv_tf.attacks import embeddings as embedding_attacks
from conadv_tf.layers import routing
from conadv_tf.methods import embedded, method, passes
from conadv_tf.objectives import per_example


class FreeLb(method.Method):
  r"""Free large-batch adversarial training of language models.

  Paper: Zhu, Cheng, Gan, Sun, Goldstein, Liu, FreeLB: Enhanced Adversarial
  Training for Natural Language Understanding, ICLR 2020; Algorithm 1. Table 5
  of the ScaLA paper compares with it.

  | paper                      | here                                       |
  |----------------------------|--------------------------------------------|
  | B, X, Z                    | `batch`                                    |
  | K, alpha, epsilon          | `perturbation`: steps, step_size, radius   |
  | delta_0, U(-e, e)/sqrt(N)  | start "sentence", `start_size`             |
  | g_t                        | the mean of K gradients                    |

  Step k takes the batch through the network at X + delta_k. One backward pass
  gives the gradient to the weights, of which the mean over K steps updates
  them, and that to delta, divided by its length in the sentence, for
  delta_(k+1), projected into the l2 ball of the sentence. There is no clean
  pass: metrics see the outputs at delta_0. Padding is not perturbed.

  Work: 3 K F, all in a row. Holds nothing. Degenerates to plain training at
  radius 0 (which the released code takes for no projection) and, bit for bit,
  with K = 1 and start "zero".

  Deviations. Dropout masks are new in each step; the released code can keep
  those of the first (`dropout_masks="shared"`). Gradients are summed over
  micro batches and replicas as everywhere. `delay` is ScaLA's.
  """

  def __init__(self, perturbation: embedding_attacks.Perturbation | None = None,
               *, delay: int = 0, dropout_masks: str = embedded.INDEPENDENT):
    """Makes the method.

    Args:
      perturbation: its start, steps, step_size and radius; None is what the
        released code has for SST-2, but for K = 2.
      delay: first update with a perturbation, from 0.
      dropout_masks: of an update's steps, "independent" or "shared".

    Raises:
      ValueError: if an option is outside its range.
    """
    perturbation = perturbation or embedding_attacks.Perturbation(
        radius=0.6, steps=2, step_size=0.1, start="sentence", start_size=0.6)
    if perturbation.steps < 1:
      raise ValueError("perturbation steps must be at least 1, got "
                       f"{perturbation.steps}")
    self.perturbation = dataclasses.replace(
        perturbation, norm="l2", direction="sentence")
    self._shares_masks = embedded.check_masks(dropout_masks)
    self.perturbs = bool(perturbation.radius)
    if not self.perturbs:
      return
    method.check_count("delay", delay)
    self.delay = delay
    self.terms = ("loss", "perturbed_loss", "perturbation_linf",
                  "perturbation_l2")
    self.passes_per_step = 3.0 * perturbation.steps
    self.longest_chain = 2.0 * perturbation.steps

  def step(self, ctx: method.Context, batch: method.Batch,
           held: Any) -> method.StepResult:
    """Algorithm 1, lines 4 to 18, one minibatch."""
    del held
    if ctx.is_delayed or not self.perturbs:
      return embedded.train_plainly(
          ctx, batch, self.segments(batch.image.shape[0]), self.terms)
    ascent = self.perturbation
    key = embedded.mask_keys(ctx, ctx.step, self._shares_masks)
    mask = ctx.network.token_mask(batch.image)
    delta = ascent.begin(
        passes.noise_key(ctx), ctx.network.embed(batch.image), mask)
    found = []
    for number in range(ascent.steps):
      found.append(self._pass(ctx, batch, delta, key(number)))
      if number < ascent.steps - 1:
        delta = ascent.move(delta, found[-1].to_delta, mask)
    mean = lambda values: tf.add_n(list(values)) / len(found)
    count = tf.reduce_sum(batch.weight)
    terms = {"loss": (mean(p.loss for p in found), count),
             "perturbed_loss": (mean(p.mean_loss for p in found), count),
             **embedded.sizes(delta, batch.weight, count)}
    return method.StepResult(
        [mean(same) for same in zip(*(p.gradients for p in found))],
        mean(p.statistics for p in found), (), terms, found[0].outputs, batch)

  def _pass(self, ctx: method.Context, batch: method.Batch, delta: tf.Tensor,
            key: tf.Tensor) -> "_Pass":
    network = ctx.network
    with tf.name_scope("forward"), tf.GradientTape() as tape:
      tape.watch(delta)
      outputs, statistics = network.logits_from(
          network.embed(batch.image) + delta, batch.image,
          self.segments(batch.image.shape[0]), routing.Mode.TRAIN, key)
      mean_loss = per_example.weighted_mean(
          ctx.loss(batch.label, outputs), batch.weight)
      loss = network.regularisation() + mean_loss
      scaled = ctx.scale_loss(loss)
    with tf.name_scope("backward"):
      *gradients, to_delta = passes.gradients_of(
          ctx, tape, scaled, network.trainable_variables + [delta])
    return _Pass(gradients, to_delta, statistics, outputs, loss, mean_loss)


@dataclasses.dataclass(frozen=True)
class _Pass:
  """One step: gradients to the weights and to delta [b, L, d]."""

  gradients: list[tf.Tensor]
  to_delta: tf.Tensor
  statistics: tf.Tensor
  outputs: tf.Tensor
  loss: tf.Tensor
  mean_loss: tf.Tensor
