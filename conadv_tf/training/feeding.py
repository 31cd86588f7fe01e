"""Turns what users give to `fit` into the stream that the trainer needs.

Elements get static shapes (held state and TPUs need them), every batch comes
once an epoch, and a method that looks ahead finds one more batch at the end.
"""

from collections.abc import Callable, Mapping
import dataclasses
import logging
from typing import Any

import numpy as np
import tensorflow as tf

from conadv_tf.distribute import strategies
from conadv_tf.training import batches


@dataclasses.dataclass
class Feed:
  """A dataset of micro batches and the arguments for Keras's `fit`.

  Attributes:
    dataset: of (x, y[, weight]).
    spec: of one replica's part of an element.
    steps_per_epoch: updates.
    options: the other arguments.
  """

  dataset: tf.data.Dataset | tf.distribute.DistributedDataset
  spec: Any
  steps_per_epoch: int
  options: dict[str, Any]


def prepare(x: Any, y: Any, *, lookahead: int, micro_batches: int,
            pixel_range: tuple[float, float] | None,
            strategy: tf.distribute.Strategy, augments: bool,
            options: Mapping[str, Any],
            arrange: Callable[[tf.data.Dataset], tf.data.Dataset] | None = None
            ) -> Feed:
  """Prepares the data of one `fit` call.

  Args:
    x: a `tf.data.Dataset` of (x, y[, weight]) batches, or an array; or a
      distributed dataset of batches for each replica, which must go on for
      the steps and what lies ahead of them.
    y: labels, where x is an array.
    lookahead: batches that the method receives ahead, 0 or 1.
    micro_batches: elements per update.
    pixel_range: what image values must span; None does not look at them.
    strategy: whose replicas share an element.
    augments: whether the method trains on two views of an example.
    options: the other arguments of `fit`.
    arrange: moves an element's rows to where replicas expect them; not for
      a distributed dataset, whose rows are there already.

  Raises:
    ValueError: if the data cannot be fed; the message says what to do.
  """
  options = dict(options)
  steps = options.pop("steps_per_epoch", None)
  if isinstance(x, tf.distribute.DistributedDataset):
    return _distributed(x, steps, augments, options)
  epochs = options.get("epochs", 1) - options.get("initial_epoch", 0)
  if isinstance(x, tf.data.Dataset):
    dataset = x
  else:
    dataset = _from_arrays(x, y, options)
  batches.check(dataset.element_spec, augments)
  original = int(dataset.cardinality())
  dataset, count = _static(dataset)
  if pixel_range is not None:
    _check_range(dataset, pixel_range)
  if arrange is not None:
    dataset = arrange(dataset)
  spec = share(dataset.element_spec, strategy.num_replicas_in_sync)
  dataset, steps = _of_epochs(
      dataset, (count, original), steps, epochs, micro_batches,
      lookahead * micro_batches)
  return Feed(strategies.shared_out(dataset, strategy), spec, steps, options)


def _of_epochs(dataset: tf.data.Dataset, counts: tuple[int, int],
               steps: int | None, epochs: int, micro_batches: int, ahead: int
               ) -> tuple[tf.data.Dataset, int]:
  """As many elements as `fit` takes, and those ahead.

  Args:
    dataset: of one epoch, or repeated.
    counts: its cardinality, and that before shorter batches were dropped.
    steps: updates an epoch, if they were given.
    epochs: how many.
    micro_batches: elements per update.
    ahead: elements after the last.

  Returns:
    (dataset, updates an epoch).
  """
  count = counts[0]
  if count == tf.data.INFINITE_CARDINALITY:
    if steps is None:
      raise ValueError("the dataset is infinite: pass steps_per_epoch")
  elif count == tf.data.UNKNOWN_CARDINALITY:
    if steps is None:
      raise ValueError(
          "the dataset's cardinality is unknown: pass steps_per_epoch with a "
          "repeated dataset, or tf.data.experimental.assert_cardinality(n)")
    dataset = dataset.concatenate(dataset.take(ahead))
  elif steps is None or steps * micro_batches in counts:
    steps = count // micro_batches
    if steps == 0:
      raise ValueError(f"{count} batches are too few for {micro_batches} "
                       "micro batches an update")
    if count % micro_batches:
      logging.warning("dropping the last %d of %d micro batches of an epoch",
                      count % micro_batches, count)
    once = dataset.take(steps * micro_batches)
    dataset = once.repeat(epochs).concatenate(once.take(ahead))
  else:
    dataset = dataset.concatenate(dataset.take(ahead))
  return dataset, steps


def _distributed(dataset: tf.distribute.DistributedDataset, steps: int | None,
                 augments: bool, options: dict[str, Any]) -> Feed:
  """A dataset that is shared out already."""
  if steps is None:
    raise ValueError("a distributed dataset needs steps_per_epoch")
  spec = tf.nest.map_structure(  # of the first local replica
      lambda s: getattr(s, "_value_specs", (s,))[0], dataset.element_spec)
  batches.check(spec, augments)
  return Feed(dataset, spec, steps, options)


def share(spec: Any, replicas: int) -> Any:
  """One replica's part of an element; ValueError if there is none."""
  rows = batches.image(spec).shape[0]
  if rows % replicas:
    raise ValueError(f"batches of {rows} examples do not divide among "
                     f"{replicas} replicas")
  return tf.nest.map_structure(
      lambda s: tf.TensorSpec([s.shape[0] // replicas] + s.shape[1:], s.dtype),
      spec)


def _from_arrays(x: Any, y: Any, options: dict[str, Any]) -> tf.data.Dataset:
  """Batches arrays as Keras does; consumes the options that it uses."""
  if y is None or not hasattr(x, "shape") or not hasattr(y, "shape"):
    raise ValueError("fit takes a tf.data.Dataset of (x, y), or arrays x and "
                     f"y; got {type(x).__name__}")
  arrays = [np.asarray(x), np.asarray(y)]
  weight = options.pop("sample_weight", None)
  if weight is not None:
    arrays.append(np.asarray(weight))
  fraction = options.pop("validation_split", 0.0)
  batch_size = options.pop("batch_size", None) or 32
  shuffle = options.pop("shuffle", True)
  if fraction:
    cut = int(len(x) * (1.0 - fraction))
    options["validation_data"] = tuple(a[cut:] for a in arrays)
    arrays = [a[:cut] for a in arrays]
  if options.get("validation_batch_size") is None and (
      not isinstance(options.get("validation_data"), tf.data.Dataset)):
    options["validation_batch_size"] = batch_size
  dataset = tf.data.Dataset.from_tensor_slices(tuple(arrays))
  if shuffle:
    dataset = dataset.shuffle(len(arrays[0]))
  return dataset.batch(batch_size)


def _check_range(dataset: tf.data.Dataset,
                 pixel_range: tuple[float, float]) -> None:
  """Looks at one batch: a wrong range would clip images beyond recognition."""
  low, high = pixel_range
  dtype = batches.image(dataset.element_spec).dtype
  if dtype.is_integer and high - low <= 1:
    name = dtype.name
    raise ValueError(f"{name} images do not span {pixel_range}: pass "
                     "pixel_range=(0., 255.) to Trainer, or scale the images")
  for element in dataset.take(1):
    images = batches.image(element).numpy()
    margin = 1e-3 * (high - low)
    if images.min() < low - margin or images.max() > high + margin:
      logging.warning(
          "images span %g..%g but pixel_range is %s: adversarial images will "
          "be clipped to it; pass the right pixel_range to Trainer",
          images.min(), images.max(), pixel_range)


def _static(dataset: tf.data.Dataset) -> tuple[tf.data.Dataset, int]:
  """Gives elements a static batch size; drops shorter batches.

  Returns:
    (dataset, its cardinality or one of the negative constants).
  """
  count = int(dataset.cardinality())
  if count == 0:
    raise ValueError("the dataset is empty")
  spec = dataset.element_spec
  if batches.image(spec).shape.rank is None:
    raise ValueError("images must have a known rank")
  if all(s.shape.is_fully_defined() for s in tf.nest.flatten(spec)):
    return dataset, count
  first = next(iter(dataset.take(1)))
  rows = batches.image(first).shape[0]

  def is_full(*element: tf.Tensor) -> tf.Tensor:
    return tf.shape(batches.image(element))[0] == rows

  if count > 0:
    # Costs one pass over the input; drop_remainder=True avoids it.
    full = int(dataset.reduce(
        0, lambda n, element: n + tf.cast(is_full(*element), tf.int32)))
    if full < count:
      logging.warning("dropping %d of %d batches, which have other than %d "
                      "examples", count - full, count, rows)
      dataset = dataset.filter(is_full)
    count = full
  else:
    logging.warning("batches that have other than %d examples are dropped; "
                    "batch(..., drop_remainder=True) says so openly", rows)
    dataset = dataset.filter(is_full)

  def fix(*element: tf.Tensor) -> tuple[tf.Tensor, ...]:
    return tf.nest.map_structure(
        lambda t, f: tf.ensure_shape(t, f.shape), element, first)

  return dataset.map(fix), count
