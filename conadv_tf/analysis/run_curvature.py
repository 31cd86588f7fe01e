"""Curvature of a run: Hessian eigenvalues on its own training examples."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
from typing import Any

import numpy as np
import tensorflow as tf

from conadv_tf import config
from conadv_tf.analysis import curvature, hessian
from conadv_tf.layers import network as networks
from conadv_tf.objectives import per_example

# (examples, number of the draw) -> (image, label, weight)
Draw = Callable[[int, int], Sequence[tf.Tensor]]

EXAMPLES = 128  # as in the code of ABSA's authors


class RunCurvature:
  """Estimates eigenvalues of the Hessian of a network in training.

  Of the mean training loss of random examples, without augmentation,
  adversaries and weight decay, through the clean branch with moving
  statistics. Every worker of a job must make the same calls; all get the same
  figures.
  """

  def __init__(self, network: networks.Network,
               loss: per_example.PerExampleLoss, draw: Draw, *,
               available: int, rows: int, seed: int) -> None:
    """Keeps the arguments; nothing is computed yet.

    Args:
      network: whose weights are taken as they are at each call.
      loss: of single examples, as in training.
      draw: random examples.
      available: how many there are.
      rows: of them at a time over all replicas.
      seed: of the starts.
    """
    self._network = network
    self._loss = loss
    self._draw = draw
    self._available = available
    self._rows = rows
    self._seed = seed
    self._matrices: dict[int, hessian.Hessian] = {}

  def __call__(self, *, examples: int = EXAMPLES, last_layers: int = 0,
               iterations: int = curvature.ITERATIONS,
               tolerance: float = curvature.TOLERANCE,
               eigenvalues: int = 0, number: int = 0) -> dict[str, Any]:
    """Estimates the eigenvalue of largest magnitude, with its sign.

    Args:
      examples: how many; at most all that there are.
      last_layers: k, see `hessian.Hessian`; 0 means all.
      iterations: limit of products, of power iteration and of Lanczos.
      tolerance: relative, see `curvature.top_eigenvalue`.
      eigenvalues: > 0 adds so many of largest magnitude, by Lanczos.
      number: of the draw; another number draws other examples.

    Returns:
      What `curvature.figures` returns, and `examples` and `layers`.

    Raises:
      InputError: if there is no such block, an argument is out of range, or
        an operation has no second derivative.
      NotFinite: naming a layer, if a product is not finite.
    """
    matrix, product = self.hessian(examples, last_layers, number)
    with _input_errors():
      figures = curvature.figures(
          product, matrix.size, seed=self._seed, iterations=iterations,
          tolerance=tolerance, eigenvalues=eigenvalues)
    return {**figures, "examples": min(examples, self._available),
            "layers": len(matrix.layers)}

  def check(self, *, examples: int = EXAMPLES, last_layers: int = 0,
            iterations: int = curvature.ITERATIONS,
            tolerance: float = curvature.TOLERANCE,
            eigenvalues: int = 0) -> None:
    """Refuses now what an estimate would refuse after longer work.

    Makes one product, whose trace the estimate uses. That it is not finite is
    no refusal: other weights or examples can give one that is.

    Args and errors are as above, but for NotFinite.
    """
    matrix, product = self.hessian(examples, last_layers)
    with _input_errors():
      curvature.check(matrix.size, iterations, tolerance, eigenvalues)
      with contextlib.suppress(curvature.NotFinite):
        product(np.ones(matrix.size))

  def hessian(self, examples: int = EXAMPLES, last_layers: int = 0,
              number: int = 0) -> tuple[hessian.Hessian, curvature.Product]:
    """The matrix that an estimate is about, and its products.

    Args and errors are as above.
    """
    with _input_errors():
      if last_layers not in self._matrices:  # each is traced once
        self._matrices[last_layers] = hessian.Hessian(
            self._network, self._loss, last_layers=last_layers)
      matrix = self._matrices[last_layers]
      drawn = self._draw(min(examples, self._available), number)
      return matrix, matrix.product_on(*drawn, rows=self._rows)


@contextlib.contextmanager
def _input_errors() -> Iterator[None]:
  """Turns a ValueError about what was asked for into an InputError."""
  try:
    yield
  except config.InputError:
    raise
  except ValueError as error:
    raise config.InputError(f"curvature: {error}") from error
