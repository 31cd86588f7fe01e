"""Mixed labels (MixUp, CutMix, label smoothing) reach attack and update."""

import numpy as np
import tensorflow as tf

from conadv_tf import attacks, methods, randomness
from conadv_tf.data import mix
from conadv_tf.layers import network as networks
from conadv_tf.layers import routing
from conadv_tf.methods import method as methods_base
from conadv_tf.methods import passes
from conadv_tf.objectives import per_example
from tests.methods import running

LOSS = tf.keras.losses.CategoricalCrossentropy(from_logits=True)


def softmax(logits: np.ndarray) -> np.ndarray:
  exponentials = np.exp(logits - logits.max(1, keepdims=True))
  return exponentials / exponentials.sum(1, keepdims=True)


def linear(*shape: int, classes: int, scale: float = 1.0) -> tf.keras.Model:
  """Logits W x."""
  return tf.keras.Sequential([
      tf.keras.layers.Flatten(input_shape=shape),
      tf.keras.layers.Rescaling(scale),
      tf.keras.layers.Dense(classes, use_bias=False)])


def test_the_attack_ascends_the_loss_of_the_mixed_labels() -> None:
  network = networks.convert(linear(2, 2, 1, classes=3))
  weights = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
  network.model.set_weights([weights])
  image = np.random.default_rng(2).uniform(0.4, 0.6, (5, 2, 2, 1)).astype(
      np.float32)
  labels = np.random.default_rng(3).dirichlet(np.ones(3), 5).astype(np.float32)
  # Small steps along the gradient itself, so that nothing is clipped.
  attack = attacks.Pgd(radius=200, direction="raw", step_size=0.5,
                       random_start=0.0, branch=routing.CLEAN)
  ctx = methods_base.Context(
      network, network, attack, per_example.per_example_loss(LOSS), 0,
      tf.constant(0), tf.constant(0), tf.constant(0), (0.0, 1.0))
  batch = methods_base.Batch(
      tf.constant(image), tf.constant(labels), tf.ones([5]))
  moved = passes.perturbed(
      ctx, batch, passes.make_perturbation(ctx, batch, 5))
  x = image.reshape(5, 4)
  gradient = (softmax(x @ weights) - labels) @ weights.T
  np.testing.assert_allclose(
      (moved - image).numpy().reshape(5, 4), gradient * 0.5 / 255,
      rtol=2.0**-8, atol=1e-7)  # in bfloat16 on its way
  hardened = np.eye(3)[labels.argmax(1)]
  assert np.abs(hardened - labels).max() > 0.1  # they would differ


def test_conadv_updates_on_mixed_examples() -> None:
  pixels = tf.constant(np.round(running.IMAGES[:32] * 255), tf.uint8)
  image, label, weight = mix.mix_batch(
      pixels, running.LABELS[:32], tf.ones([32]),
      randomness.make_key(0, randomness.MIXING), 0, 0.4, 1.0, 5)
  assert np.count_nonzero(label) > 32
  trainer = running.make(
      methods.ConAdv(), loss=LOSS, attack=attacks.Pgd(radius=0),
      model=lambda: linear(8, 8, 3, classes=5, scale=1 / 255),
      options={"pixel_range": (0.0, 255.0)})
  logits = trainer(tf.cast(image, tf.float32)).numpy()
  expected = -np.mean(np.sum(label * np.log(softmax(logits)), axis=1))
  before = running.values(trainer)
  data = tf.data.Dataset.from_tensors((image, label, weight)).repeat()
  history = trainer.fit(data, steps_per_epoch=1, verbose=0).history
  np.testing.assert_allclose(history["clean_loss"], expected, rtol=1e-4)
  np.testing.assert_allclose(
      history["adversarial_loss"], expected, rtol=1e-4)
  assert np.abs(running.values(trainer) - before).max() > 1e-3
