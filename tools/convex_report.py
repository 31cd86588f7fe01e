"""Tables and picture of the convex check; no flags."""

from collections.abc import Sequence
import dataclasses
import io
from typing import Any

import numpy as np

from tools import (
    convex_problem,
    convex_runs,
    convex_theorem,
    convex_training,
    figures,
)

# They nearly coincide by epoch: colour, style, width.
_LINES = {"SGD": ("C0", "-", 4), "ABS": ("C1", "-", 2), "ABSA": ("C3", ":", 2)}
_MARKS = (1, 10, 50)  # epochs of the table
_TARGET = 0.005  # loss, of the table
_GROWTHS = "seed 0 doubled its batch at epoch (eigenvalue)"


@dataclasses.dataclass
class Result:
  """What the check found.

  Attributes:
    problem: the data without an l2 term.
    stochastic: SGD, ABS and ABSA, one trace a seed.
    full: full gradients by step size.
    constants: of the problem with an l2 term.
    compared: each case of the theorem, the number of its seeds, and its means.
  """

  problem: convex_problem.Problem
  stochastic: dict[str, list[convex_training.Trace]]
  full: dict[float, convex_training.Trace]
  constants: convex_theorem.Constants
  compared: list[tuple[convex_runs.Case, int, convex_theorem.Comparison]]


def run(problem: convex_problem.Problem, epochs: int, updates: int, seeds: int,
        bound_epochs: int, bound_seeds: int) -> Result:
  """Runs everything.

  Args:
    problem: the data without an l2 term.
    epochs: of SGD, ABS and ABSA.
    updates: of full gradients.
    seeds: of each method, and of the cases beside the first.
    bound_epochs: of the runs beside the bound.
    bound_seeds: of the first case.
  """
  stochastic = convex_runs.stochastic(problem, epochs, range(seeds))
  full = convex_runs.full_gradient(problem, updates)
  convex = dataclasses.replace(problem, l2=convex_runs.L2)
  found = convex_theorem.constants(convex)
  compared = []
  for number, case in enumerate(convex_runs.cases(found)):
    count = seeds if number else bound_seeds
    compared.append((case, count, convex_runs.beside_the_bound(
        convex, found, case, bound_epochs, range(count))))
  return Result(problem, stochastic, full, found, compared)


def at_epoch(trace: convex_training.Trace, rows: int, epoch: float) -> float:
  """The loss after the first update at or after this epoch; NaN beyond."""
  index = int(np.searchsorted(trace.samples, epoch * rows))
  return float(trace.losses[index]) if index < len(trace.losses) else np.nan


def first_update(trace: convex_training.Trace, loss: float) -> float:
  """Updates from which on the loss is at most this; NaN where it never is."""
  above = np.flatnonzero(~(trace.losses <= loss))
  after = above[-1] + 1 if len(above) else 0
  return float(after) if after < len(trace.losses) else np.nan


def _mean(values: Sequence[float], places: str = ".4g") -> str:
  """Mean and standard deviation over seeds; a dash where one has none."""
  mean = np.mean(values)
  if not np.isfinite(mean):
    return "-"
  spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
  digits = ".1g" if spread < 10 else ",.0f"
  return f"{mean:{places}}" + (f" ± {spread:{digits}}" if spread else "")


def text(result: Result) -> str:
  """All tables, Markdown."""
  return "\n\n".join([_facts(result), _losses(result), _bounds(result)])


def _facts(result: Result) -> str:
  problem, found = result.problem, result.constants
  null = int(np.sum(problem.gram < 1e-10 * problem.gram[-1]))
  return (
      f"{problem.rows:,} rows, {problem.features.shape[1]} features, {null} "
      f"null directions, L_g {problem.gram[-1] / 4:.4f}. With c_s = l2 = "
      f"{found.convexity:g}: L_g {found.smoothness:.4f}, L_* "
      f"{found.minimum:.5f}, M {found.noise:.4f}, M_v "
      f"{found.noise_slope:.1f}, eta_0 "
      f"{found.largest_rate(convex_runs.MAX_BATCH):.4g}.")


def _losses(result: Result) -> str:
  lines = [_line(name, result.problem.rows, traces)
           for name, traces in result.stochastic.items()]
  lines += [_line("full gradient", result.problem.rows, [trace])
            for trace in result.full.values()]
  return figures.table(
      ["", "seeds", "updates", "last batch", "last rate",
       *(f"loss, epoch {mark}" for mark in _MARKS), "last loss",
       "largest loss", f"updates to {_TARGET}", f"epochs to {_TARGET}",
       _GROWTHS], lines)


def _line(name: str, rows: int,
          traces: Sequence[convex_training.Trace]) -> list[str]:
  updates = [first_update(trace, _TARGET) for trace in traces]
  epochs = [trace.samples[int(update)] / rows if np.isfinite(update) else np.nan
            for trace, update in zip(traces, updates)]
  return [
      name, str(len(traces)),
      _mean([len(trace.batches) for trace in traces], ",.0f"),
      f"{traces[0].batches[-1]:,}", f"{traces[0].rates[-1]:g}",
      *(_mean([at_epoch(trace, rows, mark) for trace in traces])
        for mark in _MARKS),
      _mean([trace.losses[-1] for trace in traces]),
      f"{np.max([trace.losses.max() for trace in traces]):.3g}",
      _mean(updates, ",.0f"), _mean(epochs, ".0f"),
      _growths(traces[0], rows)]


def _growths(trace: convex_training.Trace, rows: int) -> str:
  return ", ".join(f"{seen / rows:.0f} ({value:.2g})"
                   for seen, _, value in trace.growths)


def _bounds(result: Result) -> str:
  lines = []
  for case, seeds, means in result.compared:
    lines.append([
        case.label, "yes" if case.is_covered else "no", str(seeds),
        f"{len(means.gaps) - 1:,}", f"{case.rate:.4g}",
        f"{result.constants.floor(case.rate):.4g}",
        f"{means.epochs[-1]:.0f}", f"{means.bounds[-1]:.4g}",
        f"{means.gaps[-1]:.4g}", f"{means.largest_ratio:.4g}",
        f"{np.max(means.normalised[1:]):.4g}",
        _growths(means.first, result.problem.rows)])
  return figures.table(
      ["beside the bound", "covered", "seeds", "updates", "eta_0", "floor",
       "epochs", "last bound", "last mean gap", "largest gap / bound",
       "largest normalised", _GROWTHS], lines)


def draw(result: Result) -> Any:
  """The picture: Figure 3's two parts, loss by epoch, and the bound."""
  import matplotlib
  matplotlib.use("Agg")
  from matplotlib import pyplot
  figure, axes = pyplot.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
  stochastic = {name: traces[0] for name, traces in result.stochastic.items()}
  one = {convex_runs.RATE: result.full[convex_runs.RATE]}
  ends = {**one, max(result.full): result.full[max(result.full)]}
  adaptive = {name: stochastic[name] for name in ("ABS", "ABSA")}
  for axis, names, full, rows, label, title in (
      (axes[0, 0], stochastic, one, 0, "updates",
       "(a) rate 1.2 at batch 100, as in Figure 3, left"),
      (axes[0, 1], adaptive, result.full, 0, "updates",
       "(b) rates of the full gradient, as in Figure 3, right"),
      (axes[1, 0], stochastic, ends, result.problem.rows, "epochs",
       "(c) by epoch")):
    _draw_full(axis, full)
    _draw_stochastic(axis, names, rows)
    axis.set(xlabel=label, ylabel="training loss", title=title, xscale="log")
  axes[1, 0].set(xscale="linear", xlim=(
      0, stochastic["SGD"].samples[-1] / result.problem.rows))
  _draw_bound(axes[1, 1], result)
  for axis in axes.flat:
    axis.set_yscale("log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small", loc="upper right")
  return figure


def save(figure: Any, path: str) -> None:
  """Writes a small PNG: of 64 colours."""
  from PIL import Image
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=80)
  Image.open(buffer).convert("RGB").quantize(64).save(
      path, format="PNG", optimize=True)


def _draw_stochastic(axis: Any, traces: dict[str, convex_training.Trace],
                     rows: int) -> None:
  """By epoch of so many rows; by update where rows is 0."""
  for name, trace in traces.items():
    places = trace.samples / rows if rows else np.arange(len(trace.losses))
    colour, style, width = _LINES[name]
    axis.plot(places[1:], trace.losses[1:], color=colour, linestyle=style,
              linewidth=width, label=name)


def _draw_full(axis: Any, traces: dict[float, convex_training.Trace]) -> None:
  for number, (rate, trace) in enumerate(traces.items()):
    axis.plot(np.arange(1, len(trace.losses)), trace.losses[1:], linewidth=1,
              color=str(0.75 - 0.75 * number / len(traces)),
              label=f"full gradient, rate {rate:g}")


def _draw_bound(axis: Any, result: Result) -> None:
  axis.set_yscale("log")
  for number, (case, seeds, means) in enumerate(result.compared):
    if case.is_covered:
      # The first two nearly coincide.
      for values, style in ((means.gaps, "-"), (means.bounds, "--")):
        axis.plot(means.epochs, values, color=f"C{number}", linestyle=style,
                  linewidth=1 if number else 3, label=(
                      f"{case.label}, {seeds} seeds" if style == "-" else None))
  axis.set(xlabel="epochs", ylabel="mean of L - L$_*$",
           title="(d) theorem 1, c$_s$ = "
                 f"{result.constants.convexity:g}: gaps, bounds dashed")
  axis.set_ylim(top=50)  # room for the legend
