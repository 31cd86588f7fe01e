"""Short training runs of a tiny network, for tests that compare them."""

from collections.abc import Callable
import contextlib
from typing import Any

import numpy as np
import tensorflow as tf

from conadv_tf import attacks, methods
from conadv_tf.attacks import gradient
from conadv_tf.layers import network as networks
from conadv_tf.methods import method as methods_base
from conadv_tf.training import trainer as trainers
from tests import tiny_text

# Large enough to see, in embeddings of deviation 0.05.
VISIBLE = attacks.Perturbation(radius=0.1, step_size=0.2, start_size=0.1)
METHODS: dict[str, Callable[[], methods_base.Method]] = {
    'vanilla': methods.Vanilla,
    'disadv': methods.DisAdv,
    'conadv': lambda: methods.ConAdv(lag=1),
    'conadv sequential': lambda: methods.ConAdv(lag=1, execution='sequential'),
    'conadv lag 2': lambda: methods.ConAdv(lag=2),
    'conadv lag 3': lambda: methods.ConAdv(lag=3),
    'conadv 3 streams': lambda: methods.ConAdv(bn_branches=3),
    'conadv next batch': lambda: methods.ConAdv(pairing='next_batch'),
    'conadv every 3': lambda: methods.ConAdv(attack_every=3),
    'dat': lambda: methods.Dat(clean_weight=1.0, lag=1),
    'dat paper': methods.Dat,
    'dat trades': lambda: methods.Dat(clean_weight=1.0, regularizer='trades'),
    'freelb': methods.FreeLb,
    'recycled': methods.Recycled,
    'recycled lag 0': lambda: methods.Recycled(lag=0),
    'scala': lambda: methods.Scala(VISIBLE, lag=1),
    'smooth at': lambda: methods.SmoothAt(noise_copies=3),
    'vanilla shared': lambda: methods.Vanilla('shared'),
    'vanilla split': lambda: methods.Vanilla('split'),
    'recycled shared': lambda: methods.Recycled(lag=0, bn_branches=1),
}
# What a method needs in place of the one signed step.
ATTACKS = {methods.SmoothAt: gradient.Pgd(
    radius=32, steps=2, norm='l2', direction='l2')}
LOSS = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
_random = np.random.default_rng(0)
IMAGES = _random.random((160, 8, 8, 3), np.float32)
LABELS = _random.integers(0, 5, 160).astype(np.int32)


def small_network(dropout: float = 0.3, normalise: bool = True,
                  activation: Any = 'relu') -> tf.keras.Model:
  """One convolution, fused and unfused batch normalisation, dropout."""
  tf.keras.utils.set_random_seed(1)
  i = x = tf.keras.Input((8, 8, 3))
  x = tf.keras.layers.Conv2D(6, 3, strides=2, use_bias=not normalise)(x)
  if normalise:
    x = tf.keras.layers.BatchNormalization(momentum=0.9)(x)
  x = tf.keras.layers.Activation(activation)(x)
  x = tf.keras.layers.Flatten()(x)
  if dropout:
    x = tf.keras.layers.Dropout(dropout)(x)
  x = tf.keras.layers.Dense(8)(x)
  if normalise:
    x = tf.keras.layers.BatchNormalization(momentum=0.9)(x)
  return tf.keras.Model(i, tf.keras.layers.Dense(5)(x))


def dataset(batch_size: int, offset: int = 0,
            method: methods_base.Method | None = None) -> tf.data.Dataset:
  """The images over and over, from batch to batch without a gap.

  Sentences, for a method that perturbs their embeddings.
  """
  arrays = (IMAGES, LABELS)
  if method and method.perturbs:
    arrays = (tiny_text.TOKENS, tiny_text.LABELS)
  data = untuned(tf.data.Dataset.from_tensor_slices(arrays))
  data = data.repeat().skip(offset).batch(batch_size, drop_remainder=True)
  return with_views(data, method) if method else data


def untuned(data: tf.data.Dataset) -> tf.data.Dataset:
  """Without a thread that tunes it, for which a test's end would wait."""
  options = tf.data.Options()
  options.autotune.enabled = False
  return data.with_options(options)


def with_views(data: tf.data.Dataset, method: methods_base.Method
               ) -> tf.data.Dataset:
  """Adds mirror images for a method that trains on a second view."""
  if not method.augments:
    return data
  return data.map(lambda x, *rest: (
      {'image': x, 'augmented': x[:, :, ::-1]}, *rest))


def make(method: methods_base.Method, *,
         strategy: tf.distribute.Strategy | None = None,
         model: Callable[[], tf.keras.Model] | None = None,
         optimizer: Callable[[], Any] | None = None,
         attack: gradient.Pgd | None = None,
         options: dict[str, Any] | None = None, loss: Any = LOSS,
         **compile_options: Any) -> trainers.Trainer:
  """A compiled trainer, of a tiny text model where the method needs one."""
  model = model or (tiny_text.model if method.perturbs else small_network)
  with strategy.scope() if strategy else contextlib.nullcontext():
    trainer = trainers.Trainer(
        model(), method,
        attack or ATTACKS.get(type(method)) or gradient.Pgd(radius=16),
        **{'deterministic': True, **(options or {})})
    optimizer = (optimizer or
                 (lambda: tf.keras.optimizers.SGD(0.5, momentum=0.9)))()
    trainer.compile(optimizer, loss, metrics=['accuracy'], **compile_options)
  return trainer


def train(method: methods_base.Method, *, updates: int = 4,
          batch_size: int = 32, micro_batches: int = 1,
          options: dict[str, Any] | None = None,
          **others: Any) -> trainers.Trainer:
  """Makes a trainer and trains it for a few updates of `batch_size`."""
  trainer = make(method, options={'micro_batches': micro_batches,
                                  **(options or {})}, **others)
  trainer.fit(dataset(batch_size // micro_batches, method=method),
              steps_per_epoch=updates, epochs=1, verbose=0)
  return trainer


def values(trainer: trainers.Trainer) -> np.ndarray:
  """Weights and moving statistics of all branches, flat."""
  return np.concatenate([
      networks.read(v).ravel() for v in trainer.network.variables])


def distance(a: trainers.Trainer, b: trainers.Trainer) -> float:
  """Largest difference of weights and statistics."""
  return float(np.abs(values(a) - values(b)).max())
