"""What a bug report needs: `conadv-doctor [--data_path=PATH]`.

Prints versions, devices, threads and data paths, then trains two updates of
every method on made-up images. Ends with code 1 if a method fails.
"""

from collections.abc import Callable, Iterator
import importlib.metadata
import os
import pathlib
import platform
import shutil
import tempfile
import time

from absl import flags

from conadv_tf import command_line

_DATA_PATH = flags.DEFINE_multi_string(
    "data_path", [], "A file or folder that a run cannot read; looked at.")

_PACKAGES = (
    "conadv-tf", "tensorflow", "keras", "tf-models-official",
    "tensorflow-addons", "tensorflow-datasets", "keras-cv",
    "tensorflow-metadata", "tensorflow-text", "numpy", "protobuf", "absl-py")
_VARIABLES = (
    "TF_CONFIG", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS",
    "TF_ENABLE_ONEDNN_OPTS", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES",
    "TPU_NAME", "XLA_FLAGS", "TFDS_DATA_DIR", "PYTHONPATH")
_UPDATES = 2
# What a method needs besides the defaults.
_OVERRIDES = {"absa": "method.lag=0",
              "smooth_at": "attack.norm=l2,attack.direction=l2"}
_OF_TEXT = ("scala", "freelb")
_IMAGES = ("data.name=synthetic,data.image_size=8,data.num_classes=2,"
           "data.num_examples=16,model.name=resnet8")
_SENTENCES = (
    "data.name=glue,text.sequence_length=4,model.name=bert,"
    "model.args={hidden_size: 4, num_layers: 1, num_heads: 1, "
    "intermediate_size: 4, vocab_size: 6, max_positions: 4, "
    "type_vocab_size: 1}")


def main() -> None:
  """Prints the report.

  Raises:
    SystemExit: with code 1 if a method fails.
  """
  with command_line.one_line_errors():
    for name, value in _facts(_DATA_PATH.value):
      print(f"{name:24} {value}", flush=True)
    if not _all_train():
      raise SystemExit(1)


def _all_train() -> bool:
  """Trains every method and prints how it went; whether none failed."""
  fine = True
  for name, run in _methods():
    start = time.monotonic()
    try:
      state = f"ok, loss {run():.4f}"
    except Exception as error:  # pylint: disable=broad-except
      first = (str(error).splitlines() or [""])[0]
      state, fine = f"FAILED: {type(error).__name__}: {first}", False
    print(f"{name:24} {state} ({time.monotonic() - start:.1f} s)", flush=True)
  return fine


def _facts(paths: list[str]) -> Iterator[tuple[str, object]]:
  """(name, value) of what a run depends on besides its configuration."""
  yield "python", f"{platform.python_version()}, {platform.platform()}"
  for package in _PACKAGES:
    try:
      yield package, importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      yield package, "not installed"
  yield "processors", os.cpu_count()
  yield from _memory()
  import tensorflow as tf
  yield "devices", ", ".join(
      device.name for device in tf.config.list_physical_devices())
  yield "threads", (
      f"intra-op {tf.config.threading.get_intra_op_parallelism_threads()}, "
      f"inter-op {tf.config.threading.get_inter_op_parallelism_threads()} "
      "(0: as many as processors)")
  for variable in _VARIABLES:
    if variable in os.environ:
      yield variable, os.environ[variable]
  datasets = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
  for path in dict.fromkeys([datasets, *paths, "."]):
    yield path, _path(pathlib.Path(path).expanduser())


def _memory() -> Iterator[tuple[str, str]]:
  try:
    size = os.sysconf("SC_PAGE_SIZE")
    total, free = (os.sysconf(f"SC_{kind}PHYS_PAGES") * size / 2**30
                   for kind in ("", "AV"))
  except (ValueError, OSError):  # a system that does not say
    return
  yield "memory", f"{total:.1f} GiB, {free:.1f} free"


def _path(path: pathlib.Path) -> str:
  if not path.exists():
    return "does not exist"
  kind = "folder" if path.is_dir() else f"file of {path.stat().st_size} bytes"
  rights = [word for word, right in (("readable", os.R_OK),
                                     ("writable", os.W_OK))
            if os.access(path, right)]
  free = shutil.disk_usage(path).free / 2**30
  return f"{kind}, {' and '.join(rights) or 'no access'}, {free:.0f} GiB free"


def _sentences(folder: str) -> list[str]:
  """Writes a text task of 16 sentences; returns the keys that name it."""
  path = pathlib.Path(folder)
  (path / "vocab.txt").write_text(
      "\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad")), "utf-8")
  rows = "sentence\tlabel\n" + 8 * "good\t1\nbad\t0\n"
  for part in ("train", "dev"):
    (path / f"sst2_{part}.tsv").write_text(rows, "utf-8")
  return [_SENTENCES, f"data.path={folder},text.vocabulary={folder}"]


def _methods() -> Iterator[tuple[str, Callable[[], float]]]:
  """(name, what trains it and returns the loss of the last update)."""
  from conadv_tf import components
  from conadv_tf import config as config_lib
  from conadv_tf import experiment as experiments

  def train(name: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
      data = _sentences(folder) if name in _OF_TEXT else [_IMAGES]
      built = experiments.build(config_lib.load([], [
          *data, "data.global_batch_size=8,optimizer.name=sgd,"
          "schedule.peak_lr=0.01,schedule.epochs=1",
          f"method.name={name}", _OVERRIDES.get(name, "")]))
    history = built.trainer.fit(built.train_dataset(0), verbose=0,
                                steps_per_epoch=_UPDATES)
    return history.history["loss"][-1]

  for name in components.METHODS:
    yield name, lambda name=name: train(name)


def run() -> None:
  """Console script."""
  command_line.start(main)


if __name__ == "__main__":
  run()
