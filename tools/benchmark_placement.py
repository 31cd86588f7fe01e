"""What extra processors are worth: `python -m tools.benchmark_placement`.

    python -m tools.benchmark_placement [--output=FILE.json] [--quick]
        [--rate=100mbit]

Real worker processes of MultiWorkerMirroredStrategy over loopback, with one
TensorFlow thread of each kind and a core each (where there are fewer cores
than workers some share one, which is said). All are started once and measured
in turns, round by round, with the same model and batch a worker that trains:

  vanilla, together  plain training, ConAdv (lag 1) whose workers train and
                     attack: 1 worker, 2 workers, and 2 that know nothing of
                     each other (the slower one counts)
  split              ConAdv with one worker more that only attacks: 1 + 1, 2 + 1

ConAdv's attack does not wait for the all-reduce, so it may hide it: what the
all-reduce adds to a step of 2 workers, over 2 independent ones, is given for
ConAdv and for vanilla training, which has nothing to hide it with.

--rate measures everything a second time over a loopback of that speed. All
traffic shares it. It needs root, `unshare`, `ip` and `tc`; the whole program
then runs in a network namespace of its own.
"""

import contextlib
import json
import os
import platform
import sys

from absl import flags

from conadv_tf import command_line
from tools import placement_times

_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")
_QUICK = flags.DEFINE_bool(
    "quick", False, "A tiny model and few rounds, to see whether it works.")
_RATE = flags.DEFINE_string("rate", None, "Of a slower loopback, as tc has it.")
_MODEL = flags.DEFINE_string("model", "resnet20", "A model for 32x32 images.")
_BATCH = flags.DEFINE_integer("batch_size", 64, "Clean examples a step of one "
                              "worker that trains.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 15, "After the warm-up.",
                               lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 2, "Steps of each column in a round.",
                              lower_bound=1)
_QUICKLY = {"model": "resnet8", "batch_size": 8, "rounds": 2, "steps": 1}


def main() -> None:
  """Measures, prints tables and writes JSON."""
  with command_line.one_line_errors():
    from tools import slow_link  # imports TensorFlow, which talks at once
    if _OUTPUT.value:
      command_line.check_output(_OUTPUT.value)
    rate = _RATE.value
    if rate:
      slow_link.check(rate)
      slow_link.enter("tools.benchmark_placement", sys.argv[1:])
    if _QUICK.value:
      for name, value in _QUICKLY.items():
        flags.FLAGS.set_default(name, value)
    links = [placement_times.LOOPBACK] + ([rate] if rate else [])

    def choose(link: str) -> None:
      if rate:
        slow_link.throttle(None if link == placement_times.LOOPBACK else link)

    settings = {"batch_size": _BATCH.value, "rounds": _ROUNDS.value,
                "steps": _STEPS.value}
    with contextlib.ExitStack() as stack:
      clusters = placement_times.Clusters(_MODEL.value, stack)
      times = placement_times.measure(
          clusters.seconds, links=links, choose=choose, **settings)
    report = {
        "model": _MODEL.value, **settings, "cores": clusters.cores,
        "gradient_bytes": clusters.gradient_bytes, "seconds": times,
        "links": {link: placement_times.summarise(times[link])
                  for link in links}}
    print(placement_times.tables(report))
    if _OUTPUT.value:
      machine = {"machine": platform.processor() or platform.machine(),
                 "machine_cores": os.cpu_count()}
      with open(_OUTPUT.value, "w", encoding="utf-8") as file:
        json.dump({**machine, **report}, file, indent=2)


if __name__ == "__main__":
  command_line.start(main)
