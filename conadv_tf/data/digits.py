"""The digits of scikit-learn: 1,797 grey 8x8 images, no download."""

import numpy as np

from conadv_tf.config import DataConfig
from conadv_tf.data import source

_NUM_CLASSES = 10
_FOLDS = 5


def load(data: DataConfig) -> source.Splits:
  """Loads the digits.

  The split is fixed: of each class, every fifth example is for validation.
  So results of different runs compare, and no random generator of a library
  can move the split.

  Args:
    data: uses image_size (null or 8), num_classes (null or >= 10) and
      num_examples.

  Returns:
    1,442 training and 355 validation images, uint8 [8, 8, 1], scaled from
    0..16 to 0..255.

  Raises:
    InputError: image_size, num_classes or num_examples do not fit.
  """
  from sklearn import datasets  # Slow to import.

  num_classes = (
      _NUM_CLASSES if data.num_classes is None else data.num_classes)
  bunch = datasets.load_digits()
  images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
  labels = bunch.target.astype(np.int32)
  held_out = np.zeros(len(labels), bool)
  for label in range(_NUM_CLASSES):
    held_out[np.flatnonzero(labels == label)[_FOLDS - 1::_FOLDS]] = True
  splits = [
      source.ArraySource(
          images[rows], labels[rows], where='digits',
          num_classes=num_classes,
          class_names=[str(i) for i in range(_NUM_CLASSES)],
          image_size=data.image_size)
      for rows in (~held_out, held_out)]
  return source.Splits(
      source.truncate(splits[0], data.num_examples), splits[1])
