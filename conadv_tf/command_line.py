"""What the mains share: user errors in one line, exit code 2."""

from collections.abc import Callable, Iterator
import contextlib
import os
import sys
from typing import NoReturn
import warnings

from absl import app, flags, logging


def start(main: Callable[[], None]) -> None:
  """Parses the flags and calls `main`; flag errors are one line as well."""
  def parse(arguments: list[str]) -> list[str]:
    try:
      rest = flags.FLAGS(arguments)
    except flags.Error as error:
      _exit(f"{error}; --help lists the flags")
    if len(rest) > 1:
      _exit(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    return rest

  app.run(lambda _: main(), flags_parser=parse)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
  """Turns InputError into one line on stderr and exit code 2."""
  # TensorFlow's start-up chatter would bury that line.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  warnings.filterwarnings("ignore", module="google")
  from conadv_tf import config
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)  # app.run made it INFO
  try:
    yield
  except config.InputError as error:
    _exit(str(error))


def _exit(message: str) -> NoReturn:
  print("error: " + " ".join(message.split("\n")), file=sys.stderr)
  sys.exit(2)
