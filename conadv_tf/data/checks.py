"""Checks of arrays that users bring."""

from collections.abc import Sequence
import re

import numpy as np

from conadv_tf.config import InputError

_MAX_CLASSES = 2**31 - 1


def check_images(
    images: np.ndarray, where: str, image_size: int | None = None
) -> np.ndarray:
  """Returns uint8 [n, h, w, c]; raises InputError for anything else."""
  if images.dtype != np.uint8:
    raise InputError(
        f'{where}: images are {images.dtype}; store them as uint8, 0 to 255.')
  if images.ndim == 3:
    images = images[..., None]
  if images.ndim != 4 or 0 in images.shape[1:]:
    raise InputError(
        f'{where}: images have shape {images.shape}; need [n, height, width] '
        'or [n, height, width, channels].')
  if not len(images):
    raise InputError(f'{where}: has no examples; need at least 1.')
  check_image_size(images.shape[1:], image_size, where)
  return np.ascontiguousarray(images)


def check_image_size(
    shape: Sequence[int], image_size: int | None, where: str) -> None:
  """Raises InputError unless images already have the size asked for."""
  if image_size is not None and tuple(shape[:2]) != (image_size, image_size):
    raise InputError(
        f'data.image_size={image_size}: the images of {where} are {shape[0]} x '
        f'{shape[1]} and are not resized; leave it null.')


def check_label_array(
    labels: np.ndarray, where: str, num_classes: int | None = None
) -> np.ndarray:
  """Checks everything about labels but their range.

  Args:
    labels: integers [n] or [n, 1].
    where: what they belong to, for error messages.
    num_classes: how many classes there are, if known.

  Returns:
    The labels, [n], dtype unchanged.

  Raises:
    InputError: not integers, wrong rank or none at all; num_classes below 1.
  """
  if num_classes is not None and num_classes < 1:
    raise InputError(f'data.num_classes={num_classes}: must be at least 1.')
  labels = np.asarray(labels)
  if labels.ndim == 2 and labels.shape[1] == 1:
    labels = labels[:, 0]
  if labels.ndim != 1:
    raise InputError(
        f'{where}: labels have shape {labels.shape}; need [n] or [n, 1].')
  if not len(labels):
    raise InputError(f'{where}: has no examples; need at least 1.')
  if labels.dtype.kind not in 'iu':
    raise InputError(
        f'{where}: labels are {labels.dtype}; need integer class numbers.')
  return labels


def check_labels(
    labels: np.ndarray, where: str, num_classes: int | None = None
) -> np.ndarray:
  """Checks labels: see `check_label_array`, and each lies in its range.

  Args:
    labels: integers [n] or [n, 1].
    where: what they belong to, for error messages.
    num_classes: labels must lie in 0 .. num_classes-1; None means >= 0.

  Returns:
    The labels, [n], dtype unchanged.

  Raises:
    InputError: also for a label out of range.
  """
  labels = check_label_array(labels, where, num_classes)
  limit = num_classes or _MAX_CLASSES
  bad = np.flatnonzero((labels < 0) | (labels >= limit))
  if len(bad):
    raise InputError(
        f'{where}: label {bad[0]} is {labels[bad[0]]}, outside 0 .. '
        f'{limit - 1}; correct it or set data.num_classes.')
  return labels


def label_reason(label: int, num_classes: int) -> str:
  """Returns why an example with a label out of range is a bad one."""
  return f'its label is {label}, outside 0 .. {num_classes - 1}'


def check_count(
    split: str, stated: int | None, found: int, where: str) -> None:
  """Raises InputError unless `data.<split>_examples` is null or `found`."""
  if stated not in (None, found):
    raise InputError(
        f'data.{split}_examples={stated}: {where} has {found} examples; bring '
        'what is missing, or correct the number.')


def first_line(error: BaseException) -> str:
  """Returns the first line of an error, for use inside another's."""
  text = str(getattr(error, 'message', '') or error)
  # TensorFlow puts the names of its nodes in front.
  text = re.sub(r'\{\{.*?\}\}|\[Op:.*', '', text)
  lines = text.strip().splitlines()
  return lines[0].strip() if lines else type(error).__name__
