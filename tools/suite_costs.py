"""What a suite's runs take, see `tools.suite_cost`; no flags."""

from collections.abc import Iterable, Mapping
import dataclasses

from conadv_tf import components, config
from conadv_tf.analysis import cost_model, published_times
from tools import figures
from tools import reproduce_suite as suites

_PLAIN = 3  # passes F of plain training


@dataclasses.dataclass(frozen=True)
class Cost:
  """Sums over some runs.

  Attributes:
    runs: how many.
    updates: of all.
    images: clean ones that are trained on.
    passes: forward passes of one image.
  """

  runs: int = 0
  updates: int = 0
  images: float = 0.0
  passes: float = 0.0

  def __add__(self, other: "Cost") -> "Cost":
    return Cost(*(a + b for a, b in zip(dataclasses.astuple(self),
                                        dataclasses.astuple(other))))

  def hours(self, images_per_second: float) -> float:
    """Of one device that trains plainly at this rate."""
    return self.passes / _PLAIN / images_per_second / 3600


def published_rate() -> tuple[float, str]:
  """Images a second of one core in plain training at 32k, and its source."""
  point, = (p for p in published_times.POINTS if p.source == "Table 3"
            and p.run.method == "vanilla" and p.run.batch == 32 * 1024)
  epochs, cores = published_times.EPOCHS, point.run.devices
  return epochs * cost_model.IMAGENET_IMAGES / point.printed / cores, (
      f"a TPU v3 core's in Table 3 of the ConAdv paper: {epochs} epochs at "
      f"batch 32k in {point.printed:g} s on {cores} cores")


def costs(suite: suites.Suite) -> dict[str, tuple[str, Cost]]:
  """Method and cost of each way's runs with all its seeds.

  Raises:
    InputError: if nothing says how many training images there are.
  """
  found = {}
  for way in suite.ways.values():
    loaded = config.load([*suite.config, *way.config],
                         [*suite.overrides, *way.overrides])
    count = (suite.data.train if suite.data else loaded.data.num_examples
             or loaded.data.train_examples)
    if not count:
      raise config.InputError(
          f"way {way.name}: set data.train_examples, the number of training "
          "images")
    resolved = config.resolve(loaded, count)
    method = components.METHODS[resolved.method.name](resolved)
    work, _ = method.passes(method.default_attack(
        components.attack(resolved.attack)))
    updates = resolved.derived.total_steps
    images = updates * resolved.data.global_batch_size
    runs = len(way.seeds or suite.seeds)
    name = resolved.method.name
    if resolved.data.augment != "none":
      name += f" + {resolved.data.augment}"
    found[way.name] = name, Cost(
        runs, runs * updates, runs * images, runs * images * work)
  return found


def table(rows: Iterable[tuple[str, Cost]], rate: float, head: str) -> str:
  """Markdown, with the sum of all in the last row."""
  rows = list(rows)
  total = sum((cost for _, cost in rows), Cost())
  return figures.table(
      [head, "runs", "updates", "images, millions", "F an image",
       "F of an image, billions", "device hours"],
      [[name, f"{cost.runs}", f"{cost.updates:,}", f"{cost.images / 1e6:,.0f}",
        f"{cost.passes / cost.images:.2f}", f"{cost.passes / 1e9:,.1f}",
        f"{cost.hours(rate):,.0f}"] for name, cost in (*rows, ("all", total))])


def by_method(found: Mapping[str, tuple[str, Cost]]) -> dict[str, Cost]:
  """Sums of what `costs` found."""
  sums: dict[str, Cost] = {}
  for name, cost in found.values():
    sums[name] = sums.get(name, Cost()) + cost
  return sums


def page(suite: suites.Suite, rate: float | None, each: bool,
         found: Mapping[str, tuple[str, Cost]] | None = None) -> str:
  """The table below a title that says what it assumes.

  Args:
    suite: whose runs are counted.
    rate: images a second of plain training; None: `published_rate`.
    each: whether each way has a row, instead of each method.
    found: what `costs` finds, where it is known.
  """
  found = found or costs(suite)
  rows = ({way: cost for way, (_, cost) in found.items()} if each
          else by_method(found))
  rate, source = (rate, "as given") if rate else published_rate()
  return (
      f"# What {suite.name} takes\n\n"
      f"One device trains plainly on {rate:.0f} images a second ({source}), an "
      f"F takes a third of that time, and seeds are {len(suite.seeds)}. "
      "Input, evaluation and communication are not counted.\n\n"
      f"## Cost\n\n{table(rows.items(), rate, 'way' if each else 'method')}\n")
