"""Accuracy on adversarial examples made for the network itself."""

import dataclasses

import tensorflow as tf

from conadv_tf import config, randomness
from conadv_tf.attacks import gradient as gradient_attacks
from conadv_tf.evaluation import attack_names, clean
from conadv_tf.layers import network as networks
from conadv_tf.objectives import per_example

_RESTART = 7  # sets the keys of restarts apart from the folds of an attack


def named_attack(name: str, radius: float,
                 where: str = "evaluation.attacks") -> "PgdByExample":
  """The attack of a name that needs no optional package.

  `fgsm` is one step from the image itself; `pgd<k>-<r>` is k steps from each
  of r random points of the ball, where 0 means from the image itself;
  `noise<k>` are k random points and no step. All are linf attacks on the
  network with its moving statistics.

  Args:
    name: `fgsm`, `pgd<k>[-<r>]` or `noise<k>`, then optionally `@<radius>`
      and `/<step size>` in 1/255.
    radius: in 1/255, where the name has none.
    where: the flag or key that holds the name, for messages.

  Raises:
    InputError: if the name is none of these; the message lists what is.
  """
  named = attack_names.parse(name, radius, where)
  if named.from_library:
    raise config.InputError(
        f"{where}: {name!r} is made on one device by an optional package; "
        "name it in conadv-evaluate --attacks after training")
  return from_name(named)


def from_name(named: attack_names.Attack) -> "PgdByExample":
  """The same of a parsed name."""
  if named.family == "noise":
    return PgdByExample(radius=named.radius, step_size=0.0, random_start=1.0,
                        mode="moving", restarts=named.steps)
  return PgdByExample(
      radius=named.radius, steps=named.steps, step_size=named.step_size,
      random_start=float(named.restarts > 0), mode="moving",
      restarts=max(1, named.restarts))


@dataclasses.dataclass(frozen=True)
class PgdByExample(gradient_attacks.Pgd):
  """`Pgd` whose key is int32 [b, 2], one key for every example.

  A key for the whole batch would start an example elsewhere when the batch
  size or the number of replicas changes.

  Attributes:
    restarts: how often it is made, each time from another random point.
  """

  restarts: int = 1

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.restarts < 1:
      raise ValueError(f"attack restarts must be >= 1, got {self.restarts}")

  def start(self, x: tf.Tensor, key: randomness.Key,
            pixel_range: tuple[float, float]) -> tf.Tensor:
    """As in `Pgd`, of every example by itself."""
    if not self.random_start:
      return x
    start = super().start

    def one(row: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
      return start(row[0][None], row[1], pixel_range)[0]

    return tf.map_fn(one, (x, key), fn_output_signature=tf.TensorSpec(
        x.shape[1:], x.dtype))


class RobustEvaluator(clean.Evaluator):
  """An `Evaluator` that shows the network attacked images.

  Attack and prediction run through the same branch with moving statistics.
  The random start of an example depends on the seed and on its position in
  the dataset, so the attack is the same for every batch size and number of
  replicas, up to the rounding of the network's own arithmetic. An example
  counts as right if the attacked image is, after every restart; with radius 0
  the result is that of `Evaluator`. The first restart is the attack without
  restarts, so more of them never raise the accuracy.
  """

  def __init__(self, network: networks.Network,
               loss: per_example.PerExampleLoss,
               attack: gradient_attacks.Pgd,
               strategy: tf.distribute.Strategy, branch: str, seed: int,
               pixel_range: tuple[float, float]) -> None:
    """Keeps the arguments; nothing is computed yet.

    Args:
      network: attacked and evaluated.
      loss: its sum over the examples is what the attack climbs.
      attack: untargeted; its `branch` and `mode` are not read.
      strategy: whose replicas share every batch.
      branch: whose batch normalisation is used.
      seed: of the random starts.
      pixel_range: smallest and largest pixel; its width / 255 is the unit of
        the radius.

    Raises:
      InputError: if the network has no such branch.
    """
    super().__init__(network, loss, strategy, branch)
    if attack.target != "none":
      raise ValueError("robust accuracy is under untargeted attacks, got "
                       f"target {attack.target!r}")
    self._attack = PgdByExample(**dataclasses.asdict(attack))
    self._seed = seed
    self._pixel_range = pixel_range

  def inputs(self, image: tf.Tensor, label: tf.Tensor, weight: tf.Tensor,
             position: tf.Tensor, restart: tf.Tensor | None = None
             ) -> tf.Tensor:
    """The attacked images; arguments as in `Evaluator.inputs`.

    Args:
      image: [b, h, w, c].
      label: [b] or [b, classes].
      weight: float32 [b].
      position: int32 [b].
      restart: int32 above 0, another random start; None is the first.
    """
    def key(index: tf.Tensor) -> randomness.Key:
      # Training's keys have one fold more and never meet these.
      first = randomness.make_key(self._seed, randomness.ATTACK_NOISE, index)
      if restart is None:
        return first
      return randomness.fold(first, restart, _RESTART)

    keys = tf.map_fn(key, position,
                     fn_output_signature=tf.TensorSpec([2], tf.int32))
    with tf.name_scope("attack"):
      return self._attack(
          lambda x: self.summed_loss(label, x, weight),
          tf.cast(image, tf.float32), keys, self._pixel_range)

  def per_example(self, image: tf.Tensor, label: tf.Tensor, weight: tf.Tensor,
                  position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """As in `Evaluator`, of the worst restart.

    No more are made once no example of the batch is right; the loss is the
    largest of those that were.
    """
    rank, loss = super().per_example(image, label, weight, position)
    if self._attack.restarts == 1:
      return rank, loss

    def again(restart: tf.Tensor, rank: tf.Tensor, loss: tf.Tensor
              ) -> tuple[tf.Tensor, ...]:
      other_rank, other_loss = self.measured(label, self.inputs(
          image, label, weight, position, restart))
      return (restart + 1, tf.maximum(rank, other_rank),
              tf.maximum(loss, other_loss))

    def goes_on(restart: tf.Tensor, rank: tf.Tensor, loss: tf.Tensor
                ) -> tf.Tensor:
      del loss
      return (restart < self._attack.restarts) & tf.reduce_any(
          (rank < 1) & (weight > 0))

    return tf.while_loop(
        goes_on, again, (tf.constant(1), rank, loss),
        maximum_iterations=self._attack.restarts)[1:]
