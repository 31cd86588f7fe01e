"""Replicas that only make adversaries, beside those that train.

A device runs its operations one after another, so an attack costs time
wherever its device also trains. ConAdv's paper gives it to extra processors:
here T replicas train and A attack for T / A of them each.

All replicas run one program and hold the same weights. The all-reduce of the
update, to which attackers give nothing, keeps theirs up to date; what they
make reaches the trainers by one sum a micro batch. A trainer takes the slice
of the batch that it would take among T replicas, and its adversary is made
with its own keys: the numbers are those of T replicas that do both.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from conadv_tf.attacks import gradient as gradient_attacks
from conadv_tf.layers import network as networks
from conadv_tf.methods import adversarial
from conadv_tf.methods import method as methods
from conadv_tf.training import batches, feeding
from conadv_tf.training import trainer as trainers

_WORD = 4  # bytes of an int32: collectives take nothing smaller


@dataclasses.dataclass(frozen=True)
class Roles:
  """Replicas 0 .. T-1 train, T .. T+A-1 attack.

  Attributes:
    trainers: T; each takes one of an element's T slices.
    attackers: A; attacker a serves trainers a*m .. a*m+m-1, m = T/A.

  Raises:
    ValueError: if there are too few, or groups are not equal.
  """

  trainers: int
  attackers: int

  def __post_init__(self) -> None:
    if self.attackers < 1 or self.trainers < 1:
      raise ValueError(
          f"{self.trainers + self.attackers} replica(s), of which "
          f"{self.attackers} attack: there must be at least one that attacks "
          "and one that trains")
    if self.trainers % self.attackers:
      raise ValueError(
          f"{self.trainers} replicas that train do not divide among "
          f"{self.attackers} that attack")

  @property
  def group_size(self) -> int:
    """Trainers of an attacker, m."""
    return self.trainers // self.attackers

  def slices(self, replica: int) -> list[int]:
    """The m slices of an element that a replica receives.

    All its trainers' for an attacker; a trainer's own m times, since elements
    have one shape on all replicas.
    """
    size = self.group_size
    if replica < self.trainers:
      return [replica] * size
    first = (replica - self.trainers) * size
    return list(range(first, first + size))

  def _fed_by(self, pipeline: int, pipelines: int) -> range:
    """The replicas of an input pipeline."""
    count = (self.trainers + self.attackers) // pipelines
    return range(pipeline * count, (pipeline + 1) * count)

  def part(self, pipeline: int, pipelines: int) -> tuple[int, int]:
    """What an input pipeline reads: part i of n equal ones of each element.

    The slices of its replica if it has one, else everything.
    """
    replica, *others = self._fed_by(pipeline, pipelines)
    if others:
      return 0, 1
    if replica < self.trainers:
      return replica, self.trainers
    return replica - self.trainers, self.attackers

  def arrange(self, dataset: tf.data.Dataset, pipeline: int = 0,
              pipelines: int = 1) -> tf.data.Dataset:
    """Gives every replica the rows of its group, m slices.

    Args:
      dataset: elements (x, y[, weight]) of static shapes, the part of a
        global (micro) batch that `part` names.
      pipeline: which of the input pipelines this is.
      pipelines: how many there are.

    Returns:
      Elements of equally many rows for each replica of the pipeline.

    Raises:
      ValueError: if the rows do not divide.
    """
    index, count = self.part(pipeline, pipelines)
    slices = self.trainers // count
    order = [s - index * slices for replica in self._fed_by(
        pipeline, pipelines) for s in self.slices(replica)]
    rows = batches.image(dataset.element_spec).shape[0]
    if rows % slices:
      raise ValueError(f"batches of {rows * count} examples do not divide "
                       f"among {self.trainers} replicas that train")
    if order == list(range(slices)):
      return dataset
    positions = np.arange(rows).reshape(slices, -1)[order].ravel()

    def pick(*element: Any) -> Any:
      return tf.nest.map_structure(
          lambda t: tf.gather(t, positions), element)

    return dataset.map(pick)


def check(method: methods.Method, bn_group_size: int) -> None:
  """Refuses what cannot be split.

  Raises:
    ValueError: if the attack does not run beside the training pass, or
      replicas share batch statistics, which attackers would have a part in.
  """
  beside = (isinstance(method, adversarial.AdversarialMethod)
            and method.lookahead and method.attack_every == 1)
  if not beside:
    raise ValueError(
        "replicas that only attack need an attack on every batch that does "
        "not wait for the update: ConAdv, lag >= 1, execution concurrent, "
        "pairing same_batch, attack_every 1")
  if bn_group_size != 1:
    raise ValueError("replicas that only attack exclude groups of replicas "
                     f"in batch normalisation, got {bn_group_size}")


class TrainerWithAttackers(trainers.Trainer):
  """A `Trainer` some of whose replicas only make adversaries.

  `fit` takes batches of all T trainers. A distributed dataset must hold for
  each replica the rows that `roles.slices` names.

  Attributes:
    roles: which replicas train and which attack.
  """

  def __init__(self, model: tf.keras.Model, method: methods.Method,
               attack: gradient_attacks.Pgd | None = None, *,
               attack_replicas: int = 1, bn_group_size: int = 1,
               **options: Any):
    """Makes the trainer, in the scope of a strategy of T + A replicas.

    Args:
      model: as in `Trainer`.
      method: ConAdv with lag >= 1, concurrent.
      attack: as in `Trainer`.
      attack_replicas: A.
      bn_group_size: must be 1.
      **options: of `Trainer`.

    Raises:
      ValueError: as `check`, `Roles` and `Trainer` do.
    """
    check(method, bn_group_size)
    super().__init__(model, method, attack, **options)
    self.roles = Roles(
        self.distribute_strategy.num_replicas_in_sync - attack_replicas,
        attack_replicas)

  def _prepare_state(self, spec: Any) -> None:
    """For the rows of a trainer, of which a replica receives m times."""
    own = feeding.share(spec, self.roles.group_size)
    self._group_spec = spec
    self._code = self.method.held_spec(
        batches.batch(own, own), self.attack).perturbation
    super()._prepare_state(own)

  # ---- In a replica.

  def _slices(self) -> tf.Tensor:
    """int32 [m], see `Roles.slices`."""
    replica = tf.distribute.get_replica_context()
    table = [self.roles.slices(r)
             for r in range(replica.num_replicas_in_sync)]
    return tf.gather(
        tf.constant(table, tf.int32), replica.replica_id_in_sync_group)

  def _by_role(self, train: Callable[[], Any],
               attack: Callable[[], Any]) -> Any:
    """What this replica's role gives.

    Where the replica is known while tracing, which it is but on TPUs, its
    graph never holds the other role's work; else that is not executed.
    Neither may contain a collective.
    """
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    return tf.__internal__.smart_cond.smart_cond(
        tf.less(replica, self.roles.trainers), train, attack)

  def context(self, element: tf.Tensor, attack_network: networks.Network,
              **distances: Any) -> methods.Context:
    """As in `Trainer`, of a replica's own slice of T."""
    ctx = super().context(element, attack_network, **distances)
    return self._of_slice(ctx, element, self._slices()[0])

  def _of_slice(self, ctx: methods.Context, element: tf.Tensor,
                index: tf.Tensor) -> methods.Context:
    return dataclasses.replace(
        ctx, virtual_replica=element * self.roles.trainers + index)

  def train_step(self, data: Any, element: tf.Tensor) -> methods.StepResult:
    """A trainer's share of an update, or an attacker's, which is none.

    Args:
      data: (x, y[, weight]) of this replica's group.
      element: index of the micro batch, int32 scalar.
    """
    own, group = self._batches(data)
    ctx = self.context(element, self.staleness.attack_network,
                       ahead=self.method.lookahead)

    def train() -> Any:
      held = self.staleness.read(element)
      result = self.method.train_on_pair(ctx, held.batch, held)
      self._means.add_terms(result.terms)
      self.compiled_metrics.update_state(
          result.batch.label, result.outputs, result.batch.weight)
      gradients = [tf.convert_to_tensor(g) for g in result.gradients]
      return (gradients, result.statistics, result.batch.weight,
              self._no_words())

    def attack() -> Any:
      variables = self.network.trainable_variables
      rows = batches.image(self._element_spec).shape[0]
      statistics = self.network.statistics_size(self.method.segments(rows))
      return ([tf.zeros(v.shape) for v in variables], tf.zeros([statistics]),
              tf.zeros([rows]), self._attack(ctx, element, group))

    gradients, statistics, weight, made = self._by_role(train, attack)
    self._exchange(element, own, made)
    return methods.StepResult(
        gradients, statistics, (), {}, (), own._replace(weight=weight))

  def _prime_step(self, data: Any, element: tf.Tensor,
                  behind: tf.Tensor) -> None:
    own, group = self._batches(data)
    ctx = self.context(element, self.staleness.attack_network, behind=behind)
    self._exchange(element, own, self._by_role(
        self._no_words, lambda: self._attack(ctx, element, group)))

  def _batches(self, data: Any) -> tuple[methods.Batch, methods.Batch]:
    """A replica's own slice and all that it has received."""
    group = batches.batch(data, self._group_spec)
    rows = batches.image(self._element_spec).shape[0]
    return tf.nest.map_structure(lambda t: t[:rows], group), group

  def _attack(self, ctx: methods.Context, element: tf.Tensor,
              group: methods.Batch) -> tf.Tensor:
    """Perturbations of m slices, made one after another, [m, words]."""
    size = self.roles.group_size
    # The attack has no use for augmented views.
    parts = tf.nest.map_structure(
        lambda t: tf.reshape(t, [size, t.shape[0] // size, *t.shape[1:]]),
        group._replace(augmented=()))

    def one(part: tuple[tf.Tensor, methods.Batch]) -> tf.Tensor:
      index, batch = part
      return to_words(self.method.make_perturbation(
          self._of_slice(ctx, element, index), batch, ()))

    return tf.map_fn(
        one, (self._slices(), parts), parallel_iterations=1,
        fn_output_signature=tf.TensorSpec([words(self._code)], tf.int32))

  def _no_words(self) -> tf.Tensor:
    return tf.zeros([self.roles.group_size, words(self._code)], tf.int32)

  def _exchange(self, element: tf.Tensor, own: methods.Batch,
                made: tf.Tensor) -> None:
    """Holds a slice and its perturbation, which an attacker has made.

    One sum, in which every slice has a row of its own and one replica that
    gives anything: on every strategy, and exact. A gather would carry rows of
    zeros from the trainers too.
    """
    roles, index = self.roles, self._slices()[0]
    with tf.name_scope("exchange"):
      group = tf.one_hot(
          index // roles.group_size, roles.attackers, dtype=tf.int32)
      rows = tf.reshape(group[:, None, None] * made,
                        [roles.trainers, words(self._code)])
      total = tf.distribute.get_replica_context().all_reduce(
          tf.distribute.ReduceOp.SUM, rows)
      code = from_words(total[index], self._code)
    self.staleness.write(element, methods.Held(own, code))


def words(code: tf.TensorSpec) -> int:
  """How many int32 a perturbation takes, in the form of `attacks.compact`."""
  return -(-code.shape.num_elements() * code.dtype.size // _WORD)


def to_words(code: tf.Tensor) -> tf.Tensor:
  """The bytes of an int8 or bfloat16 tensor as int32 [n], zeros at the end."""
  values = _WORD // code.dtype.size
  flat = tf.reshape(code, [-1])
  padded = tf.pad(flat, [[0, -flat.shape[0] % values]])
  return tf.bitcast(tf.reshape(padded, [-1, values]), tf.int32)


def from_words(packed: tf.Tensor, code: tf.TensorSpec) -> tf.Tensor:
  """The tensor that `to_words` has packed."""
  flat = tf.reshape(tf.bitcast(packed, code.dtype), [-1])
  return tf.reshape(flat[:code.shape.num_elements()], code.shape)
