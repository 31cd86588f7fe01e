"""What quantising gradients costs: `python -m tools.benchmark_compression`.

    python -m tools.benchmark_compression [--output=FILE.json] [--quick]
        [--models=resnet20,resnet18_cifar,resnet50] [--rounds=9]

Times encoding (random bits, codes, packing) and decoding a vector as long as a
model's gradients, in turns, round by round, there and back; medians. The last
columns are the link's speed at which codes, gathered, cost the time that they
save, compared with a float32 ring and nothing hidden behind computation; on
slower links they pay. About a minute for the three models.
"""

import dataclasses
import json

from absl import flags

from conadv_tf import command_line
from tools import figures

_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")
_QUICK = flags.DEFINE_bool(
    "quick", False, "The smallest model and 2 rounds, to see whether it works.")
_MODELS = flags.DEFINE_list("models", ["resnet20", "resnet18_cifar",
                                       "resnet50"], "Some of these.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "After the warm-up.",
                               lower_bound=1)
_QUICKLY = {"models": ["resnet20"], "rounds": 2}


def main() -> None:
  """Measures, prints the table and writes JSON."""
  with command_line.one_line_errors():
    from conadv_tf.config import InputError
    from tools import benchmark_compression_rows as rows_lib
    if _OUTPUT.value:
      command_line.check_output(_OUTPUT.value)
    if _QUICK.value:
      for name, value in _QUICKLY.items():
        flags.FLAGS.set_default(name, value)
    unknown = sorted(set(_MODELS.value) - set(rows_lib.SIZES))
    if unknown:
      raise InputError(f"--models: unknown {', '.join(unknown)}; known: "
                       f"{', '.join(rows_lib.SIZES)}")
    rows = [row for model in _MODELS.value for row in rows_lib.measure(
        model, rows_lib.SIZES[model], _ROUNDS.value)]
    print(rows_lib.table(rows))
    if _OUTPUT.value:
      report = {**figures.machine(),
                "rows": [dataclasses.asdict(row) for row in rows]}
      with open(_OUTPUT.value, "w", encoding="utf-8") as file:
        json.dump(report, file, indent=2)


if __name__ == "__main__":
  command_line.start(main)
