"""Draws runs beside each other: `python -m tools.report RUN [RUN ...]`.

    python -m tools.report RUN [RUN ...] --output=DIR

RUN is the directory of a run, finished or not. Writes into DIR

    batch_and_rate.png     batch size and learning rate against epochs
    eigenvalues.png        estimates during training, where one succeeded
    loss_and_accuracy.png  of training and validation, by epoch
    report.md              the last figures of each run, in a table; where two
                           runs made estimates at equal steps (by the whole
                           Hessian and by a block of it, say), how the
                           logarithms of their positive ones correlate;
                           where one has a robust accuracy, in its records or
                           in RUN/evaluation.json, clean and robust accuracies
                           and seconds an epoch

The batch changes where growth.jsonl says so. The rate is the schedule's times
the factor that growth gave it. How long communication takes is read from a
run's profile; without one --latency_us and --bandwidth_gbps predict it.
"""

from collections.abc import Sequence
import itertools
import os
from typing import Any, TYPE_CHECKING

from absl import flags
import numpy as np

from conadv_tf import command_line
from tools import figures

if TYPE_CHECKING:
  from tools import run_history

_OUTPUT = flags.DEFINE_string("output", None, "Directory.", required=True)
_LATENCY = flags.DEFINE_float(
    "latency_us", None, "Of the network between devices, in microseconds.",
    lower_bound=0.0)
_BANDWIDTH = flags.DEFINE_float(
    "bandwidth_gbps", None, "Of the network, in gigabytes (1e9) a second.",
    lower_bound=1e-6)
_COLUMNS = {"validation/accuracy": "validation accuracy",
            "validation/loss": "validation loss", "train/loss": "train loss",
            "updates": "updates", "batch_size": "last batch",
            "learning_rate": "last rate", "seconds": "seconds"}


def main(paths: Sequence[str]) -> None:
  """Draws the pictures."""
  with command_line.one_line_errors():
    from conadv_tf import config
    from tools import robust_table, run_history
    if not paths:
      raise config.InputError("name one run or more: tools.report RUN "
                              "--output=DIR")
    runs = [run_history.read(path, name)
            for path, name in zip(paths, _names(paths))]
    robust = robust_table.table(runs, paths, _network())
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
        file.write("\n\n".join((_table(runs), *_agreement(runs), *robust))
                   + "\n")
    except OSError as error:
      raise config.InputError(
          f"--output={_OUTPUT.value} cannot be written: {error.strerror}"
      ) from error


def _network() -> Any:
  """What the flags say of the network, or None."""
  from conadv_tf import config
  from conadv_tf.analysis import cost_model
  if (_LATENCY.value is None) != (_BANDWIDTH.value is None):
    raise config.InputError(
        "--latency_us and --bandwidth_gbps describe the network together; "
        "give both or none")
  if _LATENCY.value is None:
    return None
  return cost_model.Network(_LATENCY.value * 1e-6, 1e-9 / _BANDWIDTH.value)


def _names(paths: Sequence[str]) -> list[str]:
  """The last parts of the paths, as many as tell them apart."""
  parts = [os.path.normpath(path).split(os.sep) for path in paths]
  length = 1
  while length < max(map(len, parts)) and len(
      {tuple(p[-length:]) for p in parts}) < len(set(map(tuple, parts))):
    length += 1
  return [os.sep.join(p[-length:]) for p in parts]


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


def _batch_and_rate(runs: "Sequence[run_history.Run]") -> Any:
  figure, axes = _axes(2)
  for number, run in enumerate(runs):
    for axis, (epochs, values), label in (
        (axes[0], run.batch_sizes(), run.name),
        (axes[1], run.learning_rates(), None)):
      # An axis of logarithms has no place for the 0 of a warm-up.
      axis.plot(epochs, np.where(values > 0, values, np.nan),
                color=f"C{number}", label=label, drawstyle="steps-post")
  axes[0].set(ylabel="batch size")
  axes[0].set_yscale("log", base=2)
  axes[1].set(ylabel="learning rate")
  axes[1].set_yscale("log")
  figure.legend(loc="outside lower center", frameon=False)
  return figure


def _eigenvalues(runs: "Sequence[run_history.Run]") -> Any:
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


def _loss_and_accuracy(runs: "Sequence[run_history.Run]") -> Any:
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


def _table(runs: "Sequence[run_history.Run]") -> str:
  rows = []
  for run in runs:
    last = run.metrics[-1]
    rows.append([run.name, f"{last['epoch']:g}", *(
        f"{last[key]:.4g}" if isinstance(last.get(key), float)
        else f"{last.get(key, '')}" for key in _COLUMNS)])
  return figures.table(["run", "epochs", *_COLUMNS.values()], rows)


def _agreement(runs: "Sequence[run_history.Run]") -> list[str]:
  """A table of how estimates of two runs correlate, where any two can."""
  from tools import run_history
  rows = []
  for one, other in itertools.combinations(runs, 2):
    x, y = run_history.common_estimates(one, other)
    if len(x) > 2:  # two always lie on a line
      rows.append([f"{one.name}, {other.name}", f"{len(x)}", *(
          f"{value:.3f}" for value in run_history.correlations(x, y))])
  head = ["log eigenvalues of", "n", "Spearman", "Pearson"]
  return [figures.table(head, rows)] if rows else []


if __name__ == "__main__":
  command_line.start(main, takes_arguments=True)
