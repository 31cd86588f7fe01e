"""Simulated training time: appendix C of the ABSA paper.

"Large batch size training of neural networks with adversarial training and
second-order information", equations 14 to 16 and Table 3:

  seconds = updates * (T_comp + T_comm) + evaluations * T_Hess

T_comp is one figure for an update, whatever its batch: the model says what
fewer updates are worth, not what larger ones cost. (Table 3 takes 16 images a
GPU on 512 GPUs for all rows; that is a batch of 8,192, the baseline's is 256.)

Times are seconds. Wrong arguments raise ValueError.
"""

import dataclasses
import math

from conadv_tf.analysis import cost_model

# Appendix C says 6 Gb/s and bits; its 0.015 s come out with GB/s and bytes.
BYTES_PER_PARAMETER = 4


@dataclasses.dataclass(frozen=True)
class Prices:
  """What the parts of a training take.

  Attributes:
    compute: T_comp, one update without adversaries.
    communication: T_comm, one update's all-reduce; see `communication`.
    adversarial_compute: T_comp of an update that makes adversaries; None where
      there are none.
    hessian: T_Hess, one top eigenvalue with all its products.
  """

  compute: float
  communication: float
  adversarial_compute: float | None = None
  hessian: float = 0.0

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value is not None and not 0 <= value < math.inf:
        raise ValueError(f"{field.name} is a time of 0 s or more, got {value}")


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What a training does.

  Attributes:
    name: of the row.
    updates: of the weights, all of them.
    evaluations: of the top eigenvalue.
    adversarial_updates: those of `updates` that make adversaries; fewer than
      all where the adversarial share ends before the training does.
  """

  name: str
  updates: int
  evaluations: int = 0
  adversarial_updates: int = 0

  def __post_init__(self) -> None:
    if self.updates < 1:
      raise ValueError(f"{self.name}: needs an update, got {self.updates}")
    if self.evaluations < 0:
      raise ValueError(f"{self.name}: evaluations are 0 or more, got "
                       f"{self.evaluations}")
    if not 0 <= self.adversarial_updates <= self.updates:
      raise ValueError(
          f"{self.name}: of {self.updates} updates {self.adversarial_updates} "
          "cannot be adversarial")


def communication(parameters: int, devices: int, network: cost_model.Network,
                  bytes_per_parameter: int = BYTES_PER_PARAMETER) -> float:
  """T_comm of one update, equation 14; its limit is equation 16.

  Args:
    parameters: |theta|, trainable numbers.
    devices: p, those that share an update.
    network: latency in seconds, seconds per byte.
    bytes_per_parameter: of a gradient on the wire; 4 is float32.
  """
  if parameters < 1 or bytes_per_parameter < 1:
    raise ValueError(f"needs parameters, got {parameters} of "
                     f"{bytes_per_parameter} bytes")
  return cost_model.all_reduce_seconds(
      parameters * bytes_per_parameter, devices, network, "halving_doubling")


def total_seconds(recipe: Recipe, prices: Prices) -> float:
  """T_total of a whole training, equation 15 over all updates."""
  attacked = prices.adversarial_compute
  if attacked is None:
    if recipe.adversarial_updates:
      raise ValueError(f"{recipe.name}: has adversarial updates, so "
                       "adversarial_compute must be given")
    attacked = prices.compute
  return (recipe.updates * (prices.compute + prices.communication)
          + recipe.adversarial_updates * (attacked - prices.compute)
          + recipe.evaluations * prices.hessian)
