"""What the mains share: user errors in one line, exit code 2."""

from collections.abc import Callable, Iterator
import contextlib
import logging as python_logging
import os
import re
import sys
from typing import Any, NoReturn
import warnings

from absl import app, flags, logging

from conadv_tf import exits

# Of libraries, about themselves, and from the first import of them on.
warnings.filterwarnings("ignore", module="google")
warnings.filterwarnings("ignore", "pkg_resources is deprecated")

_REQUIRED = re.compile(r"flag --(\w+)=None: Flag --\1 must have a value")


def start(main: Callable[..., None], takes_arguments: bool = False) -> None:
  """Parses the flags and calls `main`; flag errors are one line as well.

  Args:
    main: of the command.
    takes_arguments: whether it takes a list of what is no flag.
  """
  def parse(arguments: list[str]) -> list[str]:
    if "--helpfull" in arguments:
      app.usage(writeto_stdout=True, exitcode=0)
    if "--help" in arguments:
      name = main.__module__  # flags know a script by its path
      print(sys.modules[name].__doc__)
      print(flags.FLAGS.module_help(
          sys.argv[0] if name == "__main__" else name))
      sys.exit(0)
    try:
      rest = flags.FLAGS(arguments)
    except flags.Error as error:
      missing = [f"--{name}" for name in _REQUIRED.findall(str(error))]
      said = f"{' and '.join(missing)} must be given" if missing else error
      _exit(f"{said}; --help lists the flags")
    if len(rest) > 1 and not takes_arguments:
      _exit(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    return rest

  def run(rest: list[str]) -> None:
    code = 0
    try:
      main(*([rest[1:]] if takes_arguments else []))
    except SystemExit as error:
      code = error.code
    except KeyboardInterrupt:
      print("error: stopped", file=sys.stderr)
      code = 130
    # Everything is written and closed, while TensorFlow's threads would take
    # up to a minute to end (see `training.loop`), or fail over lost workers.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # pylint: disable=protected-access

  app.run(run, flags_parser=parse)


class _Plain(python_logging.Formatter):
  """Writes `warning: ...`; `error: ...` is the line that ends a command."""

  def format(self, record: python_logging.LogRecord) -> str:
    """The line; absl's has a date, a thread and a line of code."""
    return f"warning: {super().format(record)}"


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
  """Turns InputError and exits.Stop into one line on stderr and their code."""
  # TensorFlow's start-up chatter would bury that line.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  from conadv_tf import config
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)  # app.run made it INFO
    logging.get_absl_handler().setFormatter(_Plain())
  try:
    yield
  except config.InputError as error:
    _exit(str(error))
  except exits.Stop as error:
    _exit(str(error), error.exit_code)


def numbers(flag: flags.FlagHolder, kind: type) -> list[Any]:
  """The values of a list flag.

  Raises:
    InputError: if one is not of this kind.
  """
  from conadv_tf import config
  try:
    return [kind(text) for text in flag.value]
  except ValueError as error:
    raise config.InputError(
        f"--{flag.name}: must be numbers such as 2,4,8, got "
        f"{','.join(flag.value)!r}") from error


def check_output(path: str) -> None:
  """Refuses a file that cannot be written, before long work.

  Its directory is made; a new file is not left behind.

  Raises:
    InputError: that names --output.
  """
  from conadv_tf import config
  try:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    exists = os.path.exists(path)
    with open(path, "a", encoding="utf-8"):
      pass
    if not exists:
      os.remove(path)
  except OSError as error:
    raise config.InputError(
        f"--output={path} cannot be written: {error.strerror}") from error


def _exit(message: str, code: int = 2) -> NoReturn:
  print("error: " + " ".join(message.split("\n")), file=sys.stderr)
  sys.exit(code)
