"""Certified accuracy of the smoothed classifier (randomised smoothing).

Cohen, Rosenfeld and Kolter, Certified Adversarial Robustness via Randomized
Smoothing (ICML 2019). The smoothed classifier answers with the class that the
network gives most often to the image with noise N(0, sigma^2 I). If that
class has probability p > 1/2, no perturbation of l2 norm below
R = sigma * Phi^-1(p) changes the answer (their theorem 1 with p_B = 1 - p,
as in their algorithm Certify).

UNITS: sigma and R are on the pixel scale 0..1, as in the literature, NOT in
1/255 as radii of attacks are: 0.25 is 63.75 of 255 grey levels.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math

import numpy as np
import tensorflow as tf

from conadv_tf import config, randomness
from conadv_tf.layers import network as networks
from conadv_tf.layers import routing

ABSTAINED = -1
# Those of the DAT paper's Table 2, and 0.
RADII = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)


@dataclasses.dataclass(frozen=True)
class Smoothing:
  """What is certified, and how surely; the defaults are the literature's.

  Attributes:
    sigma: deviation of the noise, a share of the pixel range, in (0, 1].
    n0: noisy copies from which the class is chosen.
    n: noisy copies from which its probability is bounded.
    alpha: probability that a certificate is wrong, for each image.
    skip: of this many images in a row the first one is certified.
    batch_size: noisy copies that a replica classifies at a time. The noise
      depends on it, not on the number of replicas.

  Raises:
    InputError: if a value is outside its range.
  """

  sigma: float
  n0: int = 100
  n: int = 100_000
  alpha: float = 0.001
  skip: int = 20
  batch_size: int = 500

  def __post_init__(self) -> None:
    for name, legal, text in (
        ("sigma", 0 < self.sigma <= 1,
         "above 0 and at most 1: a share of the pixel range, not in 1/255"),
        ("n0", self.n0 >= 1, "at least 1"),
        ("n", self.n > self.n0, f"above n0={self.n0}"),
        ("alpha", 0 < self.alpha < 1, "above 0 and below 1"),
        ("skip", self.skip >= 1, "at least 1"),
        ("batch_size", self.batch_size >= 1, "at least 1")):
      if not legal:
        raise config.InputError(
            f"certify: {name}={getattr(self, name)} must be {text}")

  def bound(self, count: int) -> float:
    """Lower bound of a class's probability (Clopper-Pearson, one-sided).

    Args:
      count: how often the class came in `n` trials.
    """
    from scipy import stats  # A third of a second, which training is spared.
    return stats.binomtest(count, self.n, alternative="greater").proportion_ci(
        1 - self.alpha, method="exact").low

  def radius(self, count: int) -> float | None:
    """The certified l2 radius, pixels 0..1; None where it must abstain."""
    from scipy import stats
    bound = self.bound(count)
    return self.sigma * stats.norm.ppf(bound) if bound >= 0.5 else None

  @property
  def largest_radius(self) -> float:
    """Where all n copies agree; 0 if even then it abstains.

    From the bound alpha^(1/n): no certificate reaches further, however good
    the network.
    """
    return self.radius(self.n) or 0.0


@dataclasses.dataclass(frozen=True)
class Certificate:
  """What is known of one image.

  Attributes:
    position: of the image in its dataset.
    label: its class.
    prediction: the smoothed classifier's, or ABSTAINED.
    radius: certified, l2, pixels 0..1; 0 where it abstained.
    count: copies of n with the chosen class.
  """

  position: int
  label: int
  prediction: int
  radius: float
  count: int

  @property
  def is_correct(self) -> bool:
    """Whether the prediction is the label."""
    return self.prediction == self.label


class Certifier:
  """Certifies single images; traced once, to be used many times.

  The noise is Gaussian on 0..1 pixels before the network's own normalisation
  and is not clipped. It is a function of seed, the image's position, and the
  copy's number: block after block of `batch_size` copies, which the replicas
  share, so that their number changes nothing but rounding.
  """

  def __init__(self, network: networks.Network, smoothing: Smoothing,
               strategy: tf.distribute.Strategy, branch: str, seed: int,
               pixel_range: tuple[float, float]) -> None:
    """Keeps the arguments; nothing is computed yet.

    Args:
      network: the base classifier, with moving statistics (EVAL).
      smoothing: sigma, n0, n, alpha.
      strategy: whose replicas share the copies of an image.
      branch: whose batch normalisation is used.
      seed: of the noise.
      pixel_range: smallest and largest pixel; sigma is a share of its width.

    Raises:
      InputError: if the network has no such branch.
    """
    if branch not in network.branches:
      raise config.InputError(
          f"certify: no branch {branch!r}; this network has "
          f"{', '.join(network.branches)}")
    self._network = network
    self._smoothing = smoothing
    self._strategy = strategy
    self._branch = branch
    self._seed = seed
    self._deviation = smoothing.sigma * (pixel_range[1] - pixel_range[0])
    self._sum = tf.function(self._count, autograph=False)

  def __call__(self, image: tf.Tensor, label: int, position: int
               ) -> Certificate:
    """Chooses a class from n0 copies, bounds its probability with n others.

    Args:
      image: [h, w, c], any real dtype, in the pixel range.
      label: its class.
      position: of the image in its dataset.
    """
    chosen = int(np.argmax(self.counts(image, position, 0, self._smoothing.n0)))
    count = int(self.counts(image, position, 1, self._smoothing.n)[chosen])
    radius = self._smoothing.radius(count)
    if radius is None:
      return Certificate(position, label, ABSTAINED, 0.0, count)
    return Certificate(position, label, chosen, radius, count)

  def counts(self, image: tf.Tensor, position: int, phase: int, copies: int
             ) -> np.ndarray:
    """How often the network gives each class, int32 [classes].

    A copy with an output that is not finite counts for no class.

    Args:
      image: [h, w, c].
      position: of the image; with phase, the key of the noise.
      phase: 0 to choose, 1 to bound: the two draws must be independent.
      copies: noisy copies of the image.
    """
    return self._sum(tf.cast(image, tf.float32), *(
        tf.constant(v) for v in (position, phase, copies))).numpy()

  def _count(self, *arguments: tf.Tensor) -> tf.Tensor:
    return self._strategy.reduce(
        tf.distribute.ReduceOp.SUM,
        self._strategy.run(self._replica_count, args=arguments), axis=None)

  def _replica_count(self, image: tf.Tensor, position: tf.Tensor,
                     phase: tf.Tensor, copies: tf.Tensor) -> tf.Tensor:
    """Counts over one replica's blocks of noisy copies."""
    context = tf.distribute.get_replica_context()
    rows = self._smoothing.batch_size
    classes = self._network.output_shape[-1]

    def add(block: tf.Tensor, counts: tf.Tensor
            ) -> tuple[tf.Tensor, tf.Tensor]:
      key = randomness.make_key(self._seed, randomness.CERTIFICATION, position,
                                phase, block)
      noise = randomness.normal(key, [rows, *image.shape])
      outputs = self._network.logits(
          image[None] + self._deviation * noise, ((self._branch, rows),),
          routing.Mode.EVAL)
      counted = (block * rows + tf.range(rows) < copies) & tf.reduce_all(
          tf.math.is_finite(outputs), axis=1)
      votes = tf.one_hot(tf.argmax(outputs, axis=1), classes, dtype=tf.int32)
      return (block + context.num_replicas_in_sync,
              counts + tf.reduce_sum(
                  tf.where(counted[:, None], votes, 0), axis=0))

    _, counts = tf.while_loop(
        lambda block, _: block * rows < copies, add,
        (tf.cast(context.replica_id_in_sync_group, tf.int32),
         tf.zeros([classes], tf.int32)), parallel_iterations=1)
    return counts


def figures(certificates: Sequence[Certificate], smoothing: Smoothing,
            radii: Sequence[float] = RADII) -> dict[str, object]:
  """What a report says of many images.

  Args:
    certificates: one for each image.
    smoothing: of all of them.
    radii: l2, pixels 0..1.

  Returns:
    The settings; `images`, `abstained`, `largest_radius`; `accuracy`, the
    share of images that are predicted rightly; `mean_radius`, with 0 where
    not; `radii` and `certified_accuracy` at each.
  """
  total = len(certificates)
  right = [c.radius for c in certificates if c.is_correct]
  return {
      **dataclasses.asdict(smoothing),
      "images": total,
      "abstained": sum(c.prediction == ABSTAINED for c in certificates),
      "largest_radius": smoothing.largest_radius,
      "accuracy": len(right) / total,
      "mean_radius": math.fsum(right) / total,
      "radii": list(radii),
      "certified_accuracy": [accuracy_at(certificates, r) for r in radii],
  }


def accuracy_at(certificates: Sequence[Certificate], radius: float) -> float:
  """Share of the images that are right and certified at least this far."""
  return sum(c.is_correct and c.radius >= radius
             for c in certificates) / len(certificates)


def table(found: Mapping[str, object]) -> str:
  """Two lines and a table of `figures`, for people."""
  rows = zip(found["radii"], found["certified_accuracy"], strict=True)
  return "\n".join([
      f"certified: {found['images']} images, sigma {found['sigma']:g} of the "
      f"pixel range, n {found['n']:,}, alpha {found['alpha']:g}; "
      f"{found['abstained']} abstained; mean radius "
      f"{found['mean_radius']:.4f}; no radius can exceed "
      f"{found['largest_radius']:.4f}",
      "l2 radius (pixels 0..1)  certified accuracy",
      *(f"{radius:<23g}  {accuracy:.4f}" for radius, accuracy in rows)])
