"""Adversarial copies of a batch, to look at."""

import tensorflow as tf

from conadv_tf.methods import method as methods
from conadv_tf.methods import passes
from conadv_tf.training import trainer as trainers


class Perturb:
  """Runs a trainer's attack under its current weights; traced once a shape."""

  def __init__(self, trainer: trainers.Trainer):
    """Keeps a compiled trainer."""
    self._strategy = trainer.distribute_strategy

    def attack(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
      rows = images.shape[0]
      ctx = trainer.context(tf.constant(0), trainer.network)
      batch = methods.Batch(images, labels, tf.ones([rows]))
      return passes.perturbed(
          ctx, batch, passes.make_perturbation(ctx, batch, rows))

    # Not a lambda: TPUStrategy makes names of the caller's, without `<`.
    def run(*args: tf.Tensor) -> tf.Tensor:
      return self._strategy.run(attack, args=args)

    self._run = tf.function(run, autograph=False)

  def __call__(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Attacks a batch.

    Args:
      images: [b, h, w, c] in the pixel range.
      labels: as in training.

    Returns:
      float32 [b, h, w, c].
    """
    results = self._run(tf.convert_to_tensor(images),
                        tf.convert_to_tensor(labels))
    return self._strategy.experimental_local_results(results)[0]
