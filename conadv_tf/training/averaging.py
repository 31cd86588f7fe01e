"""Moving averages of the weights, as Keras's optimizers keep them.

With `use_ema` an optimizer keeps, for every trainable weight `w`,
`average = ema_momentum * average + (1 - ema_momentum) * w` after each update,
starting from the initial weights. Keras's `fit` overwrites the weights with
their averages at its end; a run evaluates, and is exported, with the averages
all along, and goes on training with the weights. Moving statistics of batch
normalisation are averages by themselves and stay as they are.
"""

from collections.abc import Iterator
import contextlib

import tensorflow as tf

from conadv_tf.layers import network as networks
from conadv_tf.training import trainer as trainers


def averages(trainer: trainers.Trainer) -> dict[int, tf.Variable]:
  """Averages by position in `network.variables`; none if the option is off."""
  optimizer = getattr(trainer.optimizer, "inner_optimizer", trainer.optimizer)
  if not optimizer.use_ema:
    return {}
  position = {id(v): i for i, v in enumerate(trainer.network.variables)}
  # In the order of the variables that `compile` built the optimizer with.
  return {position[id(variable)]: average for variable, average in zip(
      trainer.network.trainable_variables,
      optimizer._model_variables_moving_average, strict=True)}  # pylint: disable=protected-access


def restart(trainer: trainers.Trainer) -> None:
  """Starts the averages from the weights as they are."""
  for i, average in averages(trainer).items():
    average.assign(networks.read(trainer.network.variables[i]))


@contextlib.contextmanager
def averaged_weights(trainer: trainers.Trainer) -> Iterator[None]:
  """Puts the averages in the weights' place, and the weights back after."""
  kept = {}
  variables = trainer.network.variables
  try:
    for i, average in averages(trainer).items():
      kept[i] = networks.read(variables[i])
      variables[i].assign(networks.read(average))
    yield
  finally:
    for i, value in kept.items():
      variables[i].assign(value)
