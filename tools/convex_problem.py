"""Binary logistic regression, in float64 NumPy; no flags.

  L(theta) = mean_i [log(1 + exp(z_i)) - y_i z_i] + l2 / 2 |theta|^2,
  z = X theta

with labels y of 0 and 1 and no intercept (in one-hot features each group sums
to one, so it is there already). This is the convex problem of appendix A of
"Large batch size training of neural networks with adversarial training and
second-order information".
"""

import dataclasses
import functools
import gzip
import pathlib
import zlib

import numpy as np

MUSHROOM_FEATURES = 126


@dataclasses.dataclass(frozen=True)
class Problem:
  """The data and the l2 term.

  Attributes:
    features: X, float64 [rows, features].
    labels: y, float64 [rows], 0 or 1.
    l2: of the weights; where features are dependent, as one-hot ones are, it
      is the strong convexity.
  """

  features: np.ndarray
  labels: np.ndarray
  l2: float = 0.0

  @property
  def rows(self) -> int:
    """Examples."""
    return len(self.labels)

  def loss(self, theta: np.ndarray) -> float:
    """L over all rows."""
    z = self.features @ theta
    return float(np.mean(np.logaddexp(0.0, z) - self.labels * z)
                 + self.l2 / 2 * theta @ theta)

  def accuracy(self, theta: np.ndarray) -> float:
    """The share of rows on their side of z = 0."""
    return float(np.mean((self.features @ theta > 0) == (self.labels > 0.5)))

  def gradient(self, theta: np.ndarray,
               chosen: np.ndarray | None = None) -> np.ndarray:
    """The gradient of L, [features], over all rows or those chosen."""
    x, y = self.features, self.labels
    if chosen is not None:
      x, y = x[chosen], y[chosen]
    return gradient(theta, x, y, self.l2)

  def hessian_product(self, theta: np.ndarray,
                      vector: np.ndarray) -> np.ndarray:
    """The Hessian of L at theta times a vector, both [features]."""
    weights = self._curvatures(theta) * (self.features @ vector)
    return self.features.T @ weights / self.rows + self.l2 * vector

  def hessian(self, theta: np.ndarray) -> np.ndarray:
    """The Hessian of L, [features, features]."""
    weighted = self.features * self._curvatures(theta)[:, None]
    return (weighted.T @ self.features / self.rows
            + self.l2 * np.eye(len(theta)))

  def top_eigenvalue(self, theta: np.ndarray) -> float:
    """The Hessian's largest, exact: small enough for a dense solver."""
    return float(np.linalg.eigvalsh(self.hessian(theta))[-1])

  def _curvatures(self, theta: np.ndarray) -> np.ndarray:
    p = sigmoid(self.features @ theta)
    return p * (1.0 - p)

  @functools.cached_property
  def gram(self) -> np.ndarray:
    """The eigenvalues of X'X / rows, increasing, [features]."""
    return np.linalg.eigvalsh(self.features.T @ self.features / self.rows)

  def minimum(self) -> tuple[np.ndarray, float]:
    """theta_* and L_*, by Newton's method with halved steps.

    Raises:
      ValueError: without an l2 term (separable data have no minimum), or
        where it does not get there.
    """
    if self.l2 <= 0:
      raise ValueError("without an l2 term there need be no minimum")
    theta = np.zeros(self.features.shape[1])
    for _ in range(100):
      slope = self.gradient(theta)
      if np.linalg.norm(slope) < 1e-12:
        return theta, self.loss(theta)
      step = np.linalg.solve(self.hessian(theta), slope)
      size, start = 1.0, self.loss(theta)
      while self.loss(theta - size * step) > start and size > 1e-6:
        size /= 2
      theta = theta - size * step
    raise ValueError("Newton's method did not reach the minimum")


def sigmoid(z: np.ndarray) -> np.ndarray:
  """1 / (1 + exp(-z)) without overflow."""
  return np.exp(-np.logaddexp(0.0, -z))


def gradient(theta: np.ndarray, x: np.ndarray, y: np.ndarray,
             l2: float) -> np.ndarray:
  """The gradient of L over the rows x [n, features] with labels y [n]."""
  return x.T @ (sigmoid(x @ theta) - y) / len(y) + l2 * theta


def adversarial(theta: np.ndarray, x: np.ndarray, y: np.ndarray,
                epsilon: float) -> np.ndarray:
  """FGSM: x + epsilon sign(dl/dx), within the features' range 0 to 1."""
  slopes = np.sign(sigmoid(x @ theta) - y)[:, None] * np.sign(theta)
  return np.clip(x + epsilon * slopes, 0.0, 1.0)


def read_libsvm(path: pathlib.Path,
                features: int = MUSHROOM_FEATURES) -> Problem:
  """A gzipped file with lines "label index:value ...", indices from 1.

  Raises:
    ValueError: that names the line that is not so, or the file.
  """
  labels, rows = [], []
  try:
    lines = gzip.decompress(path.read_bytes()).decode("ascii").splitlines()
  except (OSError, EOFError, ValueError, zlib.error) as error:
    raise ValueError(f"{path}: {error}") from error
  for number, line in enumerate(lines, 1):
    try:
      label, *pairs = line.split()
      row = np.zeros(features)
      for pair in pairs:
        index, value = pair.split(":")
        if not 1 <= int(index) <= features:
          raise ValueError(f"index {index} is not in 1 .. {features}")
        row[int(index) - 1] = float(value)
      if float(label) not in (0.0, 1.0):
        raise ValueError(f"label {label} is neither 0 nor 1")
    except ValueError as error:
      raise ValueError(f"{path}:{number}: {error}") from error
    labels.append(float(label))
    rows.append(row)
  if not rows:
    raise ValueError(f"{path}: has no rows")
  return Problem(np.array(rows), np.array(labels))
