"""What `python -m tools.benchmark` can measure: regimes, models, rows."""

from collections.abc import Iterable, Sequence
import dataclasses
import os
from typing import TypeVar

_Table = TypeVar("_Table")


@dataclasses.dataclass(frozen=True)
class Regime:
  """How a process runs its steps.

  Attributes:
    intra_op: threads of one operation.
    inter_op: operations at a time.
    training_pass: of rows that name none, "joined" or "separate".
    micro_batches: of an update.
    rows: that make sense there; () means all.
  """

  intra_op: int
  inter_op: int
  training_pass: str
  micro_batches: int = 1
  rows: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Model:
  """A network, its batch, and how long to measure.

  Attributes:
    name: of `components.MODELS`, or "tiny".
    image_size: pixels of a side.
    batch_size: clean examples of an update.
    rounds: after the warm-up.
    steps: of each row in a round.
    regimes: in which it is measured unless models and regimes are chosen.
    rows: that are measured unless rows are chosen; () means all.
  """

  name: str
  image_size: int
  batch_size: int
  rounds: int
  steps: int
  regimes: tuple[str, ...]
  rows: tuple[str, ...] = ()


_CORES = os.cpu_count() or 1
THROUGHPUT, LATENCY, MICRO = "throughput", "latency", "micro"
SETTINGS = "settings"
_SETTINGS_ROWS = (
    "vanilla", "vanilla_jit", "vanilla_bfloat16", "conadv_joined",
    "conadv_jit", "conadv_bfloat16")
REGIMES = {
    # TensorFlow's own defaults.
    THROUGHPUT: Regime(_CORES, _CORES, "joined"),
    LATENCY: Regime(1, 2, "separate"),
    MICRO: Regime(_CORES, _CORES, "joined", 4, (
        "vanilla", "disadv_joined", "conadv_joined", "recycled_joined")),
    SETTINGS: Regime(_CORES, _CORES, "joined", 1, _SETTINGS_ROWS),
}
# One operation at a time on one thread, in which operations are timed.
SERIAL = Regime(1, 1, "separate")

_BOTH = (THROUGHPUT, LATENCY)
_ALL = (THROUGHPUT, LATENCY, MICRO)
_MOST = (*_ALL, SETTINGS)
# Tracing takes longer than measuring, so not every model has every row.
_CORE = (
    "keras", "floor_vanilla", "vanilla", "disadv_joined", "disadv_separate",
    "conadv_joined", "conadv_separate", "recycled_lag0", "recycled_joined",
    "recycled_separate", "conadv_fraction_0.2_joined",
    "conadv_fraction_0.2_separate", "recycled_fraction_0.2_joined",
    "recycled_fraction_0.2_separate")
_LARGE = _CORE + (
    "floor_conadv", "conadv_lag2", "nsl", "recycled_shared", "disadv_shared",
    "nsl_random_start", "disadv_shared_random_start", "sam", "weight_copy")
MODELS = {
    "resnet20_b8": Model("resnet20", 32, 8, 11, 3, _BOTH, _CORE),
    "resnet20_b64": Model("resnet20", 32, 64, 9, 1, _MOST),
    "resnet20_b256": Model(
        "resnet20", 32, 256, 5, 1, (THROUGHPUT, MICRO), _LARGE),
    "resnet18_b16": Model("resnet18", 64, 16, 7, 1, _BOTH, _CORE),
    # Those of suites, measured only where they are named.
    "resnet8_b128": Model("resnet8", 32, 128, 9, 1, ()),
    "resnet8_digits_b512": Model("resnet8", 8, 512, 9, 1, ()),
}
QUICK = {"tiny_b8": Model("tiny", 8, 8, 2, 1, _MOST)}
# Whose operations are timed for schedules, in the latency regime.
SCHEDULED = ("resnet20_b8", "resnet20_b64", "resnet18_b16", "tiny_b8")
# Processors that they are scheduled onto.
PROCESSORS = (1, 2, 4, 8, 16)
# Steps whose operations are timed.
TRACED_STEPS, TRACED_STEPS_QUICK = 7, 2

# What stands in the tables for each row, in their order.
ROWS = {
    "keras": "plain Keras fit",
    "floor_vanilla": "tf.function vanilla",
    "vanilla": "vanilla",
    "disadv_joined": "DisAdv, concatenated",
    "disadv_separate": "DisAdv, separate passes",
    "conadv_joined": "ConAdv, concatenated",
    "conadv_separate": "ConAdv, separate passes",
    "conadv_sequential": "ConAdv, sequential",
    "conadv_lag2": "ConAdv, lag 2",
    "floor_conadv": "tf.function ConAdv",
    "recycled_lag0": "recycled, lag 0",
    "recycled_joined": "recycled, concatenated",
    "recycled_separate": "recycled, separate passes",
    "conadv_fraction_0.2_joined": "ConAdv, fraction 0.2, concatenated",
    "conadv_fraction_0.2_separate": "ConAdv, fraction 0.2, separate passes",
    "conadv_fraction_0.5": "ConAdv, fraction 0.5",
    "conadv_fraction_0.6": "ConAdv, fraction 0.6",
    "conadv_attack_every_4": "ConAdv, attacks every 4th batch",
    "recycled_fraction_0.2_joined": "recycled, fraction 0.2, concatenated",
    "recycled_fraction_0.2_separate": "recycled, fraction 0.2, separate passes",
    "recycled_fraction_0.5": "recycled, fraction 0.5",
    "recycled_fraction_0.6": "recycled, fraction 0.6",
    "nsl": "NSL",
    "recycled_shared": "recycled, lag 0, shared statistics",
    "disadv_shared": "DisAdv, shared statistics, no random start",
    "nsl_random_start": "NSL, random start",
    "disadv_shared_random_start": "DisAdv, shared statistics, random start",
    "sam": "Keras SAM",
    "vanilla_jit": "vanilla, jit_compile",
    "conadv_jit": "ConAdv, jit_compile",
    "vanilla_bfloat16": "vanilla, mixed_bfloat16",
    "conadv_bfloat16": "ConAdv, mixed_bfloat16",
    "weight_copy": "a copy of the weights alone",
}
REFERENCE = "vanilla"
# Not steps of ours: what they leave of the machine is not our doing.
OTHERS = frozenset({
    "keras", "floor_vanilla", "floor_conadv", "nsl", "nsl_random_start", "sam",
    "weight_copy"})
# Rows with --quick, which spends its time tracing.
_ONLY_SETTINGS = frozenset(
    row for row in _SETTINGS_ROWS if row.endswith(("_jit", "_bfloat16")))
_QUICK_ROWS = {
    THROUGHPUT: tuple(row for row in ROWS
                      if row not in _ONLY_SETTINGS and not row.endswith(
                          ("fraction_0.5", "fraction_0.6"))),
    LATENCY: ("vanilla", "disadv_joined", "disadv_separate", "conadv_separate",
              "recycled_separate"),
}


@dataclasses.dataclass(frozen=True)
class Job:
  """What one process measures.

  Attributes:
    regime_name: of REGIMES; of a schedule, that which it is for.
    model_name: of MODELS or QUICK.
    regime: its threads and forms.
    model: its network and batch.
    rows: names, in turns round by round.
    rounds: after the warm-up.
    traces: whether operations are timed, instead of steps.
  """

  regime_name: str
  model_name: str
  regime: Regime
  model: Model
  rows: tuple[str, ...]
  rounds: int
  traces: bool = False

  @property
  def title(self) -> str:
    """For progress messages."""
    kind = "operations, " if self.traces else ""
    return f"{kind}{self.regime_name}, {self.model_name}"


def jobs(*, quick: bool, regimes: Sequence[str] = (),
         models: Sequence[str] = (), rows: Sequence[str] = (),
         rounds: int | None = None) -> list[Job]:
  """The processes, in their order; empty choices mean all.

  Raises:
    InputError: if a name is unknown or nothing is left to measure.
  """
  known = QUICK if quick else MODELS
  from conadv_tf.config import InputError
  chosen_rows = _choose("rows", rows, ROWS)
  if REFERENCE not in chosen_rows:
    raise InputError(f"--rows={','.join(rows)}: lacks {REFERENCE}, to which "
                     "all ratios are")
  found = []
  for regime_name in _choose("regimes", regimes, REGIMES):
    regime = REGIMES[regime_name]
    suitable = regime.rows
    if quick and not rows:
      suitable = _QUICK_ROWS.get(regime_name, regime.rows)
    for model_name in _choose("models", models, known):
      model = known[model_name]
      usual = () if rows or suitable else model.rows
      used = tuple(row for row in chosen_rows
                   if row in (suitable or usual) or not suitable
                   and not usual and row not in _ONLY_SETTINGS)
      if regime_name not in model.regimes and not (regimes and models):
        continue
      job = Job(regime_name, model_name, regime, model, used,
                rounds or model.rounds)
      found.append(job)
      if regime_name == LATENCY and model_name in SCHEDULED:
        steps = TRACED_STEPS_QUICK if quick else TRACED_STEPS
        found.append(dataclasses.replace(
            job, regime=SERIAL, rounds=steps, traces=True,
            rows=tuple(row for row in used if rows or quick or row in _CORE)))
  if not found:
    raise InputError(
        f"--regimes={','.join(regimes)}: none of the models is measured there "
        "unless --models names it")
  return found


def _choose(flag: str, names: Iterable[str],
            table: dict[str, _Table]) -> list[str]:
  """The named entries in the table's order, or all."""
  from conadv_tf.config import InputError
  names = list(names)
  for name in names:
    if name not in table:
      raise InputError(f"--{flag}={name}: unknown; known are "
                       f"{', '.join(table)}")
  return [name for name in table if not names or name in names]
