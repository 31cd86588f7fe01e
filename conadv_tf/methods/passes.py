"""The two passes that methods are made of: the attack and the training pass."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.attacks import ball, compact
from conadv_tf.layers import outputs as output_lib
from conadv_tf.layers import routing
from conadv_tf.methods import method
from conadv_tf.objectives import per_example

# (outputs of clean images, of adversarial ones) -> float32 [b]
Regularizer = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

# ---- The attack.


def make_perturbation(ctx: method.Context, batch: method.Batch, rows: int,
                      regularizer: Regularizer | None = None) -> tf.Tensor:
  """Attacks the first `rows` rows of the received batch.

  Args:
    ctx: the context.
    batch: as received.
    rows: how many.
    regularizer: as of `adversarial_images`.

  Returns:
    [rows, h, w, c] in the form of `attacks.compact`.
  """
  adversarial = adversarial_images(ctx, batch, rows, regularizer)
  with tf.name_scope("attack"):
    return compact.encode(ctx.attack, adversarial, as_float(
        batch.image[:rows]), ctx.pixel_range)


def adversarial_images(ctx: method.Context, batch: method.Batch, rows: int,
                       regularizer: Regularizer | None = None) -> tf.Tensor:
  """Adversarial copies of the first `rows` rows of the received batch.

  The gradient is that of the summed training loss of these rows through
  `ctx.attack_network`, to the images alone; the attack is local (no
  collective) and moves no statistic.

  Args:
    ctx: the context.
    batch: as received.
    rows: how many.
    regularizer: ascended in place of the training loss; the outputs of the
      clean images, from one more pass, are constants to it.

  Returns:
    float32 [rows, h, w, c].
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
  mode = (routing.Mode.EVAL if attack.mode == "moving" else routing.Mode.PROBE)

  def outputs_of(x: tf.Tensor) -> tf.Tensor:
    return ctx.attack_network.logits(x, ((branch, rows),), mode)

  def loss_of_x(x: tf.Tensor) -> tf.Tensor:
    outputs = outputs_of(x)
    losses = (regularizer(clean, outputs) if regularizer
              else ctx.loss(label, outputs))
    loss = tf.reduce_sum(losses * weight)
    return -loss if descend else loss

  with tf.name_scope("attack"):
    clean = tf.stop_gradient(outputs_of(image)) if regularizer else None
    return attack(loss_of_x, image, noise_key(ctx), ctx.pixel_range)


def perturbed(ctx: method.Context, batch: method.Batch,
              perturbation: tf.Tensor) -> tf.Tensor:
  """Adversarial copies of a batch's first rows, float32 [rows, h, w, c]."""
  image = as_float(batch.image[:perturbation.shape[0]])
  return compact.decode(ctx.attack, perturbation, image, ctx.pixel_range)


def noise_key(ctx: method.Context) -> randomness.Key:
  """Of the attack's random start on the received batch, int32 [2]."""
  return randomness.make_key(ctx.seed, randomness.ATTACK_NOISE,
                             ctx.batch_index, ctx.virtual_replica)


def adversarial_rows(rows: int, fraction: float) -> int:
  """How many of the first rows get an adversarial copy, at least 1."""
  return max(1, round(fraction * rows))


def as_float(image: tf.Tensor) -> tf.Tensor:
  """Casts images to float32 on the device."""
  return tf.cast(image, tf.float32)


def random_other_class(label: tf.Tensor, key: randomness.Key,
                       ctx: method.Context) -> tf.Tensor:
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


# ---- The training pass.


class Stream(NamedTuple):
  """Rows of the training pass that weigh alike.

  Attributes:
    name: "clean", "augmented" or "adversarial", of its terms.
    image: float32 [n, h, w, c].
    label: [n] or [n, classes].
    weight: float32 [n], of its examples.
    share: of its mean loss in the objective; a number or float32 scalar.
  """

  name: str
  image: tf.Tensor
  label: tf.Tensor
  weight: tf.Tensor
  share: float | tf.Tensor


class Coupling(NamedTuple):
  """A loss between the outputs of the first stream and of the last.

  Attributes:
    name: of its term.
    losses: of (first outputs, last outputs), differentiated to both.
    weight: float32 [n], of its examples.
    share: of its mean in the objective.
  """

  name: str
  losses: Regularizer
  weight: tf.Tensor
  share: float


class Pass(NamedTuple):
  """What a training pass has computed.

  Attributes:
    gradients: in the order of `network.trainable_variables`.
    statistics: packed batch statistics, float32 [n].
    terms: as `method.StepResult.terms`.
    outputs: of the clean rows, [b, classes].
    image_gradient: of the summed loss of the clean rows, float32
      [b, h, w, c], where it was asked for; else ().
  """

  gradients: list[tf.Tensor]
  statistics: tf.Tensor
  terms: dict[str, tuple[tf.Tensor, tf.Tensor]]
  outputs: tf.Tensor
  image_gradient: tf.Tensor | tuple[()]


def natural_streams(batch: method.Batch,
                    share: float | tf.Tensor = 1.0) -> list[Stream]:
  """Clean rows, and augmented ones where there are any, sharing `share`."""
  views = [("clean", batch.image)]
  if isinstance(batch.augmented, tf.Tensor):
    views.append(("augmented", batch.augmented))
  return [Stream(name, as_float(image), batch.label, batch.weight,
                 share / len(views)) for name, image in views]


def adversarial_stream(batch: method.Batch, image: tf.Tensor,
                       share: float | tf.Tensor) -> Stream:
  """Adversarial copies `image` [n, h, w, c] of a batch's first rows."""
  rows = image.shape[0]
  return Stream("adversarial", image, batch.label[:rows], batch.weight[:rows],
                share)


def train(ctx: method.Context, streams: Sequence[Stream],
          segments: routing.Segments, *, to_images: bool = False,
          regularisation: float = 1.0,
          coupling: Coupling | None = None) -> Pass:
  """The training pass: one gradient of what the streams share.

  The objective is the sum over streams of share * mean loss, plus the
  model's own losses; shares of 1/2 are ConAdv's equation 4. Batch
  normalisation and dropout treat each branch on its own, so it changes
  nothing but rounding whether the streams go through the network together
  (`ctx.joined`).

  Args:
    ctx: the context; `ctx.step` keys the dropout masks.
    streams: in the order of `segments`, the clean one first.
    segments: branches of all rows.
    to_images: whether to differentiate to the first stream's images as well.
    regularisation: factor of the model's own losses, for a step of several
      passes.
    coupling: one more term of the objective.
  """
  groups = [(streams, segments)]
  if not ctx.joined and len(segments) == len(streams):
    groups = [([stream], (segment,))
              for stream, segment in zip(streams, segments)]
  rows = sum(stream.image.shape[0] for stream in streams)
  outputs, statistics, terms = [], [], {}
  with tf.name_scope("forward"), tf.GradientTape() as tape:
    if to_images:
      tape.watch(streams[0].image)
    loss = tf.zeros([])
    for members, part in groups:
      own_outputs, own_statistics = _forward(ctx, members, part)
      outputs += own_outputs
      statistics.append(own_statistics)
      share = sum(stream.image.shape[0] for stream in members) / rows
      loss += regularisation * share * ctx.network.regularisation()
    for name, values, part in _losses(ctx, streams, outputs, coupling):
      mean = per_example.weighted_mean(values, part.weight)
      terms[name] = mean, tf.reduce_sum(part.weight)
      loss += part.share * mean
    scaled = ctx.scale_loss(loss)
  with tf.name_scope("backward"):
    targets = ctx.network.trainable_variables + (
        [streams[0].image] if to_images else [])
    gradients = gradients_of(ctx, tape, scaled, targets)
  image_gradient = ()
  if to_images:
    # Back from a share of a mean to a sum, as in an attack.
    image_gradient = gradients.pop() * (
        tf.reduce_sum(streams[0].weight) / streams[0].share)
  terms["loss"] = loss, tf.reduce_sum(streams[0].weight)
  terms.update(_accuracy(streams[-1], outputs[-1]))
  return Pass(gradients, tf.concat(statistics, axis=0), terms, outputs[0],
              image_gradient)


def gradients_of(ctx: method.Context, tape: tf.GradientTape,
                 scaled: tf.Tensor, targets: Sequence[Any]) -> list[tf.Tensor]:
  """Unscaled dense gradients of a scaled loss; an embedding's are sparse."""
  return ctx.unscale([tf.convert_to_tensor(g) for g in tape.gradient(
      scaled, targets, unconnected_gradients=tf.UnconnectedGradients.ZERO)])


def dropout_key(ctx: method.Context, index: tf.Tensor) -> randomness.Key:
  """Of the masks of batch `index`'s training pass, int32 [2]."""
  return randomness.make_key(ctx.seed, randomness.DROPOUT, index,
                             ctx.virtual_replica)


def _losses(ctx: method.Context, streams: Sequence[Stream],
            outputs: Sequence[tf.Tensor], coupling: Coupling | None
            ) -> list[tuple[str, tf.Tensor, Stream | Coupling]]:
  """(name, losses of its examples, what they weigh) of each term."""
  found = [(f"{stream.name}_loss", ctx.loss(stream.label, logits), stream)
           for stream, logits in zip(streams, outputs)]
  if coupling:
    found.append((coupling.name, coupling.losses(outputs[0], outputs[-1]),
                  coupling))
  return found


def _accuracy(stream: Stream, outputs: tf.Tensor
              ) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
  """The term of adversarial rows, where there are classes."""
  if stream.name != "adversarial" or not per_example.is_classification(
      stream.label, outputs):
    return {}
  return {"adversarial_accuracy": (
      per_example.weighted_mean(
          per_example.is_correct(stream.label, outputs), stream.weight),
      tf.reduce_sum(stream.weight))}


def _forward(ctx: method.Context, streams: Sequence[Stream],
             segments: routing.Segments) -> tuple[list[tf.Tensor], tf.Tensor]:
  """Outputs of each stream, taken through together, and their statistics."""
  images = routing.join([stream.image for stream in streams])
  whole, statistics = ctx.network.logits(
      images, segments, routing.Mode.TRAIN, dropout_key(ctx, ctx.step))
  if len(streams) == 1:
    return [whole], statistics
  outputs, first = [], 0
  for stream in streams:
    last = first + stream.image.shape[0]
    outputs.append(output_lib.take_rows(whole, first, last))
    first = last
  return outputs, statistics


def perturbation_terms(ctx: method.Context, batch: method.Batch,
                       adversarial: Stream
                       ) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
  """Mean sizes of a batch's perturbations, in 1/255 of the pixel range."""
  clean = as_float(batch.image[:adversarial.image.shape[0]])
  delta = (adversarial.image - clean) / ball.unit(ctx.pixel_range)
  axes = list(range(1, delta.shape.rank))
  count = tf.reduce_sum(adversarial.weight)
  return {
      "perturbation_linf": (tf.reduce_mean(
          tf.reduce_max(tf.abs(delta), axis=axes)), count),
      "perturbation_l2": (tf.reduce_mean(
          tf.sqrt(tf.reduce_sum(tf.square(delta), axis=axes))), count),
  }
