"""Labels that a trained run gives to images, and their file; no flags."""

import os

import numpy as np
import tensorflow as tf

from conadv_tf import experiment as experiments
from conadv_tf.config import InputError
from conadv_tf.data import checks, npz, pipeline
from conadv_tf.data import source as sources


def images(experiment: experiments.Experiment, path: str
           ) -> sources.ArraySource:
  """Reads the x_train of a file; its labels, if it has any, are ignored.

  Args:
    experiment: of the run that is to label them.
    path: an .npz file.

  Raises:
    InputError: if it cannot be read, or the run's model takes images of
      another shape. A run with `data.image_size` resizes them to it.
  """
  arrays = npz.read(path, ("x_train",), "--data")
  found = checks.check_images(arrays["x_train"], f"--data={path} (x_train)")
  train = experiment.splits.train
  source = sources.ArraySource(
      found, np.zeros(len(found), np.int32), num_classes=train.num_classes)
  shape = _fitting(experiment, source).image_shape
  if shape != train.image_shape:
    raise InputError(
        f"--data={path}: its images have the shape {shape}, those of the run "
        f"{train.image_shape}; make them equal")
  return source


def _fitting(experiment: experiments.Experiment, source: sources.ArraySource
             ) -> sources.DecodedSource:
  return sources.resize(source, experiment.config.data.image_size)


def predict(experiment: experiments.Experiment, source: sources.ArraySource
            ) -> tuple[np.ndarray, np.ndarray]:
  """Clean predictions: clean branch, moving statistics.

  Args:
    experiment: restored.
    source: n images.

  Returns:
    The likeliest class of each image, uint8 [n] or with more than 256 classes
    int64, and its probability, float32 [n].
  """
  @tf.function(autograph=False)
  def probabilities(batch: tf.Tensor) -> tf.Tensor:
    outputs = tf.cast(experiment.trainer(batch, training=False), tf.float32)
    return tf.nn.softmax(outputs) if experiment.outputs == "logits" else outputs

  found = np.concatenate([
      probabilities(batch).numpy() for batch, _, _ in
      pipeline.evaluation_dataset(
          _fitting(experiment, source),
          experiment.config.evaluation.batch_size)])[:source.num_examples]
  dtype = np.uint8 if found.shape[1] <= 256 else np.int64
  return found.argmax(1).astype(dtype), found.max(1)


def write(path: str, **arrays: np.ndarray) -> None:
  """Writes an .npz file, all of it or nothing.

  Raises:
    InputError: if the disk refuses.
  """
  partial = f"{path}.partial"
  try:
    with open(partial, "wb") as file:
      np.savez(file, **arrays)
    os.replace(partial, path)
  except OSError as error:
    if os.path.exists(partial):
      os.remove(partial)
    raise InputError(
        f"--output={path} cannot be written: {error.strerror}") from error


def label(experiment: experiments.Experiment, data: str, output: str,
          min_confidence: float = 0.0) -> tuple[int, int]:
  """Labels a file's images and writes those that are sure enough.

  Args:
    experiment: restored.
    data: an .npz file with x_train.
    output: gets x_train, y_train and confidence, in the order of `data`.
    min_confidence: probability below which an image is left out; 0 keeps all.

  Returns:
    How many images were kept, and how many there were.

  Raises:
    InputError: see `images`; or no image is left.
  """
  source = images(experiment, data)
  labels, confidence = predict(experiment, source)
  kept = np.flatnonzero(confidence >= min_confidence)
  if not len(kept):
    raise InputError(
        f"--min_confidence={min_confidence:g}: no image reaches it; the most "
        f"confident has {confidence.max():.4f}")
  write(output, x_train=source.read(tf.constant(kept))[0].numpy(),
        y_train=labels[kept], confidence=confidence[kept])
  return len(kept), len(labels)
