"""What a training method is, and the two passes that methods are made of.

A method sees one virtual replica: its own slice of the batch, its own batch
statistics and its own random keys. It computes and returns; the trainer
reduces and assigns.
"""

import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.attacks import gradient as gradient_attacks
from conadv_tf.layers import network as networks
from conadv_tf.layers import outputs as output_lib
from conadv_tf.layers import routing
from conadv_tf.objectives import per_example


class Batch(NamedTuple):
  """One virtual replica's slice of a batch.

  Attributes:
    image: [b, h, w, c], any real dtype (uint8 on the wire).
    label: integer [b] or probabilities [b, classes].
    weight: float32 [b], 0 for padding.
    augmented: a second view of the same examples, [b, h, w, c], for methods
      that train on it as well; else ().
  """

  image: tf.Tensor
  label: tf.Tensor
  weight: tf.Tensor
  augmented: tf.Tensor | tuple[()] = ()


class Held(NamedTuple):
  """A batch waiting for its update with the adversaries made for it."""

  batch: Batch
  adversarial_image: tf.Tensor  # float32 [round(r * b), h, w, c]


class StepResult(NamedTuple):
  """What one virtual replica contributes to an update.

  Attributes:
    gradients: in the order of `network.trainable_variables`.
    statistics: packed batch statistics, float32 [n].
    held: for the next step, or ().
    terms: name -> float32 scalar, means over this virtual replica.
    outputs: clean outputs [b, classes], for the metrics of `compile`.
    batch: the batch that was trained on.
  """

  gradients: list[tf.Tensor]
  statistics: tf.Tensor
  held: Any
  terms: dict[str, tf.Tensor]
  outputs: tf.Tensor
  batch: Batch


@dataclasses.dataclass(frozen=True)
class Context:
  """What a method may use; it assigns none of it.

  Attributes:
    network: weights before this update, theta_t.
    attack_network: weights that the attack of the received batch uses.
    attack: the attack, its defaults resolved.
    loss: per-example loss.
    seed: the run's seed.
    step: index t of this update, int32 scalar.
    batch_index: index of the received batch, t or t + 1.
    virtual_replica: index v of this slice of the global batch.
    pixel_range: smallest and largest pixel value.
    scale_loss: multiplies the loss before differentiation (float16).
    unscale: undoes it on gradients.
  """

  network: networks.Network
  attack_network: networks.Network
  attack: gradient_attacks.Pgd
  loss: per_example.PerExampleLoss
  seed: int
  step: tf.Tensor
  batch_index: tf.Tensor
  virtual_replica: tf.Tensor
  pixel_range: tuple[float, float]
  scale_loss: Any = lambda loss: loss
  unscale: Any = lambda gradients: gradients


class Method:
  """Base class of all methods.

  Attributes:
    lag: age in updates of the weights that make adversaries.
    lookahead: batches received ahead of the one trained on, 0 or 1.
    lagged_copies: weight sets that the trainer keeps for the method.
    branches: batch normalisation branches that the network needs.
    passes_per_step: forward passes F of the clean batch that a step costs.
    longest_chain: passes F of a step that must run one after another.
    attacks: whether it makes adversarial images.
    augments: whether it trains on `Batch.augmented` as well.
    terms: names of what `StepResult.terms` holds.
  """

  lag: int = 0
  lookahead: int = 0
  lagged_copies: int = 0
  branches: tuple[str, ...] = routing.BRANCHES[1]
  passes_per_step: float = 3.0
  longest_chain: float = 2.0
  attacks: bool = False
  augments: bool = False
  terms: tuple[str, ...] = ("loss", "clean_loss")

  def segments(self, rows: int) -> routing.Segments:
    """Branches of the rows of the training pass, for b clean rows."""
    return ((routing.CLEAN, rows),)

  def default_attack(self, attack: gradient_attacks.Pgd
                     ) -> gradient_attacks.Pgd:
    """Fills in what the attack leaves to the method."""
    return attack

  def held_spec(self, batch: Batch) -> Any:
    """Specs of what `prime` returns, for specs of a batch."""
    del batch
    return ()

  def prime(self, ctx: Context, batch: Batch) -> Any:
    """Makes what step 0 expects to be held. Only where lookahead is 1."""
    del ctx, batch
    return ()

  def step(self, ctx: Context, batch: Batch, held: Any) -> StepResult:
    """Computes one virtual replica's share of one update."""
    raise NotImplementedError


def adversarial_rows(rows: int, fraction: float) -> int:
  """How many of the first rows get an adversarial copy, at least 1."""
  return max(1, round(fraction * rows))


def as_float(image: tf.Tensor) -> tf.Tensor:
  """Casts images to float32 on the device."""
  return tf.cast(image, tf.float32)


def make_adversary(ctx: Context, batch: Batch, rows: int) -> tf.Tensor:
  """Attacks the first `rows` rows of the received batch.

  The gradient is that of the summed training loss of these rows through
  `ctx.attack_network`; the attack is local (no collective) and moves no
  statistic.

  Returns:
    float32 [rows, h, w, c] in the pixel range.
  """
  attack = ctx.attack
  image, label = as_float(batch.image[:rows]), batch.label[:rows]
  weight = batch.weight[:rows]
  descend = attack.target == "random"
  if descend:
    key = randomness.make_key(ctx.seed, randomness.ATTACK_TARGET,
                              ctx.batch_index, ctx.virtual_replica)
    label = random_other_class(label, key, ctx)
  branch = attack.branch
  if branch not in ctx.attack_network.branches:
    branch = routing.CLEAN  # one set of statistics: there is no other
  mode = (routing.Mode.PROBE if attack.mode == "batch" else routing.Mode.EVAL)

  def loss_of_x(x: tf.Tensor) -> tf.Tensor:
    outputs = ctx.attack_network.logits(x, ((branch, rows),), mode)
    loss = tf.reduce_sum(ctx.loss(label, outputs) * weight)
    return -loss if descend else loss

  key = randomness.make_key(ctx.seed, randomness.ATTACK_NOISE,
                            ctx.batch_index, ctx.virtual_replica)
  with tf.name_scope("attack"):
    return attack(loss_of_x, image, key, ctx.pixel_range)


def random_other_class(label: tf.Tensor, key: randomness.Key,
                       ctx: Context) -> tf.Tensor:
  """Moves every label to a random other class.

  Args:
    label: classes [b] or [b, 1], or probabilities [b, classes].
    key: int32 [2].
    ctx: for the number of classes.

  Returns:
    Shape and dtype of `label`.
  """
  classes = ctx.network.output_shape[-1]
  rows = label.shape[0]
  offset = 1 + randomness.integer(key, [rows, 1], classes - 1)
  if label.shape.rank == 2 and label.shape[1] == classes:
    source = (tf.range(classes)[None] - offset) % classes
    return tf.gather(label, source, axis=1, batch_dims=1)
  moved = (tf.reshape(tf.cast(label, tf.int32), [rows, 1]) + offset) % classes
  return tf.cast(tf.reshape(moved, tf.shape(label)), label.dtype)


class _Stream(NamedTuple):
  """Rows of the training pass that weigh alike, each for one example."""

  name: str
  image: tf.Tensor
  weight: float


def _streams(batch: Batch, adversarial_image: tf.Tensor | None,
             adversarial_weight: float) -> list[_Stream]:
  """Clean, augmented and adversarial rows, those that there are."""
  natural = [("clean", as_float(batch.image))]
  if isinstance(batch.augmented, tf.Tensor):
    natural.append(("augmented", as_float(batch.augmented)))
  left = 1.0 if adversarial_image is None else 1.0 - adversarial_weight
  streams = [_Stream(name, image, left / len(natural))
             for name, image in natural]
  if adversarial_image is not None:
    streams.append(
        _Stream("adversarial", adversarial_image, adversarial_weight))
  return streams


def train(ctx: Context, batch: Batch, adversarial_image: tf.Tensor | None,
          segments: routing.Segments, adversarial_weight: float
          ) -> StepResult:
  """The training pass: clean rows, then adversarial ones, one gradient.

  The objective is (1 - w) * mean clean loss + w * mean adversarial loss plus
  the model's own losses; w = 0.5 is ConAdv's equation 4. Where the batch has
  augmented rows, they come between the two and share 1 - w with the clean
  ones.

  Args:
    ctx: the context; `ctx.step` keys the dropout masks.
    batch: clean examples [b, ...] and their labels.
    adversarial_image: float32 [a, h, w, c] for the first a <= b examples, or
      None.
    segments: branches of all rows.
    adversarial_weight: w.

  Returns:
    The result, with nothing held.
  """
  streams = _streams(batch, adversarial_image, adversarial_weight)
  clean, rows = streams[0].image, streams[0].image.shape[0]
  images = clean
  if len(streams) > 1:
    images = tf.concat([stream.image for stream in streams], axis=0)
  key = randomness.make_key(ctx.seed, randomness.DROPOUT, ctx.step,
                            ctx.virtual_replica)
  network = ctx.network
  variables = network.trainable_variables
  terms = {}
  with tf.name_scope("forward"), tf.GradientTape() as tape:
    outputs, statistics = network.logits(
        images, segments, routing.Mode.TRAIN, key)
    loss, first = network.regularisation(), 0
    for stream in streams:
      count = stream.image.shape[0]
      mean = per_example.weighted_mean(
          ctx.loss(batch.label[:count],
                   output_lib.take_rows(outputs, first, first + count)),
          batch.weight[:count])
      terms[f"{stream.name}_loss"] = mean
      loss += stream.weight * mean
      first += count
    scaled = ctx.scale_loss(loss)
  with tf.name_scope("backward"):
    gradients = ctx.unscale(tape.gradient(
        scaled, variables,
        unconnected_gradients=tf.UnconnectedGradients.ZERO))
  terms["loss"] = loss
  if adversarial_image is not None:
    terms.update(_perturbation_terms(ctx, clean, adversarial_image))
    label = batch.label[:count]
    adversarial_outputs = output_lib.take_rows(outputs, first - count, first)
    if per_example.is_classification(label, adversarial_outputs):
      terms["adversarial_accuracy"] = per_example.weighted_mean(
          per_example.is_correct(label, adversarial_outputs),
          batch.weight[:count])
  clean_outputs = output_lib.take_rows(outputs, 0, rows)
  return StepResult(gradients, statistics, (), terms, clean_outputs, batch)


def _perturbation_terms(ctx: Context, clean: tf.Tensor,
                        adversarial: tf.Tensor) -> dict[str, tf.Tensor]:
  """Mean sizes of the perturbations, in 1/255 of the pixel range."""
  low, high = ctx.pixel_range
  delta = (adversarial - clean[:adversarial.shape[0]]) * 255.0 / (high - low)
  axes = list(range(1, delta.shape.rank))
  return {
      "perturbation_linf": tf.reduce_mean(
          tf.reduce_max(tf.abs(delta), axis=axes)),
      "perturbation_l2": tf.reduce_mean(
          tf.sqrt(tf.reduce_sum(tf.square(delta), axis=axes))),
  }
