"""What `tools.benchmark_scala` measures and prints; no flags."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tools import figures

BASE = "lamb"
ROWS = ("adam", BASE, "delayed", "noise", "scala", "pga_2", "pga_3",
        "scala_lag1", "freelb")
TINY = "tiny"
_EPOCHS, _DELAYS = 6, (5, 3)  # of the paper's runs
_NEVER = 10**9
_TINY = dict(hidden_size=8, num_layers=1, num_heads=2, intermediate_size=16,
             vocab_size=50, max_positions=16)

Step = Callable[[], None]
Seconds = Mapping[str, Sequence[float]]


def make(names: Sequence[str], model: str, batch_size: int, length: int,
         tell: Callable[[str], None]) -> dict[str, Step]:
  """Builds and traces the steps.

  Args:
    names: some of `ROWS`.
    model: an encoder's name, or `TINY`.
    batch_size: sentences of an update.
    length: tokens of a sentence.
    tell: for progress.
  """
  import tensorflow as tf

  from conadv_tf import components
  random = np.random.default_rng(0)
  name, sizes = ("bert", _TINY) if model == TINY else (model, {})
  ids = random.integers(5, 50 if sizes else 20_000, (batch_size, length))
  tokens = np.stack([ids, np.zeros_like(ids)], -1).astype(np.int32)
  options = tf.data.Options()
  options.autotune.enabled = False
  data = tf.data.Dataset.from_tensors(
      (tokens, random.integers(0, 2, batch_size).astype(np.int32))
  ).repeat().with_options(options)
  steps = {}
  for row in names:
    tell(f"building {row}")
    tf.keras.utils.set_random_seed(0)
    steps[row] = _step(
        row, components.MODELS[name]((length, 2), 2, **sizes), data)
  return steps


def _step(row: str, model: Any, data: Any) -> Step:
  """One update of a trainer, whose result has been read."""
  import tensorflow as tf

  import conadv_tf as ca
  from tools import benchmark_rows
  trainer = ca.Trainer(model, _method(row))
  # Rates at which labels drawn at random do no harm.
  optimizer = (tf.keras.optimizers.Adam(1e-6) if row == "adam"
               else ca.optimizers.Lamb(1e-6, trust_clip=(0, 10)))
  trainer.compile(optimizer, tf.keras.losses.SparseCategoricalCrossentropy(
      from_logits=True))
  function, iterator = benchmark_rows.fit_function(trainer, data), iter(data)

  def step() -> None:
    for value in function(iterator).values():
      float(value)

  return step


def _method(row: str) -> Any:
  from conadv_tf import attacks, methods
  if row in ("adam", BASE):
    return methods.Vanilla()
  if row == "freelb":
    return methods.FreeLb()
  steps = {"noise": 0, "pga_2": 2, "pga_3": 3}.get(row, 1)
  return methods.Scala(
      attacks.Perturbation(steps=steps), lag=int(row == "scala_lag1"),
      delay=_NEVER if row == "delayed" else 0)


def summarise(seconds: Seconds) -> dict[str, Any]:
  """Median times, ratios to LAMB round by round, and what follows.

  Returns:
    `runs`: of 6 epochs with a delay, over LAMB (`ratio`), and without one over
    with one (`saved`). `pga`: the share of ScaLA's update that is not plain
    training.
  """
  times = {name: np.array(values) for name, values in seconds.items()}
  base = times[BASE]
  report: dict[str, Any] = {
      "median": {n: float(np.median(t)) for n, t in times.items()},
      "ratios": {n: figures.spread(t / base) for n, t in times.items()},
      "runs": {}}
  if "scala" in times:
    always = times["scala"]
    report["pga"] = figures.spread(1 - base / always)
    plain = times.get("delayed", base)
    for delay in _DELAYS:
      mixed = (delay * plain + (_EPOCHS - delay) * always) / _EPOCHS
      report["runs"][f"t_s {delay} of {_EPOCHS}"] = {
          "ratio": figures.spread(mixed / base),
          "saved": figures.spread(always / mixed)}
  return report


def _cell(spread: Mapping[str, float]) -> str:
  return "{median:.2f} [{low:.2f}, {high:.2f}]".format(**spread)


def tables(report: Mapping[str, Any]) -> str:
  """Markdown."""
  text = figures.table(["update", "ms", f"ratio to {BASE}"], [
      [name, figures.ms(report["median"][name]), _cell(ratio)]
      for name, ratio in report["ratios"].items()])
  if report["runs"]:
    text += "\n\n" + figures.table(
        ["run", f"ratio to {BASE}", "time saved by the delay"],
        [[name, _cell(run["ratio"]), _cell(run["saved"])]
         for name, run in report["runs"].items()])
    text += ("\n\nShare of PGA in an update of ScaLA (Figure 2): "
             f"{_cell(report['pga'])}")
  return text
