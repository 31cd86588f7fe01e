"""Bytes that workers exchange for an update, by compression.

    python -m tools.measure_traffic --workers=2 [--rows=float32,8_bits]
        [--output=FILE.json]

trains a network of a million weights in so many processes of this machine, in
a network namespace of their own, so that its loopback carries nothing else.
Prints a table: the bytes that all workers sent for an update, with what TCP
and gRPC add, beside the formula of `conadv_tf.analysis.traffic`. Needs root,
`unshare` and `ip`. Some 10 s a row.

Rows (the first is what the others are compared with): float32, bfloat16,
16_bits, 8_bits, 8_bits_2_sided, 4_bits, 8_bits_scatter.
"""

from collections.abc import Sequence
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

from absl import flags

from conadv_tf import command_line

_WORKERS = flags.DEFINE_integer(
    "workers", 2, "Processes that train.", lower_bound=2)
_ROWS = flags.DEFINE_list("rows", None, "Which of them; all by default.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")


def _check(rows: Sequence[str], known: Sequence[str]) -> None:
  from conadv_tf.config import InputError
  unknown = [row for row in rows if row not in known]
  if unknown:
    raise InputError(f"--rows={unknown[0]}: known are {', '.join(known)}")
  if (not all(map(shutil.which, ("unshare", "ip"))) or subprocess.run(
      ["unshare", "-n", "true"], capture_output=True, check=False).returncode):
    raise InputError("a loopback of its own needs root and the programs "
                     "unshare and ip")


def _counted(rows: Sequence[str]) -> list[dict]:
  """What the workers found."""
  from conadv_tf import exits
  with tempfile.TemporaryDirectory() as folder:
    output = pathlib.Path(folder, "rows.json")
    code = subprocess.run(
        [sys.executable, "-m", "tools.local_cluster",
         f"--workers={_WORKERS.value}", "--", sys.executable, "-m",
         "tools.traffic_rows", str(output), *rows], check=False).returncode
    if code:
      raise exits.Stop(f"the workers ended with code {code}, see above")
    return json.loads(output.read_text("utf-8"))


def main() -> None:
  """Starts the workers, prints what they counted and writes JSON."""
  with command_line.one_line_errors():
    from tools import slow_link, traffic_rows
    if _OUTPUT.value:
      command_line.check_output(_OUTPUT.value)
    rows = _ROWS.value or list(traffic_rows.ROWS)
    _check(rows, list(traffic_rows.ROWS))
    slow_link.enter("tools.measure_traffic", sys.argv[1:])
    figures = _counted(rows)
    print(traffic_rows.table(
        [traffic_rows.Counted(**row) for row in figures], _WORKERS.value))
    if _OUTPUT.value:
      pathlib.Path(_OUTPUT.value).write_text(json.dumps(
          {"workers": _WORKERS.value, "rows": figures}, indent=2), "utf-8")


if __name__ == "__main__":
  command_line.start(main)
