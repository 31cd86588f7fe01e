"""Loss and accuracy over every example of a dataset, each counted once."""

from collections.abc import Callable, Mapping
import itertools

import tensorflow as tf

from conadv_tf import config
from conadv_tf.layers import network as networks
from conadv_tf.layers import routing
from conadv_tf.objectives import per_example

_TOP = 5


class Evaluator:
  """Evaluates a network on datasets; traced once, to be used many times.

  Counts are integers and the loss is added up in float64, so the result does
  not depend on the batch size or the number of replicas (the outputs of one
  example may differ in their last bits between batch sizes, the sums add
  nothing to that). Only a dataset of another batch size is traced anew.
  """

  def __init__(self, network: networks.Network,
               loss: per_example.PerExampleLoss,
               strategy: tf.distribute.Strategy | None = None,
               branch: str = routing.CLEAN) -> None:
    """Keeps the arguments; nothing is computed yet.

    Args:
      network: evaluated with moving statistics (EVAL).
      loss: of single examples. With label smoothing in it the reported loss
        has it too: training's loss is seldom the one to report.
      strategy: whose replicas share every batch; default the one that the
        network was made under.
      branch: whose batch normalisation is used.

    Raises:
      InputError: if the network has no such branch.
    """
    if branch not in network.branches:
      raise config.InputError(
          f"evaluation: no branch {branch!r}; this network has "
          f"{', '.join(network.branches)}")
    self._network = network
    self._loss = loss
    self._strategy = strategy or network.model.distribute_strategy
    self._branch = branch
    self._step = tf.function(self._add_batch, autograph=False)

  def __call__(self,
               dataset: tf.data.Dataset | tf.distribute.DistributedIterator,
               elements: int | None = None,
               between: Callable[[], None] = lambda: None
               ) -> dict[str, float]:
    """Evaluates every example once.

    Args:
      dataset: finite, of (image [b, h, w, c], label [b] or [b, classes],
        weight [b]) with static b. A row of weight 0 is padding, any other is
        one example. Only the last element may be padded. Or a distributed
        iterator of each replica's rows, see `with_positions`.
      elements: how many of them to take of a distributed iterator.
      between: called before each.

    Returns:
      `loss` and `accuracy` (means), `top_5_accuracy` where there are more
      than 5 classes, `examples` (their number).

    Raises:
      ValueError: if b is not static.
      InputError: if there are no examples.
    """
    dataset = self.shared_out(dataset, elements)
    totals = (tf.zeros([3], tf.int64), tf.zeros([], tf.float64))
    for element in itertools.islice(dataset, elements):
      between()
      totals = self._step(totals, element)
    counts, loss = totals
    examples, correct, in_top = (int(count) for count in counts.numpy())
    if not examples:
      raise config.InputError("evaluation: the dataset has no examples")
    result = {"loss": float(loss.numpy()) / examples,
              "accuracy": correct / examples}
    if self._network.output_shape[-1] > _TOP:
      result[f"top_{_TOP}_accuracy"] = in_top / examples
    return {**result, "examples": float(examples)}

  def shared_out(self,
                 dataset: tf.data.Dataset | tf.distribute.DistributedIterator,
                 elements: int | None) -> tf.distribute.DistributedDataset:
    """Elements of each replica's rows; arguments as of a call."""
    return dataset if elements is not None else (
        self._strategy.experimental_distribute_dataset(
            _shareable(dataset, self._strategy)))

  def logits(self, images: tf.Tensor) -> tf.Tensor:
    """Outputs [b, classes] for float images, through the branch, in EVAL."""
    segments = ((self._branch, -1),)  # all rows; one segment is not cut
    return self._network.logits(images, segments, routing.Mode.EVAL)

  def summed_loss(self, label: tf.Tensor, images: tf.Tensor,
                  weight: tf.Tensor) -> tf.Tensor:
    """Float32 sum of the losses of the rows that count."""
    losses = self._loss(label, self.logits(images))
    return tf.reduce_sum(tf.where(weight > 0, losses, 0.0))

  def inputs(self, image: tf.Tensor, label: tf.Tensor, weight: tf.Tensor,
             position: tf.Tensor) -> tf.Tensor:
    """What the network is shown in place of one replica's images.

    Args:
      image: [b, h, w, c], as in the dataset.
      label: [b] or [b, classes].
      weight: float32 [b].
      position: int32 [b], of each example in the dataset.

    Returns:
      float32 [b, h, w, c].
    """
    del label, weight, position
    return tf.cast(image, tf.float32)

  def per_example(self, image: tf.Tensor, label: tf.Tensor, weight: tf.Tensor,
                  position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """What is counted of one replica's rows.

    Returns:
      `label_rank`, int32 [b], and the loss, float32 [b].
    """
    return self.measured(label, self.inputs(image, label, weight, position))

  def measured(self, label: tf.Tensor, shown: tf.Tensor
               ) -> tuple[tf.Tensor, tf.Tensor]:
    """The same of images as the network is shown them."""
    outputs = self.logits(shown)
    return label_rank(label, outputs), self._loss(label, outputs)

  def _add_batch(self, totals: tuple[tf.Tensor, tf.Tensor],
                 element: tuple[tf.Tensor, ...]
                 ) -> tuple[tf.Tensor, tf.Tensor]:
    sums = self._strategy.run(self._replica_sums, args=element)
    return tuple(
        total + tf.cast(self._strategy.reduce(
            tf.distribute.ReduceOp.SUM, value, axis=None), total.dtype)
        for total, value in zip(totals, sums, strict=True))

  def _replica_sums(self, image: tf.Tensor, label: tf.Tensor,
                    weight: tf.Tensor, position: tf.Tensor
                    ) -> tuple[tf.Tensor, tf.Tensor]:
    """(examples, correct, in top 5) as int32 [3], summed loss as float64."""
    rank, losses = self.per_example(image, label, weight, position)
    losses = tf.cast(losses, tf.float64)
    counted = weight > 0
    # TPUs have no int64 reductions.
    counts = [tf.reduce_sum(tf.cast(rows, tf.int32)) for rows in (
        counted, counted & (rank < 1), counted & (rank < _TOP))]
    # `where` and not a product: the loss of padding may be infinite.
    loss = tf.reduce_sum(tf.where(counted, losses, tf.zeros_like(losses)))
    return tf.stack(counts), loss


def generalisation_gap(train: Mapping[str, float],
                       validation: Mapping[str, float],
                       metric: str = "accuracy") -> float:
  """Accuracy on training examples minus accuracy on validation examples.

  Args:
    train: from an `Evaluator` on training examples without augmentation; the
      running accuracy of `fit` has augmentation, batch statistics and older
      weights in it, and would make another quantity of the difference.
    validation: from the same `Evaluator` on validation examples.
    metric: in place of accuracy.
  """
  return train[metric] - validation[metric]


def label_rank(label: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
  """How many classes are placed before the label's, int32 [b].

  Among equal outputs the lower class comes first, as in `argmax`. NaN comes
  before all numbers and a label whose own output is NaN comes last, so a
  network that diverged is right about nothing.

  Args:
    label: integer [b] or [b, 1], or class probabilities [b, classes].
    outputs: [b, classes].
  """
  classes = outputs.shape[1]
  if label.shape.rank == 2 and label.shape[1] == classes:
    label = tf.argmax(label, axis=1, output_type=tf.int32)
  label = tf.reshape(tf.cast(label, tf.int32), [-1, 1])
  own = tf.gather(outputs, label, axis=1, batch_dims=1)  # [b, 1]
  index = tf.range(classes)[None]
  before = tf.where(index < label, outputs >= own, outputs > own)
  # Not by negated comparisons, which TensorFlow turns around in graphs.
  before |= tf.math.is_nan(outputs) | tf.math.is_nan(own)
  return tf.reduce_sum(tf.cast(before & (index != label), tf.int32), axis=1)


def with_positions(dataset: tf.data.Dataset, rows: int, first: int
                   ) -> tf.data.Dataset:
  """Adds each example's position in the whole dataset, int32 [b].

  Args:
    dataset: of (image, label, weight), static b.
    rows: of an element over all input pipelines.
    first: of them are other pipelines' before this one's.
  """
  own = dataset.element_spec[0].shape[0]

  def add(number: tf.Tensor, element: tuple[tf.Tensor, ...]
          ) -> tuple[tf.Tensor, ...]:
    position = tf.cast(number, tf.int32) * rows + first + tf.range(own)
    return (*element, position)

  return dataset.enumerate().map(add)


def _shareable(dataset: tf.data.Dataset, strategy: tf.distribute.Strategy
               ) -> tf.data.Dataset:
  """Adds each row's position, and rows so that b divides by the replicas."""
  rows = dataset.element_spec[0].shape[0]
  if rows is None:
    raise ValueError("evaluation needs batches of one static size: pad the "
                     "last one with rows of weight 0")
  extra = -rows % strategy.num_replicas_in_sync

  def extend(*element: tf.Tensor) -> tuple[tf.Tensor, ...]:
    return tuple(
        tf.pad(value, [[0, extra]] + [[0, 0]] * (value.shape.rank - 1))
        for value in element)

  options = tf.data.Options()
  # By examples: sharing out files needs at least one file a worker.
  options.experimental_distribute.auto_shard_policy = (
      tf.data.experimental.AutoShardPolicy.DATA)
  return with_positions(dataset, rows, 0).map(extend).with_options(options)
