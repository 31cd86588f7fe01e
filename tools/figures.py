"""Figures of the benchmarks: quartiles, times, Markdown; no flags."""

from collections.abc import Sequence

import numpy as np


def quartiles(values: np.ndarray) -> list[float]:
  """25 %, median, 75 %."""
  return np.percentile(values, [25, 50, 75]).tolist()


def spread(values: np.ndarray) -> dict[str, float]:
  """The quartiles by name: low, median, high."""
  return dict(zip(("low", "median", "high"), quartiles(values)))


def ms(seconds: float) -> str:
  """Milliseconds without the unit; one digit more below 100."""
  return f"{seconds * 1e3:,.{1 if seconds < 0.1 else 0}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table in Markdown."""
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)
