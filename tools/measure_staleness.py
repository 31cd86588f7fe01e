"""How stale are adversaries: `python -m tools.measure_staleness`.

    python -m tools.measure_staleness --config_file=configs/digits/conadv.yaml \
        [--rates=6,1.5] [--seeds=0,1,2] [--points=20] --output=DIRECTORY

trains the configuration once for each peak learning rate and seed and stops at
--points updates, evenly spread, to compare adversaries of weights that are 0,
1, 2, 4 and 8 updates old with fresh ones (docs/theory.md): their distance, the
share of signs that agree, and their strength on the weights that train on them.
Training itself is as without the probe, bit for bit. Writes results.json,
report.md and figure.png; prints the tables.

Needs one replica and one micro batch, and a method with adversarial images.
"""

from collections.abc import Iterator
import dataclasses
import os
import pathlib
import platform
import shlex
import sys
from typing import Any

from absl import flags

from conadv_tf import command_line
from tools import figures

_CONFIG_FILE = flags.DEFINE_multi_string(
    "config_file", None, "YAML file with the experiment; may be repeated, "
    "later ones win.", required=True)
_PARAMS_OVERRIDE = flags.DEFINE_multi_string(
    "params_override", [], "As in training.")
_RATES = flags.DEFINE_list(
    "rates", [], "Peak learning rates; by default the configuration's.")
_SEEDS = flags.DEFINE_list(
    "seeds", [], "By default the configuration's.")
_POINTS = flags.DEFINE_integer(
    "points", 20, "Updates to measure at.", lower_bound=1)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Directory for the results.", required=True)


def main() -> None:
  """Trains, measures, writes."""
  with command_line.one_line_errors():
    folder = pathlib.Path(_OUTPUT.value)
    for name in ("results.json", "report.md", "figure.png"):
      command_line.check_output(str(folder / name))
    from tools import staleness_report as report
    seeds = command_line.numbers(_SEEDS, int) or [None]
    runs = [_pool([_measure(rate, seed) for seed in seeds])
            for rate in _rates()]
    found = {
        "command": shlex.join(
            ["python", "-m", "tools.measure_staleness", *sys.argv[1:]]),
        "versions": figures.versions(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "runs": runs}
    print(report.write(found, folder))


def _rates() -> list[float | None]:
  from conadv_tf import config
  rates = command_line.numbers(_RATES, float)
  if any(not rate > 0 for rate in rates):
    raise config.InputError(f"--rates={','.join(_RATES.value)}: must be > 0")
  return rates or [None]


def _pool(runs: list[dict[str, Any]]) -> dict[str, Any]:
  """The points of all seeds as those of one run."""
  return {**runs[0],
          "seeds": [run["config"]["seed"] for run in runs],
          "points": sum(run["points"] for run in runs),
          "accuracy": sum(run["accuracy"] for run in runs) / len(runs),
          "records": [record for run in runs for record in run["records"]]}


def _measure(rate: float | None, seed: int | None) -> dict[str, Any]:
  """One run and what was measured in it."""
  import numpy as np
  import tensorflow as tf

  from conadv_tf import config as config_lib
  from conadv_tf import experiment as experiments
  from conadv_tf.analysis import staleness_probe
  overrides = [f"{key}={value}" for key, value in (
      ("schedule.peak_lr", rate), ("seed", seed)) if value is not None]
  experiment = experiments.build(config_lib.load(
      _CONFIG_FILE.value, [*_PARAMS_OVERRIDE.value, *overrides]))
  _check(experiment)
  config, trainer = experiment.config, experiment.trainer
  probe = staleness_probe.StalenessProbe(
      trainer.network, trainer.attack, _loss(experiment), seed=config.seed,
      pixel_range=experiments.PIXEL_RANGE)
  total, first = config.derived.total_steps, probe.lags[-1]
  if total <= first:
    raise config_lib.InputError(
        f"{total} updates are too few to measure a lag of {first}")
  chosen = set(np.linspace(first, total - 1, _POINTS.value).astype(
      int).tolist())
  records: list[dict[str, Any]] = []
  batches = _Batches(experiment)

  class Measure(tf.keras.callbacks.Callback):
    """Remembers the weights of every update, measures at the chosen ones."""

    def on_train_begin(self, logs: Any = None) -> None:
      probe.remember()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
      probe.remember()
      update = batch + 1
      if update in chosen:
        records.extend(
            {"update": update, **dataclasses.asdict(record)}
            for record in probe.measure(*batches.at(update), update))
        print(f"{update} of {total} updates", file=sys.stderr)

  trainer.fit(experiment.train_dataset(0), epochs=1, verbose=0,
              steps_per_epoch=total, callbacks=[Measure()])
  return {"rate": config.schedule.peak_lr, "updates": total,
          "points": len(chosen),
          "accuracy": experiment.evaluate()["accuracy"],
          "config": config.as_dict(), "records": records}


def _check(experiment: Any) -> None:
  from conadv_tf.config import InputError
  from conadv_tf.methods import adversarial
  runtime, method = experiment.config.runtime, experiment.trainer.method
  if (not isinstance(method, adversarial.AdversarialMethod)
      or not experiment.config.attack.radius):
    raise InputError(f"method.name={experiment.config.method.name}, "
                     f"attack.radius={experiment.config.attack.radius:g}: "
                     "makes no adversarial copies of images")
  alone = experiment.strategy.num_replicas_in_sync == 1
  for name, good in (("num_replicas", alone),
                     ("micro_batches", runtime.micro_batches == 1),
                     ("steps_per_execution",
                      runtime.steps_per_execution == 1)):
    if not good:
      raise InputError(f"runtime.{name}: only 1 can be measured")


def _loss(experiment: Any) -> Any:
  """Of single examples, as in training."""
  from conadv_tf.objectives import per_example
  return per_example.per_example_loss(experiment.trainer.loss)


class _Batches:
  """What updates train on, read a second time in the same order."""

  def __init__(self, experiment: Any):
    """Opens the stream."""
    self._stream: Iterator[Any] = iter(experiment.train_dataset(0))
    self._next, self._last = 0, []
    self._method = experiment.trainer.method

  def at(self, update: int) -> list[Any]:
    """B_t and B_(t-1), rows that get an adversarial copy; t only rises."""
    import tensorflow as tf

    from conadv_tf.training import batches
    while self._next <= update:
      self._last = [next(self._stream), *self._last[:1]]
      self._next += 1
    found = []
    for element in self._last:
      spec = tf.nest.map_structure(tf.TensorSpec.from_tensor, element)
      batch = batches.batch(element, spec)
      rows = self._method.adversarial_rows(batch.image.shape[0])
      found.append(batch._replace(
          image=batch.image[:rows], label=batch.label[:rows],
          weight=batch.weight[:rows], augmented=()))
    return found


if __name__ == "__main__":
  command_line.start(main)
