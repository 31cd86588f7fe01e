"""What a Hessian product costs: `python -m tools.benchmark_curvature`.

    python -m tools.benchmark_curvature [--output=FILE.json] [--quick]
        [--models=resnet8,resnet20,resnet18] [--rounds=15]

On the same network (moving statistics, summed loss) and the same examples, in
turns, round by round, there and back:

  gradient              of all weights, as one vector
  in training           the same with batch statistics
  product               `analysis.hessian`, reverse over reverse
  forward over reverse  the same product by the other mode
  block of 2            the product of the last 2 layers with weights

resnet8 and resnet20 see 64 images of 32x32 pixels, resnet18 16 of 64x64.
Ratios to the gradient are formed round by round; a product is to cost at most
2.5 of it. Progress goes to stderr, the table to stdout.
"""

import json
import sys

from absl import flags

from conadv_tf import command_line
from tools import benchmark_curvature_rows as rows_lib
from tools import figures

_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")
_QUICK = flags.DEFINE_bool(
    "quick", False, "A tiny batch of resnet8 and few rounds, to see whether "
    "it works.")
_MODELS = flags.DEFINE_list("models", ["resnet8", "resnet20", "resnet18"],
                            "Some of resnet8, resnet20, resnet18.")
_ROUNDS = flags.DEFINE_integer("rounds", 15, "After the warm-up.",
                               lower_bound=1)
_SIZES = {"resnet8": (32, 64), "resnet20": (32, 64), "resnet18": (64, 16)}
_QUICKLY = {"models": ["resnet8"], "rounds": 2}


def main() -> None:
  """Measures, prints the table and writes JSON."""
  with command_line.one_line_errors():
    from conadv_tf.config import InputError
    if _OUTPUT.value:
      command_line.check_output(_OUTPUT.value)
    if _QUICK.value:
      for name, value in _QUICKLY.items():
        flags.FLAGS.set_default(name, value)
    unknown = set(_MODELS.value) - set(_SIZES)
    if unknown:
      raise InputError(f"--models: unknown {', '.join(sorted(unknown))}; "
                       f"known: {', '.join(_SIZES)}")
    report = {}
    for model in _MODELS.value:
      image_size, batch_size = _SIZES[model]
      if _QUICK.value:
        batch_size = 4
      print(f"{model}, {batch_size} images", file=sys.stderr, flush=True)
      size, rows = rows_lib.make_rows(model, image_size, batch_size)
      seconds = rows_lib.measure(rows, size, _ROUNDS.value)
      report[f"{model}, {batch_size} images of {image_size}x{image_size}"] = {
          "weights": size, "seconds": seconds, **rows_lib.summarise(seconds)}
    print(rows_lib.table(report))
    if _OUTPUT.value:
      with open(_OUTPUT.value, "w", encoding="utf-8") as file:
        json.dump({**figures.machine(), "models": report}, file, indent=2)


if __name__ == "__main__":
  command_line.start(main)
