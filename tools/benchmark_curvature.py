"""What a Hessian product costs: `python -m tools.benchmark_curvature`.

    python -m tools.benchmark_curvature [--output=FILE.json] [--quick]
        [--models=resnet8,resnet20,resnet18] [--rounds=15]

On the same network (moving statistics, summed loss) and the same examples, in
turns, round by round, there and back:

  gradient              of all weights, as one vector
  in training           the same with batch statistics
  product               `analysis.hessian`, reverse over reverse
  forward over reverse  the same product by the other mode
  block of 2            the product of the last 2 layers with weights

resnet8 and resnet20 see 64 images of 32x32 pixels, resnet18 16 of 64x64.
Ratios to the gradient are formed round by round; a product is to cost at most
2.5 of it. Progress goes to stderr, the table to stdout.
"""

from collections.abc import Callable
import json
import os
import platform
import sys
import time
from typing import Any

from absl import flags

from conadv_tf import command_line

_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")
_QUICK = flags.DEFINE_bool(
    "quick", False, "A tiny batch of resnet8 and few rounds, to see whether "
    "it works.")
_MODELS = flags.DEFINE_list("models", ["resnet8", "resnet20", "resnet18"],
                            "Some of resnet8, resnet20, resnet18.")
_ROUNDS = flags.DEFINE_integer("rounds", 15, "After the warm-up.",
                               lower_bound=1)
_SIZES = {"resnet8": (32, 64), "resnet20": (32, 64), "resnet18": (64, 16)}
_QUICKLY = {"models": ["resnet8"], "rounds": 2}
_CLASSES = 10
LIMIT = 2.5
GRADIENT = "gradient"

Row = Callable[[Any], Any]  # float64 [size] -> [size]


def main() -> None:
  """Measures, prints the table and writes JSON."""
  with command_line.one_line_errors():
    from conadv_tf.config import InputError
    if _OUTPUT.value:
      command_line.check_output(_OUTPUT.value)
    if _QUICK.value:
      for name, value in _QUICKLY.items():
        flags.FLAGS.set_default(name, value)
    unknown = set(_MODELS.value) - set(_SIZES)
    if unknown:
      raise InputError(f"--models: unknown {', '.join(sorted(unknown))}; "
                       f"known: {', '.join(_SIZES)}")
    report = {}
    for model in _MODELS.value:
      image_size, batch_size = _SIZES[model]
      if _QUICK.value:
        batch_size = 4
      print(f"{model}, {batch_size} images", file=sys.stderr, flush=True)
      size, rows = make_rows(model, image_size, batch_size)
      seconds = measure(rows, size, _ROUNDS.value)
      report[f"{model}, {batch_size} images of {image_size}x{image_size}"] = {
          "weights": size, "seconds": seconds, **summarise(seconds)}
    print(table(report))
    if _OUTPUT.value:
      machine = {"machine": platform.processor() or platform.machine(),
                 "cores": os.cpu_count()}
      with open(_OUTPUT.value, "w", encoding="utf-8") as file:
        json.dump({**machine, "models": report}, file, indent=2)


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

  def gradients(image: tf.Tensor, label: tf.Tensor, mode: routing.Mode
                ) -> list[tf.Tensor]:
    with tf.GradientTape() as tape:
      outputs = network.logits(image, ((routing.CLEAN, -1),), mode)
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
      slopes = gradients(image, label, routing.Mode.EVAL)
    return joined([accumulator.jvp(g) for g in slopes])

  return [gradient, in_training, forward]


def measure(rows: dict[str, Row], size: int, rounds: int
            ) -> dict[str, list[float]]:
  """Seconds of each row in each round after a warm-up."""
  import numpy as np
  vector = np.random.default_rng(0).standard_normal(size) / np.sqrt(size)
  seconds: dict[str, list[float]] = {name: [] for name in rows}
  for turn in range(rounds + 1):
    for name in list(rows)[::-1 if turn % 2 else 1]:
      start = time.perf_counter()
      rows[name](vector)
      if turn:  # the first traces
        seconds[name].append(time.perf_counter() - start)
  return seconds


def summarise(seconds: dict[str, list[float]]) -> dict[str, Any]:
  """Median times and ratios to the gradient, round by round."""
  import numpy as np

  from tools import figures
  gradient = np.array(seconds[GRADIENT])
  ratios = {name: figures.spread(np.array(times) / gradient)
            for name, times in seconds.items()}
  return {"median": {n: float(np.median(t)) for n, t in seconds.items()},
          "ratios": ratios, "met": ratios["product"]["median"] <= LIMIT}


def table(report: dict[str, Any]) -> str:
  """All models in Markdown."""
  from tools import figures
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


if __name__ == "__main__":
  command_line.start(main)
