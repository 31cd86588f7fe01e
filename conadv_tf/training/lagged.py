"""Weights of earlier updates, which attacks use or have used."""

from collections.abc import Sequence

import tensorflow as tf

from conadv_tf.distribute import strategies
from conadv_tf.layers import network as networks


class LaggedWeights:
  """Copies of a network's variables, moving statistics included.

  Attributes:
    network: the oldest set, a whole network that an attack can run through.
    sets: all sets, oldest first, each in the order of `network.variables`.
  """

  def __init__(self, live: networks.Network, copies: int):
    """Creates `copies` >= 1 sets under the current strategy's scope."""
    self.network = live.copy()
    self.sets: list[Sequence[tf.Variable]] = [self.network.variables]
    for age in range(copies - 1, 0, -1):
      self.sets.append(_copies(live, f"lagged_{age}"))

  def reset(self, live: networks.Network) -> None:
    """Makes every set equal to the live weights, eagerly."""
    for variables in self.sets:
      _assign(variables, live)

  def shift(self, live: networks.Network) -> None:
    """Drops the oldest set and takes in the live weights; in a replica."""
    with tf.name_scope("update"):
      for older, younger in zip(self.sets, self.sets[1:] + [live.variables]):
        strategies.assign(older, [v.read_value() for v in younger])


class AttackWeights:
  """The weights of the last attack, where not every batch is attacked.

  A checkpoint holds them, so that its perturbations can be made again.

  Attributes:
    variables: in the order of `network.variables`.
  """

  def __init__(self, live: networks.Network):
    """Creates one set under the current strategy's scope."""
    self.variables = _copies(live, "attack")

  def reset(self, network: networks.Network) -> None:
    """Takes in a network's values, eagerly."""
    _assign(self.variables, network)

  def keep(self, network: networks.Network, attacked: tf.Tensor) -> None:
    """Takes in a network's values after an attack with it; in a replica."""
    with tf.name_scope("update"):
      strategies.assign(self.variables, [
          tf.where(attacked, new.read_value(), old.read_value())
          for new, old in zip(network.variables, self.variables)])


def _copies(network: networks.Network, name: str) -> list[tf.Variable]:
  """One more set of a network's variables, under the strategy's scope."""
  return [tf.Variable(v.read_value(), trainable=False, name=name,
                      synchronization=v.synchronization,
                      aggregation=v.aggregation)
          for v in network.variables]


def _assign(variables: Sequence[tf.Variable],
            network: networks.Network) -> None:
  for target, source in zip(variables, network.variables, strict=True):
    target.assign(networks.read(source))
