"""What stale methods need of the past: earlier weights, waiting batches."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from conadv_tf.distribute import held_state, strategies
from conadv_tf.layers import network as networks
from conadv_tf.layers import routing
from conadv_tf.methods import method as methods
from conadv_tf.training import lagged


class Staleness:
  """Weights of earlier updates and held batches, across checkpoints too.

  Held batches are not saved. The weights that made them are, and a resumed
  run makes them again (`prime`).

  Attributes:
    lagged: copies that the next attacks use, or None.
    attack_weights: of the last attack, where not every batch is attacked.
    first_step: int64 variable; before this update nothing was held.
    snapshot: the weights that made what is held, for a checkpoint.
  """

  def __init__(self, method: methods.Method, network: networks.Network,
               step: tf.Variable):
    """Creates the weights, under the current strategy's scope.

    Args:
      method: says what it needs.
      network: the live weights.
      step: index of the next update.
    """
    self._method, self._network, self._step = method, network, step
    copies = method.lagged_copies
    self.lagged = lagged.LaggedWeights(network, copies) if copies else None
    self.attack_weights = (
        lagged.AttackWeights(network) if method.attack_every > 1 else None)
    self.first_step = strategies.counter("first_step")
    self.snapshot: list[np.ndarray] = []
    self._held: held_state.HeldState | None = None
    self._primed = self._resumes = False
    self._restored: list[np.ndarray] = []

  @property
  def attack_network(self) -> networks.Network:
    """The weights that the next attack uses."""
    return self.lagged.network if self.lagged else self._network

  def create_held(self, spec: Any, slots: int) -> None:
    """Makes room for what the method holds, under the strategy's scope."""
    if self._method.holds:
      self._held = held_state.HeldState(spec, slots)

  # ---- In a replica.

  def read(self, element: tf.Tensor) -> Any:
    """What is held in a slot, or ()."""
    return self._held.read(element) if self._held else ()

  def write(self, element: tf.Tensor, held: Any) -> None:
    """Holds something in a slot, where the method holds anything."""
    if self._held:
      self._held.write(element, held)

  def shift(self) -> None:
    """Before an update of the live weights."""
    if self.attack_weights:
      received = (self._step.read_value() + self._method.lookahead
                  - self.first_step.read_value())
      self.attack_weights.keep(self.attack_network, tf.equal(
          received % self._method.attack_every, 0))
    if self.lagged:
      self.lagged.shift(self._network)

  def idle_branches(self) -> dict[str, tf.Tensor]:
    """Branches that had nothing to train on in this update -> bool []."""
    if not self._method.lookback:
      return {}
    return {routing.ADVERSARIAL: tf.equal(
        self._step.read_value(), self.first_step.read_value())}

  # ---- Around executions.

  def begin(self) -> None:
    """A `fit` starts."""
    self.first_step.assign(0 if self._resumes else self._step)
    if self.lagged and not self._resumes:
      self.lagged.reset(self._network)
    self._primed = self._resumes = False

  def restore_snapshot(self, values: list[np.ndarray]) -> None:
    """Makes the next priming attack with these weights, once."""
    # A resumed run may save again before its first update.
    self._restored = self.snapshot = values
    self._resumes = True

  def prime(self, run: Callable[[tf.Tensor], Any]) -> None:
    """Makes what the next update expects to be held, once a `fit`.

    After a checkpoint it must come from the weights that made it then, which
    are put in place for the duration of this call.

    Args:
      run: primes with the next batch, which is so many updates behind.
    """
    if self._held and not self._primed:
      behind, current = 0, []
      if self._restored:
        behind = self._method.behind(int(networks.read(self._step)))
        current = networks.values(self.attack_network.variables)
        self.attack_network.assign(self._restored)
      if self.attack_weights:
        self.attack_weights.reset(self.attack_network)
      while behind >= 1 - self._method.lookahead:
        run(tf.constant(behind))
        behind -= 1
      if current:
        self.attack_network.assign(current)
    self._restored, self._primed = [], True

  def execute(self, run: Callable[[int], Any], updates: int,
              takes_snapshot: bool) -> Any:
    """Makes updates, and keeps the weights of their last attack if asked."""
    takes_snapshot = takes_snapshot and self._held is not None
    if takes_snapshot and not self.attack_weights:
      if updates > 1:
        run(updates - 1)
      self.snapshot = networks.values(self.attack_network.variables)
      return run(1)
    results = run(updates)
    if takes_snapshot:
      self.snapshot = networks.values(self.attack_weights.variables)
    return results
