"""What a training method is.

A method sees one virtual replica: its own slice of the batch, its own batch
statistics and its own random keys. It computes and returns; the trainer
reduces and assigns.
"""

import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf

from conadv_tf.attacks import gradient as gradient_attacks
from conadv_tf.layers import network as networks
from conadv_tf.layers import routing
from conadv_tf.objectives import per_example

# Orders of attack and update, where weights are stale.
CONCURRENT = "concurrent"
SEQUENTIAL = "sequential"


def check_count(name: str, value: int) -> None:
  """Raises ValueError unless it is an integer of at least 0."""
  if not isinstance(value, int) or value < 0:
    raise ValueError(f"{name} must be an integer >= 0, got {value}")


def check_weight(name: str, value: float) -> None:
  """Raises ValueError unless it is a number of at least 0."""
  if not 0 <= value < float("inf"):
    raise ValueError(f"{name} must be at least 0, got {value}")


def check_choice(name: str, value: str, *known: str) -> None:
  """Raises ValueError unless it is one of these words."""
  if value not in known:
    raise ValueError(f"{name} must be {' or '.join(map(repr, known))}, got "
                     f"{value!r}")


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
  """A batch waiting for its update with the perturbation made for it."""

  batch: Batch
  perturbation: tf.Tensor  # [round(r * b), h, w, c], from attacks.compact


class StepResult(NamedTuple):
  """What one virtual replica contributes to an update.

  Attributes:
    gradients: in the order of `network.trainable_variables`.
    statistics: packed batch statistics, float32 [n].
    held: for the next step, or ().
    terms: name -> (mean over examples of this virtual replica, how many,
      by weight), float32 scalars.
    outputs: clean outputs [b, classes], for the metrics of `compile`.
    batch: the batch that was trained on.
    counted: float32 [b], weight of its examples in the metrics; None is that
      of the batch.
  """

  gradients: list[tf.Tensor]
  statistics: tf.Tensor
  held: Any
  terms: dict[str, tuple[tf.Tensor, tf.Tensor]]
  outputs: tf.Tensor
  batch: Batch
  counted: tf.Tensor | None = None


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
    first: index of the first update since which something is held.
    virtual_replica: index v of this slice of the global batch.
    pixel_range: smallest and largest pixel value.
    is_delayed: whether this update comes before the method's own begin; a
      Python bool, since both kinds are traced.
    joined: whether the training pass takes clean and adversarial rows
      through the network together, or each on its own, side by side.
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
  first: tf.Tensor | int = -1
  joined: bool = True
  is_delayed: bool = False
  gamma: tf.Tensor | float = 0.0
  scale_loss: Any = lambda loss: loss
  unscale: Any = lambda gradients: gradients

  @property
  def ready(self) -> tf.Tensor | bool:
    """Whether something is held that this update may train on."""
    return self.step > self.first


class Method:
  """Base class of all methods.

  Attributes:
    lag: age in updates of the weights that make adversaries.
    lookahead: batches received ahead of the one trained on, 0 or 1.
    lookback: batches whose adversaries are trained on after them, 0 or 1.
    attack_every: batches from one attack to the next; those between take the
      last perturbation's sign.
    lagged_copies: weight sets that the trainer keeps for the method.
    branches: batch normalisation branches that the network needs.
    passes_per_step: forward passes F of the clean batch that a step costs.
    longest_chain: passes F of a step that must run one after another.
    attacks: whether it makes adversarial images.
    perturbs: whether it perturbs word embeddings, which the network must have.
    embedding_width: their d, set by the trainer where it perturbs them.
    delay: first update that differs from plain training.
    recycles: whether it makes them from the training pass's gradient.
    augments: whether it trains on `Batch.augmented` as well.
    gamma: initial share of the rows that it makes adversarial in place of
      clean ones, where it replaces rows.
    training_pass: whether clean and adversarial rows usually go through the
      network "joined" or "separate", side by side: what is faster on CPUs
      (docs/performance.md).
    terms: names of what `StepResult.terms` holds.
  """

  lag: int = 0
  lookahead: int = 0
  lookback: int = 0
  attack_every: int = 1
  lagged_copies: int = 0
  branches: tuple[str, ...] = routing.BRANCHES[1]
  passes_per_step: float = 3.0
  longest_chain: float = 2.0
  attacks: bool = False
  perturbs: bool = False
  embedding_width: int = 0
  delay: int = 0
  recycles: bool = False
  augments: bool = False
  gamma: float = 0.0
  training_pass: str = "joined"
  terms: tuple[str, ...] = ("loss", "clean_loss")

  def segments(self, rows: int) -> routing.Segments:
    """Branches of the rows of the training pass, for b clean rows."""
    return ((routing.CLEAN, rows),)

  def default_attack(self, attack: gradient_attacks.Pgd
                     ) -> gradient_attacks.Pgd:
    """Fills in what the attack leaves to the method."""
    return attack

  def held_spec(self, batch: Batch, attack: gradient_attacks.Pgd) -> Any:
    """Specs of what `prime` returns, for specs of a batch."""
    del batch, attack
    return ()

  @property
  def first_active(self) -> int:
    """First update that is traced with `is_delayed` False.

    With lookahead it attacks for update `delay`, and itself trains plainly.
    """
    return max(0, self.delay - self.lookahead)

  @property
  def holds(self) -> bool:
    """Whether anything waits for the next update."""
    return bool(self.lookahead or self.lookback or self.attack_every > 1)

  def passes(self, attack: gradient_attacks.Pgd) -> tuple[float, float]:
    """`passes_per_step` and `longest_chain` with an attack."""
    del attack
    return self.passes_per_step, self.longest_chain

  def behind(self, step: int) -> int:
    """Batches before the one of update `step` that a resumed run sees again.

    From them it makes again what is held: from the last batch that was
    attacked on, one after another.
    """
    if not self.holds:
      return 0
    waiting = 1 - self.lookahead
    return waiting + (step - waiting) % self.attack_every

  def prime(self, ctx: Context, batch: Batch, held: Any) -> Any:
    """Makes what the next step expects to be held, where it holds anything.

    Args:
      ctx: of the received batch.
      batch: with lookahead the one that is trained on next, else the one
        before that.
      held: what was held before it.
    """
    del ctx, batch, held
    return ()

  def step(self, ctx: Context, batch: Batch, held: Any) -> StepResult:
    """Computes one virtual replica's share of one update."""
    raise NotImplementedError
