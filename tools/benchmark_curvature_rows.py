"""What `tools.benchmark_curvature` measures and prints; no flags."""

from collections.abc import Callable
import functools
from typing import Any

from tools import figures

_CLASSES = 10
LIMIT = 2.5
GRADIENT = "gradient"

Row = Callable[[Any], Any]  # float64 [size] -> [size]


def make_rows(name: str, image_size: int, batch_size: int
              ) -> tuple[int, dict[str, Row]]:
  """The number of weights, and what is measured."""
  import numpy as np
  import tensorflow as tf

  from conadv_tf import components
  from conadv_tf.analysis import hessian
  from conadv_tf.layers import network as networks
  from conadv_tf.objectives import per_example
  network = networks.convert(components.MODELS[name](
      (image_size, image_size, 3), _CLASSES))
  random = np.random.default_rng(0)
  images = random.integers(
      0, 256, (batch_size, image_size, image_size, 3), np.uint8)
  labels = random.integers(0, _CLASSES, batch_size)
  loss = per_example.per_example_loss(
      tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))

  def row(function: Any) -> Row:
    graph = tf.function(function, autograph=False)
    return lambda vector: graph(
        tf.constant(vector, tf.float32), tf.constant(images),
        tf.constant(labels)).numpy()

  gradient, in_training, forward = map(row, _functions(network, loss))
  matrix = hessian.Hessian(network, loss)
  block = hessian.Hessian(network, loss, last_layers=2)
  of_block = block.product_on(images, labels)
  return matrix.size, {
      GRADIENT: gradient, "in training": in_training,
      "product": matrix.product_on(images, labels),
      "forward over reverse": forward,
      "block of 2": lambda vector: of_block(vector[-block.size:])}


def _functions(network: Any, loss: Any) -> list[Any]:
  """Of (vector, images, labels): two gradients and a product."""
  import tensorflow as tf

  from conadv_tf.layers import routing
  variables = network.model.trainable_variables

  def gradients(image: tf.Tensor, label: tf.Tensor, mode: routing.Mode,
                fused: bool = True) -> list[tf.Tensor]:
    with tf.GradientTape() as tape:
      outputs = network.logits(
          image, ((routing.CLEAN, -1),), mode, fused=fused)
      total = tf.reduce_sum(loss(label, outputs))
    return tape.gradient(total, variables)

  def joined(tensors: list[tf.Tensor]) -> tf.Tensor:
    return tf.concat([tf.reshape(t, [-1]) for t in tensors], axis=0)

  def gradient(vector: tf.Tensor, image: tf.Tensor, label: tf.Tensor
               ) -> tf.Tensor:
    del vector
    return joined(gradients(image, label, routing.Mode.EVAL))

  def in_training(vector: tf.Tensor, image: tf.Tensor, label: tf.Tensor
                  ) -> tf.Tensor:
    del vector
    # PROBE is TRAIN without its report.
    return joined(gradients(image, label, routing.Mode.PROBE))

  def forward(vector: tf.Tensor, image: tf.Tensor, label: tf.Tensor
              ) -> tf.Tensor:
    parts = tf.split(vector, [v.shape.num_elements() for v in variables])
    tangents = [tf.reshape(p, v.shape) for p, v in zip(parts, variables)]
    with tf.autodiff.ForwardAccumulator(variables, tangents) as accumulator:
      slopes = gradients(image, label, routing.Mode.EVAL, fused=False)
    return joined([accumulator.jvp(g) for g in slopes])

  return [gradient, in_training, forward]


def measure(rows: dict[str, Row], size: int, rounds: int
            ) -> dict[str, list[float]]:
  """Seconds of each row in each round after a warm-up."""
  import numpy as np
  vector = np.random.default_rng(0).standard_normal(size) / np.sqrt(size)
  return figures.interleaved(
      {name: functools.partial(row, vector) for name, row in rows.items()},
      rounds)


def summarise(seconds: dict[str, list[float]]) -> dict[str, Any]:
  """Median times and ratios to the gradient, round by round."""
  import numpy as np

  gradient = np.array(seconds[GRADIENT])
  ratios = {name: figures.spread(np.array(times) / gradient)
            for name, times in seconds.items()}
  return {"median": {n: float(np.median(t)) for n, t in seconds.items()},
          "ratios": ratios, "met": ratios["product"]["median"] <= LIMIT}


def table(report: dict[str, Any]) -> str:
  """All models in Markdown."""
  lines = [
      [model, f"{part['weights']:,}", name,
       figures.ms(part["median"][name]),
       "{median:.2f} [{low:.2f}, {high:.2f}]".format(**ratio),
       f"at most {LIMIT}: {'yes' if part['met'] else 'no'}"
       if name == "product" else ""]
      for model, part in report.items()
      for name, ratio in part["ratios"].items()]
  return figures.table(
      ["model", "weights", "", "ms", "ratio to the gradient", "limit"], lines)
