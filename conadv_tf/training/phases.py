"""Updates before a method's delay and after it: two traces, one run."""

from collections.abc import Callable
import dataclasses
from typing import Any

import tensorflow as tf

from conadv_tf.layers import network as networks
from conadv_tf.methods import method as methods
from conadv_tf.training import loop as loops


class Phases:
  """Chooses between a loop of plain updates and one of the method's own.

  Plain updates cost what plain training does: their graph holds no other
  pass. A method without delay has one loop.

  Attributes:
    is_delayed: of the phase that is being traced.
    active: the loop of the method's own updates.
  """

  def __init__(self, method: methods.Method, step: tf.Variable):
    """Args: method: which may have a delay; step: counter of updates."""
    self.is_delayed = False
    self._first, self._delay = method.first_active, method.delay
    self._own = set(method.terms).difference(methods.Method.terms)
    self._step = step
    self._next = 0

  def make(self, build: Callable[[loops.Parts], loops.Loop],
           parts: loops.Parts) -> loops.Loop:
    """Builds the loops; returns the active one."""
    self.active = build(self._marked(parts, False))
    if self._first:
      self._delayed = build(self._marked(parts, True))
    return self.active

  def _marked(self, parts: loops.Parts, is_delayed: bool) -> loops.Parts:
    """The parts, saying which phase they are traced for."""
    def marked(part: Callable[..., Any]) -> Callable[..., Any]:
      def run(*args: Any) -> Any:
        self.is_delayed = is_delayed
        return part(*args)
      return run

    return loops.Parts(*(marked(getattr(parts, field.name))
                         for field in dataclasses.fields(parts)))

  def begin(self) -> None:
    """A `fit` starts; its first update may be any."""
    self._next = int(networks.read(self._step)) if self._delay else 0

  def prime(self, iterator: loops.Iterator, behind: tf.Tensor) -> None:
    """Makes what the next update expects to be held."""
    loop = self._delayed if self._next < self._first else self.active
    loop.prime(iterator, behind)

  def run(self, iterator: loops.Iterator,
          updates: int) -> dict[str, tf.Tensor]:
    """Makes updates, of one phase and then of the other.

    Returns:
      Results, without the method's own terms where the delay has not ended:
      nothing was measured of them.
    """
    plain = min(updates, max(0, self._first - self._next))
    self._next += updates
    if plain:
      results = self._delayed.run(iterator, plain)
    if plain < updates:
      results = self.active.run(iterator, updates - plain)
    if self._next > self._delay:
      return results
    return {n: v for n, v in results.items() if n not in self._own}
