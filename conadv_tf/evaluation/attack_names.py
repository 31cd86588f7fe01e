"""What the names of attacks mean: `pgd50-10@8/2`, `apgd`, `autoattack`."""

from collections.abc import Sequence
import dataclasses
import math
import re

from conadv_tf import config

MAX_RADIUS = 255.0  # the whole pixel range
# Steps or queries where the name has none; those of the standard AutoAttack.
_DEFAULT_STEPS = {"apgd": 100, "apgd-dlr": 100, "square": 5000}
LIBRARY = (*_DEFAULT_STEPS, "autoattack")
BLACK_BOX = ("square", "noise")
KNOWN = ("fgsm, pgd<steps>[-<restarts>], noise<draws>; in conadv-evaluate "
         "also apgd[<steps>], apgd-dlr[<steps>], square[<queries>], "
         "autoattack; then optionally @<radius> and, for pgd, /<step size>, "
         "both in 1/255, such as pgd20@8 or pgd50-10@8/2")
_NAME = re.compile(r"(fgsm|pgd|noise|apgd-dlr|apgd|square|autoattack)"
                   r"(\d{1,7})?(?:-(\d{1,4}))?(?:@([^/]*))?(?:/(.*))?")


@dataclasses.dataclass(frozen=True)
class Attack:
  """An untargeted linf attack.

  Attributes:
    family: fgsm, pgd, noise, apgd, apgd-dlr, square or autoattack.
    radius: in 1/255 of the pixel range.
    steps: gradients, of `square` queries, of `noise` draws; of `autoattack` 0.
    restarts: random starts; 0 begins once, at the image itself.
    step_size: of `pgd`, in 1/255; None is 2.5 * radius / steps.
  """

  family: str
  radius: float
  steps: int
  restarts: int = 1
  step_size: float | None = None

  @property
  def from_library(self) -> bool:
    """Whether an optional package makes it, on one device."""
    return self.family in LIBRARY

  @property
  def passes(self) -> int:
    """Roughly what it costs, in forward passes of the examples."""
    if self.family == "autoattack":
      return sum(Attack(family, self.radius, steps).passes
                 for family, steps in _DEFAULT_STEPS.items())
    if self.family in BLACK_BOX:
      return 3 * self.steps
    # A gradient is a pass forwards and one back to the image.
    return max(1, self.restarts) * (2 * self.steps + 1)

  @property
  def name(self) -> str:
    """In full, with the radius."""
    counted = self.family not in ("fgsm", "autoattack")
    parts = [self.family, str(self.steps) if counted else "",
             f"-{self.restarts}" if self.family == "pgd"
             and self.restarts != 1 else "", f"@{self.radius:g}",
             "" if self.step_size is None else f"/{self.step_size:g}"]
    return "".join(parts)


def run_radius(attack: config.AttackConfig) -> float:
  """The radius of names that have none: the run's; NaN where it is in l2."""
  return attack.radius if attack.norm == "linf" else math.nan


def parse(name: str, radius: float, where: str = "--attacks") -> Attack:
  """The attack that a name stands for.

  Args:
    name: see `KNOWN`.
    radius: in 1/255, where the name has none; NaN if there is none in linf.
    where: the flag or key that holds the name, for messages.

  Raises:
    InputError: if the name is none of these; the message lists what is. Or
      if radius or step size are outside 0 .. 255.
  """
  match = _NAME.fullmatch(name)
  family, steps, restarts, own_radius, step_size = (
      match.groups() if match else [None] * 5)
  if (not match or (family in ("pgd", "noise")) and not int(steps or 0)
      or steps and (family in ("fgsm", "autoattack") or not int(steps))
      or family != "pgd" and (restarts or step_size is not None)):
    raise config.InputError(
        f"{where}: unknown attack {name!r}; known: {KNOWN}")
  if own_radius is not None:
    radius = _size(own_radius, "radius", name, where)
  elif not 0 <= radius <= MAX_RADIUS:
    said = "in l2" if math.isnan(radius) else f"{radius:g}"
    raise config.InputError(
        f"{where}: the run's radius {said} is no linf radius of {name!r}; "
        f"write {name}@8 or another, in 1/255, from 0 to {MAX_RADIUS:g}")
  default = 1 if family == "fgsm" else _DEFAULT_STEPS.get(family, 0)
  return Attack(
      family, radius, int(steps or default),
      0 if family == "fgsm" else 1 if restarts is None else int(restarts),
      None if step_size is None else _size(
          step_size, "step size", name, where))


def _size(text: str, what: str, name: str, where: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not 0 <= value <= MAX_RADIUS:
    raise config.InputError(
        f"{where}: the {what} of {name!r} must be a number from 0 to "
        f"{MAX_RADIUS:g}, in 1/255")
  return value


def sweep(names: Sequence[str], radius: float, radii: Sequence[float] = (),
          steps: Sequence[int] = ()) -> dict[str, Attack]:
  """The named attacks, with every radius and every number of steps.

  Args:
    names: of attacks.
    radius: in 1/255, where neither name nor `radii` have one.
    radii: in 1/255; each name gets each of them.
    steps: in place of those of `pgd<steps>`; the others keep theirs.

  Returns:
    Each attack once, in the order of names, radii, steps, under the name as
    it is given, or in full where radii or steps are given.

  Raises:
    InputError: for names and numbers that cannot be.
  """
  for count in steps:
    if count < 1:
      raise config.InputError(f"--steps: must be at least 1, got {count}")
  found = {}
  for name in names:
    attack = parse(name, 0.0 if radii else radius)
    if radii and "@" in name:
      raise config.InputError(
          f"--radii: {name!r} has a radius of its own; leave one of them out")
    for each in radii or [attack.radius]:
      _size(str(each), "radius", name, "--radii")
      for count in steps if attack.family == "pgd" and steps else [
          attack.steps]:
        one = dataclasses.replace(attack, radius=each, steps=count)
        found[one.name if radii or steps else name] = one
  return found
