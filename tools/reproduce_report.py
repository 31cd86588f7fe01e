"""Tables, figures and pages of a suite's results; no flags.

A table of a suite:

    - title: Table 1
      ways: [at_64, at_512]     # default: all
      columns: {TA: test/accuracy, updates: step}
      by_seed: true             # every seed's; default: mean and deviation

Pairs, differences to another way with the same seeds:

    - title: Against LAMB
      of: test/accuracy
      against: lamb
      ways: [noise, scala]
      margin: 0.3               # for a verdict; default: none

A figure, against a key of the configuration, over epochs (of metrics.jsonl), or
over numbers that stand in the names of figures:

    - title: Figure 1
      x: data.global_batch_size
      y: {robust accuracy: test/robust_accuracy_pgd20}
      lines: {AT: [at_64, at_512]}

    - {title: Curves, x: epoch, y: {accuracy: validation/accuracy},
       lines: {AT: [at_64]}}

    - {title: Figure 3, x: radius, at: [2, 4, 8],
       y: {robust accuracy: test/robust_accuracy_pgd20@{}},
       lines: {AT: [at_64]}}
"""

import base64
from collections.abc import Mapping, Sequence
import html
import json
import pathlib
from typing import Any

import numpy as np

from tools import figures
from tools import reproduce_suite as suites

Results = Mapping[str, Mapping[int, Mapping[str, Any] | None]]
LEAST_PAIRS = 5


def _scale(key: str) -> int:
  """100 for what is shown in % or points: accuracies and their gap."""
  return 100 if "accuracy" in key or key.endswith("generalization_gap") else 1


def values_of(results: Results, way: str, key: str) -> np.ndarray:
  """A figure of every seed that has it, float [n]."""
  return np.array([
      float(found[key]) for found in results.get(way, {}).values()
      if found and isinstance(found.get(key), (int, float))])


def cell(values: np.ndarray, key: str) -> str:
  """Mean ± deviation; accuracies in %, equal whole numbers without decimals."""
  if not len(values):
    return "-"
  counts = np.all(values == values[0]) and values[0].is_integer()
  if _scale(key) > 1:
    values, counts = _scale(key) * values, False
  mean = values.mean()
  digits = 0 if counts or abs(mean) >= 1000 else 2
  text = f"{mean:,.{digits}f}"
  if len(values) > 1 and not counts:
    text += f" ± {values.std(ddof=1):,.{digits}f}"
  return text


def each(values: np.ndarray, key: str) -> str:
  """Every seed's figure, where a mean says little."""
  return ", ".join(
      f"{value:.4g}" for value in _scale(key) * values) or "-"


def table(suite: suites.Suite, spec: Mapping[str, Any],
          results: Results) -> str:
  """Markdown: a row for each way, beside what the paper prints."""
  columns, rows = spec["columns"], []
  show = each if spec.get("by_seed") else cell
  names = spec.get("ways", suite.ways)
  ways = [suite.ways[name] for name in names if name in results]
  paper = [title for title in columns
           if any(title in way.paper for way in ways)]
  for way in ways:
    found = results.get(way.name, {})
    diverged = sum(value is None for value in found.values())
    values = [values_of(results, way.name, key) for key in columns.values()]
    rows.append([
        way.name, f"{len(values[0])}" + (  # some are evaluated for some seeds
            f" (+{diverged} diverged)" if diverged else ""),
        *(show(*both) for both in zip(values, columns.values())),
        *(f"{way.paper[title]:g}" if title in way.paper else ""
          for title in paper)])
  text = figures.table(
      ["way", "n", *columns, *(f"paper: {title}" for title in paper)], rows)
  missing = [name for name in names if name not in results]
  return text + (f"\n\nNot run: {', '.join(missing)}." if missing else "")


def pairs(spec: Mapping[str, Any], results: Results) -> str:
  """Markdown: a row for each way, over the seeds that it shares.

  The interval is Student's t of the differences; accuracies are in points.
  With a `margin`, in the same unit, a last column says what follows.
  """
  key, against = spec["of"], results.get(spec["against"], {})
  margin = spec.get("margin")
  rows = []
  for way in filter(results.__contains__, spec["ways"]):  # others: not run
    found = [(a, b) for a, b in (
        (values, against.get(seed))
        for seed, values in results.get(way, {}).items())
             if a and b and key in a and key in b]
    row = _pair_cells(_scale(key) * np.array(
        [a[key] - b[key] for a, b in found]), margin)
    rows.append([way, f"{len(found)}", *row])
  head = ["way", "n", f"minus {spec['against']}", "deviation", "90 % interval"]
  if margin is not None:
    head.append(f"margin {margin:g}")
  return figures.table(head, rows)


def _pair_cells(differences: np.ndarray, margin: float | None) -> list[str]:
  """Mean, deviation, interval, and where there is a margin the verdict."""
  from scipy import stats
  count, interval = len(differences), None
  cells = [f"{differences.mean():+.2f}" if count else "-", "-", "-"]
  if count > 1:
    spread = differences.std(ddof=1)
    half = stats.t.ppf(0.95, count - 1) * spread / np.sqrt(count)
    interval = differences.mean() - half, differences.mean() + half
    cells[1:] = f"{spread:.2f}", "{:+.2f} .. {:+.2f}".format(*interval)
  if margin is not None:
    cells.append(verdict(interval, count, margin))
  return cells


def verdict(interval: tuple[float, float] | None, count: int,
            margin: float) -> str:
  """What a 90 % interval of paired differences says.

  Args:
    interval: its ends; None where there is none.
    count: of pairs.
    margin: below which a difference does not matter.

  Returns:
    "equivalent" where it lies inside -margin .. margin (two one-sided tests at
    5 %), else "differs" where it excludes 0, else "not resolved", which fewer
    than 5 pairs always are.
  """
  if count < LEAST_PAIRS or interval is None:
    return f"not resolved (n < {LEAST_PAIRS})"
  low, high = interval
  if -margin < low and high < margin:
    return "equivalent"
  return "not resolved" if low <= 0 <= high else "differs"


def _points(spec: Mapping[str, Any], key: str, ways: Sequence[str],
            results: Results, histories: Mapping[str, list[dict[str, Any]]],
            positions: Mapping[str, float]
            ) -> tuple[list[float], list[np.ndarray]]:
  """Abscissae and the values of all seeds at each."""
  if spec["x"] == "epoch":
    found: dict[float, list[float]] = {}
    for way in ways:
      for record in histories.get(way, []):
        if key in record:
          found.setdefault(record["epoch"], []).append(record[key])
    return sorted(found), [np.array(found[x]) for x in sorted(found)]
  if "at" in spec:
    return list(spec["at"]), [
        np.concatenate([values_of(results, way, key.format(x))
                        for way in ways]) for x in spec["at"]]
  ways = [way for way in ways if way in positions]  # others were not run
  ways.sort(key=lambda way: positions[way])
  return ([positions[way] for way in ways],
          [values_of(results, way, key) for way in ways])


def draw(spec: Mapping[str, Any], results: Results,
         histories: Mapping[str, list[dict[str, Any]]],
         positions: Mapping[str, Mapping[str, float]],
         path: pathlib.Path) -> bool:
  """Draws a figure; bars are deviations over seeds.

  Args:
    spec: of the figure.
    results: by way and seed.
    histories: way -> records of all its runs.
    positions: key of the configuration -> way -> its value.
    path: of the picture.

  Returns:
    Whether any run had one of its figures.
  """
  import matplotlib
  matplotlib.use("Agg")
  from matplotlib import pyplot
  panels = {}
  for title, key in spec["y"].items():
    lines = {line: _drawable(key, *_points(
        spec, key, ways, results, histories, positions.get(spec["x"], {})))
             for line, ways in spec["lines"].items()}
    if any(x for x, _ in lines.values()):  # others would be empty axes
      panels[title] = key, lines
  count = max(1, len(panels))
  picture, axes = pyplot.subplots(
      1, count, figsize=(5 * count, 3.8), squeeze=False, layout="constrained")
  for axis, (title, (key, lines)) in zip(axes[0], panels.items()):
    for line, (x, values) in lines.items():
      axis.errorbar(
          x, [v.mean() for v in values],
          [v.std(ddof=1) if len(v) > 1 else 0 for v in values],
          label=line if x else None,  # but each line keeps its colour
          marker="o", markersize=3, capsize=2)
    if spec["x"] == "data.global_batch_size":
      axis.set_xscale("log", base=2)
      axis.set_xticks(sorted({a for x, _ in lines.values() for a in x}))
      axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set(xlabel=spec.get("xlabel", spec["x"]),
             ylabel=title + (", %" if _scale(key) > 1 else ""))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
  picture.savefig(path, dpi=100)
  pyplot.close(picture)
  return bool(panels)


def _drawable(key: str, x: Sequence[float], values: Sequence[np.ndarray]
              ) -> tuple[list[float], list[np.ndarray]]:
  """The points that have values, in the unit that is shown."""
  found = [(a, _scale(key) * v) for a, v in zip(x, values) if len(v)]
  return [a for a, _ in found], [v for _, v in found]


def write(suite: suites.Suite, results: Results,
          histories: Mapping[str, list[dict[str, Any]]],
          positions: Mapping[str, Mapping[str, float]],
          facts: Mapping[str, Any],
          tuned: Mapping[str, Sequence[suites.Tried]],
          folder: pathlib.Path,
          more: Sequence[tuple[str, str]] = ()) -> str:
  """Writes report.md, report.html, results.json and the pictures.

  Args:
    suite: that was run.
    results: by way and seed, None for a run that diverged.
    histories: way -> records of all its runs.
    positions: key of the configuration -> way -> its value.
    facts: command, versions, machine.
    tuned: way -> what the points of its grid reached.
    folder: receives the files.
    more: titles and Markdown of further sections.

  Returns:
    The report in Markdown.
  """
  parts = [f"# {suite.title}", suite.about.strip(), _units(suite)]
  for spec in suite.tables:
    parts += [f"## {spec['title']}", spec.get("about", "").strip(),
              table(suite, spec, results)]
  for spec in suite.pairs:
    parts += [f"## {spec['title']}", spec.get("about", "").strip(),
              pairs(spec, results)]
  for number, spec in enumerate(suite.figures, 1):
    name = f"figure{number}.png"
    drawn = draw(spec, results, histories, positions, folder / name)
    parts += [f"## {spec['title']}", spec.get("about", "").strip(),
              f"![{spec['title']}]({name})" if drawn else
              "No run has these figures."]
  for title, text in more:
    parts += [f"## {title}", text]
  if tuned:
    parts += ["## Tuning, on the validation split", _tuning(tuned)]
  parts += ["## How it was made", "\n".join(
      f"- {key}: {value}" for key, value in facts.items())]
  text = "\n\n".join(part for part in parts if part) + "\n"
  (folder / "report.md").write_text(text, encoding="utf-8")
  (folder / "report.html").write_text(
      page(suite.title, text, folder), encoding="utf-8")
  (folder / "results.json").write_text(json.dumps(
      {"facts": facts, "tuned": {
          way: [[*point.overrides, point.value] for point in points]
          for way, points in tuned.items()}, "results": results}, indent=1))
  return text


def _units(suite: suites.Suite) -> str:
  """What the numbers of the tables are."""
  keys = [key for spec in suite.tables for key in spec["columns"].values()]
  return ("In tables: mean ± standard deviation over n seeds"
          + ("; accuracies and gaps in %, their differences in points"
             if any(_scale(key) > 1 for key in keys) else "") + ".")


def _tuning(tuned: Mapping[str, Sequence[suites.Tried]]) -> str:
  """What every point reached; the best says so, also where it is an edge."""
  rows = []
  for way, points in tuned.items():
    best = max((p for p in points if p.value is not None),
               key=lambda point: point.value)
    for point in points:
      mark = ""
      if point is best:
        mark = "chosen" + (
            ", at the edge of the grid" if _is_edge(best, points) else "")
      rows.append([
          way, ", ".join(point.overrides),
          "diverged" if point.value is None else f"{point.value:.4g}", mark])
  return figures.table(["way", "values", "reached", ""], rows)


def _is_edge(best: suites.Tried, points: Sequence[suites.Tried]) -> bool:
  """Whether any of its numbers is the smallest or largest that was tried."""
  for place, text in enumerate(best.overrides):
    try:
      tried = {float(p.overrides[place].partition("=")[2]) for p in points}
      own = float(text.partition("=")[2])
    except ValueError:
      continue  # no number
    if len(tried) > 1 and own in (min(tried), max(tried)):
      return True
  return False


def page(title: str, text: str, folder: pathlib.Path) -> str:
  """One HTML file, pictures in it, from the report's Markdown."""
  import markdown
  body = markdown.markdown(text, extensions=["tables"])
  for picture in folder.glob("*.png"):
    data = base64.b64encode(picture.read_bytes()).decode()
    body = body.replace(f'src="{picture.name}"',
                        f'src="data:image/png;base64,{data}"')
  return (f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
          f"<title>{html.escape(title)}</title><style>"
          "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;"
          "padding:0 1em}table{border-collapse:collapse;font-size:14px}"
          "td,th{padding:.2em .7em;border-bottom:1px solid #ddd;"
          "text-align:right}td:first-child,th:first-child{text-align:left}"
          f"img{{max-width:100%}}</style></head><body>{body}</body></html>\n")
