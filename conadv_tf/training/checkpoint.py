"""Checkpoints that a crash cannot lose and damage cannot hide.

A checkpoint is a directory `step-00000123` with `state.npz` (all arrays, no
pickle) and `manifest.json` (step, SHA-256 of the file and of itself). It is
written under a temporary name and renamed when complete, so that a kill at any
moment leaves the previous one as it was. Reading verifies the checksums and
falls back to the one before, loudly.
"""

from collections.abc import Collection, Mapping
import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
from typing import Any, BinaryIO
import zipfile

import numpy as np
import tensorflow as tf

from conadv_tf import config as config_lib
from conadv_tf.layers import network as networks
from conadv_tf.training import averaging
from conadv_tf.training import trainer as trainers

_STATE = "state.npz"
_MANIFEST = "manifest.json"
# The second name is what a checkpoint has while it is being replaced.
_NAME = re.compile(r"(?:step|tmp-old)-(\d{8,})$")
_FORMAT = 1


@dataclasses.dataclass
class Checkpoint:
  """What was read back.

  Attributes:
    step: updates made.
    state: name -> array.
    extra: what the run added to the manifest (seconds, virtual replicas).
  """

  step: int
  state: dict[str, np.ndarray]
  extra: dict[str, Any]


class Checkpoints:
  """The checkpoints of one run directory, oldest deleted first."""

  def __init__(self, directory: str, keep: int = 3):
    """Args: directory: created when first written; keep: at least 1."""
    self.directory = directory
    self._keep = keep

  def steps(self) -> list[int]:
    """Steps with a completed checkpoint, ascending."""
    if not os.path.isdir(self.directory):
      return []
    matches = (_NAME.match(name) for name in os.listdir(self.directory))
    return sorted({int(match.group(1)) for match in matches if match})

  def save(self, step: int, state: dict[str, np.ndarray],
           extra: dict[str, Any], keep: Collection[int] = ()) -> str:
    """Writes a checkpoint; returns its path.

    Args:
      step: updates made.
      state: name -> array.
      extra: JSON for the manifest.
      keep: steps whose checkpoints are not deleted, however old.

    Raises:
      OSError: if the disk refuses; earlier checkpoints stay intact.
    """
    os.makedirs(self.directory, exist_ok=True)
    self._remove_leftovers()
    temporary = os.path.join(self.directory, f"tmp-{step:08d}")
    os.makedirs(temporary)
    try:
      with open(os.path.join(temporary, _STATE), "wb") as file:
        write_arrays(file, state)
        file.flush()
        os.fsync(file.fileno())
      manifest = {"format": _FORMAT, "step": step, "files": {
          _STATE: _sha256(os.path.join(temporary, _STATE))}, "extra": extra}
      manifest["sha256"] = _own_sha256(manifest)
      with open(os.path.join(temporary, _MANIFEST), "w",
                encoding="utf-8") as file:
        json.dump(manifest, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
      path = self._path(step)
      if os.path.isdir(path):  # an older, perhaps damaged one of this step
        os.rename(path, os.path.join(self.directory, f"tmp-old-{step:08d}"))
      os.rename(temporary, path)
    finally:
      self._remove_leftovers()
    for old in self.steps()[:-self._keep]:
      if old != step and old not in keep:
        shutil.rmtree(self._path(old), ignore_errors=True)  # the next will
    return path

  def latest(self, prefer: int | None = None) -> Checkpoint | None:
    """The newest intact checkpoint; None where none was ever written.

    Args:
      prefer: a step whose checkpoint comes before newer ones.

    Raises:
      InputError: if checkpoints exist but all are damaged.
    """
    problems = []
    for step in sorted(self.steps(), key=lambda s: (s == prefer, s),
                       reverse=True):
      try:
        return self._read(step)
      except (OSError, ValueError, KeyError, TypeError, EOFError,
              zipfile.BadZipFile) as error:
        problems.append(f"{self._path(step)}: {error}")
        logging.error("DAMAGED CHECKPOINT %s (%s); falling back to the next "
                      "newest", self._path(step), error)
    if problems:
      raise config_lib.InputError(
          f"every checkpoint is damaged ({'; '.join(problems)}); restore one "
          f"from a backup, or delete {self.directory} to start over")
    return None

  def _read(self, step: int) -> Checkpoint:
    path = self._path(step)
    with open(os.path.join(path, _MANIFEST), encoding="utf-8") as file:
      manifest = json.load(file)
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
      raise ValueError("not a manifest of this version")
    # The first ones had no checksum of their own.
    if manifest.pop("sha256", None) not in (None, _own_sha256(manifest)):
      raise ValueError(f"{_MANIFEST} does not match its checksum")
    if manifest["step"] != step:
      raise ValueError(f"the manifest says step {manifest['step']}")
    state_path = os.path.join(path, _STATE)
    if _sha256(state_path) != manifest["files"][_STATE]:
      raise ValueError(f"{_STATE} does not match its checksum")
    with np.load(state_path, allow_pickle=False) as arrays:
      state = {name: arrays[name] for name in arrays.files}
    return Checkpoint(step, state, manifest["extra"])

  def _path(self, step: int) -> str:
    path, old = (os.path.join(self.directory, f"{name}-{step:08d}")
                 for name in ("step", "tmp-old"))
    return old if os.path.isdir(old) and not os.path.isdir(path) else path

  def _remove_leftovers(self) -> None:
    for name in os.listdir(self.directory):
      if not name.startswith("tmp-"):
        continue
      path = os.path.join(self.directory, name)
      match = _NAME.match(name)
      if match and self._path(int(match.group(1))) == path:
        os.rename(path, os.path.join(self.directory, f"step-{match.group(1)}"))
      else:
        shutil.rmtree(path)


def write_arrays(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
  """As `np.savez`, which forgets an archive that a full disk cut short.

  Python would try to complete it some time later, and print a traceback.
  """
  with zipfile.ZipFile(file, "w") as archive:
    for name, array in arrays.items():
      with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(
            member, np.asanyarray(array), allow_pickle=False)


def _own_sha256(manifest: dict[str, Any]) -> str:
  return hashlib.sha256(
      json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: str) -> str:
  digest = hashlib.sha256()
  with open(path, "rb") as file:
    for block in iter(lambda: file.read(1 << 20), b""):
      digest.update(block)
  return digest.hexdigest()


def _variables(trainer: trainers.Trainer) -> dict[str, tf.Variable]:
  """All variables that make up a run's state, but for metrics, by name.

  `average/i` is the moving average of `network/i`.
  """
  optimizer = trainer.optimizer
  scale = []
  if isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer):
    if optimizer.dynamic:
      scale = [optimizer._loss_scale.current_loss_scale,  # pylint: disable=protected-access
               optimizer.dynamic_counter]
    optimizer = optimizer.inner_optimizer
  averages = averaging.averages(trainer)
  average_ids = {id(v) for v in averages.values()}
  groups = {
      "network": trainer.network.variables,
      "optimizer": [v for v in optimizer.variables
                    if id(v) not in average_ids],
      "loss_scale": scale, "step": [trainer.step_counter]}
  lagged = trainer.staleness.lagged
  for i, variables in enumerate(lagged.sets if lagged else ()):
    groups[f"lagged{i}"] = variables
  named = {f"{group}/{i:05d}": variable
           for group, variables in groups.items()
           for i, variable in enumerate(variables)}
  named.update({f"average/{i:05d}": v for i, v in averages.items()})
  return named


def capture(trainer: trainers.Trainer) -> dict[str, np.ndarray]:
  """Copies a trainer's whole state to the host.

  Held images are not part of it; the weights that made them are
  (`trainer.staleness.snapshot`), so that they can be made again.
  """
  state = {name: networks.read(variable)
           for name, variable in _variables(trainer).items()}
  for i, value in enumerate(trainer.staleness.snapshot):
    state[f"snapshot/{i:05d}"] = value
  if trainer.compressed.snapshot.size:
    state["residual"] = trainer.compressed.snapshot
  return state


def restore(trainer: trainers.Trainer, state: dict[str, np.ndarray],
            weights_only: bool = False) -> None:
  """Puts a captured state back.

  Args:
    trainer: compiled, of the same configuration.
    state: from `capture`.
    weights_only: for evaluation; leaves optimizer and lagged copies alone,
      and takes averaged weights in place of those that training goes on with,
      where the optimizer averages.

  Raises:
    InputError: if names or shapes do not fit the trainer.
  """
  variables = _variables(trainer)
  if weights_only:
    state = averaged(state)
    variables = {name: v for name, v in variables.items()
                 if name.startswith(("network/", "step/"))}
  elif not any(name.startswith("loss_scale/") for name in state):
    # The precision has changed: the scale starts anew.
    variables = {name: v for name, v in variables.items()
                 if not name.startswith("loss_scale/")}
  for name, variable in variables.items():
    if name not in state or state[name].shape != tuple(variable.shape):
      raise config_lib.InputError(
          f"the checkpoint has no {name} of shape {tuple(variable.shape)} "
          f"({variable.name}); it was written by another configuration")
  for name, variable in variables.items():
    variable.assign(state[name])
  if not weights_only:
    trainer.compressed.restore(state.get("residual"))
    names = sorted(n for n in state if n.startswith("snapshot/"))
    trainer.staleness.restore_snapshot([state[name] for name in names])


def averaged(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """A state whose network has the averaged weights that it holds, if any."""
  return {name: state.get(name.replace("network/", "average/"), value)
          for name, value in state.items()}
