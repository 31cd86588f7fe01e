"""What a run shows on the terminal."""

import sys
import time
from typing import Any

import tensorflow as tf


class Progress:
  """A bar with loss, accuracy and time left; a line an epoch in logs."""

  def __init__(self, total: int, start: int, quiet: bool):
    """Shows updates `start`..`total`; nothing at all if `quiet`."""
    self._total = total
    self._bar = None
    self._quiet = quiet
    if not quiet and sys.stdout.isatty():
      self._bar = tf.keras.utils.Progbar(
          total - start, unit_name="update",
          stateful_metrics=["loss", "accuracy", "adversarial_accuracy"])
    self._start = start  # the bar counts what is left, or its clock errs
    self._shown = 0.0

  def update(self, step: int, logs: dict[str, Any]) -> None:
    """Moves the bar, at most five times a second."""
    now = time.monotonic()
    if self._bar is None or (now - self._shown < 0.2 and step < self._total):
      return
    self._shown = now
    names = ("loss", "accuracy", "adversarial_accuracy")
    values = [(n, float(logs[n])) for n in names if n in logs]
    self._bar.update(step - self._start, values,
                     finalize=step >= self._total)

  def line(self, text: str) -> None:
    """Prints a line, above the bar where there is one."""
    if not self._quiet:
      print(("\n" if self._bar else "") + text, flush=True)


def summary_line(epoch: float, total: int, record: dict[str, Any]) -> str:
  """What one evaluation has found.

  Args:
    epoch: at which it was made.
    total: updates of the run; with a batch that grows not known.
    record: of metrics.jsonl.
  """
  grown = f"update {record['updates']}, of {record['batch_size']} examples"
  parts = [f"epoch {epoch:.4g}",
           grown if "gamma" in record else f"update {record['step']}/{total}"]
  for name, label in (("train/loss", "loss"), ("train/accuracy", "accuracy"),
                      ("train/adversarial_accuracy", "adversarial accuracy"),
                      ("validation/loss", "validation loss"),
                      *((f"validation/{n}", f"validation {n}") for n in (
                          "accuracy", "f1", "matthews", "pearson",
                          "spearman"))):
    if name in record:
      parts.append(f"{label} {record[name]:.4f}")
  parts.append(f"{record['examples_per_second']:.0f} examples/s")
  return ", ".join(parts)
