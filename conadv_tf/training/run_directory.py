"""What a run leaves in `model_dir`, and how it is found again.

model_dir/
  params.yaml    the resolved configuration; running it repeats the run
  checkpoints/   see checkpoint.py
  train/ validation/   TensorBoard events
  metrics.jsonl  one object per evaluation
  curvature.jsonl  one object per estimate of the largest eigenvalue
  growth.jsonl   one object per change of batch size, rate factor or gamma
  results.json   the last one, when the run is finished
  mlperf.log     where it is asked for, see mlperf_log.py
"""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import json
import logging
import os
from typing import Any

from conadv_tf import config as config_lib
from conadv_tf.training import checkpoint


class RunDirectory:
  """One run's files."""

  def __init__(self, path: str, keep: int = 3, writes: bool = True):
    """Looks at `path`; writes nothing.

    Args:
      path: model_dir; need not exist.
      keep: checkpoints to keep.
      writes: False on all workers but the chief, which only read, once, what
        is there at the start, and remember what the chief writes.

    Raises:
      InputError: if the path is a file, or a directory of something else.
    """
    self.path = path
    self.writes = writes
    if os.path.exists(path) and not os.path.isdir(path):
      raise config_lib.InputError(
          f"model_dir {path} is a file; name a directory")
    # A run killed in its first moment leaves only the temporary file.
    contents = set(os.listdir(path) if os.path.isdir(path) else ())
    if contents - {"params.yaml.tmp"} and "params.yaml" not in contents:
      raise config_lib.InputError(
          f"model_dir {path} is not empty and holds no params.yaml, so it is "
          "no run of ours; name another directory")
    self.checkpoints = checkpoint.Checkpoints(self.file("checkpoints"), keep)
    self._records: list[dict[str, Any]] | None = None
    self._decided: dict[str, Any] | None = None  # last line of growth.jsonl

  def file(self, *parts: str) -> str:
    """A path inside the directory."""
    return os.path.join(self.path, *parts)

  def saved_config(self) -> config_lib.ExperimentConfig | None:
    """The configuration of the run that lives here, if one does."""
    path = self.file("params.yaml")
    return config_lib.load([path]) if os.path.exists(path) else None

  def has_begun(self) -> bool:
    """Whether there is anything that another configuration would spoil."""
    return bool(self.checkpoints.steps() or self.metrics())

  def check(self, config: config_lib.ExperimentConfig) -> None:
    """Raises InputError if the directory holds another experiment."""
    saved = self.saved_config()
    if saved is None or not self.has_begun():
      return
    changes = config_lib.differences(saved, config)
    if changes:
      shown = ", ".join(changes[:5]) + (", ..." if changes[5:] else "")
      raise config_lib.InputError(
          f"model_dir {self.path} holds a different configuration "
          f"({shown}); use another model_dir, or delete this one")

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Keeps other runs out; a killed process lets go by itself.

    Raises:
      InputError: if another run is in, or the directory cannot be written.
    """
    if not self.writes:
      yield
      return
    created = not os.path.isdir(self.path)
    try:
      os.makedirs(self.path, exist_ok=True)
      descriptor = os.open(self.path, os.O_RDONLY)
    except OSError as error:
      raise config_lib.InputError(
          f"model_dir {self.path} cannot be written: {error.strerror}; name "
          "another directory") from error
    try:
      try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise config_lib.InputError(
            f"model_dir {self.path} is in use by another process; wait for "
            "it, stop it, or name another directory") from error
      except OSError:
        logging.warning("%s cannot be locked; make sure that no other process "
                        "uses it", self.path)
      yield
    finally:
      if created and not os.listdir(self.path):
        os.rmdir(self.path)  # refused input leaves nothing behind
      os.close(descriptor)

  def open(self, config: config_lib.ExperimentConfig) -> None:
    """Starts or continues a run here: writes params.yaml.

    Raises:
      InputError: if the directory holds another experiment, or nothing can be
        written there.
    """
    self.check(config)
    if not self.writes:
      return
    try:
      os.makedirs(self.path, exist_ok=True)
      config_lib.save(config, self.file("params.yaml"))
    except OSError as error:
      advice = ("make room and run the same command"
                if error.errno == errno.ENOSPC else "name another directory")
      raise config_lib.InputError(
          f"model_dir {self.path} cannot be written: {error.strerror}; "
          f"{advice}") from error

  def append_metrics(self, record: dict[str, Any]) -> None:
    """Adds one line to metrics.jsonl.

    Raises:
      InputError: if the disk refuses.
    """
    if not self.writes:
      self.metrics().append(record)
    else:
      self._append("metrics.jsonl", record)

  def append_curvature(self, record: dict[str, Any]) -> None:
    """Adds one line to curvature.jsonl.

    Raises:
      InputError: if the disk refuses.
    """
    if self.writes:
      self._append("curvature.jsonl", record)

  def curvature(self) -> list[dict[str, Any]]:
    """The lines of curvature.jsonl; a torn last line is left out."""
    return self._read("curvature.jsonl")

  def record_growth(self, place: dict[str, Any],
                    decided: dict[str, Any]) -> None:
    """Adds one line to growth.jsonl, unless the last one says the same.

    Args:
      place: where it takes effect, with the `step`.
      decided: what.

    Raises:
      InputError: if the disk refuses.
    """
    if not self.writes:
      return
    if self._decided is None:
      for record in self.growth()[-1:]:
        self._decided = {key: record.get(key) for key in decided}
    if decided != self._decided:
      self._append("growth.jsonl", {**place, **decided})
      self._decided = decided

  def growth(self) -> list[dict[str, Any]]:
    """The lines of growth.jsonl; a torn last line is left out."""
    return self._read("growth.jsonl")

  def _append(self, name: str, record: dict[str, Any]) -> None:
    with self._naming_full_disks(), open(
        self.file(name), "a", encoding="utf-8") as file:
      file.write(json.dumps(record) + "\n")

  def metrics(self) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a torn last line is left out."""
    if self.writes:
      return self._read("metrics.jsonl")
    if self._records is None:
      self._records = self._read("metrics.jsonl")
    return self._records

  def _read(self, name: str) -> list[dict[str, Any]]:
    path = self.file(name)
    if not os.path.exists(path):
      return []
    records = []
    with open(path, encoding="utf-8", errors="replace") as file:
      for line in file:
        try:
          record = json.loads(line)
        except json.JSONDecodeError:
          record = None
        if isinstance(record, dict) and isinstance(record.get("step"), int):
          records.append(record)
        else:
          logging.warning("%s: dropping a damaged line", path)
    return records

  def cut_records(self, step: int) -> None:
    """Removes what was recorded after `step`: it will be made again.

    Raises:
      InputError: if the disk refuses.
    """
    self._records = [r for r in self.metrics() if r["step"] <= step]
    self._decided = None
    # What takes effect at `step` is decided anew before the next update.
    for name, end in (("metrics.jsonl", step), ("curvature.jsonl", step),
                      ("growth.jsonl", step - 1)):
      if self.writes and os.path.exists(self.file(name)):
        kept = [r for r in self._read(name) if r["step"] <= end]
        self._replace(name, "".join(json.dumps(r) + "\n" for r in kept))

  def write_results(self, results: dict[str, Any]) -> None:
    """Writes results.json, which marks the run as finished.

    Raises:
      InputError: if the disk refuses.
    """
    if self.writes:
      self._replace("results.json", json.dumps(results, indent=2) + "\n")

  def results(self) -> dict[str, Any] | None:
    """results.json of a finished run, else None."""
    path = self.file("results.json")
    if not os.path.exists(path):
      return None
    try:
      with open(path, encoding="utf-8") as file:
        results = json.load(file)
    except ValueError:
      results = None
    if not isinstance(results, dict):
      logging.warning("%s is damaged; it is made again", path)
      return None
    return results

  def remove_results(self) -> None:
    """For a finished run that goes on."""
    if self.writes and os.path.exists(self.file("results.json")):
      os.remove(self.file("results.json"))

  def _replace(self, name: str, text: str) -> None:
    temporary = self.file(name + ".tmp")
    with self._naming_full_disks():
      with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
      os.replace(temporary, self.file(name))

  @contextlib.contextmanager
  def _naming_full_disks(self) -> Iterator[None]:
    """Records must not be lost: the run ends, to be continued later."""
    try:
      yield
    except OSError as error:
      raise config_lib.InputError(
          f"model_dir {self.path} cannot be written: {error.strerror}; make "
          "room and run the same command") from error


def keep_virtual_replicas(
    saved: config_lib.ExperimentConfig | None,
    config: config_lib.ExperimentConfig) -> None:
  """Recomputes micro batches of a resumed run so that V stays; in place.

  With the same number of virtual replicas, other hardware computes the same
  numbers. Where that is impossible one line says so.
  """
  if saved is None:
    return
  runtime = config.runtime
  if config.bn.group_size == 0 and (
      runtime.num_replicas != saved.runtime.num_replicas):
    logging.warning(
        "bn.group_size=0 normalises over %d replicas instead of %d: numbers "
        "will differ from those of an uninterrupted run",
        runtime.num_replicas, saved.runtime.num_replicas)
  if (config_lib.gradients_travel_in_codes(config)
      and runtime.num_replicas != saved.runtime.num_replicas):
    logging.warning(
        "compression.per=replica quantises %d gradients instead of %d: numbers "
        "will differ from those of an uninterrupted run",
        runtime.num_replicas, saved.runtime.num_replicas)
  before = (config_lib.training_replicas(saved.runtime)
            * saved.runtime.micro_batches)
  replicas = config_lib.training_replicas(runtime)
  # Too few replicas are left to `check_batch`.
  if replicas < 1 or replicas * runtime.micro_batches == before:
    return
  if before % replicas == 0:
    micro_batches = before // replicas
    logging.warning(
        "resuming with %d replica(s): runtime.micro_batches is %d, so that "
        "the %d virtual replicas of this run, and its numbers, stay",
        replicas, micro_batches, before)
    runtime.micro_batches = micro_batches
  else:
    logging.warning(
        "resuming with %d x %d virtual replicas instead of %d: numbers will "
        "differ from those of an uninterrupted run", replicas,
        runtime.micro_batches, before)
