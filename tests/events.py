"""Reads TensorBoard events back."""

from collections.abc import Iterator
import pathlib
from typing import Any

import numpy as np
from tensorboard.plugins.hparams import plugin_data_pb2
import tensorflow as tf


def _values(folder: pathlib.Path) -> Iterator[tuple[int, Any]]:
  for path in sorted(folder.glob('events.out.tfevents.*')):
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
      event = tf.compat.v1.Event.FromString(record)
      for value in event.summary.value:
        yield event.step, value


def scalars(folder: pathlib.Path) -> dict[str, dict[int, float]]:
  """Returns name -> step -> value."""
  read: dict[str, dict[int, float]] = {}
  for step, value in _values(folder):
    if value.metadata.plugin_data.plugin_name == 'scalars' or (
        value.tag in read):
      read.setdefault(value.tag, {})[step] = float(
          tf.make_ndarray(value.tensor))
  return read


def pictures(folder: pathlib.Path) -> dict[int, list[np.ndarray]]:
  """Returns step -> images, uint8 [h, w, c]."""
  read = {}
  for step, value in _values(folder):
    if value.metadata.plugin_data.plugin_name == 'images':
      # Width and height, as text, come before the PNG files.
      files = tf.make_ndarray(value.tensor)[2:]
      read[step] = [tf.io.decode_png(file).numpy() for file in files]
  return read


def hyperparameters(folder: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
  """Returns (name of the trial, key -> value) of each that was written."""
  read = []
  for _, value in _values(folder):
    if value.metadata.plugin_data.plugin_name == 'hparams':
      start = plugin_data_pb2.HParamsPluginData.FromString(
          value.metadata.plugin_data.content).session_start_info
      read.append((start.group_name, {
          key: getattr(found, found.WhichOneof('kind'))
          for key, found in start.hparams.items()}))
  return read
