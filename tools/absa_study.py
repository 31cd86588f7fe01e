r"""Compares ways of growing the batch on a part of CIFAR-10, over seeds.

    python -m tools.absa_study --data=cifar10.npz --output=DIR \
        [--seeds=0,1,2] [--only=bl_32,absa_512] [--jobs=2]

trains each way for each seed (a command each, printed; those that are done are
left alone, others resume), and writes DIR/study.json and a table: the accuracy
on the test split, read once after each run, and how many updates it took. Runs
that diverge (exit code 3) are counted, and not in the means.

All train on 10,000 images that the seed 0 draws from the training split's first
45,000; the curves of training are those of its last 5,000. Settings are the
paper's, in configs/cifar10/absa_study.yaml; nothing is tuned.
"""

from collections.abc import Iterator
import concurrent.futures
import json
import pathlib

from absl import flags

from conadv_tf import command_line
from conadv_tf.config import InputError
from tools import absa_study_runs as study

_DATA = flags.DEFINE_string("data", None, "An .npz file of CIFAR-10.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the runs.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Of the runs.")
_ONLY = flags.DEFINE_list("only", [], "Some of the ways; default: all.")
_JOBS = flags.DEFINE_integer(
    "jobs", 1, "Runs side by side, one thread each.", lower_bound=1)


def main() -> None:
  """Trains what is missing, evaluates, writes the table."""
  with command_line.one_line_errors():
    if not (_DATA.value and _OUTPUT.value):
      raise InputError("--data and --output are needed")
    unknown = [way for way in _ONLY.value if way not in study.WAYS]
    if unknown:
      raise InputError(
          f"--only={unknown[0]}: known are {', '.join(study.WAYS)}")
    folder = pathlib.Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "train.npz").exists():
      study.split(pathlib.Path(_DATA.value), folder)
    with concurrent.futures.ThreadPoolExecutor(_JOBS.value) as pool:
      ended = dict(zip(
          _runs(folder), pool.map(study.train, _runs(folder)), strict=True))
    results = {}
    for run, is_whole in ended.items():
      results.setdefault(run.way, {})[run.seed] = (
          study.figures_of(run, _DATA.value) if is_whole else None)
    (folder / "study.json").write_text(json.dumps(results, indent=2))
    print(study.table(results))


def _runs(folder: pathlib.Path) -> Iterator[study.Run]:
  for seed in map(int, _SEEDS.value):
    for way in _ONLY.value or study.WAYS:
      yield study.Run(way, seed, folder / f"{way}_seed{seed}")


if __name__ == "__main__":
  command_line.start(main)
