"""Figures of `python -m tools.benchmark`: medians, ratios and tables."""

from collections.abc import Sequence
import dataclasses
import statistics
from typing import Any

import numpy as np

from tools import benchmark_acceptance, benchmark_schedule, figures
from tools import benchmark_plan as plan

_UNIT_PROCESSORS = (1, 2, 3, 4, 8, 16)


def report(measured: Sequence[tuple[plan.Job, dict[str, Any]]]
           ) -> dict[str, Any]:
  """Everything for the JSON file.

  Args:
    measured: jobs, and what `benchmark_child` has sent for each.

  Returns:
    "runs", one a timed job; "schedules", by model and row; "in_passes", the
    schedules in F; "acceptance".
  """
  found: dict[str, Any] = {"runs": [], "schedules": {}}
  for job, result in measured:
    if job.traces:
      found["schedules"][job.model_name] = result["rows"]
  for job, result in measured:
    if not job.traces:
      bounds = (found["schedules"].get(job.model_name, {})
                if job.regime_name == plan.LATENCY else {})
      found["runs"].append({
          "regime": job.regime_name, "model": job.model_name,
          **dataclasses.asdict(job.regime), "rounds": job.rounds,
          "steps": job.model.steps, "batch_size": job.model.batch_size,
          "forward_flops": result["forward_flops"],
          "rows": summarise(result["rows"], bounds)})
  found["in_passes"] = in_passes()
  found["acceptance"] = [
      {**dataclasses.asdict(line), "met": line.met}
      for line in benchmark_acceptance.lines(found)]
  return found


def summarise(rows: dict[str, dict[str, Any]],
              bounds: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
  """Adds medians, ratios to vanilla round by round, and bounds.

  Args:
    rows: of one process.
    bounds: schedules by row, where there are any.
  """
  reference = rows[plan.REFERENCE]
  table = {}
  for name, row in rows.items():
    seconds = np.array(row["seconds"])
    ratios = seconds / np.array(reference["seconds"])
    work_ratio = row["flops"] / reference["flops"]
    table[name] = {
        **row, "quartiles": figures.quartiles(seconds),
        "ratio": figures.quartiles(ratios),
        "work_ratio": work_ratio,
        "ratio_to_flop_bound": (float(np.median(ratios)) / work_ratio
                                if work_ratio else None)}
    if name in bounds:
      bound = bounds[name]["scheduled"]["2"]
      table[name]["bound"] = bound
      table[name]["bound_ratio"] = (
          float(np.median(seconds)) / bound if bound else None)
  return table


def in_passes() -> dict[str, dict[str, float]]:
  """Steps of a network of equal layers on some processors, in F."""
  found = {}
  for method in benchmark_schedule.METHODS:
    graph = benchmark_schedule.pass_graph(method)
    found[method] = {
        **{str(count): benchmark_schedule.schedule(graph, count)
           for count in _UNIT_PROCESSORS},
        "limit": benchmark_schedule.longest_chain(graph)}
  return found


# ---- Tables.


def tables(found: dict[str, Any]) -> str:
  """The figures as Markdown."""
  parts = []
  for run in found["runs"]:
    parts += _times(run)
  for model, rows in found["schedules"].items():
    parts += _schedules(model, rows)
  parts += ["In F, for a network of many equal layers:", figures.table(
      ["row", *(f"{count} processors" for count in _UNIT_PROCESSORS),
       "no limit"],
      [[plan.ROWS[method], *(f"{value:.2f}" for value in row.values())]
       for method, row in found["in_passes"].items()])]
  parts.append(figures.table(["what", "limit", "measured", "met"], [
      [line["what"],
       f"at {'least' if line['at_least'] else 'most'} {line['limit']:.2f}",
       f"{line['measured']:.3f}" + (
           " [{:.3f}, {:.3f}]".format(*line["quartiles"])
           if line["quartiles"] else ""),
       "yes" if line["met"] else "no"] for line in found["acceptance"]]))
  return "\n\n".join(parts)


def _times(run: dict[str, Any]) -> list[str]:
  forward = run["forward_flops"]
  lines = []
  for name, row in run["rows"].items():
    low, median, high = row["quartiles"]
    bound = row.get("bound")
    lines.append([
        plan.ROWS[name],
        f"{figures.ms(median)} [{figures.ms(low)}, {figures.ms(high)}]",
        "{1:.3f} [{0:.3f}, {2:.3f}]".format(*row["ratio"]),
        f"{row['flops'] / forward:.2f}", f"{row['work_ratio']:.3f}",
        _number(row["ratio_to_flop_bound"]),
        f"{row['chain_flops'] / forward:.2f}",
        *([figures.ms(bound) if bound else "",
           _number(row.get("bound_ratio"))] if _has_bounds(run) else []),
        *(_mib(row[key]) for key in (
            "peak_bytes", "held_bytes", "lagged_bytes"))])
  return [
      f"{run['regime']}, {run['model']}: batch {run['batch_size']}"
      + (f" in {run['micro_batches']} micro batches"
         if run["micro_batches"] > 1 else "")
      + f", {run['intra_op']} threads an operation, {run['inter_op']} "
      f"operations at a time, {run['rounds']} rounds of {run['steps']} steps; "
      f"F is {forward / 1e9:.3f} GFLOP.",
      figures.table(
          ["row", "ms a step", "ratio to vanilla", "work, F", "work ratio",
           "time ratio / work ratio", "longest chain, F",
           *(["2-processor bound, ms", "time / bound"]
             if _has_bounds(run) else []),
           "peak MiB", "held MiB", "weight copies MiB"], lines)]


def _has_bounds(run: dict[str, Any]) -> bool:
  return any("bound" in row for row in run["rows"].values())


def _schedules(model: str, rows: dict[str, dict[str, Any]]) -> list[str]:
  """Milliseconds by processors, and the gains over both forms of DisAdv."""
  head = ["row", *(f"{count} processors" for count in plan.PROCESSORS),
          "no limit"]
  spans = {name: [*row["scheduled"].values(), row["chain"]]
           for name, row in rows.items()}
  parts = [
      f"{model}: measured times of single operations on one thread, scheduled "
      "on each step's own graph, ms.",
      figures.table([*head, "operations", "covered of a step"],
             [[plan.ROWS[name], *map(figures.ms, spans[name]),
               str(row["operations"]), f"{row['coverage']:.1%}"]
              for name, row in rows.items()])]
  forms = [name for name in ("disadv_joined", "disadv_separate")
           if name in spans]
  if forms:
    parts += [
        "The same as gains over " + " / over ".join(
            plan.ROWS[name] for name in forms) + ":",
        figures.table(head, [[plan.ROWS[name], *(
            " / ".join(_number(spans[form][i] / span, 2) if span else ""
                       for form in forms)
            for i, span in enumerate(spans[name]))] for name in rows])]
  return parts


def _mib(size: int | None) -> str:
  return "" if size is None else f"{size / 2**20:.1f}"


def _number(value: float | None, digits: int = 3) -> str:
  return "" if value is None else f"{value:.{digits}f}"


def progress(measured: dict[str, Any]) -> str:
  """One line on what a process has measured."""
  row = measured["rows"][plan.REFERENCE]
  median = statistics.median(row["seconds"])
  return f"{figures.ms(median)} ms a vanilla step"
