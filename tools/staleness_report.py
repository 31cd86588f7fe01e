"""Table, figure and slopes of measured staleness; no flags."""

from collections.abc import Callable, Mapping, Sequence
import json
import pathlib
from typing import Any

import numpy as np

from conadv_tf.analysis import staleness_probe
from tools import figures

# A run: "rate" (peak), "step" and "records" (fields of `Record` and `update`).
Run = Mapping[str, Any]
_LINES = {"adversarial": "-", "clean": "--"}


def values(run: Run, kind: str, branch: str, lag: int, name: str
           ) -> np.ndarray:
  """A figure at every update that was measured, float64 [points]."""
  return np.array([
      record[name] for record in run["records"]
      if (record["kind"], record["branch"], record["lag"])
      == (kind, branch, lag)], float)


def strength(run: Run, kind: str, branch: str, lag: int) -> np.ndarray:
  """[L(x_stale) - L(x)] / [L(x_fresh) - L(x)] at every update."""
  return (values(run, kind, branch, lag, "gain")
          / values(run, kind, branch, lag, "fresh_gain"))


def lags(run: Run) -> list[int]:
  """That were measured."""
  return sorted({record["lag"] for record in run["records"]})


def branches(run: Run) -> list[str]:
  """That judged, the one that adversaries are trained through first."""
  return sorted({record["branch"] for record in run["records"]})


def slope(run: Run, branch: str, name: str) -> float:
  """Exponent k of figure ~ |theta_t - theta_(t-lag)|^k over all lags > 0.

  The median over updates of a least-squares line through logarithms; NaN
  where there are fewer than two lags or something is 0.
  """
  later = [lag for lag in lags(run) if lag]
  if len(later) < 2:
    return float("nan")
  moved, figure = (
      np.array([values(run, staleness_probe.CONADV, branch, lag, key)
                for lag in later])
      for key in ("weight_distance", name))
  if not np.all(moved > 0) or not np.all(figure > 0):
    return float("nan")
  x, y = np.log(moved), np.log(figure)
  x, y = x - x.mean(axis=0), y - y.mean(axis=0)
  return float(np.median(np.sum(x * y, axis=0) / np.sum(x * x, axis=0)))


def table(runs: Sequence[Run]) -> str:
  """A row for each rate, branch, kind and lag; medians over updates."""
  rows = []
  for run in runs:
    for branch in branches(run):
      for kind, lag in dict.fromkeys(
          (record["kind"], record["lag"]) for record in sorted(
              run["records"], key=lambda r: (r["kind"], r["lag"]))
          if record["branch"] == branch):
        part = [np.median(values(run, kind, branch, lag, name)) for name in (
            "weight_distance", "gradient_distance", "distance",
            "sign_agreement")]
        low, median, high = figures.quartiles(
            strength(run, kind, branch, lag))
        rows.append([f"{run['rate']:g}", branch, kind, str(lag),
                     *(f"{value:.3f}" for value in part),
                     f"{median:.3f} [{low:.3f}, {high:.3f}]"])
  return figures.table(
      ["peak rate", "judged by", "made by", "lag", "weights moved",
       "gradient apart", "apart", "signs agree", "strength"], rows)


def slopes(runs: Sequence[Run]) -> str:
  """How distances grow with that of the weights; 1 is Lemma 1's shape."""
  return figures.table(
      ["peak rate", "branch", "gradient apart", "perturbations apart"],
      [[f"{run['rate']:g}", branch,
        *(f"{slope(run, branch, name):.2f}" for name in (
            "gradient_distance", "distance"))]
       for run in runs for branch in branches(run)])


def write(found: Mapping[str, Any], folder: pathlib.Path) -> str:
  """Writes results.json, report.md and figure.png; returns the report.

  Args:
    found: "command", "versions", "machine" and "runs".
    folder: that exists.
  """
  (folder / "results.json").write_text(json.dumps(found) + "\n", "utf-8")
  runs = found["runs"]
  config = runs[0]["config"]
  data = config["data"]
  title = (f"{pathlib.Path(data['path'] or data['name']).stem}, "
           f"{config['model']['name']}, batch {data['global_batch_size']}, "
           f"{runs[0]['updates']} updates, seed "
           + ", ".join(map(str, runs[0]["seeds"])))
  accuracies = ", ".join(
      f"{100 * run['accuracy']:.2f} % at {run['rate']:g}" for run in runs)
  text = "\n".join([
      f"# Staleness: {title}", "", f"`{found['command']}`", "",
      f"TensorFlow {found['versions']['tensorflow']}, {found['machine']}. "
      f"Medians over {runs[0]['points']} updates, strength with quartiles; "
      "docs/theory.md explains the columns. Mean validation accuracy: "
      f"{accuracies}.", "", "![figure](figure.png)", "",
      table(runs), "", "Distances as powers of the distance between weights:",
      "", slopes(runs), ""])
  (folder / "report.md").write_text(text, "utf-8")
  draw(runs, str(folder / "figure.png"), title)
  return text


def draw(runs: Sequence[Run], path: str, title: str) -> None:
  """Distance against lag and against weights, strength, signs."""
  import matplotlib
  matplotlib.use("Agg")
  from matplotlib import pyplot
  figure, axes = pyplot.subplots(1, 4, figsize=(17, 4.2),
                                 layout="constrained")
  for number, run in enumerate(runs):
    for branch in branches(run):
      _draw_run(axes, run, branch, number)
  _draw_shapes(axes[1], runs)
  axes[0].set(xlabel="lag, updates", ylabel="|x stale - x fresh|",
              title="perturbations apart, in longest ones")
  axes[1].set(xlabel="|weights now - weights then|", xscale="log",
              yscale="log", title="apart, against weights moved")
  axes[2].set(xlabel="lag, updates", title="strength of stale adversaries")
  axes[3].set(xlabel="lag, updates", title="signs that agree")
  for axis in axes:
    axis.grid(alpha=0.3)
  figure.legend(*axes[0].get_legend_handles_labels(),
                loc="outside lower center", frameon=False, ncols=4)
  axes[1].legend(fontsize="small")
  axes[2].legend(fontsize="small")
  figure.suptitle(title)
  figure.savefig(path, dpi=80)


def _draw_run(axes: Any, run: Run, branch: str, number: int) -> None:
  colour = f"C{number}"
  found, later = lags(run), [lag for lag in lags(run) if lag]

  def medians(at: Sequence[int], of: Callable[..., np.ndarray],
              *name: str) -> list[float]:
    return [float(np.median(of(run, staleness_probe.CONADV, branch, lag, *name)
                            )) for lag in at]

  style = dict(color=colour, linestyle=_LINES[branch], marker="o",
               markersize=4)
  axes[0].plot(found, medians(found, values, "distance"), **style,
               label=f"peak rate {run['rate']:g}, {branch} branch")
  moved = medians(later, values, "weight_distance")
  axes[1].plot(moved, medians(later, values, "distance"), **style)
  axes[1].plot(moved, medians(later, values, "gradient_distance"),
               **{**style, "marker": "^"}, alpha=0.5)
  axes[2].plot(found, medians(found, strength), **style)
  axes[3].plot(found, medians(found, values, "sign_agreement"), **style)
  if branch == branches(run)[0]:  # where recycled adversaries are trained on
    for kind, lag, marker in (
        (staleness_probe.RECYCLED, 0, "s"),
        (staleness_probe.RECYCLED_NEXT, 1, "*")):
      axes[2].plot(lag, np.median(strength(run, kind, branch, lag)), marker,
                   color=colour, markersize=9, markeredgecolor="black",
                   label=None if number else kind)


def _draw_shapes(axis: Any, runs: Sequence[Run]) -> None:
  """Lines of slope 1 and 1/2, and what the markers are."""
  moved = [np.median(values(run, staleness_probe.CONADV, branches(run)[0],
                            lag, "weight_distance"))
           for run in runs for lag in lags(run) if lag]
  if not min(moved) > 0:
    return
  ends = np.array([min(moved), max(moved)])
  for power, line in ((1.0, ":"), (0.5, "-.")):
    axis.plot(ends, (ends / ends[1])**power, line, color="0.4",
              label=f"slope {power:g}")
  for marker, label in (("o", "perturbations"), ("^", "gradients, relative")):
    axis.plot([], [], marker, color="0.4", label=label)
