"""How far adversaries of earlier weights are from fresh ones, in training.

Asked of ConAdv's theory (docs/theory.md): Lemma 1 bounds the distance of the
two by that of the weights. Nothing here changes a weight or a statistic.
"""

import collections
from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from conadv_tf.attacks import ball
from conadv_tf.attacks import gradient as gradient_attacks
from conadv_tf.layers import network as networks
from conadv_tf.layers import routing
from conadv_tf.methods import method as methods
from conadv_tf.methods import passes
from conadv_tf.objectives import per_example

LAGS = (0, 1, 2, 4, 8)
# What the adversaries are made by: ConAdv's attack, through the branch that
# judges them; or the gradient that `Recycled` has, of the clean branch and
# without a random start, on the batch that it is trained beside or on the one
# before, which the weights have moved on since.
CONADV = "conadv"
RECYCLED = "recycled"
RECYCLED_NEXT = "recycled, next batch"


@dataclasses.dataclass(frozen=True)
class Record:
  """Stale adversaries beside fresh ones of `CONADV`, at theta_t.

  Attributes:
    kind: what made them, one of the constants above.
    branch: whose batch normalisation judges them, by batch statistics, as in
      training; adversaries of `CONADV` are made through it as well.
    lag: of the weights that made them, in updates.
    weight_distance: |theta_t - theta_(t-lag)|_2, trainable weights.
    distance: mean |x_stale - x_fresh|_2, in longest perturbations (an linf
      ball's corner, an l2 ball's radius).
    sign_agreement: share of the pixels that are perturbed to the same side.
    gain: mean L(x_stale) - L(x).
    fresh_gain: mean L(x_fresh) - L(x).
    gradient_distance: |g_stale - g_fresh|_2 / |g_fresh|_2, of the gradients
      to the clean images that both attacks start from.
  """

  kind: str
  branch: str
  lag: int
  weight_distance: float
  distance: float
  sign_agreement: float
  gain: float
  fresh_gain: float
  gradient_distance: float

  @property
  def strength(self) -> float:
    """[L(x_stale) - L(x)] / [L(x_fresh) - L(x)]; NaN where fresh gains 0."""
    return self.gain / self.fresh_gain if self.fresh_gain else float("nan")


class StalenessProbe:
  """Keeps the latest weights and compares what they make of a batch.

  For one device. Holds max(lags) + 1 weight sets in memory of the host and
  one network more; a measurement costs two to four attacks for each lag.
  """

  def __init__(self, network: networks.Network,
               attack: gradient_attacks.Pgd, loss: per_example.PerExampleLoss,
               *, seed: int, pixel_range: tuple[float, float],
               lags: Sequence[int] = LAGS):
    """Keeps the arguments; nothing is computed yet.

    Args:
      network: that trains.
      attack: with the method's defaults filled in; steps, radius, direction,
        start and target are taken from it.
      loss: of single examples, as in training.
      seed: of the attack's noise, the run's.
      pixel_range: smallest and largest pixel value.
      lags: to measure; 0 is added.
    """
    self._network, self._then = network, network.copy()
    self._attack, self._loss = attack, loss
    self._seed, self._pixel_range = seed, pixel_range
    self.lags = tuple(sorted({0, *lags}))
    self._past: collections.deque[list[np.ndarray]] = collections.deque(
        maxlen=self.lags[-1] + 1)
    self._make = tf.function(self._adversaries, autograph=False)
    self._judge = tf.function(self._mean_loss, autograph=False)

  def remember(self) -> None:
    """Takes the weights as they are; once before and after every update."""
    self._past.append(networks.values(self._network.variables))

  def measure(self, batch: methods.Batch, before: methods.Batch,
              index: int) -> list[Record]:
    """Compares at the weights remembered last, theta_t.

    Args:
      batch: B_t, which the next update trains on.
      before: B_(t-1), which the last update trained on.
      index: t, which keys the noise.

    Returns:
      Records of all lags that are remembered, in all branches; of
      `RECYCLED` only lag 0 and 1, of `RECYCLED_NEXT` only lag 1.
    """
    branches = [branch for branch in self._network.branches
                if branch != routing.AUGMENTED]
    found, fresh = [], {}
    for lag in [lag for lag in self.lags if lag < len(self._past)]:
      self._then.assign(self._past[-1 - lag])
      moved = self._moved(lag)
      if lag == 0:
        fresh = {(number, branch): self._reference(images, number, branch)
                 for images, number in ((batch, index), (before, index - 1))
                 for branch in branches}
      ways = [(CONADV, batch, index)]
      if lag <= 1:
        ways.append((RECYCLED, batch, index))
      if lag == 1:
        ways.append((RECYCLED_NEXT, before, index - 1))
      for kind, images, number in ways:
        made = {}
        for branch in branches:
          through = branch if kind == CONADV else routing.CLEAN
          if through not in made:
            made[through] = self._made(images, number, through, kind)
          found.append(self._compare(
              kind, branch, lag, moved, images, made[through],
              fresh[number, branch]))
    return found

  def _moved(self, lag: int) -> float:
    trainable = {id(v) for v in self._network.trainable_variables}
    return float(np.sqrt(sum(
        np.sum(np.square(np.float64(now) - then))
        for v, now, then in zip(
            self._network.variables, self._past[-1], self._past[-1 - lag])
        if id(v) in trainable)))

  def _made(self, batch: methods.Batch, index: int, branch: str, kind: str
            ) -> list[np.ndarray]:
    """Adversaries and gradients of the network that stands for the past."""
    return [value.numpy() for value in self._make(
        batch, tf.constant(index), branch, kind == CONADV)]

  def _adversaries(self, batch: methods.Batch, index: tf.Tensor, branch: str,
                   by_conadv: bool) -> tuple[tf.Tensor, tf.Tensor]:
    attack = dataclasses.replace(
        self._attack, branch=branch if by_conadv else routing.CLEAN,
        random_start=self._attack.random_start if by_conadv else 0.0)
    ctx = methods.Context(
        network=self._then, attack_network=self._then, attack=attack,
        loss=self._loss, seed=self._seed, step=index, batch_index=index,
        virtual_replica=tf.constant(0), pixel_range=self._pixel_range)
    rows = batch.image.shape[0]
    made = passes.perturbed(
        ctx, batch, passes.make_perturbation(ctx, batch, rows))
    image = passes.as_float(batch.image)
    with tf.GradientTape() as tape:
      tape.watch(image)
      loss = tf.reduce_sum(batch.weight * self._loss(
          batch.label, self._then.logits(
              image, ((attack.branch, rows),), routing.Mode.PROBE)))
    return made, tape.gradient(loss, image)

  def _mean_loss(self, batch: methods.Batch, image: tf.Tensor, branch: str
                 ) -> tf.Tensor:
    logits = self._network.logits(
        image, ((branch, image.shape[0]),), routing.Mode.PROBE)
    return per_example.weighted_mean(
        self._loss(batch.label, logits), batch.weight)

  def _reference(self, batch: methods.Batch, index: int, branch: str
                 ) -> "_Fresh":
    made, gradient = self._made(batch, index, branch, CONADV)
    clean = self._loss_of(batch, passes.as_float(batch.image), branch)
    return _Fresh(made, gradient, clean,
                  self._loss_of(batch, made, branch) - clean)

  def _loss_of(self, batch: methods.Batch, image: tf.Tensor | np.ndarray,
               branch: str) -> float:
    return float(self._judge(batch, tf.convert_to_tensor(image), branch))

  def _compare(self, kind: str, branch: str, lag: int, moved: float,
               batch: methods.Batch, stale: Sequence[np.ndarray],
               fresh: "_Fresh") -> Record:
    made, gradient = stale
    image = batch.image.numpy().astype(np.float32)
    size = image[0].size if self._attack.norm == ball.LINF else 1
    longest = (self._attack.radius * ball.unit(self._pixel_range)
               * np.sqrt(size))
    apart = np.linalg.norm(
        np.float64(made - fresh.made).reshape(len(image), -1), axis=1)
    return Record(
        kind, branch, lag, moved, float(apart.mean() / longest),
        float(np.mean(np.sign(made - image) == np.sign(fresh.made - image))),
        self._loss_of(batch, made, branch) - fresh.clean, fresh.gain,
        float(np.linalg.norm(gradient - fresh.gradient)
              / np.linalg.norm(fresh.gradient)))


class _Fresh(NamedTuple):
  """Adversaries of the current weights, and what they do."""

  made: np.ndarray
  gradient: np.ndarray
  clean: float  # loss without them
  gain: float
