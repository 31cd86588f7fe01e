"""Predicts step times from pass times and a network, for 1 to 4096 devices.

A model with two fitted numbers, not a measurement. One pass (the forward pass,
the backward pass to the weights, the backward pass to the input) over `b`
images on one device takes `fixed + per_image * b` seconds. A step has so many
passes in a row, each with its fixed cost, and so much work on every device:

  seconds = chain * fixed + work * per_image * b + all-reduce

in which `b` counts the clean images of a device that holds the batch. Nothing
of the all-reduce is hidden behind the backward pass. Left out: the optimizer,
the input, and moving adversaries and images between devices.

Times are seconds, messages bytes, throughputs clean images counted once a
second. Wrong arguments raise ValueError.
"""

import dataclasses
import math
from typing import Literal

Method = Literal["vanilla", "disadv", "conadv"]
# Where ConAdv makes its adversaries:
#   equal        on the devices that train: all 8 passes on each of them;
#   double       on as many devices again, that do nothing else: those that
#                train are left with the 6 passes of clean and adversarial
#                images, the others have 2 and wait;
#   double_even  on as many devices again, with the whole work spread evenly:
#                4 passes each, the least that twice the devices can do.
Cores = Literal["equal", "double", "double_even"]
Algorithm = Literal["ring", "tree", "halving_doubling"]

IMAGENET_IMAGES = 1_281_167


@dataclasses.dataclass(frozen=True)
class Passes:
  """What a step consists of, in passes over a device's clean images.

  Attributes:
    chain: passes in the longest dependent chain; the backward passes to the
      weights and to the input count as one, since neither waits for the other.
    work: passes that the busiest device computes.
  """

  chain: int
  work: int


_VANILLA = Passes(chain=2, work=3)
_DISADV = Passes(chain=4, work=8)
_CONADV = {"equal": Passes(chain=2, work=8), "double": Passes(chain=2, work=6),
           "double_even": Passes(chain=2, work=4)}


@dataclasses.dataclass(frozen=True)
class Run:
  """What is run.

  Attributes:
    method: "vanilla", "disadv" or "conadv".
    batch: clean images of one update on all devices together.
    devices: those that the batch is divided among, at most `batch`.
    cores: where ConAdv makes its adversaries; without effect on the others.
  """

  method: Method
  batch: int
  devices: int
  cores: Cores = "equal"

  def __post_init__(self) -> None:
    if self.method not in ("vanilla", "disadv", "conadv"):
      raise ValueError(f"method {self.method!r} is none of vanilla, disadv, "
                       "conadv")
    if self.cores not in _CONADV:
      raise ValueError(f"cores {self.cores!r} is none of {', '.join(_CONADV)}")
    if not 1 <= self.devices <= self.batch:
      raise ValueError(f"a batch of {self.batch} cannot be divided among "
                       f"{self.devices} devices; each needs an image")

  @property
  def passes(self) -> Passes:
    """The step's passes."""
    if self.method == "conadv":
      return _CONADV[self.cores]
    return _DISADV if self.method == "disadv" else _VANILLA

  @property
  def all_devices(self) -> int:
    """Those that hold the batch and those added to make adversaries."""
    doubled = self.method == "conadv" and self.cores != "equal"
    return self.devices * (2 if doubled else 1)


@dataclasses.dataclass(frozen=True)
class Network:
  """What joins the devices.

  Attributes:
    latency: seconds until a message begins to arrive; alpha.
    seconds_per_byte: one over the bandwidth of a device; beta.
  """

  latency: float
  seconds_per_byte: float

  def __post_init__(self) -> None:
    if not (self.latency >= 0 and self.seconds_per_byte >= 0):
      raise ValueError(f"a network's latency and seconds per byte are at least "
                       f"0, got {self.latency} and {self.seconds_per_byte}")


@dataclasses.dataclass(frozen=True)
class PassTimes:
  """The seconds of one pass over b images: fixed + per_image * b."""

  fixed: float
  per_image: float

  def __post_init__(self) -> None:
    if not (self.fixed >= 0 and self.per_image >= 0):
      raise ValueError("the times of a pass are at least 0, got "
                       f"{self.fixed} and {self.per_image}")


@dataclasses.dataclass(frozen=True)
class Machine:
  """Devices, network and model, as far as step times depend on them.

  Attributes:
    passes: a device's pass times for this model.
    network: what joins the devices.
    gradient_bytes: what an update reduces over all devices.
    algorithm: how; see `all_reduce_seconds`.
  """

  passes: PassTimes
  network: Network
  gradient_bytes: int
  algorithm: Algorithm = "halving_doubling"


def all_reduce_counts(devices: int,
                      algorithm: Algorithm) -> tuple[float, float]:
  """How often it pays a latency, and how many whole messages it sends."""
  if devices < 1:
    raise ValueError(f"an all-reduce needs devices, got {devices}")
  rounds = math.log2(devices)
  volume = 2 * (devices - 1) / devices
  if algorithm == "ring":
    return 2 * (devices - 1), volume
  if algorithm == "tree":
    return 2 * math.ceil(rounds), 2 * math.ceil(rounds)
  if algorithm == "halving_doubling":
    return 2 * rounds, volume
  raise ValueError(f"algorithm {algorithm!r} is none of ring, tree, "
                   "halving_doubling")


def all_reduce_seconds(message_bytes: float, devices: int, network: Network,
                       algorithm: Algorithm = "halving_doubling") -> float:
  """The time to sum a message over p devices and give each the sum.

  With latency a, seconds per byte b and n bytes:
    ring: 2 (p - 1) a + 2 (p - 1) / p b n, reduce-scatter and all-gather round
      a ring.
    tree: 2 ceil(log2 p) (a + b n), a binomial tree up and down.
    halving_doubling: 2 (a log2 p + (p - 1) / p b n), which is equation 14 of
      appendix C of "Large batch size training of neural networks with
      adversarial training and second-order information". The paper calls it
      the ring algorithm; its volume is the ring's, but log2 p is the latency
      of halving and doubling. Its limit 2 b n is equation 16.

  The paper gives message sizes in bits and bandwidth in Gb/s; its printed times
  come out with bytes and GB/s.
  """
  latencies, volume = all_reduce_counts(devices, algorithm)
  return (latencies * network.latency
          + volume * network.seconds_per_byte * message_bytes)


def step_seconds(run: Run, machine: Machine) -> float:
  """Seconds of one update."""
  images = run.batch / run.devices
  return (run.passes.chain * machine.passes.fixed
          + run.passes.work * machine.passes.per_image * images
          + all_reduce_seconds(machine.gradient_bytes, run.all_devices,
                               machine.network, machine.algorithm))


def images_per_second(run: Run, machine: Machine) -> float:
  """Clean images, counted once, that all devices take up in a second."""
  return run.batch / step_seconds(run, machine)


def training_seconds(run: Run, machine: Machine, epochs: float,
                     images: int = IMAGENET_IMAGES) -> float:
  """Seconds of `epochs * images / batch` updates, without evaluations."""
  return epochs * images / run.batch * step_seconds(run, machine)


@dataclasses.dataclass(frozen=True)
class TwoWorkers:
  """Predicted step times of 2 workers.

  Attributes:
    weak_seconds: each worker with the batch that the one worker had.
    strong_seconds: each worker with half of it.
    all_reduce_seconds: the part of both that is communication.
    weak_efficiency: throughput over twice that of one worker.
    strong_speedup: throughput over that of one worker.
  """

  weak_seconds: float
  strong_seconds: float
  all_reduce_seconds: float
  weak_efficiency: float
  strong_speedup: float


def predict_two_workers(one_worker_seconds: float, gradient_bytes: int,
                        network: Network, *, fixed_seconds: float = 0.0,
                        slowdown: float = 1.0,
                        algorithm: Algorithm = "ring") -> TwoWorkers:
  """Predicts what 2 workers need for a step from what 1 worker needs.

  Any method: an attack communicates nothing, so only the gradients are added.

  Args:
    one_worker_seconds: step time of one worker, on its own share of the cores.
    gradient_bytes: what an update reduces.
    network: between the two, for instance from `cost_fit.fit_network`.
    fixed_seconds: the part of `one_worker_seconds` that half the batch would
      need as well; `chain * fixed` where a fit is at hand.
    slowdown: how much longer one worker computes while another process
      computes beside it on the same machine; 1 on machines of their own.
    algorithm: of the all-reduce; for 2 devices "halving_doubling" is "ring".
  """
  if not 0 <= fixed_seconds <= one_worker_seconds or one_worker_seconds == 0:
    raise ValueError(f"of a step of {one_worker_seconds} s a part of "
                     f"{fixed_seconds} s cannot be fixed")
  if slowdown <= 0:
    raise ValueError(f"slowdown is a factor above 0, got {slowdown}")
  reduction = all_reduce_seconds(gradient_bytes, 2, network, algorithm)
  half = fixed_seconds + (one_worker_seconds - fixed_seconds) / 2
  weak = slowdown * one_worker_seconds + reduction
  strong = slowdown * half + reduction
  return TwoWorkers(weak, strong, reduction, one_worker_seconds / weak,
                    one_worker_seconds / strong)
