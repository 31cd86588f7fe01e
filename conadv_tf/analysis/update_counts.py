"""How many updates a run makes, for a constant and for a growing batch.

Yao et al., "Large batch size training of neural networks with adversarial
training and second-order information" (2018), compares strategies by this
number (Tables 1, 2 and 4 to 7). Lengths are in epochs; where a batch grows,
its size is counted in micro batches, which are never cut.
"""

from collections.abc import Sequence
import fractions
import math


def constant(num_examples: int, epochs: float, batch: int) -> int:
  """Updates of BL and FB, as the paper prints them: N*E/B, rounded down.

  A run of this package makes `round(N*E/B)`, at most one more.

  Args:
    num_examples: N, of the training set.
    epochs: E.
    batch: B, in examples.
  """
  return math.floor(fractions.Fraction(epochs) * num_examples / batch)


def growing(
    micro_batches: float, epochs: float, grow_at: Sequence[float],
    factor: float, max_ratio: float = math.inf) -> int:
  """Updates of GG: the batch grows where the rate would have been decayed.

  The rule is that of Smith et al., "Don't decay the learning rate, increase
  the batch size" (ICLR 2018); an update that has begun when an epoch ends
  goes on into the next, so only the sum is rounded down.

  Args:
    micro_batches: in an epoch; the first updates take one each. The paper
      drops what is less than one.
    epochs: of the run.
    grow_at: increasing epochs, up to `epochs`.
    factor: of the batch at each of them.
    max_ratio: largest batch over the first one.

  Raises:
    ValueError: epochs that fall.
  """
  edges = [0, *grow_at, epochs]
  if any(a > b for a, b in zip(edges, edges[1:])):
    raise ValueError(f"epochs must increase from 0 to {epochs}, got {grow_at}")
  total = fractions.Fraction(0)
  for i, (start, end) in enumerate(zip(edges, edges[1:])):
    ratio = fractions.Fraction(min(factor**i, max_ratio))
    length = fractions.Fraction(end) - fractions.Fraction(start)
    total += length * fractions.Fraction(micro_batches) / ratio
  return math.floor(total)


def bounds(total: int, max_ratio: int) -> tuple[int, int]:
  """Fewest and most updates of a batch that grows by the curvature (ABS, ABSA).

  `N*E/B_max <= updates <= N*E/B_0`, with the largest batch from the start and
  never. What is left and smaller than an update is dropped, and is less than
  `max_ratio` initial batches.

  Args:
    total: initial batches of the run: N*E/B_0, rounded.
    max_ratio: B_max / B_0.

  Raises:
    ValueError: max_ratio does not lie in 1 .. total.
  """
  if not 1 <= max_ratio <= total:
    raise ValueError(f"max_ratio {max_ratio} must lie in 1 .. {total}")
  return total // max_ratio, total
