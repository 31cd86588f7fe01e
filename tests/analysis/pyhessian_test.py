"""The estimate beside that of the authors of ABSA, on the same weights.

PyTorch is larger than all that this package needs, so it is not among the
requirements: this runs where torch and pyhessian are installed (seen with
2.13.0+cpu and 0.1, both with --no-deps, which leaves NumPy as it is).
"""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.analysis import curvature, hessian
from conadv_tf.objectives import per_example
from tests.layers import small_models

torch = pytest.importorskip("torch")
pyhessian = pytest.importorskip("pyhessian")
layers = tf.keras.layers


def ours() -> tf.keras.Model:
  model = tf.keras.Sequential([
      layers.Conv2D(6, 3, input_shape=(8, 8, 3)),
      layers.BatchNormalization(epsilon=1e-5), layers.ReLU(),
      layers.Conv2D(4, 3, use_bias=False), layers.Activation("tanh"),
      layers.GlobalAveragePooling2D(), layers.Dense(5)])
  return small_models.randomise(model)


def to_torch(value: np.ndarray) -> Any:
  """Kernels from HWIO to OIHW, or from [in, out] to [out, in]."""
  order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim, range(value.ndim))
  return torch.tensor(np.ascontiguousarray(value.transpose(*order)))


class Theirs(torch.nn.Module):
  """The same network, with its weights in the same order."""

  def __init__(self, model: tf.keras.Model):
    super().__init__()
    self.layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU(),
        torch.nn.Conv2d(6, 4, 3, bias=False), torch.nn.Tanh())
    self.last = torch.nn.Linear(4, 5)
    norm = model.layers[1]
    with torch.no_grad():
      for to, value in zip(self.parameters(), model.trainable_variables,
                           strict=True):
        to.copy_(to_torch(value.numpy()))
      self.layers[1].running_mean.copy_(to_torch(norm.moving_mean.numpy()))
      self.layers[1].running_var.copy_(to_torch(norm.moving_variance.numpy()))

  def forward(self, x: Any) -> Any:
    return self.last(self.layers(x).mean(dim=(2, 3)))


def test_products_and_top_eigenvalues() -> None:
  model = ours()
  random = np.random.default_rng(0)
  images = random.normal(size=[32, 8, 8, 3]).astype(np.float32)
  labels = random.integers(0, 5, 32)
  matrix = hessian.Hessian(model, per_example.per_example_loss(
      tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)))
  product = matrix.product_on(images, labels, rows=20)

  theirs = Theirs(model)
  inputs = torch.tensor(images.transpose(0, 3, 1, 2).copy())
  np.testing.assert_allclose(
      theirs.eval()(inputs).detach(), model(images), atol=1e-5)
  estimate = pyhessian.hessian(
      theirs, torch.nn.CrossEntropyLoss(),
      data=(inputs, torch.tensor(labels)), cuda=False)

  vectors = [random.normal(size=v.shape).astype(np.float32)
             for v in model.trainable_variables]
  products = torch.autograd.grad(
      estimate.gradsH, estimate.params, [to_torch(v) for v in vectors],
      retain_graph=True)
  found = np.split(
      product(np.concatenate([np.ravel(v) for v in vectors])),
      np.cumsum([v.size for v in vectors])[:-1])
  for mine, other, v in zip(found, products, vectors, strict=True):
    np.testing.assert_allclose(
        to_torch(mine.reshape(v.shape)), other, atol=2e-5)

  top, second = estimate.eigenvalues(maxIter=500, tol=1e-7, top_n=2)[0]
  mine = curvature.top_eigenvalue(product, matrix.size, seed=0)
  assert mine.value == pytest.approx(top, rel=0.01)
  assert curvature.lanczos(
      product, matrix.size, seed=0, steps=80, wanted=2
  ).largest(2) == pytest.approx([top, second], rel=1e-3)
