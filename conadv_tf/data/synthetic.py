"""Made-up images that a network can learn, for tests and benchmarks."""

import numpy as np

from conadv_tf.config import DataConfig, InputError
from conadv_tf.data import source

_SEED = 20230
_CHUNK = 256  # Images at a time, so that wide temporaries stay small.


def load(data: DataConfig) -> source.Splits:
  """Makes the data; the same arguments always give the same images.

  Each class is a fixed pattern of 4 x 4 coloured patches on mid grey, and
  each image is its class's pattern under uniform noise of 64/255 either way.

  Args:
    data: uses image_size (default 32), num_classes (default 10) and
      num_examples (size of the training set, default 1024).

  Returns:
    Splits of RGB images, uint8 [s, s, 3], classes equally frequent; the
    validation set has a quarter of the training set's size.

  Raises:
    InputError: a number is below 1.
  """
  size = 32 if data.image_size is None else data.image_size
  classes = 10 if data.num_classes is None else data.num_classes
  count = 1024 if data.num_examples is None else data.num_examples
  for key, value in (('image_size', size), ('num_classes', classes),
                     ('num_examples', count)):
    if value < 1:
      raise InputError(f'data.{key}={value}: must be at least 1.')
  generator = np.random.default_rng([_SEED, size, classes])
  patches = generator.integers(0, 129, (classes, 4, 4, 3), np.uint8)
  place = np.arange(size) * 4 // size
  patterns = patches[:, place][:, :, place]
  train, validation = (
      _make(patterns, n, np.random.default_rng([_SEED, size, classes, part]))
      for part, n in enumerate((count, max(1, count // 4))))
  return source.Splits(train, validation)


def _make(
    patterns: np.ndarray, count: int, generator: np.random.Generator
) -> source.ArraySource:
  """Draws `count` examples of uint8 patterns [classes, s, s, 3]."""
  classes = len(patterns)
  labels = generator.permutation(np.arange(count) % classes)
  images = np.empty((count,) + patterns.shape[1:], np.uint8)
  for start in range(0, count, _CHUNK):
    chunk = patterns[labels[start:start + _CHUNK]]
    # 0 + 127 and 128 + 127 lie inside 0..255: no pixel needs clipping.
    images[start:start + _CHUNK] = chunk + generator.integers(
        0, 128, chunk.shape, np.uint8)
  return source.ArraySource(
      images, labels, num_classes=classes, where='synthetic')
