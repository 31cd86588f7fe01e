r"""What a suite's runs take: `python -m tools.suite_cost --suite=NAME`.

    python -m tools.suite_cost --suite=conadv-imagenet [--each] \
        [--images_per_second=362] [--output=FILE.md]

Prints for each method, or with --each for each way, the runs (ways times
seeds), updates, clean images that are trained on, forward passes of an image
(F; a backward pass to weights or to images counts as one more) and
device hours. Neither data nor devices are needed, but configurations that say
how many training images there are, or a suite that does.

A device hour is work, not waiting: the attack of a concurrent method runs
beside the update, which shortens a run and not its hours. Tuning, input,
evaluation and communication are not counted.
"""

import pathlib

from absl import flags

from conadv_tf import command_line

_SUITE = flags.DEFINE_string("suite", None, "Name under suites/, or a file.")
_EACH = flags.DEFINE_bool("each", False, "A row for each way.")
_RATE = flags.DEFINE_float(
    "images_per_second", None, "Images of plain training on one device; by "
    "default that of a TPU v3 core in the ConAdv paper's Table 3 at 32k.")
_OUTPUT = flags.DEFINE_string("output", None, "Markdown file, also.")


def main() -> None:
  """Prints the page."""
  with command_line.one_line_errors():
    from conadv_tf.config import InputError
    from tools import reproduce_suite as suites
    from tools import suite_costs
    if not _SUITE.value:
      raise InputError(
          f"--suite is needed; suites are {', '.join(suites.names())}")
    if _RATE.value is not None and not _RATE.value > 0:
      raise InputError(f"--images_per_second={_RATE.value}: must be above 0")
    if _OUTPUT.value:
      command_line.check_output(_OUTPUT.value)
    text = suite_costs.page(
        suites.load(_SUITE.value), _RATE.value, _EACH.value)
    if _OUTPUT.value:
      pathlib.Path(_OUTPUT.value).write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
  command_line.start(main)
