"""The logistic regression against finite differences and the real data."""

import dataclasses
import gzip
import pathlib

import numpy as np
import pytest

from tests.tools import convex_data
from tools import convex_problem

_THETA = np.random.default_rng(1).normal(size=9)


def test_loss_by_hand() -> None:
  problem = convex_problem.Problem(np.array([[1.0, 0.0], [0.0, 2.0]]),
                                   np.array([1.0, 0.0]), l2=0.5)
  theta = np.array([1.0, 3.0])
  # -log sigmoid(1) and -log(1 - sigmoid(6)); 0.5 / 2 * 10
  assert problem.loss(theta) == pytest.approx(
      (np.log1p(np.exp(-1)) + np.log1p(np.exp(6))) / 2 + 2.5, rel=1e-12)
  assert problem.accuracy(theta) == 0.5
  assert convex_problem.sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [
      0.0, 0.5, 1.0]


@pytest.mark.parametrize('l2', [0.0, 0.3])
def test_gradient_and_hessian_are_those_of_the_loss(l2: float) -> None:
  problem, step = convex_data.problem(l2=l2), 1e-5
  units = step * np.eye(9)
  slopes = [(problem.loss(_THETA + unit) - problem.loss(_THETA - unit))
            / (2 * step) for unit in units]
  np.testing.assert_allclose(problem.gradient(_THETA), slopes, atol=1e-9)
  columns = [(problem.gradient(_THETA + unit) - problem.gradient(
      _THETA - unit)) / (2 * step) for unit in units]
  hessian = problem.hessian(_THETA)
  np.testing.assert_allclose(hessian, columns, atol=1e-9)
  vector = np.arange(9.0)
  np.testing.assert_allclose(problem.hessian_product(_THETA, vector),
                             hessian @ vector, rtol=1e-12)
  vector = _THETA
  for _ in range(200):
    vector = problem.hessian_product(_THETA, vector)
    vector /= np.linalg.norm(vector)
  assert problem.top_eigenvalue(_THETA) == pytest.approx(
      vector @ hessian @ vector, rel=1e-9)


def test_the_mean_of_the_rows_gradients_is_the_gradient() -> None:
  problem = convex_data.problem(l2=0.1)
  rows = [problem.gradient(_THETA, np.array([row]))
          for row in range(problem.rows)]
  np.testing.assert_allclose(np.mean(rows, axis=0), problem.gradient(_THETA),
                             atol=1e-14)


def test_the_minimum_has_no_slope() -> None:
  problem = convex_data.problem(l2=0.1)
  theta, loss = problem.minimum()
  assert np.linalg.norm(problem.gradient(theta)) < 1e-12
  assert loss == problem.loss(theta) < problem.loss(theta + 1e-3 * _THETA)
  with pytest.raises(ValueError, match='need be no minimum'):
    convex_data.problem().minimum()


def test_adversarial_rows_raise_the_loss_within_the_features_range() -> None:
  theta = np.array([2.0, -1.0, 0.0])
  x, y = np.array([[0.5, 0.5, 0.5], [1.0, 0.0, 0.0]]), np.array([1.0, 0.0])
  # The label 1 wants z up, so the attack takes it down, and for 0 up.
  np.testing.assert_allclose(
      convex_problem.adversarial(theta, x, y, 0.1),
      [[0.4, 0.6, 0.5], [1.0, 0.0, 0.0]])
  np.testing.assert_array_equal(
      convex_problem.adversarial(theta, x, y, 0.0), x)
  problem = convex_data.problem()
  moved = convex_problem.adversarial(_THETA, problem.features, problem.labels,
                                     0.05)
  assert dataclasses.replace(problem, features=moved).loss(
      _THETA) > problem.loss(_THETA) + 0.01


def test_libsvm(tmp_path: pathlib.Path) -> None:
  path = tmp_path / 'small.gz'
  convex_data.write(path)
  read, made = convex_problem.read_libsvm(path, 9), convex_data.problem()
  np.testing.assert_array_equal(read.features, made.features)
  np.testing.assert_array_equal(read.labels, made.labels)


@pytest.mark.parametrize('text, part', [
    ('1 1:1\n2 1:1\n', 'small.gz:2: label 2'),
    ('1 10:1\n', 'small.gz:1: index 10'), ('1 0:1\n', 'index 0'),
    ('1 1\n', 'small.gz:1'), ('\n', 'small.gz:1'), ('', 'has no rows')])
def test_damaged_files_are_named(tmp_path: pathlib.Path, text: str,
                                 part: str) -> None:
  path = tmp_path / 'small.gz'
  path.write_bytes(gzip.compress(text.encode()))
  with pytest.raises(ValueError, match=part):
    convex_problem.read_libsvm(path, 9)
  for content in (b'no gzip', gzip.compress(b'1 1:1\n' * 99)[:-20]):
    path.write_bytes(content)
    with pytest.raises(ValueError, match='small.gz'):
      convex_problem.read_libsvm(path, 9)


@convex_data.needs_mushrooms
def test_the_mushrooms() -> None:
  problem = convex_problem.read_libsvm(convex_data.MUSHROOMS)
  assert problem.features.shape == (6513, 126)
  # 22 attributes, one-hot: each row has 22 ones; 117 values occur.
  assert set(problem.features.sum(axis=1)) == {22.0}
  assert np.sum(problem.features.any(axis=0)) == 117
  assert np.linalg.matrix_rank(problem.features) == 86
  assert problem.gram[-1] / 4 == pytest.approx(2.668, abs=1e-3)
