"""Small problems, and where the real one lies."""

import gzip
import os
import pathlib

import numpy as np
import pytest

from tools import convex_problem

MUSHROOMS = pathlib.Path(os.environ.get('CONADV_DATA', ''), 'agaricus',
                         'agaricus.txt.train.gz')
needs_mushrooms = pytest.mark.skipif(
    not MUSHROOMS.exists(),
    reason='CONADV_DATA names no directory with agaricus/')


def indices(rows: int = 60, groups: int = 3) -> tuple[np.ndarray, np.ndarray]:
  """Columns of ones, int [rows, groups], one-hot of 3; labels, int [rows]."""
  generator = np.random.default_rng(0)
  values = generator.integers(3, size=(rows, groups))
  labels = (values[:, 0] + generator.integers(2, size=rows) > 1).astype(int)
  return values + 3 * np.arange(groups), labels


def problem(rows: int = 60, l2: float = 0.0) -> convex_problem.Problem:
  """One-hot features of which not all are independent."""
  columns, labels = indices(rows)
  features = np.zeros((rows, 9))
  np.put_along_axis(features, columns, 1.0, axis=1)
  return convex_problem.Problem(features, labels.astype(float), l2)


def write(path: pathlib.Path, rows: int = 60) -> None:
  """The same as a gzipped libsvm file."""
  path.write_bytes(gzip.compress(''.join(
      f'{label} ' + ' '.join(f'{column + 1}:1' for column in row) + '\n'
      for row, label in zip(*indices(rows))).encode()))
