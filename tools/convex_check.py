r"""ABS and ABSA on a convex problem: appendix A of the ABSA paper.

    python -m tools.convex_check --data=DIR --output=FILE.png

trains a logistic regression on the mushroom data (DIR/agaricus.txt.train.gz in
libsvm's format) by full gradients, SGD, ABS and ABSA, compares ABS with the
bound of theorem 1 on the same problem with an l2 term, prints both as
Markdown, and draws what the paper's Figure 3 shows. About 5 minutes.
"""

import pathlib

from absl import flags

from conadv_tf import command_line

_DATA = flags.DEFINE_string(
    "data", None, "Directory with agaricus.txt.train.gz.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "PNG file.", required=True)
_EPOCHS = flags.DEFINE_integer(
    "epochs", 100, "Of SGD, ABS and ABSA.", lower_bound=1)
_UPDATES = flags.DEFINE_integer(
    "updates", 1000, "Of full gradients.", lower_bound=1)
_SEEDS = flags.DEFINE_integer(
    "seeds", 5, "Runs of each method.", lower_bound=1)
_BOUND_EPOCHS = flags.DEFINE_integer(
    "bound_epochs", 300, "Of the runs beside the bound.", lower_bound=1)
_BOUND_SEEDS = flags.DEFINE_integer(
    "bound_seeds", 20, "ABS runs beside the bound.", lower_bound=1)


def main() -> None:
  """Runs, prints, draws."""
  with command_line.one_line_errors():
    from conadv_tf import config
    from tools import convex_problem
    command_line.check_output(_OUTPUT.value)
    path = pathlib.Path(_DATA.value, "agaricus.txt.train.gz")
    try:
      problem = convex_problem.read_libsvm(path)
    except ValueError as error:
      raise config.InputError(f"--data={_DATA.value}: {error}") from error
    from tools import convex_report
    result = convex_report.run(
        problem, _EPOCHS.value, _UPDATES.value, _SEEDS.value,
        _BOUND_EPOCHS.value, _BOUND_SEEDS.value)
    print(convex_report.text(result))
    convex_report.save(convex_report.draw(result), _OUTPUT.value)


if __name__ == "__main__":
  command_line.start(main)
