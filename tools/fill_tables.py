"""Tables of results in the pages: `python -m tools.fill_tables [--check]`.

In README.md and docs/*.md, what stands between

    <!-- table: results/NAME/report.md: TITLE -->
    <!-- end -->

becomes the first table below the heading TITLE of that file; both marks are
whole lines, not indented. With --check nothing is written: it names the pages
whose tables are others, exit code 2.
"""

import pathlib

from absl import flags

from conadv_tf import command_line
from tools import page_tables

_CHECK = flags.DEFINE_bool("check", False, "Write nothing, name stale pages.")


def main() -> None:
  """Fills or checks the pages of the working directory."""
  with command_line.one_line_errors():
    from conadv_tf.config import InputError
    names = page_tables.fill(pathlib.Path(), _CHECK.value)
    if names and _CHECK.value:
      raise InputError(f"{', '.join(names)}: other tables than their results; "
                       "run python -m tools.fill_tables")
    for name in names:
      print(name)


if __name__ == "__main__":
  command_line.start(main)
