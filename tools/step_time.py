"""Where the time of an update goes: `python -m tools.step_time`.

Reads the newest profile below `--profile` (a run's directory, or one
*.xplane.pb) that `conadv-train --profile_steps=a:b` wrote there, and prints
for each phase of the training step, per update:

  busy     time that its ops ran, added up over threads (or device streams)
  covered  time of the clock in which at least one of them ran
  share    covered, of the update's wall time

Phases that run beside each other share the clock, so shares can add up to more
than 100 %; how much of the attack runs beside the update is said below the
table. `input` is what tf.data's threads do in functions (decoding, augmenting),
`other` ops of no phase (metrics, held batches, accumulation of micro batches),
`idle` the clock when neither of them nor a phase ran. Ops of a few microseconds
are in no profile. `reduction` includes waiting for the other replicas.
"""

from collections.abc import Iterable, Iterator
import json
import os
import statistics
from typing import Any, NamedTuple

from absl import flags

from conadv_tf import command_line

_PROFILE = flags.DEFINE_string(
    "profile", None, "Run directory, log directory or *.xplane.pb file.")
_JSON = flags.DEFINE_bool("json", False, "Prints JSON instead of a table.")

INPUT, IDLE = "input", "idle"
# What the attack may run beside.
_UPDATE = ("forward", "backward", "reduction", "update")
_WAITING = "IteratorGetNextOp::DoCompute"
# Of the functions that tf.data maps. Its other events last while they wait.
_INPUT_WORK = ("ExecutorState::Process", "ExecutorDoneCallback")
_MS = 1e-9  # picoseconds

Interval = tuple[int, int]  # start and end in picoseconds


class Span(NamedTuple):
  """One event: a phase's op or a piece of the input pipeline's work."""

  phase: str
  line: tuple[str, int]  # plane and thread, or plane and stream
  interval: Interval


class Trace(NamedTuple):
  """What a profile holds, all intervals on one clock."""

  marks: list[Interval]  # one an execution, in order
  spans: list[Span]
  waiting: list[Interval]  # of the step, for the input pipeline


# ---- Intervals.


def union(intervals: Iterable[Interval]) -> list[Interval]:
  """The same time as disjoint intervals in order."""
  joined: list[Interval] = []
  for start, end in sorted(intervals):
    if joined and start <= joined[-1][1]:
      joined[-1] = (joined[-1][0], max(joined[-1][1], end))
    else:
      joined.append((start, end))
  return joined


def overlap(a: list[Interval], b: list[Interval]) -> list[Interval]:
  """The time that two lists of disjoint intervals in order share."""
  shared, i, j = [], 0, 0
  while i < len(a) and j < len(b):
    start, end = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
    if start < end:
      shared.append((start, end))
    if a[i][1] < b[j][1]:
      i += 1
    else:
      j += 1
  return shared


def length(intervals: Iterable[Interval]) -> int:
  """Time in disjoint intervals."""
  return sum(end - start for start, end in intervals)


# ---- Reading.


def newest(path: str) -> str:
  """The newest profile at or below a path.

  Raises:
    InputError: if there is none.
  """
  import tensorflow as tf

  from conadv_tf.config import InputError
  from conadv_tf.training import profiling
  if not tf.io.gfile.exists(path):
    raise InputError(f"--profile={path}: no such file or directory")
  if not tf.io.gfile.isdir(path):
    return path
  found = [os.path.join(folder, name)
           for folder, _, names in tf.io.gfile.walk(path)
           for name in names if name.endswith(profiling.SUFFIX)]
  if not found:
    raise InputError(f"--profile={path}: holds no profile "
                     f"(*{profiling.SUFFIX}); train with "
                     "--profile_steps=first:last to make one")
  return max(found, key=lambda name: (tf.io.gfile.stat(name).mtime_nsec, name))


def read(path: str) -> Any:
  """The XSpace in a file.

  Raises:
    InputError: if the file is something else.
  """
  import tensorflow as tf
  from tensorflow.tsl.profiler.protobuf import xplane_pb2

  from conadv_tf.config import InputError
  with tf.io.gfile.GFile(path, "rb") as file:
    content = file.read()
  try:
    return xplane_pb2.XSpace.FromString(content)
  except Exception as error:  # protobuf's own, from a package not required here
    raise InputError(f"--profile={path} is no whole profile ({error}); "
                     "profile again") from error


def updates_of(path: str) -> list[int] | None:
  """Updates of each execution, from beside a profile; None if not there."""
  import tensorflow as tf

  from conadv_tf.config import InputError
  from conadv_tf.training import profiling
  name = os.path.join(os.path.dirname(path), profiling.UPDATES_FILE)
  if not tf.io.gfile.exists(name):
    return None
  try:
    with tf.io.gfile.GFile(name) as file:
      return [int(e["updates"]) for e in json.loads(file.read())["executions"]]
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(f"{name} is damaged; delete it to have every marked step "
                     "count as one update") from error


def _events(plane: Any) -> Iterator[tuple[Any, Any, Interval]]:
  """(line, event, interval) of a plane."""
  for line in plane.lines:
    for event in line.events:
      start = line.timestamp_ns * 1000 + event.offset_ps
      yield line, event, (start, start + event.duration_ps)


def _stats(plane: Any, event: Any) -> dict[str, Any]:
  """Values by name; an event's own win over those of its kind."""
  values = {}
  for stat in [*plane.event_metadata[event.metadata_id].stats, *event.stats]:
    kind = stat.WhichOneof("value")
    value = getattr(stat, kind) if kind else None
    if kind == "ref_value":
      value = plane.stat_metadata[value].name
    values[plane.stat_metadata[stat.metadata_id].name] = value
  return values


def _op_name(event_name: str) -> str | None:
  """The op of a host's event, which is called name:Type; else None."""
  name, colon, kind = event_name.rpartition(":")
  is_op = colon and kind.isidentifier() and name and not name.endswith(":")
  return name if is_op else None


def _host(plane: Any) -> Trace:
  from conadv_tf.training import profiling
  marks, spans, waiting = [], [], []
  for line, event, interval in _events(plane):
    name, where = plane.event_metadata[event.metadata_id].name, (
        plane.name, line.id)
    op = _op_name(name)
    if name == profiling.MARK and _stats(plane, event).get("_r"):
      marks.append(interval)
    elif name == _WAITING:
      waiting.append(interval)
    elif line.name.startswith("tf_data_"):
      if op or name in _INPUT_WORK:
        spans.append(Span(INPUT, where, interval))
    elif op:
      spans.append(Span(profiling.phase(op), where, interval))
  return Trace(marks, spans, waiting)


def _device(plane: Any) -> list[Span]:
  """Ops of a GPU's streams or a TPU's core."""
  from conadv_tf.training import profiling
  spans = []
  for line, event, interval in _events(plane):
    # Other lines show the same time by step, module and scope.
    if line.name == "XLA Ops" or line.name.startswith("Stream"):
      op = _stats(plane, event).get("tf_op")
      spans.append(Span(profiling.phase(op.rpartition(":")[0] or op)
                        if op else profiling.OTHER,
                        (plane.name, line.id), interval))
  return spans


def gather(space: Any) -> Trace:
  """Sorts a profile's events.

  Where a device ran the ops, what the host did for them does not count.
  """
  marks, spans, waiting = [], [], []
  for plane in space.planes:
    if plane.name.startswith("/host:"):
      host = _host(plane)
      marks += host.marks
      spans += host.spans
      waiting += host.waiting
  device = [span for plane in space.planes
            if plane.name.startswith("/device:") for span in _device(plane)]
  if device:
    spans = device + [span for span in spans if span.phase == INPUT]
  return Trace(sorted(marks), spans, waiting)


# ---- The breakdown.


def breakdown(trace: Trace, updates: list[int] | None) -> dict[str, Any]:
  """Times per update, in milliseconds.

  Args:
    trace: of a profile with marks.
    updates: of each marked execution; None counts a mark as one update.
  """
  from conadv_tf.training import profiling
  marks = trace.marks[:len(updates) if updates else None]
  count = sum(updates[:len(marks)]) if updates else len(marks)
  window = [(marks[0][0], marks[-1][1])]
  wall, scale = length(window), _MS / count
  covered, busy = {}, {}
  for phase in (*profiling.PHASES, INPUT, profiling.OTHER):
    lines: dict[tuple[str, int], list[Interval]] = {}
    for span in trace.spans:
      if span.phase == phase:
        lines.setdefault(span.line, []).append(span.interval)
    # Events of one thread may lie inside each other.
    threads = [overlap(union(line), window) for line in lines.values()]
    busy[phase] = sum(map(length, threads))
    covered[phase] = union(i for line in threads for i in line)
  everything = union(i for intervals in covered.values() for i in intervals)
  update = union(i for phase in _UPDATE for i in covered[phase])
  beside = length(overlap(covered["attack"], update))
  executions = [length([mark]) * _MS for mark in marks]
  return {
      "executions": len(marks), "updates": count,
      "updates_are_known": updates is not None,
      "wall_ms": wall * scale,
      "execution_ms": {"least": min(executions),
                       "median": statistics.median(executions),
                       "most": max(executions)},
      "phases": {phase: {"busy_ms": busy[phase] * scale,
                         "covered_ms": length(covered[phase]) * scale,
                         "share": length(covered[phase]) / wall}
                 for phase in covered},
      "idle_ms": (wall - length(everything)) * scale,
      "waiting_for_input_ms": length(
          overlap(union(trace.waiting), window)) * scale,
      "attack_beside_update_ms": beside * scale,
      "attack_beside_update": beside / (length(covered["attack"]) or 1),
  }


def table(path: str, report: dict[str, Any]) -> str:
  """The report for a terminal."""
  executions, updates = report["executions"], report["updates"]
  times, wall = report["execution_ms"], report["wall_ms"]
  lines = [
      f"profile     {path}",
      f"updates     {updates} in {executions} marked steps" + (
          "; a mark is an execution, all figures are per update"
          if updates != executions else "")]
  if not report["updates_are_known"]:
    lines.append("            no updates.json beside it: taken as one update "
                 "a mark")
  lines += [f"wall        {wall:.2f} ms an update; marked steps took "
            f"{times['least']:.2f} to {times['most']:.2f} ms", ""]
  lines.append(f"{'phase':10s} {'busy ms':>10s} {'covered ms':>11s} "
               f"{'share':>7s}")
  for phase, row in report["phases"].items():
    lines.append(f"{phase:10s} {row['busy_ms']:10.2f} {row['covered_ms']:11.2f}"
                 f" {row['share']:7.1%}")
  idle = report["idle_ms"]
  lines += [f"{IDLE:10s} {'':10s} {idle:11.2f} {idle / wall:7.1%}", ""]
  if report["phases"]["attack"]["covered_ms"]:
    lines.append(
        f"{report['attack_beside_update']:.0%} of the attack's covered time "
        f"({report['attack_beside_update_ms']:.2f} ms) runs beside forward, "
        "backward, reduction or update")
  lines.append(f"the step waits {report['waiting_for_input_ms']:.2f} ms an "
               "update for input")
  if times["most"] > 2 * times["median"]:
    lines.append("the slowest step took more than twice the median: an "
                 "evaluation, a checkpoint or another program blurs the "
                 "figures")
  if not report["phases"]["forward"]["covered_ms"]:
    lines.append("no op of a forward pass is in this profile: on a CPU XLA "
                 "shows none, so profile with runtime.jit_compile=false; or "
                 "all were too short")
  return "\n".join(lines)


def main() -> None:
  """Prints the breakdown."""
  with command_line.one_line_errors():
    run()


def run() -> None:
  """Reads and prints; TensorFlow is imported from here on."""
  from conadv_tf.config import InputError
  if not _PROFILE.value:
    raise InputError("--profile is missing: a run's directory with a profile")
  path = newest(_PROFILE.value)
  trace = gather(read(path))
  if not trace.marks:
    raise InputError(f"--profile={path} holds no step that is marked from its "
                     "start to its end; profile later or more updates")
  report = breakdown(trace, updates_of(path))
  print(json.dumps({"profile": path, **report}, indent=2) if _JSON.value
        else table(path, report))


if __name__ == "__main__":
  command_line.start(main)
