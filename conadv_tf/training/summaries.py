"""TensorBoard events of a run: scalars, pictures, hyperparameters."""

from collections.abc import Callable, Mapping
import contextlib
import logging
import os
from typing import Any

from tensorboard.plugins.hparams import api as hparams
import tensorflow as tf

# Where TensorBoard looks for the figures by which it compares runs.
_COMPARED = "validation"
_SIZE = "examples"  # of the data that was evaluated: no curve


class Summaries:
  """Writers for `train/` and `validation/` under the run directory."""

  def __init__(self, directory: str, writes: bool = True,
               hyperparameters: Mapping[str, Any] | None = None):
    """Writers are opened when first used; without `writes` never.

    Args:
      directory: of the run.
      writes: False where another process does.
      hyperparameters: for the tab HParams, beside the validation figures.
    """
    self._writes = writes
    self._hyperparameters = hyperparameters
    self._directory = directory
    self._writers: dict[str, tf.summary.SummaryWriter] = {}

  def _write(self, split: str, step: int, write: Callable[[], None]) -> None:
    """Makes events go to this writer; a full disk costs them and no more."""
    if not self._writes:
      return
    try:
      new = split not in self._writers
      if new:
        self._writers[split] = tf.summary.create_file_writer(
            os.path.join(self._directory, split))
      with self._writers[split].as_default(step=step):
        if new and split == _COMPARED and self._hyperparameters:
          # Named after the run, else TensorBoard shows a hash.
          hparams.hparams(self._hyperparameters, trial_id=self._directory)
        write()
        self._writers[split].flush()
    except tf.errors.OpError as error:
      logging.warning("TensorBoard events of update %d are lost: %s", step,
                      (error.message or "").split("\n")[0])

  def scalars(self, split: str, step: int, values: dict[str, float]) -> None:
    """Writes scalars at an update; names as in the logs of `fit`."""
    def write() -> None:
      for name, value in values.items():
        if name != _SIZE:
          tf.summary.scalar(name, value)

    self._write(split, step, write)

  def pictures(self, step: int, clean: tf.Tensor, adversarial: tf.Tensor,
               pixel_range: tuple[float, float]) -> None:
    """Writes rows of (clean, amplified perturbation, adversarial) images.

    Args:
      step: updates made.
      clean: [b, h, w, c] in the pixel range.
      adversarial: float32, as `clean`.
      pixel_range: smallest and largest pixel value.
    """
    low, high = pixel_range
    clean = (tf.cast(clean, tf.float32) - low) / (high - low)
    adversarial = (adversarial - low) / (high - low)
    delta = adversarial - clean
    # The largest component spans half the range around grey.
    scale = tf.maximum(tf.reduce_max(tf.abs(delta)), 1e-6)
    rows = tf.concat([clean, 0.5 + 0.5 * delta / scale, adversarial], axis=2)
    rows = tf.repeat(tf.repeat(rows, 4, axis=1), 4, axis=2) if (
        rows.shape[1] < 64) else rows
    if rows.shape[-1] not in (1, 3, 4):
      return
    self._write("train", step, lambda: tf.summary.image(
        "clean, perturbation, adversarial", tf.clip_by_value(rows, 0.0, 1.0),
        max_outputs=rows.shape[0]))

  def close(self) -> None:
    """Writes out what is buffered."""
    for writer in self._writers.values():
      with contextlib.suppress(tf.errors.OpError):
        writer.close()
