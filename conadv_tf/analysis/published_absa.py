"""What the ABSA paper prints of ResNet-18 on ImageNet: Table 3, section 4.2.

512 V100 GPUs, 90 epochs. Two of its four totals follow from its own figures:

  BL    450,045 updates are printed; 450,450 = 90 * ceil(1,281,167 / 256) give
        the printed 16,666 s (450,045 would give 16,651.7 s).
  GG    6,150 s, exactly. Its 166,216 updates let the batch grow beyond the
        16,384 at which ABS and ABSA stop.
  ABS   2,560 s, printed 2,666 s: that would take 69,257 updates, or 182 s of
        Hessian products where 90 * 1.15 = 103.5 s are stated.
  ABSA  3,489.5 s, printed 3,467 s: what 64,783 adversarial updates of 66,393
        take, so perhaps the adversarial share ended before the training.

The printed speed-ups are those of the printed totals.
"""

import dataclasses

from conadv_tf.analysis import cost_model, training_time

PARAMETERS = 11_689_512
DEVICES = 512
# Printed as 2 us and 1 / (6 Gb/s): GB/s give the printed 1.5E-2 s.
NETWORK = cost_model.Network(latency=2e-6, seconds_per_byte=1 / 6e9)
PRICES = training_time.Prices(
    compute=2.2e-2, communication=1.5e-2, adversarial_compute=3.6e-2,
    hessian=1.15)


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of Table 3.

  Attributes:
    recipe: what it does.
    printed_updates: as section 4.2 prints them.
    printed_seconds: the row's "Total Time".
    printed_speedup: over BL; None for BL.
  """

  recipe: training_time.Recipe
  printed_updates: int
  printed_seconds: int
  printed_speedup: float | None


ROWS = (
    Row(training_time.Recipe("BL", 450_450), 450_045, 16_666, None),
    Row(training_time.Recipe("GG", 166_216), 166_216, 6_150, 2.71),
    Row(training_time.Recipe("ABS", 66_393, evaluations=90), 66_393, 2_666,
        6.25),
    Row(training_time.Recipe("ABSA", 66_393, evaluations=90,
                             adversarial_updates=66_393), 66_393, 3_467, 4.80),
)
