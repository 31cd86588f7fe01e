"""Step times, side by side: `python -m tools.benchmark --output=FILE.json`.

All rows run in one process on the same batch, interleaved round by round, so
that a drift of the machine's speed hits all alike. What is quoted are medians
and, round by round, ratios to another row with their quartiles.
"""

from collections.abc import Callable
import json
import os
import platform
import time

from absl import app, flags

_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")
_MODEL = flags.DEFINE_string("model", "resnet20", "A model for 32x32 images.")
_BATCH = flags.DEFINE_integer("batch_size", 256, "Clean examples a step.")
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Rounds after the warm-up.")
_STEPS = flags.DEFINE_integer("steps", 2, "Steps of each row in a round.")

Step = Callable[[], object]


def trainer_step(method: object, data: object, model: object) -> Step:
  """One execution of what `Trainer.fit` calls for every update."""
  import conadv_tf as ca
  trainer = ca.Trainer(model, method, ca.attacks.Pgd(radius=4),
                       pixel_range=(0., 255.))
  trainer.compile(_optimizer(), _loss(), metrics=["accuracy"])
  steps = {}

  class Capture(_callback()):
    """Takes the compiled function out of a running `fit`."""

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
      del batch, logs
      steps["function"] = self.model.train_function

  trainer.fit(data, steps_per_epoch=1, verbose=0, callbacks=[Capture()])
  iterator = iter(data)
  return lambda: steps["function"](iterator)


def handwritten_vanilla(data: object, model: object) -> Step:
  """Plain Keras layers, a tape and an optimizer in a `tf.function`."""
  import tensorflow as tf
  optimizer, loss = _optimizer(), _loss()
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
  network = networks.convert(model)
  optimizer, loss = _optimizer(), _loss()
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


def _optimizer() -> object:
  import conadv_tf as ca
  return ca.optimizers.Lars(1e-3, momentum=0.9, weight_decay=1e-4)


def _loss() -> object:
  import tensorflow as tf
  return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _metrics() -> tuple[object, object]:
  import tensorflow as tf
  return (tf.keras.metrics.Mean("loss"),
          tf.keras.metrics.SparseCategoricalAccuracy("accuracy"))


def _callback() -> type:
  import tensorflow as tf
  return tf.keras.callbacks.Callback


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


def main(argv: list[str]) -> None:
  """Builds the rows, measures, prints a table and writes JSON."""
  del argv
  from conadv_tf import command_line
  with command_line.one_line_errors():
    run()


def run() -> None:
  """The measurement; TensorFlow is imported from here on."""
  import numpy as np
  import tensorflow as tf

  import conadv_tf as ca
  from conadv_tf import experiment
  rng = np.random.default_rng(0)
  batch = _BATCH.value
  images = rng.integers(0, 256, (batch, 32, 32, 3), np.uint8)
  labels = rng.integers(0, 10, batch).astype(np.int32)
  data = tf.data.Dataset.from_tensors((images, labels)).repeat()

  def model() -> tf.keras.Model:
    return experiment.MODELS[_MODEL.value]((32, 32, 3), 10)

  rows = {
      "tf.function vanilla": handwritten_vanilla(data, model()),
      "vanilla": trainer_step(ca.methods.Vanilla(), data, model()),
      "tf.function conadv": handwritten_conadv(data, model()),
      "conadv": trainer_step(ca.methods.ConAdv(), data, model()),
      "disadv": trainer_step(ca.methods.DisAdv(), data, model()),
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
  if _OUTPUT.value:
    report = {"model": _MODEL.value, "batch_size": batch,
              "rounds": _ROUNDS.value, "steps": _STEPS.value,
              "machine": platform.processor() or platform.machine(),
              "cores": os.cpu_count(), "rows": table}
    with open(_OUTPUT.value, "w", encoding="utf-8") as file:
      json.dump(report, file, indent=2)


if __name__ == "__main__":
  app.run(main)
