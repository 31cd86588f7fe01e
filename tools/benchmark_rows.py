"""Steps that the benchmarks have in common; no flags."""

from collections.abc import Callable

import tensorflow as tf

import conadv_tf as ca
from conadv_tf.methods import method as methods

Step = Callable[[], dict[str, tf.Tensor]]


def optimizer() -> tf.keras.optimizers.Optimizer:
  """LARS with a rate at which random labels do no harm."""
  return ca.optimizers.Lars(1e-3, momentum=0.9, weight_decay=1e-4)


def loss() -> tf.keras.losses.Loss:
  """Cross entropy of logits and integer labels."""
  return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fit_step(model: tf.keras.Model, data: object) -> Step:
  """One execution of what `fit` calls for every update.

  Args:
    model: a plain Keras model or a trainer, not compiled; under a strategy
      this is called in its scope.
    data: endless, of batches.
  """
  model.compile(optimizer(), loss(), metrics=["accuracy"])
  functions = []

  class Capture(tf.keras.callbacks.Callback):
    """Takes the compiled function out of a running `fit`."""

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
      del batch, logs
      functions.append(self.model.train_function)

  model.fit(data, steps_per_epoch=1, verbose=0, callbacks=[Capture()])
  iterator = iter(data)
  return lambda: functions[0](iterator)


def trainer(method: methods.Method, model: tf.keras.Model) -> ca.Trainer:
  """A trainer for images of 0 to 255, with the paper's attack."""
  return ca.Trainer(model, method, ca.attacks.Pgd(radius=4),
                    pixel_range=(0., 255.))
