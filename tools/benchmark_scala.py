"""What perturbed embeddings cost: `python -m tools.benchmark_scala`.

    python -m tools.benchmark_scala [--output=FILE.json] [--quick]
        [--model=minilm_l6] [--batch_size=32] [--sequence_length=32]
        [--rounds=10] [--rows=lamb,scala]

Updates of the same encoder (weights drawn at random) on the same batch, in
turns, round by round, there and back:

  adam, lamb         plain training
  delayed            ScaLA before t_s, which is to cost what lamb does
  noise              ScaLA with 0 steps: a second pass and its distance
  scala, pga_2, ...  1, 2, 3 steps of ascent in every update
  scala_lag1         concurrent ScaLA
  freelb             2 steps, each a training pass

Ratios to lamb are formed round by round. From them follow runs of 6 epochs
with t_s 3 and 5 (Table 3, Figure 8), and the breakdown of an update into plain
training and PGA (Figure 2). The paper, on 32 GPUs: scala 1.96 to 2.15 of lamb,
a delay saves 1.5 to 1.9. Progress goes to stderr, tables to stdout.
"""

import json
import sys

from absl import flags

from conadv_tf import command_line
from tools import benchmark_scala_rows as rows_lib
from tools import figures

_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")
_QUICK = flags.DEFINE_bool(
    "quick", False, "A tiny encoder and few rounds, to see whether it works.")
_MODEL = flags.DEFINE_string("model", "minilm_l6", "An encoder.")
_BATCH = flags.DEFINE_integer("batch_size", 32, "Sentences of an update.",
                              lower_bound=1)
_LENGTH = flags.DEFINE_integer("sequence_length", 32, "Tokens of a sentence.",
                               lower_bound=4)
_ROUNDS = flags.DEFINE_integer("rounds", 10, "After the warm-up.",
                               lower_bound=1)
_ROWS = flags.DEFINE_list(
    "rows", [], f"Some of {', '.join(rows_lib.ROWS)}; else all.")
_QUICKLY = {"model": rows_lib.TINY, "batch_size": 4, "sequence_length": 8,
            "rounds": 2}


def main() -> None:
  """Measures, prints the tables and writes JSON."""
  with command_line.one_line_errors():
    from conadv_tf.config import InputError
    if _OUTPUT.value:
      command_line.check_output(_OUTPUT.value)
    if _QUICK.value:
      for name, value in _QUICKLY.items():
        flags.FLAGS.set_default(name, value)
    unknown = set(_ROWS.value) - set(rows_lib.ROWS)
    if unknown:
      raise InputError(f"--rows: unknown {', '.join(sorted(unknown))}; known "
                       f"are {', '.join(rows_lib.ROWS)}")
    names = [name for name in rows_lib.ROWS
             if not _ROWS.value or name in (rows_lib.BASE, *_ROWS.value)]
    rows = rows_lib.make(
        names, _MODEL.value, _BATCH.value, _LENGTH.value,
        lambda text: print(text, file=sys.stderr, flush=True))
    seconds = figures.interleaved(rows, _ROUNDS.value)
    report = {"model": _MODEL.value, "batch_size": _BATCH.value,
              "sequence_length": _LENGTH.value, "seconds": seconds,
              **rows_lib.summarise(seconds)}
    print(rows_lib.tables(report))
    if _OUTPUT.value:
      with open(_OUTPUT.value, "w", encoding="utf-8") as file:
        json.dump({**figures.machine(), **report}, file, indent=2)


if __name__ == "__main__":
  command_line.start(main)
