"""APGD and Square as adversarial-robustness-toolbox (ART) makes them.

APGD: Croce and Hein, "Reliable evaluation of adversarial robustness with an
ensemble of diverse parameter-free attacks", 2020, with cross entropy or the
difference of logits ratio (DLR); Square: Andriushchenko et al., 2020, which
sees outputs and no gradient. The standard AutoAttack of the first paper is
APGD-CE, APGD-T, FAB-T and Square; `autoattack` here is APGD-CE, APGD-DLR and
Square, without the two targeted ones, so its accuracy is an upper bound of
the standard one's.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
from typing import Any
import warnings

import numpy as np
import tensorflow as tf

from conadv_tf import config
from conadv_tf.attacks import ball
from conadv_tf.evaluation import attack_names, clean
from conadv_tf.layers import network as networks
from conadv_tf.layers import routing

_TINY = 1e-12
_SQUARE_SHARE = 0.8  # of the image, Square's first square


def parts(attack: attack_names.Attack) -> list[attack_names.Attack]:
  """What an attack consists of, in the order in which it is made."""
  if attack.family != "autoattack":
    return [attack]
  return [attack_names.parse(name, attack.radius)
          for name in ("apgd", "apgd-dlr", "square")]


def is_installed() -> bool:
  """Whether the library can be imported; another `art` exists, too."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # it misses PyTorch
      import art.attacks.evasion
      import art.estimators.classification  # noqa: F401
  except ImportError:
    return False
  return True


def check(attack: attack_names.Attack, image_shape: Sequence[int],
          num_classes: int) -> None:
  """Raises InputError for what cannot be made here.

  Args:
    attack: from the library.
    image_shape: height, width, channels.
    num_classes: of the network.
  """
  name = attack.name
  if not is_installed():
    raise config.InputError(
        f"--attacks: {name} needs adversarial-robustness-toolbox; pip install "
        "-c constraints.txt -r requirements-extra.txt")
  for part in parts(attack):
    if part.family == "apgd-dlr" and num_classes < 3:
      raise config.InputError(
          f"--attacks: the loss of apgd-dlr in {name} needs 3 classes, there "
          f"are {num_classes}; name apgd and square instead")
    if part.family == "square" and min(image_shape[:2]) < 2:
      raise config.InputError(
          f"--attacks: square in {name} needs images of 2x2 pixels or more")


@contextlib.contextmanager
def _numpy_seed(*seed: int) -> Iterator[None]:
  """ART draws from NumPy's global generator; it is put back afterwards."""
  state = np.random.get_state()
  np.random.seed(np.random.SeedSequence(seed).generate_state(4))
  try:
    yield
  finally:
    np.random.set_state(state)


class CrossEntropy:
  """-log softmax(logits)[label], as ART calls a loss."""

  reduction = "none"  # ART sets it

  def __call__(self, y_true: Any, y_pred: tf.Tensor) -> tf.Tensor:
    """Float32 [b], or its sum or mean, of one-hot labels and logits."""
    return self._reduced(self.each(tf.cast(y_true, y_pred.dtype), y_pred))

  def each(self, label: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Of every example by itself, [b]."""
    return tf.nn.softmax_cross_entropy_with_logits(label, logits)

  def _reduced(self, losses: tf.Tensor) -> tf.Tensor:
    if self.reduction == "none":
      return losses
    # ART takes the gradient's sign or scale by example: a sum, since the
    # mean over a large batch may underflow.
    return tf.reduce_sum(losses)


class DifferenceOfLogitsRatio(CrossEntropy):
  """-(z_y - max_(i != y) z_i) / (z_1 - z_3), z_1 >= z_2 >= z_3 the largest."""

  def each(self, label: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Of every example by itself, [b]."""
    own = tf.reduce_sum(label * logits, axis=1)
    other = tf.reduce_max(
        tf.where(label > 0, tf.fill(tf.shape(logits), -np.inf), logits), axis=1)
    top = tf.math.top_k(logits, 3).values
    # Without the constant two equal logits would make the image NaN.
    return -(own - other) / (top[:, 0] - top[:, 2] + _TINY)


class LibraryEvaluator:
  """Robust accuracy under attacks of the library, on one device.

  Attacks see the network with its moving statistics, through one branch, and
  are made one after the other, each only on the examples that survived the
  ones before: an example counts as right if all parts leave it right. What
  comes back is put into the ball and the pixel range again and judged by the
  network itself. The random numbers depend on the seed and on the batch.
  """

  def __init__(self, network: networks.Network, attack: attack_names.Attack,
               branch: str, seed: int, pixel_range: tuple[float, float],
               outputs: str = "logits") -> None:
    """Builds the library's classifier around the network.

    Args:
      network: attacked and evaluated.
      attack: from the library.
      branch: whose batch normalisation is used.
      seed: of all random numbers.
      pixel_range: smallest and largest pixel; its width / 255 is the unit of
        the radius.
      outputs: what the network ends in, "logits" or "probabilities".

    Raises:
      InputError: if the library is missing or the attack does not fit.
    """
    shape = tuple(network.model.input_shape[1:])
    self._classes = network.output_shape[-1]
    check(attack, shape, self._classes)
    self._attack, self._seed, self._range = attack, seed, pixel_range
    self._shape = shape

    @tf.function(input_signature=[tf.TensorSpec([None, *shape], tf.float32)])
    def logits(images: tf.Tensor) -> tf.Tensor:
      found = network.logits(images, ((branch, -1),), routing.Mode.EVAL)
      if outputs == "probabilities":  # a softmax of log p is p
        found = tf.math.log(tf.maximum(found, np.finfo(np.float32).tiny))
      return found

    self.logits = logits

  def classifier(self, loss: CrossEntropy) -> Any:
    """ART's view of the network, with a loss."""
    from art.estimators.classification import TensorFlowV2Classifier
    logits = self.logits

    class Classifier(TensorFlowV2Classifier):
      """ART's own `predict` is traced anew for numbers of survivors."""

      def predict(self, x: np.ndarray, batch_size: int = 0,
                  training_mode: bool = False, **kwargs: Any) -> np.ndarray:
        """Logits [b, classes] of images [b, h, w, c]."""
        del batch_size, training_mode, kwargs
        return logits(tf.constant(x, tf.float32)).numpy()

    return Classifier(
        model=lambda x, training: logits(tf.cast(x, tf.float32)),
        nb_classes=self._classes, input_shape=self._shape, loss_object=loss,
        clip_values=self._range)

  def __call__(self, dataset: tf.data.Dataset,
               between: Callable[[float], None] = lambda share: None
               ) -> dict[str, float]:
    """Attacks every example once.

    Args:
      dataset: finite, of (image [b, h, w, c], integer label [b], weight [b]);
        a row of weight 0 is padding.
      between: called after every part of every batch with its share of the
        batch's work.

    Returns:
      `accuracy`, `examples`, and for more parts than one
      `accuracy_after_<part>`.
    """
    made = [self._library_attack(part) for part in parts(self._attack)]
    work = [part.passes for part in parts(self._attack)]
    examples, right = 0, np.zeros(len(made), np.int64)
    for number, (image, label, weight) in enumerate(dataset):
      kept = weight.numpy() > 0
      x = tf.cast(image, tf.float32).numpy()[kept]
      y = np.reshape(label.numpy(), [-1])[kept]
      examples += len(x)
      survived = self._right(x, y)
      for index, attack in enumerate(made):
        rows = np.flatnonzero(survived)
        if attack and len(rows):
          with _numpy_seed(self._seed, number, index):
            survived[rows] = self._survives(attack, x[rows], y[rows])
        right[index] += survived.sum()
        between(work[index] / sum(work))
    if not examples:
      raise config.InputError("evaluation: the dataset has no examples")
    result = {"accuracy": float(right[-1]) / examples,
              "examples": float(examples)}
    if len(made) > 1:
      for part, count in zip(parts(self._attack), right, strict=True):
        result[f"accuracy_after_{part.family}"] = float(count) / examples
    return result

  def _right(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (clean.label_rank(tf.constant(y), self.logits(x)) < 1).numpy()

  def _survives(self, attack: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    made = attack.generate(x=x.copy(), y=np.eye(self._classes)[y])
    # An image with NaN would count as fooled.
    made = np.where(np.isfinite(made), made, x)
    made = x + np.clip(made - x, -self._radius, self._radius)
    return self._right(np.clip(made, *self._range).astype(np.float32), y)

  @property
  def _radius(self) -> float:
    return self._attack.radius * ball.unit(self._range)

  def _library_attack(self, part: attack_names.Attack) -> Any:
    """ART's object; None for radius 0, which ART does not take."""
    from art.attacks.evasion import AutoProjectedGradientDescent, SquareAttack
    if not part.radius:
      return None
    # One batch is what a call gets: the evaluation has cut the examples.
    common = dict(norm=np.inf, eps=self._radius, max_iter=part.steps,
                  batch_size=2**31, verbose=False)
    if part.family == "square":
      height, width = self._shape[:2]
      # ART draws the place of a square below side - tile, which must be 1.
      share = min(_SQUARE_SHARE, (min(height, width) - 1)**2 / (height * width))
      return SquareAttack(self.classifier(CrossEntropy()), p_init=share,
                          **common)
    loss = (CrossEntropy() if part.family == "apgd"
            else DifferenceOfLogitsRatio())
    return AutoProjectedGradientDescent(
        self.classifier(loss), eps_step=2.0 * self._radius, nb_random_init=1,
        **common)
