"""Attacks of a report that lie on one curve; no flags."""

from collections.abc import Sequence
from typing import Any

_APART = ("file", "branch", "family", "radius", "steps", "restarts")


def curves(rows: Sequence[dict[str, Any]], field: str
           ) -> dict[str, list[tuple[float, float, float]]]:
  """Rows that differ in one field alone.

  Args:
    rows: of `attacks` in a report, with `file`.
    field: "radius" or "steps".

  Returns:
    For each curve of two points or more its name, and (value, accuracy,
    standard error) in rising order.
  """
  found: dict[str, dict[float, tuple[float, float, float]]] = {}
  for row in rows:
    if row["family"] == "none":
      continue
    parts = [f"{name} {row[name]:g}" if name in ("radius", "steps", "restarts")
             else str(row[name]) for name in _APART
             if name != field]
    if row["step_size"] is not None:
      parts.append(f"step {row['step_size']:g}")
    found.setdefault(", ".join(parts), {})[row[field]] = (
        row[field], row["accuracy"], row["standard_error"])
  return {name: sorted(points.values()) for name, points in found.items()
          if len(points) > 1}
