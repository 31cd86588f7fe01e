"""Draws runs beside each other: `python -m tools.report RUN [RUN ...]`.

    python -m tools.report RUN [RUN ...] --output=DIR

RUN is the directory of a run, finished or not. Writes into DIR

    batch_and_rate.png     batch size and learning rate against epochs
    eigenvalues.png        estimates during training, where a run made any
    loss_and_accuracy.png  of training and validation, by epoch
    report.md              the last figures of each run, in a table

The batch and the rate are those of the update before each evaluation and each
estimate.
"""

from collections.abc import Sequence
import dataclasses
import os
from typing import Any

from absl import flags

from conadv_tf import command_line
from tools import figures

_OUTPUT = flags.DEFINE_string("output", None, "Directory.", required=True)
_COLUMNS = {"validation/accuracy": "validation accuracy",
            "validation/loss": "validation loss", "train/loss": "train loss",
            "updates": "updates", "batch_size": "last batch",
            "learning_rate": "last rate", "seconds": "seconds"}


@dataclasses.dataclass
class _Run:
  """What a run has left.

  Attributes:
    name: of its directory, and of those above where two are alike.
    metrics: lines of metrics.jsonl.
    curvature: lines of curvature.jsonl.
  """

  name: str
  metrics: list[dict[str, Any]]
  curvature: list[dict[str, Any]]


def main(paths: Sequence[str]) -> None:
  """Draws the pictures."""
  with command_line.one_line_errors():
    from conadv_tf import config
    if not paths:
      raise config.InputError("name one run or more: tools.report RUN "
                              "--output=DIR")
    runs = [_read(path, name) for path, name in zip(paths, _names(paths))]
    try:
      os.makedirs(_OUTPUT.value, exist_ok=True)
      pictures = {"batch_and_rate": _batch_and_rate(runs),
                  "loss_and_accuracy": _loss_and_accuracy(runs)}
      if any(run.curvature for run in runs):
        pictures["eigenvalues"] = _eigenvalues(runs)
      for name, picture in pictures.items():
        picture.savefig(os.path.join(_OUTPUT.value, f"{name}.png"), dpi=100)
      with open(os.path.join(_OUTPUT.value, "report.md"), "w",
                encoding="utf-8") as file:
        file.write(_table(runs) + "\n")
    except OSError as error:
      raise config.InputError(
          f"--output={_OUTPUT.value} cannot be written: {error.strerror}"
      ) from error


def _names(paths: Sequence[str]) -> list[str]:
  """The last parts of the paths, as many as tell them apart."""
  parts = [os.path.normpath(path).split(os.sep) for path in paths]
  length = 1
  while length < max(map(len, parts)) and len(
      {tuple(p[-length:]) for p in parts}) < len(set(map(tuple, parts))):
    length += 1
  return [os.sep.join(p[-length:]) for p in parts]


def _read(path: str, name: str) -> _Run:
  from conadv_tf import config
  from conadv_tf.training import run_directory
  directory = run_directory.RunDirectory(path)
  if directory.saved_config() is None:
    raise config.InputError(
        f"{path} holds no run (no params.yaml); name a directory that "
        "conadv_tf.train wrote")
  metrics = directory.metrics()
  if not metrics:
    raise config.InputError(f"{path}: the run has no evaluation yet (no "
                            "metrics.jsonl)")
  return _Run(name, metrics, directory.curvature())


def _axes(rows: int) -> tuple[Any, Any]:
  import matplotlib
  matplotlib.use("Agg")
  from matplotlib import pyplot
  figure, axes = pyplot.subplots(
      rows, figsize=(8, 3 + 2.5 * rows), sharex=True, squeeze=False,
      layout="constrained")
  for axis in axes[:, 0]:
    axis.grid(alpha=0.3)
  axes[-1, 0].set_xlabel("epoch")
  return figure, axes[:, 0]


def _line(axis: Any, records: Sequence[dict[str, Any]], key: str,
          **style: Any) -> None:
  """A figure against epochs, where records have it."""
  points = sorted((r["epoch"], r[key]) for r in records
                  if r.get(key) is not None)
  axis.plot([x for x, _ in points], [y for _, y in points], **style)


def _batch_and_rate(runs: Sequence[_Run]) -> Any:
  figure, axes = _axes(2)
  for number, run in enumerate(runs):
    records = run.metrics + run.curvature
    for axis, key, label in ((axes[0], "batch_size", run.name),
                             (axes[1], "learning_rate", None)):
      # Each holds up to its record, from some place after the one before.
      _line(axis, records, key, color=f"C{number}", label=label, marker=".",
            drawstyle="steps-pre")
  axes[0].set(ylabel="batch size")
  axes[0].set_yscale("log", base=2)
  axes[1].set(ylabel="learning rate")
  axes[1].set_yscale("log")
  figure.legend(loc="outside lower center", frameon=False)
  return figure


def _eigenvalues(runs: Sequence[_Run]) -> Any:
  figure, (axis,) = _axes(1)
  for number, run in enumerate(runs):
    if run.curvature:
      _line(axis, run.curvature, "value", color=f"C{number}", marker=".",
            label=run.name)
  # Negative ones are rare, and count.
  axis.set_yscale("symlog", linthresh=1e-2)
  axis.set(ylabel="largest eigenvalue")
  figure.legend(loc="outside lower center", frameon=False)
  return figure


def _loss_and_accuracy(runs: Sequence[_Run]) -> Any:
  figure, axes = _axes(2)
  for number, run in enumerate(runs):
    for axis, name, label in ((axes[0], "loss", run.name),
                              (axes[1], "accuracy", None)):
      _line(axis, run.metrics, f"validation/{name}", color=f"C{number}",
            label=label)
      _line(axis, run.metrics, f"train/{name}", color=f"C{number}",
            linestyle=":")
      axis.set_ylabel(f"{name} (dotted: training)")
  axes[0].set_yscale("log")
  figure.legend(loc="outside lower center", frameon=False)
  return figure


def _table(runs: Sequence[_Run]) -> str:
  rows = []
  for run in runs:
    last = run.metrics[-1]
    rows.append([run.name, f"{last['epoch']:g}", *(
        f"{last[key]:.4g}" if isinstance(last.get(key), float)
        else f"{last.get(key, '')}" for key in _COLUMNS)])
  return figures.table(["run", "epochs", *_COLUMNS.values()], rows)


if __name__ == "__main__":
  command_line.start(main, takes_arguments=True)
