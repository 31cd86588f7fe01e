"""Robust accuracy: derived by hand, and as foolbox finds it."""

import dataclasses

import foolbox
import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import attacks, config
from conadv_tf.data import digits, pipeline, source
from conadv_tf.evaluation import clean, robust
from conadv_tf.layers import network as networks
from conadv_tf.objectives import per_example

LOSS = per_example.per_example_loss(
    tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
PIXELS = (0.0, 255.0)
DEFAULT = tf.distribute.get_strategy


@pytest.mark.parametrize("name, radius, steps, step_size, random_start", [
    ("fgsm", 4.0, 1, None, 0.0),
    ("fgsm@2.5", 2.5, 1, None, 0.0),
    ("pgd1", 4.0, 1, None, 1.0),
    ("pgd20", 4.0, 20, None, 1.0),
    ("pgd10@8", 8.0, 10, None, 1.0),
    ("pgd3@0", 0.0, 3, None, 1.0),
    ("pgd50-10@8/2", 8.0, 50, 2.0, 1.0),
    ("pgd3-0", 4.0, 3, None, 0.0),
    ("noise10", 4.0, 1, 0.0, 1.0),
])
def test_names(
    name: str, radius: float, steps: int, step_size: float | None,
    random_start: float) -> None:
  assert robust.named_attack(name, 4.0) == robust.PgdByExample(
      radius=radius, steps=steps, step_size=step_size, norm="linf",
      random_start=random_start, mode="moving",
      restarts=10 if name in ("pgd50-10@8/2", "noise10") else 1)


@pytest.mark.parametrize("name", [
    "deepfool", "pgd", "pgd0", "pgd-1", "PGD20", "fgsm2", "", "pgd20 "])
def test_an_unknown_name_is_told_the_known_ones(name: str) -> None:
  with pytest.raises(config.InputError) as caught:
    robust.named_attack(name, 4.0)
  message = str(caught.value)
  assert message.startswith(f"evaluation.attacks: unknown attack {name!r}; ")
  assert "fgsm" in message and "pgd20@8" in message


def test_the_librarys_attacks_are_for_after_training() -> None:
  with pytest.raises(config.InputError, match="in conadv-evaluate --attacks"):
    robust.named_attack("apgd", 4.0)


@pytest.mark.parametrize("radius", ["x", "-1", "nan", "inf", "256", ""])
def test_a_bad_radius_is_refused(radius: str) -> None:
  with pytest.raises(config.InputError, match="must be a number from 0 to 255"):
    robust.named_attack(f"pgd20@{radius}", 4.0)


def robust_accuracy(network: networks.Network, dataset: tf.data.Dataset,
                    *arguments: object) -> float:
  return robust.RobustEvaluator(network, *arguments)(dataset)["accuracy"]


def brighter_than_middle(statistics: bool = False) -> networks.Network:
  """One pixel x in 0..255; logits (x - 127.5, 127.5 - x) / 32.

  With `statistics` the adversarial branch sees the middle at 147.5.
  """
  inputs = tf.keras.Input([1, 1, 1])
  x = tf.keras.layers.BatchNormalization(epsilon=0.0)(inputs)
  x = tf.keras.layers.Flatten()(x)
  x = tf.keras.layers.Concatenate()([x, -x])
  network = networks.convert(tf.keras.Model(inputs, x))
  for branch, mean in (("clean", 127.5),
                       ("adversarial", 147.5 if statistics else 127.5)):
    layer = network.layer_variables[0][branch]
    layer.moving_mean.assign([mean])
    layer.moving_variance.assign([32.0**2])
  return network


def all_greys() -> source.ArraySource:
  images = np.arange(256, dtype=np.uint8).reshape([-1, 1, 1, 1])
  return source.ArraySource(images, np.repeat([1, 0], 128), num_classes=2)


@pytest.mark.parametrize("name, branch, middle", [
    ("fgsm", "clean", 127.5), ("pgd7", "adversarial", 147.5),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("pgd2", "clean", 127.5), ("pgd7", "clean", 127.5),
        ("fgsm", "adversarial", 147.5), ("pgd2", "adversarial", 147.5)))])
def test_accuracy_of_a_threshold(name: str, branch: str, middle: float) -> None:
  # The attack moves each grey by the radius r = 10 against its label: greys
  # below 128 (class 1) are right if x + r < middle, others if x - r > middle.
  greys = np.arange(256)
  moved = np.where(greys < 128, greys + 10, greys - 10)
  right = np.where(greys < 128, moved < middle, moved > middle)
  found = robust_accuracy(
      brighter_than_middle(True),
      pipeline.evaluation_dataset(all_greys(), 100), LOSS,
      robust.named_attack(name, 10.0), DEFAULT(), branch, 0, PIXELS)
  assert found == right.sum() / 256


def test_radius_counts_in_the_pixel_range() -> None:
  # Pixels 0 .. 1 and the middle at 0.5: radius 10 is 10/255.
  network = brighter_than_middle()
  for layer in network.layer_variables[0].values():
    layer.moving_mean.assign([0.5])
    layer.moving_variance.assign([1.0])
  batches = pipeline.evaluation_dataset(all_greys(), 64).map(
      lambda image, label, weight: (
          tf.cast(image, tf.float32) / 255.0, label, weight))
  found = robust_accuracy(
      network, batches, LOSS, robust.named_attack("fgsm", 10.0), DEFAULT(),
      "clean", 0, (0.0, 1.0))
  assert found == (256 - 20) / 256


def noise_only(steps: int = 1) -> attacks.Pgd:
  return attacks.Pgd(radius=10.0, steps=steps, step_size=0.0, random_start=1.0)


def shown_pixel(label: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
  """The pixel that the network was shown, as the loss."""
  del label
  return outputs[:, 0] * 32.0 + 127.5


def test_noise_belongs_to_the_example(mirrored: tf.distribute.Strategy) -> None:
  with mirrored.scope():
    network = brighter_than_middle()
  data = source.ArraySource(np.full([11, 1, 1, 1], 100, np.uint8),
                            np.zeros(11, np.int32), num_classes=2)

  def mean_pixel(batch_size: int, strategy: tf.distribute.Strategy,
                 seed: int = 0) -> float:
    evaluator = robust.RobustEvaluator(
        network, shown_pixel, noise_only(), strategy, "clean", seed, PIXELS)
    return evaluator(pipeline.evaluation_dataset(data, batch_size))["loss"]

  expected = mean_pixel(11, DEFAULT())
  assert 90 < expected < 110 and abs(expected - 100) > 1e-3
  for batch_size, strategy in ((1, DEFAULT()), (4, DEFAULT()),
                               (3, mirrored), (11, mirrored)):
    assert mean_pixel(batch_size, strategy) == pytest.approx(expected, 1e-6)
  assert abs(mean_pixel(4, DEFAULT(), seed=1) - expected) > 1e-3


def test_noise_differs_between_examples_and_stays_in_the_ball() -> None:
  evaluator = robust.RobustEvaluator(
      brighter_than_middle(), shown_pixel, noise_only(3), DEFAULT(), "clean",
      0, PIXELS)
  image = tf.fill([64, 1, 1, 1], tf.constant(250, tf.uint8))
  shown = evaluator.inputs(image, tf.zeros([64], tf.int32), tf.ones([64]),
                           tf.range(64)).numpy().ravel()
  assert len(np.unique(shown)) > 40
  assert shown.min() >= 240 and shown.max() == 255


@pytest.fixture(scope="module")
def trained() -> tuple[networks.Network, source.Source]:
  """A small network that knows the digits a little."""
  tf.keras.utils.set_random_seed(0)
  splits = digits.load(config.DataConfig())
  layers = tf.keras.layers
  model = tf.keras.Sequential([
      layers.Input([8, 8, 1]), layers.Rescaling(1 / 127.5, offset=-1.0),
      layers.Conv2D(16, 3, padding="same", use_bias=False),
      layers.BatchNormalization(momentum=0.8), layers.ReLU(),
      layers.Conv2D(16, 3, strides=2, padding="same"), layers.ReLU(),
      layers.Flatten(), layers.Dense(10)])
  model.compile("adam", tf.keras.losses.SparseCategoricalCrossentropy(
      from_logits=True))
  model.fit(pipeline.train_dataset(splits.train, global_batch_size=32,
                                   num_steps=150), verbose=0)
  return networks.convert(model), splits.validation


@pytest.mark.parametrize("name, radius", [("fgsm", 24.0), ("pgd5", 24.0)])
def test_foolbox_finds_the_same_accuracy(
    trained: tuple[networks.Network, source.Source], name: str,
    radius: float) -> None:
  network, data = trained
  attack = dataclasses.replace(robust.named_attack(name, radius),
                               random_start=0.0)
  found = robust.RobustEvaluator(
      network, LOSS, attack, DEFAULT(), "clean", 0, PIXELS)(
          pipeline.evaluation_dataset(data, 100))
  images, labels = data.read(tf.range(data.num_examples, dtype=tf.int64))
  images, labels = tf.cast(images, tf.float32), tf.cast(labels, tf.int64)
  oracle = (
      foolbox.attacks.LinfFastGradientAttack(random_start=False)
      if name == "fgsm" else foolbox.attacks.LinfProjectedGradientDescentAttack(
          abs_stepsize=2.5 * radius / 5, steps=5, random_start=False))
  model = foolbox.TensorFlowModel(network.merge(), bounds=PIXELS)
  _, _, fooled = oracle(model, images, labels, epsilons=radius)
  assert 0.1 < found["accuracy"] < 0.8
  assert found["accuracy"] == np.mean(~fooled.numpy())
  assert found["examples"] == data.num_examples


def test_foolbox_makes_the_same_images(
    trained: tuple[networks.Network, source.Source]) -> None:
  network, data = trained
  images, labels = data.read(tf.range(64, dtype=tf.int64))
  evaluator = robust.RobustEvaluator(
      network, LOSS, robust.named_attack("pgd7-0@24/5", 1.0), DEFAULT(),
      "clean", 0, PIXELS)
  found = tf.function(evaluator.inputs)(
      images, labels, tf.ones([64]), tf.range(64))
  oracle = foolbox.attacks.LinfProjectedGradientDescentAttack(
      abs_stepsize=5.0, steps=7, random_start=False)
  expected, _, _ = oracle(
      foolbox.TensorFlowModel(network.merge(), bounds=PIXELS),
      tf.cast(images, tf.float32), tf.cast(labels, tf.int64), epsilons=24.0)
  assert np.abs(found - tf.cast(images, tf.float32)).max() == 24.0
  np.testing.assert_allclose(found / 255.0, expected / 255.0, atol=1e-6)


def test_an_example_must_survive_every_restart() -> None:
  # The twin: the same noise one restart at a time, in NumPy.
  evaluator = robust.RobustEvaluator(
      brighter_than_middle(), LOSS, robust.named_attack("noise4", 10.0),
      DEFAULT(), "clean", 0, PIXELS)
  greys = all_greys()
  image, label = greys.read(tf.range(256, dtype=tf.int64))
  inputs = tf.function(evaluator.inputs)
  right = []
  for restart in [(), *((tf.constant(i),) for i in range(1, 4))]:
    shown = inputs(image, label, tf.ones([256]), tf.range(256),
                   *restart).numpy().ravel()
    right.append(np.where(np.arange(256) < 128, shown < 127.5, shown > 127.5))
  found = evaluator(pipeline.evaluation_dataset(greys, 100))["accuracy"]
  assert found == np.mean(np.all(right, axis=0)) < np.mean(right[0])
  single = robust.RobustEvaluator(
      brighter_than_middle(), LOSS, robust.named_attack("noise1", 10.0),
      DEFAULT(), "clean", 0, PIXELS)
  assert single(pipeline.evaluation_dataset(greys, 64))["accuracy"] == (
      np.mean(right[0]))


def test_radius_0_is_the_clean_accuracy(
    trained: tuple[networks.Network, source.Source]) -> None:
  network, data = trained
  batches = pipeline.evaluation_dataset(data, 128)
  expected = clean.Evaluator(network, LOSS)(batches)
  found = robust.RobustEvaluator(
      network, LOSS, robust.named_attack("pgd3@0", 8.0), DEFAULT(), "clean",
      0, PIXELS)(batches)
  assert found == expected
  assert expected["accuracy"] > 0.9


def test_the_attack_leaves_the_network_alone_and_repeats(
    trained: tuple[networks.Network, source.Source]) -> None:
  network, data = trained
  before = [v.numpy() for v in network.variables]
  evaluator = robust.RobustEvaluator(
      network, LOSS, robust.named_attack("pgd3", 8.0), DEFAULT(), "clean", 3,
      PIXELS)
  batches = pipeline.evaluation_dataset(data, 128)
  assert evaluator(batches) == evaluator(batches)
  for old, new in zip(before, network.variables, strict=True):
    np.testing.assert_array_equal(old, new.numpy())


def test_a_targeted_attack_is_refused() -> None:
  with pytest.raises(ValueError, match="untargeted"):
    robust.RobustEvaluator(
        brighter_than_middle(), LOSS, attacks.Pgd(target="random"), DEFAULT(),
        "clean", 0, PIXELS)
