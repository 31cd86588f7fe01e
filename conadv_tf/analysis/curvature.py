"""Eigenvalues of a symmetric matrix that is known by its products alone.

On the host, in float64, whatever computes the products: `analysis.hessian`
makes them of a network's Hessian. Power iteration is what ABSA uses (Yao et
al., 2018, section 4 and Algorithm 1); Lanczos with full reorthogonalisation
gives several eigenvalues for the same number of products, and the spectral
density by stochastic Lanczos quadrature (Ghorbani et al., 2019).
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import numpy as np

from conadv_tf import exits

# float64 [size] -> [size], linear and symmetric.
Product = Callable[[np.ndarray], np.ndarray]

# Of a stand-alone estimate. The paper's 10 products and 1e-2 can stop some
# per cent below the eigenvalue.
ITERATIONS = 100
TOLERANCE = 1e-4


class NotFinite(exits.Diverged):
  """A Hessian product, and so the estimate, is not finite."""


@dataclasses.dataclass(frozen=True)
class Eigenvalue:
  """An estimate of the eigenvalue of largest magnitude.

  Attributes:
    value: with its sign.
    vector: float64 [size], of length 1: what `value` is the Rayleigh
      quotient of.
    iterations: products that were made.
    converged: whether the tolerance was met within them.
  """

  value: float
  vector: np.ndarray
  iterations: int
  converged: bool


@dataclasses.dataclass(frozen=True)
class Spectrum:
  """What Lanczos has found from one random start.

  Attributes:
    values: float64 [k], estimated eigenvalues, rising. The outermost ones
      converge first; a multiple one is found once.
    weights: float64 [k], the squared part of each in the start, sum 1.
    errors: float64 [k]; an eigenvalue lies within this of each value.
  """

  values: np.ndarray
  weights: np.ndarray
  errors: np.ndarray

  def largest(self, count: int) -> list[float]:
    """The `count` values of largest magnitude, largest first."""
    order = np.argsort(-np.abs(self.values), kind="stable")
    return self.values[order[:count]].tolist()


def top_eigenvalue(product: Product, size: int, *, seed: int,
                   iterations: int = ITERATIONS,
                   tolerance: float = TOLERANCE) -> Eigenvalue:
  """Finds the eigenvalue of largest magnitude by power iteration.

  It ends when the Rayleigh quotient changes by at most `tolerance` times its
  value (the rule of the authors' code) and the residual's length is at most
  sqrt(tolerance) times it. The second rule is ours: of two eigenvalues of
  like magnitude and opposite sign the quotient gives a constant mixture.

  Args:
    product: of the matrix.
    size: of its vectors.
    seed: of the start, standard normal numbers.
    iterations: limit of products, at least 1.
    tolerance: relative; 0 uses up all iterations.

  Raises:
    NotFinite: if a product is not finite.
    ValueError: for a size or limit below 1, or a negative tolerance.
  """
  _check(size, iterations, tolerance)
  vector, previous = _start(size, seed), None
  for iteration in range(1, iterations + 1):
    image = _finite(product(vector))
    value, length = float(vector @ image), float(np.linalg.norm(image))
    if length == 0.0:  # the zero matrix, but for a miracle
      return Eigenvalue(0.0, vector, iteration, True)
    residual = float(np.linalg.norm(image - value * vector))
    if (previous is not None
        and abs(value - previous) <= tolerance * abs(value)
        and residual <= np.sqrt(tolerance) * abs(value)):
      return Eigenvalue(value, vector, iteration, True)
    if iteration < iterations:
      vector, previous = image / length, value
  return Eigenvalue(value, vector, iterations, False)


def lanczos(product: Product, size: int, *, seed: int, steps: int,
            wanted: int = 0, tolerance: float = TOLERANCE) -> Spectrum:
  """Runs Lanczos with full reorthogonalisation from a random start.

  Holds steps * size float64 numbers.

  Args:
    product: of the matrix.
    size: of its vectors.
    seed: of the start.
    steps: limit of products; never more than `size` are made.
    wanted: ends early once so many values of largest magnitude are within
      `tolerance` times the largest; 0 makes all steps.
    tolerance: relative, for `wanted`.

  Raises:
    NotFinite: if a product is not finite.
    ValueError: for a size or limit below 1, or a negative tolerance.
  """
  _check(size, steps, tolerance)
  basis, diagonal, beside = [_start(size, seed)], [], []
  while True:
    image = _finite(product(basis[-1]))
    diagonal.append(float(basis[-1] @ image))
    for _ in range(2):  # once leaves rounding errors that grow
      for vector in basis:
        image = image - (vector @ image) * vector
    length = float(np.linalg.norm(image))
    spectrum = _ritz(diagonal, beside, length)
    scale = float(np.abs(spectrum.values).max())
    # Within rounding the start lies in the span of so many eigenvectors.
    if (len(diagonal) == min(steps, size) or length <= 1e-12 * scale
        or length == 0.0
        or _are_found(spectrum, wanted, tolerance * scale)):
      return spectrum
    beside.append(length)
    basis.append(image / length)


def figures(product: Product, size: int, *, seed: int,
            iterations: int = ITERATIONS, tolerance: float = TOLERANCE,
            eigenvalues: int = 0) -> dict[str, Any]:
  """What is reported of a matrix, ready for JSON.

  Args:
    product: of the matrix.
    size: of its vectors.
    seed: of the starts.
    iterations: limit of products, of power iteration and of Lanczos.
    tolerance: relative, as in `top_eigenvalue`.
    eigenvalues: > 0 adds so many of largest magnitude, by Lanczos.

  Returns:
    `top_eigenvalue`, `iterations`, `converged` and `parameters` (the size);
    with eigenvalues also these and the spectrum that they are from, as
    `ritz_values` and `ritz_weights`.

  Raises:
    NotFinite: if a product is not finite.
    ValueError: if an argument is out of range.
  """
  check(size, iterations, tolerance, eigenvalues)
  top = top_eigenvalue(product, size, seed=seed, iterations=iterations,
                       tolerance=tolerance)
  found = {"top_eigenvalue": top.value, "iterations": top.iterations,
           "converged": top.converged, "parameters": size}
  if eigenvalues:
    spectrum = lanczos(product, size, seed=seed, steps=iterations,
                       wanted=eigenvalues, tolerance=tolerance)
    found |= {"eigenvalues": spectrum.largest(eigenvalues),
              "ritz_values": spectrum.values.tolist(),
              "ritz_weights": spectrum.weights.tolist()}
  return found


def _ritz(diagonal: Sequence[float], beside: Sequence[float], length: float
          ) -> Spectrum:
  """Eigenvalues of the tridiagonal matrix; `length` is the next one beside."""
  matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
  values, vectors = np.linalg.eigh(matrix)
  return Spectrum(values, vectors[0] ** 2, length * np.abs(vectors[-1]))


def _are_found(spectrum: Spectrum, wanted: int, error: float) -> bool:
  order = np.argsort(-np.abs(spectrum.values))[:wanted]
  return bool(0 < wanted <= len(spectrum.values)
              and np.all(spectrum.errors[order] <= error))


def density(spectra: Sequence[Spectrum], grid: np.ndarray, sigma: float
            ) -> np.ndarray:
  """Spectral density by stochastic Lanczos quadrature.

  The mean over random starts of sum_i weight_i * N(grid; value_i, sigma^2).

  Args:
    spectra: one for each start.
    grid: float64 [n], where the density is wanted.
    sigma: width of the Gaussians, in units of eigenvalues, above 0.

  Returns:
    float64 [n]; its integral over all numbers is 1.

  Raises:
    ValueError: if there are no spectra or sigma is not positive.
  """
  if not spectra or not sigma > 0:
    raise ValueError("a density needs a spectrum or more and a positive "
                     f"sigma; got {len(spectra)} and {sigma}")
  total = np.zeros(len(grid))
  for spectrum in spectra:
    distance = (grid[:, np.newaxis] - spectrum.values) / sigma
    total += np.exp(-0.5 * distance ** 2) @ spectrum.weights
  return total / (len(spectra) * sigma * np.sqrt(2.0 * np.pi))


def check(size: int, iterations: int, tolerance: float,
          eigenvalues: int = 0) -> None:
  """Raises ValueError for arguments that `figures` refuses."""
  _check(size, iterations, tolerance)
  if eigenvalues < 0 or eigenvalues > min(size, iterations):
    raise ValueError(
        f"{eigenvalues} eigenvalues of a matrix of {size} rows by {iterations} "
        "products; there cannot be more than either")


def _check(size: int, limit: int, tolerance: float) -> None:
  if size < 1 or limit < 1 or not tolerance >= 0:
    raise ValueError(
        "an estimate needs a vector of at least 1 number, at least 1 product "
        f"and a tolerance of at least 0; got {size}, {limit}, {tolerance}")


def _start(size: int, seed: int) -> np.ndarray:
  vector = np.random.default_rng(seed).standard_normal(size)
  return vector / np.linalg.norm(vector)


def _finite(image: np.ndarray) -> np.ndarray:
  image = np.asarray(image, np.float64)
  if not np.isfinite(image).all():
    raise NotFinite("the Hessian product is not finite")
  return image
