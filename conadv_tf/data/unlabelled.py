"""Unlabelled images beside the labelled ones, in one of two ways.

By fraction (Carmon et al., "Unlabeled data improves adversarial robustness",
2019): of the b rows of every virtual replica the last round(f * b) are
unlabelled. Both kinds have endless orders of their own, each a function of
(seed, step) like everything in `pipeline`.

As a pool (the released code of DAT, Zhang et al., 2022): both are one training
set and drawn alike, so that the rows of a kind vary from batch to batch.
"""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from conadv_tf import config as config_lib
from conadv_tf.config import DataConfig, InputError
from conadv_tf.data import checks, npz, pipeline
from conadv_tf.data.encoded import Shard
from conadv_tf.data.source import (
    ArraySource,
    DecodedSource,
    resize,
    Source,
    Splits,
)

NO_LABEL = -1
_PART = 1  # Of the run's sources, for `pipeline.train_dataset`.
_ONE = Shard()


class WithoutLabels(DecodedSource):
  """Another source's images; every label is -1."""

  def __init__(self, source: DecodedSource) -> None:
    """Takes a source."""
    self.num_examples = source.num_examples
    self.num_classes = source.num_classes
    self.image_shape = source.image_shape
    self.class_names = source.class_names
    self.source = source

  def read(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """See the base class."""
    images, labels = self.source.read(indices)
    return images, tf.fill(labels.shape, NO_LABEL)


class Pool(DecodedSource):
  """The examples of one source and, behind them, those of another."""

  def __init__(self, first: DecodedSource, second: DecodedSource) -> None:
    """Takes two sources with images of one shape."""
    self.num_examples = first.num_examples + second.num_examples
    self.num_classes = first.num_classes
    self.image_shape = first.image_shape
    self.class_names = first.class_names
    self.sources = (first, second)

  def read(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """See the base class."""
    first, second = self.sources
    split = first.num_examples
    images, labels = first.read(tf.minimum(indices, split - 1))
    others, other_labels = second.read(tf.maximum(indices - split, 0))
    is_first = indices < split
    return (tf.where(is_first[:, None, None, None], images, others),
            tf.where(is_first, labels, other_labels))


def add(splits: Splits, data: DataConfig) -> Splits:
  """Adds the images of `data.unlabelled_path` to what is trained on.

  Args:
    splits: of the labelled data.
    data: where `unlabelled_fraction` is 0, the splits stay as they are. With
      `image_size` the images are resized to it; with `pseudo_labels` the
      file's y_train are their labels, else what labels it has are ignored.

  Raises:
    InputError: the file cannot be used, or images or labels do not fit those
      of the training set.
  """
  if data.unlabelled_fraction == 0:
    return splits
  keys = ('x_train', 'y_train') if data.pseudo_labels else ('x_train',)
  arrays = npz.read(data.unlabelled_path, keys, 'data.unlabelled_path')
  where = f'{data.unlabelled_path} (train)'
  images = checks.check_images(arrays['x_train'], where)
  labels = arrays.get('y_train')
  found = resize(ArraySource(
      images, np.zeros(len(images), np.int32) if labels is None else labels,
      num_classes=splits.train.num_classes, where=where), data.image_size)
  if found.image_shape != splits.train.image_shape:
    raise InputError(
        f'data.unlabelled_path={data.unlabelled_path}: its images have the '
        f'shape {found.image_shape}, those of the training set '
        f'{splits.train.image_shape}; make them equal.')
  return dataclasses.replace(
      splits, unlabelled=found if data.pseudo_labels else WithoutLabels(found),
      is_pooled=data.unlabelled_fraction is None)


def training_source(splits: Splits) -> Source:
  """Returns the labelled training set, or the pool it is part of."""
  if not splits.is_pooled:
    return splits.train
  return Pool(splits.train, splits.unlabelled)


def train_dataset(
    splits: Splits, fraction: float | None, *, global_batch_size: int,
    micro_batches: int = 1, seed: int = 0, start_step: int = 0,
    num_steps: int, shard: Shard = _ONE, mixup: float = 0.0,
    cutmix: float = 0.0, replicas: int = 1, **options: Any
) -> tf.data.Dataset:
  """Returns the training batches of `num_steps` steps.

  Args:
    splits: with or without unlabelled images.
    fraction: of every virtual replica's rows that are unlabelled, the last
      ones; without effect on a pool, or where there are none.
    global_batch_size: labelled and unlabelled examples per step, B.
    micro_batches: see `pipeline.train_dataset`, as all that follows.
    seed: the run's seed.
    start_step: the step of the first batch.
    num_steps: how many steps.
    shard: which input pipeline.
    mixup: alpha; rows of both kinds are mixed.
    cutmix: alpha.
    replicas: of this pipeline.
    **options: of `pipeline.train_dataset`.

  Returns:
    Its elements; unlabelled rows have label -1, int32, or a pseudo-label.

  Raises:
    InputError: see there.
  """
  options.update(micro_batches=micro_batches, seed=seed,
                 start_step=start_step, num_steps=num_steps, shard=shard,
                 replicas=replicas)
  if splits.unlabelled is None or splits.is_pooled:
    return pipeline.train_dataset(
        training_source(splits), global_batch_size=global_batch_size,
        mixup=mixup, cutmix=cutmix, **options)
  # Virtual replicas, and each one's rows.
  count = micro_batches * shard.count * replicas
  rows = global_batch_size // count
  unlabelled_rows = config_lib.unlabelled_rows(fraction, rows)
  parts = [
      pipeline.train_dataset(
          source, global_batch_size=count * part_rows, part=part, **options)
      for part, (source, part_rows) in enumerate((
          (splits.train, rows - unlabelled_rows),
          (splits.unlabelled, unlabelled_rows)))]
  elements = tf.data.Dataset.zip(tuple(parts)).map(
      tf.autograph.experimental.do_not_convert(
          lambda *both: _side_by_side(both, replicas)))
  if mixup or cutmix:
    elements = pipeline.mixed(
        elements, seed, start_step * micro_batches, shard, mixup, cutmix,
        splits.train.num_classes, replicas)
  return pipeline.ahead(elements)


def _side_by_side(elements: Any, replicas: int) -> Any:
  """Joins elements so that each replica has its rows of all of them."""

  def join(*tensors: tf.Tensor) -> tf.Tensor:
    by_replica = [
        tf.reshape(t, [replicas, t.shape[0] // replicas, *t.shape[1:]])
        for t in tensors]
    joined = tf.concat(by_replica, 1)
    return tf.reshape(joined, [-1, *joined.shape[2:]])

  return tf.nest.map_structure(join, *elements)
