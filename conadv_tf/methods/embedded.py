"""What methods share that perturb word embeddings."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.methods import method, passes
from conadv_tf.objectives import per_example

INDEPENDENT = "independent"
SHARED = "shared"


def check_masks(dropout_masks: str) -> bool:
  """Whether passes share their masks; ValueError for an unknown word."""
  method.check_choice("dropout_masks", dropout_masks, INDEPENDENT, SHARED)
  return dropout_masks == SHARED


def mask_keys(ctx: method.Context, index: tf.Tensor, shared: bool
              ) -> Callable[[int | tf.Tensor], randomness.Key]:
  """Dropout keys of the numbered passes of batch `index`; 0: plain training's.

  Args:
    ctx: the context.
    index: of the batch.
    shared: whether every pass has the masks of number 0.
  """
  key = passes.dropout_key(ctx, index)

  def of_pass(number: int | tf.Tensor) -> randomness.Key:
    if shared or isinstance(number, int) and number == 0:
      return key
    return randomness.fold(key, number)

  return of_pass


def train_plainly(ctx: method.Context, batch: method.Batch, segments: Any,
                  terms: Sequence[str]) -> method.StepResult:
  """Plain training's update, bit for bit; of its terms those named."""
  run = passes.train(ctx, passes.natural_streams(batch), segments)
  shown = {name: run.terms[name] for name in terms if name in run.terms}
  return method.StepResult(run.gradients, run.statistics, (), shown,
                           run.outputs, batch)


def sizes(perturbation: tf.Tensor, weight: tf.Tensor, count: tf.Tensor
          ) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
  """Terms: mean sizes over sentences of a perturbation.

  Args:
    perturbation: float32 [b, L, d].
    weight: float32 [b], of the sentences.
    count: of examples, as which the terms count.
  """
  return {
      "perturbation_linf": (per_example.weighted_mean(
          tf.reduce_max(tf.abs(perturbation), axis=(1, 2)), weight), count),
      "perturbation_l2": (per_example.weighted_mean(
          tf.sqrt(tf.reduce_sum(tf.square(perturbation), axis=(1, 2))),
          weight), count)}
