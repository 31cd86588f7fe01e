"""Step times, side by side.

    python -m tools.benchmark [--output=FILE.json]
    python -m tools.benchmark scaling [--output=FILE.json] [--quick]

Without a verb all methods are measured beside hand-written steps in one
process, on the same batch. `scaling` measures 1 and 2 worker processes with a
core each beside plain Keras's, see tools/benchmark_scaling.py.

All rows are interleaved round by round, so that a drift of the machine's speed
hits all alike. What is quoted are medians and, round by round, ratios to
another row with their quartiles.
"""

from collections.abc import Callable
import json
import os
import platform
import sys
import time

from absl import flags

from conadv_tf import command_line

_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")
_MODEL = flags.DEFINE_string("model", "resnet20", "A model for 32x32 images.")
_BATCH = flags.DEFINE_integer(
    "batch_size", 256, "Clean examples a step; of one worker, by default 64, "
    "for scaling.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Rounds after the warm-up.",
                               lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 2, "Steps of each row in a round.",
                              lower_bound=1)
_QUICK = flags.DEFINE_bool(
    "quick", False, "Small defaults, to see whether scaling works at all.")
_SCALING = {"batch_size": 64}
_SCALING_QUICK = {"batch_size": 8, "model": "resnet8", "rounds": 2, "steps": 1}

Step = Callable[[], object]


def handwritten_vanilla(data: object, model: object) -> Step:
  """Plain Keras layers, a tape and an optimizer in a `tf.function`."""
  import tensorflow as tf

  from tools import benchmark_rows
  optimizer, loss = benchmark_rows.optimizer(), benchmark_rows.loss()
  optimizer.build(model.trainable_variables)
  mean, accuracy = _metrics()

  @tf.function
  def step(iterator: object) -> tuple[tf.Tensor, tf.Tensor]:
    image, label = next(iterator)
    with tf.GradientTape() as tape:
      logits = model(tf.cast(image, tf.float32), training=True)
      value = loss(label, logits)
    gradients = tape.gradient(value, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables))
    mean.update_state(value)
    accuracy.update_state(label, logits)
    return mean.result(), accuracy.result()

  iterator = iter(data)
  return lambda: step(iterator)


def handwritten_conadv(data: object, model: object) -> Step:
  """Lag-1 ConAdv without a trainer: attack, training pass and update."""
  import tensorflow as tf

  from conadv_tf.layers import network as networks
  from conadv_tf.layers import routing
  from tools import benchmark_rows
  network = networks.convert(model)
  optimizer, loss = benchmark_rows.optimizer(), benchmark_rows.loss()
  variables = network.trainable_variables
  optimizer.build(variables)
  mean, accuracy = _metrics()
  image, label = next(iter(data))
  held = tf.Variable(image), tf.Variable(label), tf.Variable(
      tf.cast(image, tf.float32))
  rows = image.shape[0]
  segments = (("clean", rows), ("adversarial", rows))

  @tf.function
  def step(iterator: object) -> tuple[tf.Tensor, tf.Tensor]:
    image, label = next(iterator)
    clean = tf.cast(image, tf.float32)
    noise = tf.random.uniform(clean.shape, -4., 4.)
    start = tf.clip_by_value(clean + noise, 0., 255.)
    with tf.GradientTape() as tape:
      tape.watch(start)
      logits = network.logits(start, (("adversarial", rows),),
                              routing.Mode.PROBE)
      value = loss(label, logits)
    moved = start + 4. * tf.sign(tape.gradient(value, start))
    adversarial = tf.clip_by_value(
        clean + tf.clip_by_value(moved - clean, -4., 4.), 0., 255.)
    with tf.GradientTape() as tape:
      both = tf.concat([tf.cast(held[0], tf.float32), held[2]], axis=0)
      logits, statistics = network.logits(both, segments, routing.Mode.TRAIN)
      value = loss(tf.concat([held[1], held[1]], axis=0), logits)
    gradients = tape.gradient(value, variables)
    accuracy.update_state(held[1], logits[:rows])
    mean.update_state(value)
    network.update_statistics(statistics, segments)
    optimizer.apply_gradients(zip(gradients, variables))
    for variable, new in zip(held, (image, label, adversarial)):
      variable.assign(new)
    return mean.result(), accuracy.result()

  iterator = iter(data)
  return lambda: step(iterator)


def _metrics() -> tuple[object, object]:
  import tensorflow as tf
  return (tf.keras.metrics.Mean("loss"),
          tf.keras.metrics.SparseCategoricalAccuracy("accuracy"))


def measure(rows: dict[str, Step], rounds: int,
            steps: int) -> dict[str, list[float]]:
  """Seconds a step of each row in each round, after one warm-up round."""
  times = {name: [] for name in rows}
  for number in range(rounds + 1):
    for name, step in rows.items():
      start = time.perf_counter()
      for _ in range(steps):
        result = step()
      # Results are read, since a step may return before it has run.
      [float(v) for v in (
          result.values() if isinstance(result, dict) else result)]
      if number:
        times[name].append((time.perf_counter() - start) / steps)
  return times


def summarise(times: dict[str, list[float]],
              references: dict[str, str]) -> list[dict[str, object]]:
  """Medians, and ratios to each row's reference, round by round."""
  import numpy as np
  table = []
  for name, values in times.items():
    reference = references[name]
    ratios = np.array(values) / np.array(times[reference])
    low, median, high = np.percentile(ratios, [25, 50, 75])
    table.append({
        "row": name, "seconds": float(np.median(values)),
        "reference": reference, "ratio": float(median),
        "ratio_quartiles": [float(low), float(high)]})
  return table


def main(verb: str) -> None:
  """Builds the rows, measures, prints a table and writes JSON."""
  with command_line.one_line_errors():
    _check(verb)
    if verb == "scaling":
      scaling()
    else:
      run()


def _check(verb: str) -> None:
  from conadv_tf.config import InputError
  if _QUICK.value and verb != "scaling":
    raise InputError("--quick is for scaling")
  if _OUTPUT.value:
    command_line.check_output(_OUTPUT.value)


def scaling() -> None:
  """1 and 2 workers; TensorFlow is imported by these."""
  from tools import benchmark_scaling
  for name, value in (_SCALING_QUICK if _QUICK.value else _SCALING).items():
    flags.FLAGS.set_default(name, value)
  report = benchmark_scaling.run(benchmark_scaling.Settings(
      _MODEL.value, _BATCH.value, _ROUNDS.value, _STEPS.value))
  print(benchmark_scaling.tables(report))
  write(report)


def write(report: dict[str, object]) -> None:
  """Writes the figures where --output says."""
  if _OUTPUT.value:
    machine = {"machine": platform.processor() or platform.machine(),
               "cores": os.cpu_count()}
    with open(_OUTPUT.value, "w", encoding="utf-8") as file:
      json.dump({**machine, **report}, file, indent=2)


def run() -> None:
  """One process; TensorFlow is imported from here on."""
  import numpy as np
  import tensorflow as tf

  import conadv_tf as ca
  from conadv_tf import experiment
  from tools import benchmark_rows
  rng = np.random.default_rng(0)
  batch = _BATCH.value
  images = rng.integers(0, 256, (batch, 32, 32, 3), np.uint8)
  labels = rng.integers(0, 10, batch).astype(np.int32)
  data = tf.data.Dataset.from_tensors((images, labels)).repeat()

  def model() -> tf.keras.Model:
    return experiment.MODELS[_MODEL.value]((32, 32, 3), 10)

  def trainer_step(method: object) -> Step:
    return benchmark_rows.fit_step(
        benchmark_rows.trainer(method, model()), data)

  rows = {
      "tf.function vanilla": handwritten_vanilla(data, model()),
      "vanilla": trainer_step(ca.methods.Vanilla()),
      "tf.function conadv": handwritten_conadv(data, model()),
      "conadv": trainer_step(ca.methods.ConAdv()),
      "disadv": trainer_step(ca.methods.DisAdv()),
  }
  references = {
      "tf.function vanilla": "tf.function vanilla",
      "vanilla": "tf.function vanilla",
      "tf.function conadv": "tf.function vanilla",
      "conadv": "tf.function conadv", "disadv": "vanilla"}
  table = summarise(measure(rows, _ROUNDS.value, _STEPS.value), references)
  for row in table:
    low, high = row["ratio_quartiles"]
    print(f"{row['row']:22s} {row['seconds'] * 1e3:9.1f} ms   "
          f"{row['ratio']:.3f} [{low:.3f}, {high:.3f}] of {row['reference']}")
  write({"model": _MODEL.value, "batch_size": batch, "rounds": _ROUNDS.value,
         "steps": _STEPS.value, "rows": table})


if __name__ == "__main__":
  # Flags come after the verb.
  given = sys.argv.pop(1) if sys.argv[1:2] == ["scaling"] else ""
  command_line.start(lambda: main(given))
