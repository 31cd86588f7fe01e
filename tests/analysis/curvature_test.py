"""Eigenvalues found by products, against those of dense matrices."""

import numpy as np
import pytest

from conadv_tf.analysis import curvature


def matrix(values: list[float], seed: int = 0) -> np.ndarray:
  """A symmetric matrix with these eigenvalues and random eigenvectors."""
  random = np.random.default_rng(seed)
  vectors, _ = np.linalg.qr(random.standard_normal([len(values)] * 2))
  return (vectors * values) @ vectors.T


def spread(size: int, top: float) -> list[float]:
  """Like a network's: many near 0, one that stands out."""
  return [*np.random.default_rng(1).normal(0, 0.02 * abs(top), size - 1), top]


@pytest.mark.parametrize("top", [5.0, -5.0, 1e-12, 1e12])
def test_power_iteration_gives_the_signed_value(top: float) -> None:
  dense = matrix(spread(40, top))
  found = curvature.top_eigenvalue(lambda v: dense @ v, 40, seed=3)
  assert found.value == pytest.approx(top, rel=1e-4)
  assert found.converged and found.iterations < 10
  np.testing.assert_allclose(
      dense @ found.vector, top * found.vector, atol=0.01 * abs(top))
  assert np.linalg.norm(found.vector) == pytest.approx(1)


def test_power_iteration_by_hand() -> None:
  """One twin of the update rule: v <- Hv / |Hv|, quotient v'Hv."""
  dense = matrix([3.0, 2.0, 1.0])
  v = np.random.default_rng(7).standard_normal(3)
  for _ in range(4):
    v = v / np.linalg.norm(v)
    quotient, v = v @ dense @ v, dense @ v
  found = curvature.top_eigenvalue(
      lambda v: dense @ v, 3, seed=7, iterations=4, tolerance=0)
  assert found.value == pytest.approx(quotient, rel=1e-12)
  assert (found.iterations, found.converged) == (4, False)


def test_it_stops_by_tolerance_or_limit() -> None:
  dense = matrix(np.linspace(0, 1, 50).tolist())
  needed = [curvature.top_eigenvalue(
      lambda v: dense @ v, 50, seed=0, iterations=1000, tolerance=tolerance)
            for tolerance in (1e-1, 1e-2, 1e-4, 1e-6)]
  counts = [found.iterations for found in needed]
  assert counts == sorted(set(counts)) and counts[-1] < 1000
  assert all(found.converged for found in needed)
  calls = []
  found = curvature.top_eigenvalue(
      lambda v: calls.append(1) or dense @ v, 50, seed=0, iterations=5)
  assert len(calls) == found.iterations == 5 and not found.converged


def test_the_paper_s_limits_may_stop_below_one_per_cent() -> None:
  """10 products and 1e-2 are not enough where eigenvalues lie close."""
  dense = matrix(np.linspace(0, 1, 50).tolist())
  rough = curvature.top_eigenvalue(
      lambda v: dense @ v, 50, seed=0, iterations=10, tolerance=1e-2)
  fine = curvature.top_eigenvalue(lambda v: dense @ v, 50, seed=0)
  assert 0.8 < rough.value < 0.99
  assert fine.value == pytest.approx(1, rel=0.01)


def test_two_of_opposite_sign_are_not_called_converged() -> None:
  """The quotient is constant, and no eigenvalue."""
  dense = matrix([2.0, -2.0, 0.1])
  found = curvature.top_eigenvalue(lambda v: dense @ v, 3, seed=0)
  assert abs(found.value) < 1.9
  assert not found.converged


def test_zero_matrix() -> None:
  found = curvature.top_eigenvalue(np.zeros_like, 5, seed=0)
  assert (found.value, found.iterations, found.converged) == (0.0, 1, True)
  assert curvature.lanczos(np.zeros_like, 5, seed=0, steps=4
                           ).values.tolist() == [0.0]


def test_one_number() -> None:
  assert curvature.top_eigenvalue(lambda v: -3 * v, 1, seed=0).value == -3
  spectrum = curvature.lanczos(lambda v: -3 * v, 1, seed=0, steps=9)
  assert spectrum.values.tolist() == [-3.0]


def test_lanczos_finds_all_eigenvalues_in_as_many_steps() -> None:
  values = np.sort(np.random.default_rng(5).normal(size=30))
  dense = matrix(values.tolist())
  spectrum = curvature.lanczos(lambda v: dense @ v, 30, seed=1, steps=99)
  np.testing.assert_allclose(spectrum.values, values, atol=1e-10)
  # The squared parts of the start in the eigenvectors.
  start = np.random.default_rng(1).standard_normal(30)
  start /= np.linalg.norm(start)
  np.testing.assert_allclose(
      spectrum.weights, (np.linalg.eigh(dense)[1].T @ start) ** 2, atol=1e-10)
  assert spectrum.weights.sum() == pytest.approx(1)
  assert np.abs(spectrum.errors).max() < 1e-9


def test_lanczos_keeps_its_basis_orthogonal() -> None:
  """Without reorthogonalisation copies of the top value appear."""
  dense = matrix([100.0, 50.0, *np.linspace(-1, 1, 98)])
  spectrum = curvature.lanczos(lambda v: dense @ v, 100, seed=0, steps=60)
  assert spectrum.largest(2) == pytest.approx([100, 50], rel=1e-12)
  assert np.abs(spectrum.values[:-2]).max() < 1.0001


def test_lanczos_ends_early_once_the_wanted_ones_are_found() -> None:
  dense = matrix([-9.0, 7.0, 5.0, *np.linspace(-1, 1, 97)])
  calls = []
  spectrum = curvature.lanczos(
      lambda v: calls.append(1) or dense @ v, 100, seed=0, steps=90, wanted=3)
  assert spectrum.largest(3) == pytest.approx([-9, 7, 5], rel=1e-4)
  assert len(calls) == len(spectrum.values) < 25
  # Each error bounds the distance to an eigenvalue.
  gaps = np.abs(spectrum.values[:, None] - np.linalg.eigvalsh(dense)).min(1)
  assert (gaps <= spectrum.errors + 1e-9).all()


def test_lanczos_finds_a_multiple_eigenvalue_once() -> None:
  dense = matrix([4.0] * 3 + [1.0] * 5)
  spectrum = curvature.lanczos(lambda v: dense @ v, 8, seed=0, steps=8)
  assert spectrum.values.tolist() == pytest.approx([1, 4])


def test_density() -> None:
  one = curvature.Spectrum(np.array([0.0, 10.0]), np.array([0.75, 0.25]),
                           np.zeros(2))
  grid = np.linspace(-5, 15, 2001)
  drawn = curvature.density([one], grid, 0.5)
  assert np.trapz(drawn, grid) == pytest.approx(1, abs=1e-9)
  peak = 1 / (0.5 * np.sqrt(2 * np.pi))
  assert drawn[500] == pytest.approx(0.75 * peak)  # at 0
  assert drawn[1500] == pytest.approx(0.25 * peak)  # at 10
  other = curvature.Spectrum(np.array([0.0]), np.ones(1), np.zeros(1))
  assert curvature.density([one, other], grid, 0.5)[500] == pytest.approx(
      (0.75 + 1) / 2 * peak)


def test_density_is_that_of_the_matrix() -> None:
  """The mean over starts of quadrature is the trace of a function / n."""
  values = np.linspace(-1, 3, 200)
  dense = matrix(values.tolist())
  spectra = [curvature.lanczos(lambda v: dense @ v, 200, seed=seed, steps=40)
             for seed in range(20)]
  grid = np.array([0.0, 1.0, 2.0])
  exact = np.exp(-0.5 * ((grid[:, None] - values) / 0.3) ** 2).mean(1) / (
      0.3 * np.sqrt(2 * np.pi))
  np.testing.assert_allclose(
      curvature.density(spectra, grid, 0.3), exact, rtol=0.05)


def test_not_finite() -> None:
  for number in (np.nan, np.inf):
    for estimate in (
        lambda f: curvature.top_eigenvalue(f, 3, seed=0),
        lambda f: curvature.lanczos(f, 3, seed=0, steps=2)):
      with pytest.raises(curvature.NotFinite, match="not finite") as error:
        estimate(lambda v, n=number: v * n)
      assert error.value.exit_code == 3


def test_bad_arguments() -> None:
  for size, limit, tolerance in ((0, 1, 0.1), (3, 0, 0.1), (3, 1, -0.1),
                                 (3, 1, np.nan)):
    with pytest.raises(ValueError, match="at least 1 product"):
      curvature.top_eigenvalue(np.copy, size, seed=0, iterations=limit,
                               tolerance=tolerance)
    with pytest.raises(ValueError, match="at least 1 product"):
      curvature.lanczos(np.copy, size, seed=0, steps=limit,
                        tolerance=tolerance)
  with pytest.raises(ValueError, match="positive sigma"):
    curvature.density([], np.zeros(1), 1.0)
