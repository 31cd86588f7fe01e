r"""Simulated training times: `python -m tools.training_time`.

Prints appendix C of the ABSA paper (conadv_tf/analysis/training_time.py):

  seconds = updates * (T_comp + T_comm) + evaluations * T_Hess

Without recipes: Table 3 (ResNet-18 on ImageNet), printed beside recomputed.
With them, a row for each:

  python -m tools.training_time --parameters=272474 --compute_seconds=0.01 \
      --devices=64 --hessian_seconds=0.5 \
      --recipe=BL:35100 --recipe=ABS:6375:90 --model_dir=runs/absa

Of a run directory it takes the updates, the curvature's evaluations and, where
the method attacks, all updates as adversarial; of ABSA those up to the last
evaluation at which gamma was a row or more of a virtual replica's.
"""

from collections.abc import Sequence
import math

from absl import flags
import numpy as np

from conadv_tf import command_line
from conadv_tf.analysis import cost_model, training_time
from conadv_tf.analysis import published_absa as published
from tools import figures

_RECIPE = flags.DEFINE_multi_string(
    "recipe", [], "NAME:UPDATES[:EVALUATIONS[:ADVERSARIAL_UPDATES]]; may be "
    "repeated. Speed-ups are over the first row.")
_MODEL_DIR = flags.DEFINE_multi_string(
    "model_dir", [], "A run's directory; may be repeated.")
_PARAMETERS = flags.DEFINE_integer(
    "parameters", None, "Trainable numbers of the model; conadv-train "
    "--mode=describe prints them. Table 3's is 11,689,512.")
_DEVICES = flags.DEFINE_integer(
    "devices", published.DEVICES, "Devices that share an update.")
_LATENCY = flags.DEFINE_float(
    "latency_us", 1e6 * published.NETWORK.latency, "Microseconds.")
_BANDWIDTH = flags.DEFINE_float(
    "bandwidth", 1e-9 / published.NETWORK.seconds_per_byte,
    "GB/s of a device, 1e9 bytes.")
_COMPUTE = flags.DEFINE_float(
    "compute_seconds", None, "T_comp: an update's forward and backward pass.")
_ADVERSARIAL = flags.DEFINE_float(
    "adversarial_compute_seconds", None, "The same with its adversaries.")
_HESSIAN = flags.DEFINE_float(
    "hessian_seconds", None, "T_Hess: one top eigenvalue.")
_HEAD = ("method", "updates", "of them adversarial", "T_comp", "T_comm",
         "T_Hess", "evaluations")


def network(latency_us: float, bandwidth: float) -> cost_model.Network:
  """What joins the devices: microseconds and GB/s.

  Raises:
    InputError: if they are out of range.
  """
  from conadv_tf.config import InputError
  if not 0 <= latency_us < math.inf:
    raise InputError(f"--latency_us={latency_us}: must be 0 or more")
  if not 0 < bandwidth < math.inf:
    raise InputError(f"--bandwidth={bandwidth}: must be above 0 GB/s")
  return cost_model.Network(1e-6 * latency_us, 1e-9 / bandwidth)


def parse(text: str) -> training_time.Recipe:
  """NAME:UPDATES[:EVALUATIONS[:ADVERSARIAL_UPDATES]].

  Raises:
    InputError: if it is not that.
  """
  from conadv_tf.config import InputError
  name, *numbers = text.split(":")
  try:
    if not 1 <= len(numbers) <= 3:
      raise ValueError("write NAME:UPDATES[:EVALUATIONS"
                       "[:ADVERSARIAL_UPDATES]]")
    return training_time.Recipe(name, *map(int, numbers))
  except ValueError as error:
    raise InputError(f"--recipe={text}: {error}") from error


def read_run(model_dir: str) -> training_time.Recipe:
  """What a run has done so far.

  Raises:
    InputError: if there is none, or none with a record.
  """
  from conadv_tf.config import InputError, training_replicas
  from conadv_tf.training import run_directory
  directory = run_directory.RunDirectory(model_dir)
  config, records = directory.saved_config(), directory.metrics()
  if config is None or not records:
    raise InputError(f"--model_dir={model_dir}: holds no run with an "
                     "evaluation; train first")
  # Where the batch grows, an update takes several steps.
  counts = [record.get("updates", record["step"]) for record in records]
  method = config.method
  if method.name == "absa":
    rows = config.data.global_batch_size // (
        training_replicas(config.runtime) * config.runtime.micro_batches)
    # In float32, as the step does it.
    attacks = [np.float32(record.get("gamma", method.gamma))
               * np.float32(rows) >= 1 for record in records]
  else:
    attacks = [method.name != "vanilla"] * len(records)
  attacked = [count for count, attack in zip(counts, attacks) if attack]
  try:
    with open(directory.file("curvature.jsonl"), encoding="utf-8") as file:
      evaluations = sum(1 for line in file if line.strip())
  except FileNotFoundError:
    evaluations = 0
  return training_time.Recipe(model_dir, counts[-1], evaluations,
                              attacked[-1] if attacked else 0)


def table(recipes: Sequence[training_time.Recipe],
          prices: training_time.Prices) -> str:
  """A row for each recipe, Markdown; speed-ups over the first."""
  seconds = [training_time.total_seconds(recipe, prices) for recipe in recipes]
  return figures.table(
      [*_HEAD, "seconds", "speed-up"],
      [[*_cells(recipe, prices), f"{time:,.2f}", f"{seconds[0] / time:.2f}"]
       for recipe, time in zip(recipes, seconds)])


def published_table(communication: float) -> str:
  """Table 3: from its own T_comm, from this one, and as printed."""
  own = published.PRICES
  ours = training_time.Prices(own.compute, communication,
                              own.adversarial_compute, own.hessian)
  totals = [[training_time.total_seconds(row.recipe, prices)
             for row in published.ROWS] for prices in (own, ours)]
  rows = []
  for number, row in enumerate(published.ROWS):
    cells = _cells(row.recipe, own)
    if row.printed_updates != row.recipe.updates:
      cells[1] += f" (printed {row.printed_updates:,})"
    for column in totals:
      cells += [f"{column[number]:,.2f}", f"{column[0] / column[number]:.2f}"]
    speedup = row.printed_speedup
    rows.append(cells + [f"{row.printed_seconds:,}",
                         f"{speedup:.2f}" if speedup else "1.00"])
  return figures.table(
      [*_HEAD, "seconds", "speed-up", f"seconds, T_comm {communication:.3g}",
       "speed-up", "printed seconds", "printed speed-up"], rows)


def _cells(recipe: training_time.Recipe,
           prices: training_time.Prices) -> list[str]:
  compute = f"{prices.compute:.3g}"
  if recipe.adversarial_updates:
    compute = f"{prices.adversarial_compute:.3g}"
    if recipe.adversarial_updates < recipe.updates:
      compute = f"{prices.compute:.3g}, {compute}"
  return [recipe.name, f"{recipe.updates:,}",
          f"{recipe.adversarial_updates:,}", compute,
          f"{prices.communication:.3g}",
          f"{prices.hessian:.3g}" if recipe.evaluations else "0",
          str(recipe.evaluations)]


def _prices(recipes: Sequence[training_time.Recipe],
            communication: float) -> training_time.Prices:
  from conadv_tf.config import InputError
  for flag, needed in (
      (_COMPUTE, True),
      (_HESSIAN, any(recipe.evaluations for recipe in recipes)),
      (_ADVERSARIAL, any(recipe.adversarial_updates for recipe in recipes))):
    if needed and flag.value is None:
      raise InputError(f"--{flag.name}: these recipes need it")
  try:
    return training_time.Prices(_COMPUTE.value, communication,
                                _ADVERSARIAL.value, _HESSIAN.value or 0.0)
  except ValueError as error:
    raise InputError(str(error)) from error


def main() -> None:
  """Prints the table."""
  with command_line.one_line_errors():
    from conadv_tf.config import InputError
    own = bool(_RECIPE.value or _MODEL_DIR.value)
    if own and _PARAMETERS.value is None:
      raise InputError("--parameters: these recipes need it")
    parameters = published.PARAMETERS
    if _PARAMETERS.value is not None:
      parameters = _PARAMETERS.value
    joined = network(_LATENCY.value, _BANDWIDTH.value)
    try:
      communication = training_time.communication(
          parameters, _DEVICES.value, joined)
    except ValueError as error:
      raise InputError(f"--parameters, --devices: {error}") from error
    if not own:
      print(published_table(communication))
      return
    recipes = [*map(parse, _RECIPE.value), *map(read_run, _MODEL_DIR.value)]
    print(table(recipes, _prices(recipes, communication)))


if __name__ == "__main__":
  command_line.start(main)
