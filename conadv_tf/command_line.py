"""What the mains share: user errors in one line, exit code 2."""

from collections.abc import Iterator
import contextlib
import os
import sys
import warnings

from absl import flags, logging


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
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
