"""Times that "Concurrent Adversarial Learning for Large-Batch Training" prints.

ResNet-50 on ImageNet, 90 epochs, TPU v3. They contradict each other: at 32k,
81.7 images/ms (Figure 4(a)) are 1411 s and Table 3 prints 1191 s; at 64 images
a core, as the paper states for all of them, DisAdv takes 235, 338 and 336 ms a
step and ConAdv 181, 192 and 129 ms, the last being less than vanilla's 170 and
177 ms. How many cores ConAdv had is not stated.
"""

import dataclasses
from typing import Literal

from conadv_tf.analysis import cost_model

EPOCHS = 90
# 25,557,032 float32 parameters.
GRADIENT_BYTES = 102_228_128
# A pod of 1,024 chips with two cores each reduces 340 TB/s
# (cloud.google.com/tpu/docs/v3). The latency is an assumption: Appendix C's.
TPU_V3 = cost_model.Network(latency=2e-6, seconds_per_byte=2048 / 340e12)
# 4.2: a worker has 64 images, "32k/64=512" cores.
IMAGES_PER_CORE = 64
# 4.2: batch 2k at the limit is on a v3-512, and a v3-256 "has 512 cores". In
# Google's own names the number is that of the cores; these would be 512.
CORES_AT_THE_LIMIT = 1024


@dataclasses.dataclass(frozen=True)
class Point:
  """One printed number.

  Attributes:
    source: figure or table.
    run: method, batch, cores that hold the batch; `run.cores` is not stated.
    printed: the number.
    unit: "images/ms" of clean images counted once, or "s" for 90 epochs.
    contradicts: whether other points of the same method and images a core in
      the same table deny it: equal work cannot take 0.7 of the time.
  """

  source: str
  run: cost_model.Run
  printed: float
  unit: Literal["images/ms", "s"]
  contradicts: bool = False

  @property
  def step_seconds(self) -> float:
    """Seconds of one update."""
    if self.unit == "images/ms":
      return self.run.batch / (1000 * self.printed)
    updates = EPOCHS * cost_model.IMAGENET_IMAGES / self.run.batch
    return self.printed / updates


def _normal(method: cost_model.Method, thousands: int) -> cost_model.Run:
  batch = 1024 * thousands
  return cost_model.Run(method, batch, batch // IMAGES_PER_CORE)


def _limit(method: cost_model.Method) -> cost_model.Run:
  return cost_model.Run(method, 2048, CORES_AT_THE_LIMIT)


POINTS = (
    Point("Figure 4(a)", _normal("disadv", 4), 10.3, "images/ms"),
    Point("Figure 4(a)", _normal("disadv", 32), 81.7, "images/ms"),
    Point("Figure 4(b)", _limit("disadv"), 36.1, "images/ms"),
    Point("Figure 4(b)", _limit("conadv"), 71.3, "images/ms"),
    Point("Figure 4(b)", _limit("vanilla"), 75.7, "images/ms"),
    Point("Table 3", _normal("vanilla", 16), 1194, "s"),
    Point("Table 3", _normal("vanilla", 32), 622, "s"),
    Point("Table 3", _normal("disadv", 16), 1657, "s", contradicts=True),
    Point("Table 3", _normal("disadv", 32), 1191, "s"),
    Point("Table 3", _normal("disadv", 64), 592, "s"),
    Point("Table 3", _normal("conadv", 16), 1277, "s"),
    Point("Table 3", _normal("conadv", 32), 677, "s"),
    Point("Table 3", _normal("conadv", 64), 227, "s", contradicts=True),
)
