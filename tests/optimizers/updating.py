"""Updates of a few random tensors, for the tests of optimizers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

Shapes = Mapping[str, tuple[int, ...]]
Gradients = list[list[np.ndarray]]  # of each update, of each tensor


def variables(shapes: Shapes) -> list[tf.Variable]:
  """The tensors at the start, always the same."""
  random = np.random.default_rng(1)
  return [tf.Variable(random.normal(size=shape).astype(np.float32), name=name)
          for name, shape in shapes.items()]


def gradients(shapes: Shapes, steps: int) -> Gradients:
  """Of so many updates, always the same."""
  random = np.random.default_rng(2)
  return [[random.normal(size=shape).astype(np.float32)
           for shape in shapes.values()] for _ in range(steps)]


def run(shapes: Shapes, optimizer: tf.keras.optimizers.Optimizer,
        updates: Gradients, jit_compile: bool | None = None
        ) -> list[np.ndarray]:
  """The tensors after the updates; eagerly where `jit_compile` is None."""
  tensors = variables(shapes)
  optimizer.build(tensors)

  def apply(values: list[tf.Tensor]) -> None:
    optimizer.apply_gradients(zip(values, tensors, strict=True))

  if jit_compile is not None:
    apply = tf.function(apply, jit_compile=jit_compile)
  for values in updates:
    apply([tf.constant(value) for value in values])
  return [tensor.numpy() for tensor in tensors]


def assert_close(actual: Sequence[Any], expected: Sequence[Any],
                 atol: float = 1e-6) -> None:
  """Within 1e-6, tensor by tensor."""
  for a, b in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=atol)


def assert_equal(actual: Sequence[Any], expected: Sequence[Any]) -> None:
  """Bit for bit, tensor by tensor."""
  for a, b in zip(actual, expected, strict=True):
    np.testing.assert_array_equal(a, b)
