"""Ways and names of a suite that stand for several; no flags."""

from collections.abc import Iterable, Iterator, Mapping
import fnmatch
from typing import Any

from conadv_tf.config import InputError

_FILLED = ("config", "set")


def expanded(where: str, tree: Mapping[str, Any]
             ) -> Iterator[tuple[str, dict[str, Any]]]:
  """The ways of a suite, each with its settings.

  One with `each: {batch: [1k, 4k]}` stands for one way for each value, which
  is put in the place of `{batch}` in its name, its `config` and its `set`; a
  list in its `paper` has a number, or null, for each.

  Args:
    where: for messages.
    tree: name -> settings.

  Raises:
    InputError: if `each` is anything else, a list has another length, or a
      name stands twice.
  """
  seen = set()
  for name, settings in tree.items():
    for way, own in _of_each(f"{where}, way {name}", name, settings or {}):
      if way in seen:
        raise InputError(f"{where}, way {way}: stands twice")
      seen.add(way)
      yield way, own


def _of_each(where: str, name: str, settings: Any
             ) -> Iterator[tuple[str, dict[str, Any]]]:
  if not isinstance(settings, Mapping) or "each" not in settings:
    yield name, settings
    return
  own = dict(settings)
  each = own.pop("each")
  if not (isinstance(each, Mapping) and len(each) == 1
          and all(isinstance(values, list) for values in each.values())):
    raise InputError(f"{where}: each: write one name with a list of values")
  (key, values), = each.items()
  paper = own.pop("paper", {})
  for column, numbers in paper.items():
    if not isinstance(numbers, list) or len(numbers) != len(values):
      raise InputError(f"{where}: paper: {column}: needs a number or null for "
                       f"each of {len(values)} values")
  for number, value in enumerate(values):
    def filled(text: str, value: Any = value) -> str:
      return text.replace("{" + key + "}", f"{value}")

    yield filled(name), {
        **own,
        **{part: [*map(filled, own[part])] for part in _FILLED if part in own},
        "paper": {column: numbers[number] for column, numbers in paper.items()
                  if numbers[number] is not None}}


def named(where: str, names: Iterable[str], ways: Iterable[str]) -> list[str]:
  """Names of ways, where `*`, `?` and `[...]` stand for what they match.

  Raises:
    InputError: if there is no such way.
  """
  known, found = list(ways), []
  for name in map(str, names):  # YAML reads `no` as false
    matching = [name] if name in known else fnmatch.filter(known, name)
    if not matching:
      raise InputError(f"{where}: {name} is no way")
    found += [way for way in matching if way not in found]
  return found
