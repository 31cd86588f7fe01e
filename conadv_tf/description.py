"""What a run will do, in words and numbers."""

from collections.abc import Sequence
import math

import tensorflow as tf

from conadv_tf import experiment as experiments


def describe(experiment: experiments.Experiment) -> str:
  """What will run, in a few lines: data, model, work, memory, schedule."""
  config, derived = experiment.config, experiment.config.derived
  network, method = experiment.trainer.network, experiment.trainer.method
  train, validation = experiment.splits.train, experiment.splits.validation
  trainable = _size(network.model.trainable_variables)
  lines = [
      f"data: {config.data.name}, {train.num_examples} training and "
      f"{validation.num_examples} validation images "
      f"{'x'.join(map(str, train.image_shape))}, {train.num_classes} "
      "classes",
      f"model: {config.model.name}, {trainable:,} trainable parameters, "
      f"{len(network.layers)} batch normalisations in branches "
      f"{', '.join(network.branches)}",
      f"method: {config.method.name}, lag {method.lag}; forward passes F a "
      f"step: {method.passes_per_step:g} in all, {method.longest_chain:g} "
      "in a row (vanilla: 3 and 2)",
      f"updates: {derived.total_steps} of {config.data.global_batch_size} "
      f"examples = {derived.virtual_replicas} virtual replica(s) of "
      f"{derived.replica_batch_size}; warm-up {derived.warmup_steps} from "
      f"learning rate 0, peak {config.schedule.peak_lr:g}",
  ]
  variables = network.trainable_variables
  if config.optimizer.name == "lars":
    optimizer = experiment.trainer.optimizer
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    excluded = len(optimizer.excluded_names(variables))
    lines.append(
        f"lars: {excluded} of {len(variables)} tensors (rank <= 1: batch "
        "normalisation and biases) take no scaling and no decay")
  if method.lookahead:
    rows = derived.replica_batch_size
    pixels = math.prod(train.image_shape)
    copies = method.adversarial_rows(rows) * derived.virtual_replicas
    lines.append(
        f"held: one batch {config.data.global_batch_size * pixels:,} bytes "
        f"(uint8), its adversaries {4 * copies * pixels:,} bytes (float32)")
  if method.lagged_copies:
    lines.append(f"lagged copies: {method.lagged_copies} weight set(s) of "
                 f"{4 * _size(network.variables):,} bytes")
  return "\n".join(lines)


def _size(variables: Sequence[tf.Variable]) -> int:
  return sum(v.shape.num_elements() for v in variables)
