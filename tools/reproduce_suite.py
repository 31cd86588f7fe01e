"""Suites of `tools.reproduce`: which runs, which tables; no flags."""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import itertools
import pathlib
from typing import Any

import yaml

from conadv_tf.config import InputError
from tools import reproduce_speed, reproduce_ways

FOLDER = "suites"


@dataclasses.dataclass(frozen=True)
class Data:
  """The part of an .npz file, or of a task's TSV file, that a suite uses.

  Attributes:
    train: examples to train on, drawn from the training split.
    validation: for curves and for tuning: its last images, or sentences drawn
      from it.
    test: for the figures of the end: the first images of the test split, or
      sentences drawn from the training split, as GLUE's test labels are secret.
    image_size: to which images are shrunk, a divisor of theirs; None keeps.
    task: of GLUE; None means images.
  """

  train: int
  validation: int
  test: int
  image_size: int | None = None
  task: str | None = None


@dataclasses.dataclass(frozen=True)
class Tuning:
  """What is chosen on the validation split before anything is reported.

  Attributes:
    maximise: a key of results.json.
    grid: key of the configuration -> values; all combinations are tried.
    seed: of these runs, none of the suite's.
  """

  maximise: str
  grid: Mapping[str, list[Any]]
  seed: int = 1000

  def points(self) -> list[tuple[str, ...]]:
    """Overrides of each combination."""
    return [tuple(f"{key}={value}" for key, value in zip(self.grid, values))
            for values in itertools.product(*self.grid.values())]


@dataclasses.dataclass(frozen=True)
class Tried:
  """A point of a grid and what it reached, None where it diverged."""

  overrides: tuple[str, ...]
  value: float | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Figures of finished runs, on the test split where the suite has data.

  Attributes:
    name: of the file beside a run, and in front of its figures' keys.
    flags: of conadv-evaluate.
    ways: of which runs; None means all.
    seeds: of which runs; None means all.
  """

  name: str
  flags: tuple[str, ...] = ()
  ways: tuple[str, ...] | None = None
  seeds: tuple[int, ...] | None = None

  def is_of(self, way: str, seed: int) -> bool:
    """Whether it is made of this run."""
    return ((self.ways is None or way in self.ways)
            and (self.seeds is None or seed in self.seeds))


@dataclasses.dataclass(frozen=True)
class Way:
  """One way of training.

  Attributes:
    name: of its folder.
    overrides: of the suite's configuration.
    tuning: None where nothing is tuned.
    like: another way, whose tuned values it takes; None: its own.
    paper: column of a table -> what the paper prints.
    seeds: with which it is trained; None means the suite's.
    workers: processes that train it together.
    config: files after the suite's.
  """

  name: str
  overrides: tuple[str, ...] = ()
  tuning: Tuning | None = None
  like: str | None = None
  paper: Mapping[str, float] = dataclasses.field(default_factory=dict)
  seeds: tuple[int, ...] | None = None
  workers: int = 1
  config: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Suite:
  """Runs that answer a question, and how they are shown.

  Attributes:
    name: of the file.
    title: of the report.
    about: paragraphs in Markdown.
    config: files, later ones win.
    data: None where the configuration names its own.
    seeds: of ways that name none.
    overrides: of every way.
    changed: those of them that a budget or the command line set.
    evaluations: at the end of every run.
    ways: by name, in order.
    tables: see `reproduce_report`.
    pairs: see `reproduce_report`.
    figures: see `reproduce_report`.
    pictures: titles, ways and a seed, whose adversarial images are shown.
    benchmark: see `reproduce_speed`; None: there is none.
  """

  name: str
  title: str
  about: str
  config: tuple[str, ...]
  data: Data | None
  seeds: tuple[int, ...]
  overrides: tuple[str, ...]
  evaluations: tuple[Evaluation, ...]
  ways: Mapping[str, Way]
  tables: list[dict[str, Any]]
  pairs: list[dict[str, Any]]
  figures: list[dict[str, Any]]
  pictures: list[dict[str, Any]]
  benchmark: Mapping[str, Any] | None
  changed: tuple[str, ...] = ()


_KEYS = {"title", "about", "config", "data", "seeds", "sets", "set",
         "evaluate", "tune", "budgets", "ways", "tables",
         "pairs", "figures", "pictures", "benchmark"}
_WAY_KEYS = {"set", "tune", "like", "paper", "seeds", "workers", "config"}


def names() -> list[str]:
  """The suites that are shipped."""
  return sorted(path.stem for path in pathlib.Path(FOLDER).glob("*.yaml"))


def load(name: str, budget: str | None = None,
         overrides: Iterable[str] = ()) -> Suite:
  """Reads a suite.

  Args:
    name: of a shipped suite, or a YAML file.
    budget: one of the file's `budgets`, whose overrides follow the suite's.
    overrides: of every way, after those.

  Raises:
    InputError: if there is none, a key is unknown or missing, or an override
      is not key=value.
  """
  path = pathlib.Path(name if name.endswith(".yaml")
                      else f"{FOLDER}/{name}.yaml")
  if not path.is_file():
    raise InputError(f"--suite={name}: no file {path}; known are "
                     f"{', '.join(names())}")
  try:
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
  except yaml.YAMLError as error:
    raise InputError(f"{path}: {error}") from error
  _check_keys(f"{path}", tree, _KEYS, {"title", "config", "seeds", "ways"})
  budgets = tree.get("budgets", {})
  if budget is not None and budget not in budgets:
    raise InputError(f"--budget={budget}: {path} has "
                     f"{', '.join(budgets) or 'none'}")
  for text in overrides:
    if "=" not in text:
      raise InputError(f"--set={text}: must be key=value")
  changed = (*budgets.get(budget, ()), *overrides)
  config = tree["config"]
  tuning = Tuning(**tree["tune"]) if "tune" in tree else None
  ways = {}
  for way, settings in reproduce_ways.expanded(f"{path}", tree["ways"]):
    ways[way] = _way(f"{path}, way {way}", way, settings, tuning, ways,
                     tree.get("sets", {}))
  _name_ways(f"{path}", tree, ways)
  return Suite(
      path.stem, tree["title"], tree.get("about", ""),
      (config,) if isinstance(config, str) else tuple(config),
      Data(**tree["data"]) if "data" in tree else None,
      tuple(tree["seeds"]),
      (*tree.get("set", ()), *changed),
      tuple(_evaluation(f"{path}, evaluate {key}", key, value, ways)
            for key, value in tree.get("evaluate", {"test": []}).items()),
      ways, tree.get("tables", []), _pairs(f"{path}", tree, ways),
      tree.get("figures", []), _pictures(f"{path}", tree),
      _benchmark(f"{path}, benchmark", tree, ways), changed)


def _name_ways(where: str, tree: Mapping[str, Any],
               ways: Mapping[str, Way]) -> None:
  """Puts names in the place of patterns, wherever ways are listed."""
  for kind in ("tables", "pairs", "figures", "pictures"):
    for spec in tree.get(kind, ()):
      _check_keys(f"{where}, {kind}", spec, set(spec), {"title"})
      here = f"{where}, {kind} {spec['title']}"
      if "ways" in spec:
        spec["ways"] = reproduce_ways.named(here, spec["ways"], ways)
      if "lines" in spec:
        spec["lines"] = {line: reproduce_ways.named(here, names, ways)
                         for line, names in spec["lines"].items()}


def _way(where: str, name: str, tree: Any, tuning: Tuning | None,
         before: Mapping[str, Way], sets: Mapping[str, list[str]]) -> Way:
  _check_keys(where, tree, _WAY_KEYS, set())
  like = tree.get("like")
  if like is not None and like not in before:
    raise InputError(f"{where}: like: {like} is no way before it")
  own = tree.get("tune", True)
  if isinstance(own, Mapping):
    tuning = Tuning(**own)
  elif not own or like:
    tuning = None
  workers = tree.get("workers", 1)
  if not isinstance(workers, int) or workers < 1:
    raise InputError(f"{where}: workers: must be a whole number above 0, got "
                     f"{workers}")
  return Way(name, tuple(_overrides(where, tree.get("set", ()), sets)), tuning,
             like, tree.get("paper", {}),
             tuple(tree["seeds"]) if "seeds" in tree else None, workers,
             tuple(tree.get("config", ())))


def _evaluation(where: str, name: str, tree: Any,
                ways: Mapping[str, Way]) -> Evaluation:
  """From a list of flags, or a mapping with `flags`, `ways`, `seeds`."""
  if isinstance(tree, list):
    tree = {"flags": tree}
  _check_keys(where, tree, {"flags", "ways", "seeds"}, {"flags"})
  for way in tree.get("ways", ()):
    if way not in ways:
      raise InputError(f"{where}: {way} is no way")
  return Evaluation(name, *(
      tuple(tree[key]) if key in tree else None
      for key in ("flags", "ways", "seeds")))


def _pairs(where: str, tree: Mapping[str, Any],
           ways: Mapping[str, Way]) -> list[dict[str, Any]]:
  pairs = tree.get("pairs", [])
  needed = {"title", "of", "against", "ways"}
  for spec in pairs:
    _check_keys(f"{where}, pairs", spec, {*needed, "about", "margin"}, needed)
    margin = spec.get("margin", 1)
    if not isinstance(margin, (int, float)) or not margin > 0:
      raise InputError(f"{where}, pairs {spec['title']}: margin: must be a "
                       f"number above 0, got {margin}")
    if spec["against"] not in ways:
      raise InputError(f"{where}, pairs {spec['title']}: {spec['against']} is "
                       "no way")
  return pairs


def _pictures(where: str, tree: Mapping[str, Any]) -> list[dict[str, Any]]:
  """With the first seed of the suite where none is named."""
  pictures = []
  for spec in tree.get("pictures", []):
    _check_keys(f"{where}, pictures", spec, {"title", "about", "ways", "seed"},
                {"title", "ways"})
    pictures.append({"seed": tree["seeds"][0], **spec})
  return pictures


def _benchmark(where: str, tree: Mapping[str, Any],
               ways: Mapping[str, Way]) -> Mapping[str, Any] | None:
  if "benchmark" not in tree:
    return None
  spec = tree["benchmark"]
  _check_keys(where, spec, {"flags", "ways", "paper", "about"}, {"flags"})
  reproduce_speed.check(where, spec, ways)
  return spec


def _overrides(where: str, items: Iterable[str],
               sets: Mapping[str, list[str]]) -> Iterator[str]:
  """Overrides, where an item without `=` is the name of a set of them."""
  for item in items:
    if "=" in item:
      yield item
    elif item in sets:
      yield from _overrides(where, sets[item], sets)
    else:
      raise InputError(f"{where}: set: {item} is neither key=value nor one of "
                       f"sets ({', '.join(sets) or 'none'})")


def _check_keys(where: str, tree: Any, known: set[str],
                needed: set[str]) -> None:
  if not isinstance(tree, Mapping):
    raise InputError(f"{where}: not a mapping")
  for key in tree:
    if key not in known:
      raise InputError(f"{where}: unknown key {key}; known are "
                       f"{', '.join(sorted(known))}")
  for key in sorted(needed - set(tree)):
    raise InputError(f"{where}: {key} is missing")
