"""Accuracy on adversarial examples made for the network itself."""

import dataclasses
import math
import re

import tensorflow as tf

from conadv_tf import config, randomness
from conadv_tf.attacks import gradient as gradient_attacks
from conadv_tf.evaluation import clean
from conadv_tf.layers import network as networks
from conadv_tf.objectives import per_example

KNOWN = ("fgsm, pgd<steps> such as pgd20, each with an optional radius in "
         "1/255 such as pgd20@8")
_NAME = re.compile(r"(?:(fgsm)|pgd(\d+))(?:@(.+))?")


def named_attack(name: str, radius: float) -> gradient_attacks.Pgd:
  """The attack that `evaluation.attacks` calls `name`.

  `fgsm` is one step from the image itself, `pgd<k>` is k steps from a random
  point of the ball, with the attack's default step size. Both are linf attacks
  on the network with its moving statistics.

  Args:
    name: `fgsm` or `pgd<k>`, then optionally `@` and a radius in 1/255.
    radius: in 1/255, where the name has none.

  Raises:
    InputError: if the name is none of these; the message lists what is.
  """
  match = _NAME.fullmatch(name)
  if not match or match[2] is not None and int(match[2]) < 1:
    raise config.InputError(
        f"evaluation.attacks: unknown attack {name!r}; known: {KNOWN}")
  if match[3] is not None:
    radius = _radius(match[3], name)
  if match[1]:
    return gradient_attacks.Pgd(
        radius=radius, random_start=0.0, mode="moving")
  return gradient_attacks.Pgd(
      radius=radius, steps=int(match[2]), random_start=1.0, mode="moving")


def _radius(text: str, name: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not 0 <= value < math.inf:
    raise config.InputError(
        f"evaluation.attacks: the radius of {name!r} must be a number of at "
        "least 0, in 1/255")
  return value


@dataclasses.dataclass(frozen=True)
class PgdByExample(gradient_attacks.Pgd):
  """`Pgd` whose key is int32 [b, 2], one key for every example.

  A key for the whole batch would start an example elsewhere when the batch
  size or the number of replicas changes.
  """

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
  counts as right if the attacked image is; with radius 0 the result is
  that of `Evaluator`.
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
             position: tf.Tensor) -> tf.Tensor:
    """The attacked images; arguments as in `Evaluator.inputs`."""
    def key(index: tf.Tensor) -> randomness.Key:
      # Training's keys have one fold more and never meet these.
      return randomness.make_key(self._seed, randomness.ATTACK_NOISE, index)

    keys = tf.map_fn(key, position,
                     fn_output_signature=tf.TensorSpec([2], tf.int32))
    with tf.name_scope("attack"):
      return self._attack(
          lambda x: self.summed_loss(label, x, weight),
          tf.cast(image, tf.float32), keys, self._pixel_range)
