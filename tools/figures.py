"""Figures of the benchmarks: times, quartiles, Markdown; no flags."""

from collections.abc import Callable, Mapping, Sequence
import importlib.metadata
import os
import platform
import time
from typing import Any

import numpy as np


def interleaved(calls: Mapping[Any, Callable[[], object]], rounds: int
                ) -> dict[Any, list[float]]:
  """Seconds of each call in each round, there and back, after a warm-up."""
  seconds: dict[Any, list[float]] = {name: [] for name in calls}
  for turn in range(rounds + 1):
    for name in list(calls)[::-1 if turn % 2 else 1]:
      start = time.perf_counter()
      calls[name]()
      if turn:  # the first traces
        seconds[name].append(time.perf_counter() - start)
  return seconds


def machine() -> dict[str, Any]:
  """What a benchmark ran on."""
  return {"machine": platform.processor() or platform.machine(),
          "cores": os.cpu_count()}


def versions() -> dict[str, str]:
  """Of the packages that figures depend on."""
  return {name: importlib.metadata.version(name)
          for name in ("tensorflow", "numpy")}


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
