"""Hessian products against dense Hessians made in other ways."""

from collections.abc import Callable
import functools

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.analysis import curvature, hessian
from conadv_tf.layers import network as networks
from conadv_tf.models import resnet_cifar
from conadv_tf.objectives import per_example
from tests import tiny_text
from tests.layers import small_models

keras = tf.keras
LOSS = per_example.per_example_loss(
    keras.losses.SparseCategoricalCrossentropy(from_logits=True))
ROWS = 12


def smooth(width: int = 4, dtype: str | None = None) -> keras.Model:
  """Twice differentiable, with all kinds of trainable layers."""
  keras.utils.set_random_seed(1)
  i = keras.Input((6, 6, 2), dtype="float32")
  x = keras.layers.Conv2D(width, 3, name="first", dtype=dtype)(i)
  x = keras.layers.BatchNormalization(name="norm", dtype=dtype)(x)
  x = keras.layers.Activation("tanh", dtype=dtype)(x)
  x = keras.layers.Conv2D(3, 3, use_bias=False, name="second", dtype=dtype)(x)
  x = keras.layers.Activation("softplus", dtype=dtype)(x)
  x = keras.layers.GlobalAveragePooling2D(dtype=dtype)(x)
  return small_models.randomise(keras.Model(
      i, keras.layers.Dense(3, name="last", dtype=dtype)(x)))


def examples(model: keras.Model, rows: int = ROWS
             ) -> tuple[np.ndarray, np.ndarray]:
  random = np.random.default_rng(2)
  shape = [rows, *model.inputs[0].shape[1:]]
  return (random.normal(size=shape).astype(np.float32),
          random.integers(0, 3, rows))


def dense(product: curvature.Product, size: int) -> np.ndarray:
  return np.stack([product(column) for column in np.eye(size)])


@functools.cache
def exact() -> np.ndarray:
  """TensorFlow's Hessian of the mean loss, from one flat vector of weights.

  The network is written anew, so that nothing is shared with the estimate.
  """
  model = smooth()
  images, labels = examples(model)
  variables = model.trainable_variables
  moving = {v.name: v for v in model.non_trainable_variables}
  sizes = [v.shape.num_elements() for v in variables]
  flat = tf.concat([tf.reshape(v, [-1]) for v in variables], 0)

  def loss(flat: tf.Tensor) -> tf.Tensor:
    w1, b1, gamma, beta, w2, w3, b3 = (
        tf.reshape(part, v.shape)
        for part, v in zip(tf.split(flat, sizes), variables))
    x = tf.nn.conv2d(images, w1, 1, "VALID") + b1
    x = (x - moving["norm/moving_mean:0"]) * gamma / tf.sqrt(
        moving["norm/moving_variance:0"] + 1e-3) + beta
    x = tf.math.softplus(tf.nn.conv2d(tf.tanh(x), w2, 1, "VALID"))
    logits = tf.reduce_mean(x, [1, 2]) @ w3 + b3
    chosen = tf.reduce_sum(tf.one_hot(labels, 3) * logits, 1)
    return tf.reduce_mean(tf.reduce_logsumexp(logits, 1) - chosen)

  @tf.function
  def matrix(flat: tf.Tensor) -> tf.Tensor:
    return tf.hessians(loss(flat), flat)[0]

  return matrix(flat).numpy().astype(np.float64)


def estimate(model: keras.Model | networks.Network, rows: int = ROWS,
             loss: Callable = LOSS, **options: int
             ) -> tuple[hessian.Hessian, curvature.Product]:
  made = hessian.Hessian(model, loss, **options)
  plain = model.model if isinstance(model, networks.Network) else model
  return made, made.product_on(*examples(plain), rows=rows)


@pytest.mark.parametrize("kind", ["model", "network"])
def test_products_are_those_of_the_dense_hessian(kind: str) -> None:
  model = smooth()
  made, product = estimate(
      networks.convert(model) if kind == "network" else model)
  assert made.size == model.count_params() - 8 == 204  # less the statistics
  assert made.layers == ("first", "norm", "second", "last")
  found = dense(product, made.size)
  np.testing.assert_allclose(found, exact(), atol=2e-6)
  np.testing.assert_allclose(found, found.T, atol=2e-6)
  assert np.abs(found).max() > 0.1


@pytest.mark.parametrize("kind", [
    "images", "tokens", pytest.param("encoder", marks=pytest.mark.slow)])
def test_products_are_differences_of_gradients(kind: str) -> None:
  if kind == "images":
    model = smooth()
    images, labels = examples(model)
  else:  # whose gradients to embeddings come as rows
    model = (tiny_text.encoder if kind == "encoder" else tiny_text.model)(0.0)
    images, labels = tiny_text.TOKENS[:ROWS], tiny_text.LABELS[:ROWS]
  made = hessian.Hessian(networks.convert(model), LOSS)
  product = made.product_on(images, labels, rows=5)
  # Of the network's clone, whose weights the product reads.
  model = made._model  # pylint: disable=protected-access
  variables = model.trainable_variables
  random = np.random.default_rng(4)
  direction = [random.normal(size=v.shape).astype(np.float32)
               for v in variables]
  before = [v.numpy() for v in variables]

  def gradient(step: float) -> np.ndarray:
    for v, value, change in zip(variables, before, direction):
      v.assign(value + step * change)
    with tf.GradientTape() as tape:
      loss = tf.reduce_mean(LOSS(
          tf.constant(labels), model(images, training=False)))
    return np.concatenate([
        np.ravel(tf.convert_to_tensor(g))
        for g in tape.gradient(loss, variables)])

  # The error of central differences is of order step^2; an encoder's
  # embeddings are of size 0.02.
  step = 2e-4 if kind == "encoder" else 2e-3
  difference = (gradient(step) - gradient(-step)) / (2 * step)
  gradient(0.0)
  found = product(np.concatenate([np.ravel(d) for d in direction]))
  assert np.linalg.norm(found - difference) < 2e-3 * np.linalg.norm(found)


def test_a_second_derivative_that_would_be_wrong_is_refused() -> None:
  # tf.nn.moments holds the mean constant; only a network's layers do without.
  with pytest.raises(ValueError, match="LayerNormalization.*convert the model"):
    hessian.Hessian(tiny_text.encoder(0.0), LOSS)
  i = keras.Input((6, 6, 4))
  groups = keras.layers.GroupNormalization(2, name="groups")(i)
  model = keras.Model(i, keras.layers.Dense(3)(
      keras.layers.Flatten()(groups)))
  with pytest.raises(ValueError, match="'groups' .*GroupNormalization"):
    hessian.Hessian(networks.convert(model), LOSS)


def test_top_eigenvalues_within_one_per_cent() -> None:
  made, product = estimate(smooth())
  values = np.linalg.eigvalsh(exact())
  top = values[np.argmax(np.abs(values))]
  found = curvature.top_eigenvalue(product, made.size, seed=0)
  assert found.converged
  assert found.value == pytest.approx(top, rel=0.01)
  spectrum = curvature.lanczos(product, made.size, seed=0, steps=60, wanted=3)
  assert spectrum.largest(3) == pytest.approx(
      values[np.argsort(-np.abs(values))][:3], rel=1e-3)


@pytest.mark.slow
def test_a_relu_network_with_training_s_own_function() -> None:
  """ResNet-8 with smoothed labels: the dense matrix of its own products."""
  keras.utils.set_random_seed(3)
  model = resnet_cifar.resnet8((8, 8, 3), 3, width=2)
  loss = per_example.per_example_loss(
      keras.losses.CategoricalCrossentropy(from_logits=True))
  made = hessian.Hessian(networks.convert(model), loss)
  random = np.random.default_rng(0)
  images = random.integers(0, 256, (8, 8, 8, 3), np.uint8)
  labels = np.eye(3, dtype=np.float32)[random.integers(0, 3, 8)] * 0.9 + 0.1 / 3
  product = made.product_on(images, labels)
  columns = dense(product, made.size)
  np.testing.assert_allclose(
      columns, columns.T, atol=1e-5 * np.abs(columns).max())
  values = np.linalg.eigvalsh(columns)
  found = curvature.top_eigenvalue(product, made.size, seed=0)
  assert found.value == pytest.approx(
      values[np.argmax(np.abs(values))], rel=0.01)


@pytest.mark.parametrize("last_layers, size", [
    (1, 12), (3, 128), pytest.param(2, 120, marks=pytest.mark.slow)])
def test_blocks_are_sub_matrices(last_layers: int, size: int) -> None:
  made, product = estimate(smooth(), last_layers=last_layers)
  assert made.size == size
  assert made.layers == ("first", "norm", "second", "last")[-last_layers:]
  np.testing.assert_allclose(
      dense(product, size), exact()[-size:, -size:], atol=2e-6)


def test_blocks_propagate_no_further_back() -> None:
  def convolutions(last_layers: int) -> list[str]:
    model = smooth()
    made = hessian.Hessian(model, LOSS, last_layers=last_layers)
    images, labels = examples(model)
    graph = made._step.get_concrete_function(  # pylint: disable=protected-access
        tf.zeros([made.size]), tf.constant(images), tf.constant(labels),
        tf.ones([ROWS])).graph
    return [op.type for op in graph.get_operations() if "Conv2D" in op.type]

  assert convolutions(1) == ["Conv2D"] * 2  # forward alone
  assert len(convolutions(0)) > len(convolutions(2)) > 2


@pytest.mark.parametrize("rows", [
    5, *(pytest.param(rows, marks=pytest.mark.slow) for rows in (1, 3, 100))])
def test_micro_batches_change_nothing(rows: int) -> None:
  vector = np.random.default_rng(0).normal(size=204)
  _, whole = estimate(smooth())
  made, parts = estimate(smooth(), rows=rows)
  np.testing.assert_allclose(parts(vector), whole(vector), atol=1e-5)
  assert made._step.experimental_get_tracing_count() == 1  # pylint: disable=protected-access


def test_weights_count_examples() -> None:
  model = smooth()
  images, labels = examples(model)
  made = hessian.Hessian(model, LOSS)
  vector = np.random.default_rng(0).normal(size=made.size)
  few = made.product_on(images[:5], labels[:5])(vector)
  weight = np.array([1.0] * 5 + [0.0] * 7)
  np.testing.assert_allclose(
      made.product_on(images, labels, weight, rows=4)(vector), few, atol=1e-5)
  with pytest.raises(ValueError, match="an example that counts"):
    made.product_on(images, labels, 0 * weight)


@pytest.mark.slow
def test_two_replicas_give_the_same_numbers(
    mirrored: tf.distribute.Strategy) -> None:
  vector = np.random.default_rng(0).normal(size=204)
  _, alone = estimate(smooth())
  with mirrored.scope():
    network = networks.convert(smooth())
  for rows in (12, 5, 1):  # 5 become 6, 1 becomes 2
    made, both = estimate(network, rows=rows)
    np.testing.assert_allclose(both(vector), alone(vector), atol=1e-5)
  found = curvature.top_eigenvalue(both, made.size, seed=0)
  assert found.value == pytest.approx(
      curvature.top_eigenvalue(alone, made.size, seed=0).value, rel=1e-5)


def test_nothing_moves_and_one_trace_serves_other_weights() -> None:
  network = networks.convert(smooth())
  before = networks.values(network.variables)
  made, product = estimate(network)
  vector = np.ones(made.size)
  first = product(vector)
  for old, new in zip(before, networks.values(network.variables), strict=True):
    np.testing.assert_array_equal(old, new)
  np.testing.assert_array_equal(product(vector), first)  # bit for bit
  network.model.trainable_variables[0].assign_add(
      tf.ones_like(network.model.trainable_variables[0]))
  assert np.abs(product(vector) - first).max() > 1e-3
  assert made._step.experimental_get_tracing_count() == 1  # pylint: disable=protected-access


@pytest.mark.parametrize("dtype, error", [
    ("mixed_bfloat16", 0.05), ("float64", 1e-5),
    *(pytest.param(dtype, 0.01, marks=pytest.mark.slow)
      for dtype in ("mixed_float16", "float16"))])
def test_other_precisions(dtype: str, error: float) -> None:
  model = smooth(dtype=dtype)
  model.set_weights(smooth().get_weights())
  made, product = estimate(model)
  values = np.linalg.eigvalsh(exact())
  found = curvature.top_eigenvalue(
      product, made.size, seed=0, iterations=60, tolerance=0)
  assert found.value == pytest.approx(
      values[np.argmax(np.abs(values))], rel=error)


@pytest.mark.parametrize("make", [
    small_models.custom, small_models.shared, small_models.frozen_backbone,
    *(pytest.param(make, marks=pytest.mark.slow)
      for make in (small_models.nested, small_models.frozen_inside))])
def test_any_model(make: Callable[[], keras.Model]) -> None:
  """Only trainable weights count, wherever layers hide; H is symmetric."""
  model = small_models.randomise(make())
  made, product = estimate(model)
  assert made.size == sum(
      v.shape.num_elements() for v in model.trainable_variables)
  a, b = np.random.default_rng(0).normal(size=[2, made.size])
  assert a @ product(b) == pytest.approx(b @ product(a), rel=1e-4, abs=1e-5)
  assert np.abs(product(a)).max() > 1e-6


def test_a_subclassed_model() -> None:
  model = small_models.randomise(small_models.subclassed())
  made = hessian.Hessian(model, LOSS)
  images = np.random.default_rng(0).random((5, 8, 8, 3), np.float32)
  product = made.product_on(images, np.arange(5) % 4)
  assert made.layers[-1] == "dense"
  assert np.abs(product(np.ones(made.size))).max() > 1e-6


def test_not_finite_names_the_layer() -> None:
  model = smooth()
  made, product = estimate(model)
  model.get_layer("norm").gamma.assign([np.nan, 1, 1, 1])
  with pytest.raises(curvature.NotFinite, match="first in layer 'first'"):
    product(np.ones(made.size))
  made, product = estimate(model, last_layers=2)
  with pytest.raises(curvature.NotFinite, match="first in layer 'second'"):
    product(np.ones(made.size))


def test_what_cannot_be() -> None:
  model = smooth()
  with pytest.raises(ValueError, match="last 5 layers: .* has 4 with"):
    hessian.Hessian(model, LOSS, last_layers=5)
  with pytest.raises(ValueError, match="last -1 layers"):
    hessian.Hessian(model, LOSS, last_layers=-1)
  model.trainable = False
  with pytest.raises(ValueError, match="has no trainable layers"):
    hessian.Hessian(model, LOSS)

  i = keras.Input((6, 6, 2))
  x = keras.layers.Conv2D(2, 3)(i)
  x = tf.image.resize(x, [2, 2], "bicubic")
  made, product = estimate(keras.Model(
      i, keras.layers.Dense(3)(keras.layers.Flatten()(x))))
  with pytest.raises(ValueError, match="without a second derivative: "
                     ".*ResizeBicubicGrad"):
    product(np.ones(made.size))
