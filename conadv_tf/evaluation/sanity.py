"""Signs that gradients are masked and robust accuracy is not what it seems.

Carlini et al., "On evaluating adversarial robustness", 2019, and Athalye et
al., "Obfuscated gradients give a false sense of security", 2018: an unbounded
attack must reach everything, a larger ball or more steps must not help the
defender, and an attack without gradients must not beat one with them.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import itertools
import math

from conadv_tf.evaluation import attack_names

# Sign steps may leave a few images that no direction of theirs reaches.
UNBOUNDED_ACCURACY = 0.01
_DEVIATIONS = 2.0


@dataclasses.dataclass(frozen=True)
class Row:
  """What one attack has left.

  Attributes:
    key: the attack's name in the report.
    attack: what it stands for.
    accuracy: share of the examples that are right after it.
    examples: their number.
    seconds: that it took, tracing included.
  """

  key: str
  attack: attack_names.Attack
  accuracy: float
  examples: int
  seconds: float = 0.0

  @property
  def variance(self) -> float:
    """Of the accuracy, binomial."""
    return self.accuracy * (1.0 - self.accuracy) / self.examples

  @property
  def standard_error(self) -> float:
    """Of the accuracy, binomial."""
    return math.sqrt(self.variance)


@dataclasses.dataclass(frozen=True)
class Check:
  """One comparison.

  Attributes:
    name: unbounded, radius, steps, one_step or black_box.
    passed: whether it found nothing suspicious.
    text: the comparison in words and numbers.
  """

  name: str
  passed: bool
  text: str


def battery(radius: float, library: bool) -> list[str]:
  """Attacks whose accuracies `checks` can judge a network by.

  Args:
    radius: in 1/255, above 0.
    library: whether the library of `square` is installed.
  """
  # Without a random start: noise as large as the images would hide them.
  larger = min(2.0 * radius, attack_names.MAX_RADIUS)
  black_box = "square200" if library else "noise20"
  return [f"fgsm@{radius:g}", f"pgd10@{radius:g}", f"pgd40@{radius:g}",
          f"pgd10@{larger:g}", f"{black_box}@{radius:g}",
          f"pgd20-0@{attack_names.MAX_RADIUS:g}"]


def checks(rows: Sequence[Row]) -> list[Check]:
  """Every comparison that the rows of one network and branch allow.

  Accuracies may differ by two standard errors of their difference, as if
  they were of different examples, which is more than they need.

  Args:
    rows: on the same examples.
  """
  return [*_unbounded(rows), *_larger_balls(rows), *_more_steps(rows),
          *_one_step(rows), *_black_box(rows)]


def _unbounded(rows: Sequence[Row]) -> Iterator[Check]:
  for row in rows:
    attack = row.attack
    if (attack.family == "pgd" and attack.steps >= 20 and not attack.restarts
        and attack.radius >= attack_names.MAX_RADIUS
        and attack.step_size is None):
      yield Check(
          "unbounded", row.accuracy <= UNBOUNDED_ACCURACY,
          f"{row.key}, in the whole pixel range, leaves an accuracy of "
          f"{row.accuracy:.4f}, which must be about 0")


def _compared(name: str, stronger: Row, weaker: Row) -> Check:
  noise = _DEVIATIONS * math.sqrt(stronger.variance + weaker.variance)
  return Check(
      name, stronger.accuracy <= weaker.accuracy + noise,
      f"{stronger.key} leaves {stronger.accuracy:.4f} and must leave no more "
      f"than {weaker.key} with {weaker.accuracy:.4f} (noise {noise:.4f})")


def _neighbours(rows: Sequence[Row], field: str) -> Iterator[tuple[Row, Row]]:
  """Pairs that differ in one field alone, (larger, smaller)."""
  def rest(row: Row) -> str:
    return repr(dataclasses.replace(row.attack, **{field: 0}))

  in_order = sorted(rows, key=lambda row: (
      rest(row), getattr(row.attack, field)))
  for _, group in itertools.groupby(in_order, rest):
    for smaller, larger in itertools.pairwise(group):
      yield larger, smaller


def _larger_balls(rows: Sequence[Row]) -> Iterator[Check]:
  # One step as large as the ball may well overshoot.
  several = [row for row in rows if row.attack.family != "fgsm"]
  for larger, smaller in _neighbours(several, "radius"):
    yield _compared("radius", larger, smaller)


def _more_steps(rows: Sequence[Row]) -> Iterator[Check]:
  for more, fewer in _neighbours(rows, "steps"):
    yield _compared("steps", more, fewer)


def _best_pgd(rows: Sequence[Row], radius: float) -> Row | None:
  found = [row for row in rows if row.attack.radius == radius
           and row.attack.family in ("pgd", "apgd", "apgd-dlr")
           and row.attack.steps >= 10]
  return min(found, key=lambda row: row.accuracy, default=None)


def _one_step(rows: Sequence[Row]) -> Iterator[Check]:
  for row in rows:
    best = _best_pgd(rows, row.attack.radius)
    if row.attack.family == "fgsm" and best:
      yield _compared("one_step", best, row)


def _black_box(rows: Sequence[Row]) -> Iterator[Check]:
  for row in rows:
    best = _best_pgd(rows, row.attack.radius)
    if row.attack.family in attack_names.BLACK_BOX and best:
      yield _compared("black_box", best, row)
