"""Scaling from 1 to 2 workers: `python -m tools.benchmark scaling`.

Real worker processes of MultiWorkerMirroredStrategy, which talk gRPC over
loopback. Each has a core of its own, so 1 worker has the same share of the
machine as each of 2. All are started once and measured in turns, round by
round, with the same model, optimizer, batches and strategy in all rows:

  Keras    what plain Keras's `fit` calls
  vanilla, ConAdv (lag 1), DisAdv    what `Trainer.fit` calls

Times of a round, in seconds a step:

  one     1 worker
  half    1 worker with half the batch
  beside  1 worker while another, independent one trains on the other core;
          the slower of these two
  weak    2 workers, each with the batch of `one`
  strong  2 workers, each with half of it

Weak efficiency is one / weak, strong speedup one / strong. From `one`, `half`,
`beside` and all-reduces alone, measured in the same rounds, the cost model
predicts `weak` and `strong`. All-reduces of as many bytes as ResNet-50's
gradients have, whole and in packs, say what `runtime.reduce_pack_mib` is worth.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
from typing import Any

import numpy as np

from conadv_tf import components
from conadv_tf.analysis import cost_fit, cost_model
from conadv_tf.config import InputError
from tools import figures, scaling_worker
from tools.scaling_clusters import Clusters
from tools.scaling_worker import Work

ROWS = (scaling_worker.KERAS, scaling_worker.VANILLA, scaling_worker.CONADV,
        scaling_worker.DISADV)
COLUMNS = ("one", "half", "beside", "weak", "strong")
# Bytes, next to a message of the size of the gradients and a larger one.
_SMALL = 4096
_LARGER = 4  # times the gradients
_RESNET50 = 102_228_128  # bytes of its gradients
_PACKS_MIB = (0, 4, 8, 16, 32)

Times = dict[str, dict[str, list[float]]]  # row, column, round


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is measured.

  Attributes:
    model: a name of `components.MODELS`.
    batch_size: of one worker, even.
    rounds: after the warm-up.
    steps: of each row and column in a round, at least 1.
  """

  model: str
  batch_size: int
  rounds: int
  steps: int


def run(settings: Settings) -> dict[str, object]:
  """Measures everything.

  Raises:
    InputError: if the settings or the machine do not allow it.
  """
  if settings.model not in components.MODELS:
    raise InputError(f"--model={settings.model}: unknown; known are "
                     f"{', '.join(components.MODELS)}")
  if settings.batch_size % 2:
    raise InputError(f"--batch_size={settings.batch_size}: must be even, two "
                     "workers take half of it each")
  with contextlib.ExitStack() as stack:
    clusters = Clusters(settings.model, stack)
    gradient = clusters.gradient_bytes
    messages = [Work(scaling_worker.ALL_REDUCE, size)
                for size in (_SMALL, gradient, _LARGER * gradient)]
    packs = [Work(scaling_worker.ALL_REDUCE, _RESNET50, int(mib * 2**20))
             for mib in _PACKS_MIB]
    times, reductions = measure(clusters, settings, messages + packs)
  alone = {work.size: reductions[work] for work in messages}
  packed = dict(zip(_PACKS_MIB, (reductions[work] for work in packs)))
  return {**dataclasses.asdict(settings), "gradient_bytes": gradient,
          "seconds": times, "all_reduce_seconds": alone,
          "packed_seconds": packed, "packed": summarise_packs(packed),
          **summarise(times, alone, gradient)}


def measure(clusters: Clusters, settings: Settings, messages: Sequence[Work]
            ) -> tuple[Times, dict[Work, list[float]]]:
  """Seconds of each row and column, and of an all-reduce of each kind."""
  batch, steps = settings.batch_size, settings.steps
  columns: dict[str, tuple[Callable[[Work, int], float], int]] = {
      "one": (clusters.single.seconds, batch),
      "half": (clusters.single.seconds, batch // 2),
      "beside": (clusters.beside, batch),
      "weak": (clusters.pair.seconds, batch),
      "strong": (clusters.pair.seconds, batch // 2)}
  times: Times = {row: {column: [] for column in COLUMNS} for row in ROWS}
  reductions: dict[Work, list[float]] = {work: [] for work in messages}
  for number in range(settings.rounds + 1):
    # There and back, so that a steady drift favours no column and no row.
    turn = -1 if number % 2 else 1
    for column in COLUMNS[::turn]:
      seconds, size = columns[column]
      for row in ROWS[::turn]:
        taken = seconds(Work(row, size), steps)
        if number:
          times[row][column].append(taken)
    for work in messages[::turn]:
      taken = clusters.pair.seconds(work, steps)
      if number:
        reductions[work].append(taken / work.reductions)
  return times, reductions


def summarise_packs(packed: dict[int, list[float]]) -> list[dict[str, Any]]:
  """Medians, and ratios to one message round by round with quartiles.

  Args:
    packed: seconds of an all-reduce by the MiB of its packs, 0 first.
  """
  whole = np.array(packed[0])
  return [{"mib": mib, "seconds": float(np.median(seconds)),
           "ratio": figures.spread(np.array(seconds) / whole)}
          for mib, seconds in packed.items()]


def summarise(times: Times, reductions: dict[int, list[float]],
              gradient_bytes: int) -> dict[str, object]:
  """Medians, ratios round by round with quartiles, and predictions.

  Args:
    times: seconds a step.
    reductions: seconds of an all-reduce alone by its bytes.
    gradient_bytes: that an update reduces.
  """
  sizes = list(reductions)
  medians = [float(np.median(reductions[size])) for size in sizes]
  network = cost_fit.fit_network(sizes, medians, devices=2)
  arrays = {row: {column: np.array(values)
                  for column, values in columns.items()}
            for row, columns in times.items()}
  keras = arrays[scaling_worker.KERAS]
  keras_efficiency = keras["one"] / keras["weak"]
  rows = []
  for row, seconds in arrays.items():
    efficiency = seconds["one"] / seconds["weak"]
    rows.append({
        "row": row,
        "seconds": {c: float(np.median(seconds[c])) for c in COLUMNS},
        "weak_efficiency": figures.spread(efficiency),
        "strong_speedup": figures.spread(seconds["one"] / seconds["strong"]),
        "weak_efficiency_of_keras": figures.spread(
            efficiency / keras_efficiency),
        "seconds_of_keras": {
            c: figures.spread(seconds[c] / keras[c]) for c in ("one", "weak")},
        "predicted": _predict(seconds, gradient_bytes, network)})
  return {"network": {"all_reduce_seconds": dict(zip(sizes, medians)),
                      **dataclasses.asdict(network)}, "rows": rows}


def _predict(seconds: dict[str, np.ndarray], gradient_bytes: int,
             network: cost_model.Network) -> dict[str, float]:
  """What 2 workers should need, from what 1 needs."""
  one = float(np.median(seconds["one"]))
  slowdown = float(np.median(seconds["beside"] / seconds["one"]))
  # What halving the batch does not halve.
  fixed = 2 * float(np.median(seconds["half"] / seconds["one"])) - 1
  fixed_seconds = one * min(max(fixed, 0.0), 1.0)
  two = cost_model.predict_two_workers(
      one, gradient_bytes, network, fixed_seconds=fixed_seconds,
      slowdown=slowdown)
  return {"weak": two.weak_seconds, "strong": two.strong_seconds,
          "slowdown": slowdown, "fixed_seconds": fixed_seconds,
          "all_reduce_seconds": two.all_reduce_seconds}


def tables(report: dict[str, Any]) -> str:
  """The figures as Markdown, with quartiles in brackets."""
  measured, predicted = [], []
  for row in report["rows"]:
    seconds, model = row["seconds"], row["predicted"]
    measured.append([
        row["row"], *(_ms(seconds[c]) for c in ("one", "weak", "strong")),
        *(_quartiles(row[key]) for key in (
            "weak_efficiency", "strong_speedup", "weak_efficiency_of_keras")),
        *(_quartiles(row["seconds_of_keras"][c]) for c in ("one", "weak"))])
    predicted.append([
        row["row"], f"{model['slowdown']:.3f}", _ms(model["fixed_seconds"]),
        *(text for column in ("weak", "strong") for text in (
            _ms(model[column]), _ms(seconds[column]),
            f"{model[column] / seconds[column]:.3f}"))])
  network = report["network"]
  alone = ", ".join(f"{int(size):,} bytes {_ms(seconds)}" for size, seconds
                    in network["all_reduce_seconds"].items())
  return "\n\n".join([
      f"{report['model']}, {report['batch_size']} examples a worker, "
      f"{report['rounds']} rounds of {report['steps']} steps.",
      figures.table(
          ["row", "1 worker", "2, weak", "2, strong", "weak efficiency",
           "strong speedup", "weak efficiency / Keras's",
           "step of 1 worker / Keras's", "step of 2, weak / Keras's"],
          measured),
      f"An all-reduce alone: {alone}. Fitted: latency "
      f"{network['latency'] * 1e6:.0f} us, {_bandwidth(network)}; the "
      f"gradients' {report['gradient_bytes']:,} bytes "
      f"{_ms(report['rows'][0]['predicted']['all_reduce_seconds'])}.",
      figures.table(
          ["row", "slowdown", "fixed", "weak, predicted", "measured", "ratio",
           "strong, predicted", "measured", "ratio"], predicted),
      f"An all-reduce of {_RESNET50:,} bytes, ResNet-50's gradients:",
      figures.table(["packs", "seconds", "ratio to one message"], [
          [f"{row['mib']} MiB" if row["mib"] else "one message",
           _ms(row["seconds"]), _quartiles(row["ratio"])]
          for row in report["packed"]])])


def _ms(seconds: float) -> str:
  return f"{figures.ms(seconds)} ms"


def _bandwidth(network: dict[str, float]) -> str:
  if not network["seconds_per_byte"]:
    return "no cost of bytes"
  return f"{1e-6 / network['seconds_per_byte']:,.0f} MB/s"


def _quartiles(spread: dict[str, float]) -> str:
  return "{median:.3f} [{low:.3f}, {high:.3f}]".format(**spread)
