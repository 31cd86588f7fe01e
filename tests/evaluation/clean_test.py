"""Evaluation counts every example once, whatever the batches."""

import math

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import config
from conadv_tf.data import pipeline, source
from conadv_tf.evaluation import clean
from conadv_tf.layers import network as networks
from conadv_tf.objectives import per_example

CLASSES = 7
LOSS = per_example.per_example_loss(
    tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))


def pixels_as_logits(classes: int = CLASSES) -> networks.Network:
  """Images [b, 1, 1, classes] whose pixels / 16 are the logits."""
  inputs = tf.keras.Input([1, 1, classes])
  x = tf.keras.layers.Rescaling(1 / 16)(inputs)
  return networks.convert(
      tf.keras.Model(inputs, tf.keras.layers.Flatten()(x)))


def with_statistics() -> networks.Network:
  """As above through a batch normalisation whose branches differ."""
  inputs = tf.keras.Input([1, 1, CLASSES])
  x = tf.keras.layers.BatchNormalization(epsilon=0.0)(inputs)
  network = networks.convert(
      tf.keras.Model(inputs, tf.keras.layers.Flatten()(x)))
  for branch, mean in (("clean", 0.0), ("adversarial", 200.0)):
    layer = network.layer_variables[0][branch]
    layer.moving_mean.assign([mean] + [0.0] * (CLASSES - 1))
    layer.moving_variance.assign([256.0] * CLASSES)
  return network


def examples(count: int) -> source.ArraySource:
  generator = np.random.default_rng(count)
  images = generator.integers(0, 256, (count, 1, 1, CLASSES), dtype=np.uint8)
  labels = generator.integers(0, CLASSES, count)
  # Every second example is right, so that no accuracy is 0.
  labels[::2] = images[::2].reshape([-1, CLASSES]).argmax(1)
  return source.ArraySource(images, labels, num_classes=CLASSES)


def by_hand(data: source.ArraySource, shift: float = 0.0) -> dict[str, float]:
  images, labels = data.read(tf.range(data.num_examples, dtype=tf.int64))
  labels = labels.numpy()
  logits = images.numpy().reshape([-1, CLASSES]) / 16.0
  logits[:, 0] -= shift
  rows = np.arange(len(labels))
  order = np.argsort(-logits, axis=1, kind="stable")
  losses = np.log(np.exp(logits).sum(1)) - logits[rows, labels]
  return {"loss": losses.mean(),
          "accuracy": (order[:, 0] == labels).sum() / len(labels),
          "top_5_accuracy": (order[:, :5] == labels[:, None]).sum()
                            / len(labels),
          "examples": len(labels)}


def assert_same(found: dict[str, float], expected: dict[str, float]) -> None:
  assert found.keys() == expected.keys()
  assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6, abs=1e-6)
  for name in expected.keys() - {"loss"}:
    assert found[name] == expected[name]  # exactly: a ratio of counts


@pytest.mark.parametrize("count", [
    1, 7, pytest.param(10, marks=pytest.mark.slow)])
def test_every_batch_size_gives_the_numbers_made_by_hand(count: int) -> None:
  data = examples(count)
  evaluator = clean.Evaluator(pixels_as_logits(), LOSS)
  for batch_size in range(1, count + 4):
    assert_same(evaluator(pipeline.evaluation_dataset(data, batch_size)),
                by_hand(data))


def test_two_replicas_give_the_same_numbers(
    mirrored: tf.distribute.Strategy) -> None:
  with mirrored.scope():
    network = with_statistics()
  for count, batch_sizes in ((1, (1,)), (7, (1, 3, 4, 8)), (10, (5,))):
    data = examples(count)
    evaluator = clean.Evaluator(network, LOSS, mirrored)
    for batch_size in batch_sizes:
      assert_same(evaluator(pipeline.evaluation_dataset(data, batch_size)),
                  by_hand(data))


def test_branches_are_told_apart() -> None:
  network = with_statistics()
  data = examples(10)
  batches = pipeline.evaluation_dataset(data, 4)
  for branch, shift in (("clean", 0.0), ("adversarial", 200.0 / 16.0)):
    found = clean.Evaluator(network, LOSS, branch=branch)(batches)
    assert_same(found, by_hand(data, shift))
    # What is merged is what was evaluated.
    images, _ = data.read(tf.range(10, dtype=tf.int64))
    np.testing.assert_allclose(
        network.merge(branch)(tf.cast(images, tf.float32)),
        clean.Evaluator(network, LOSS, branch=branch).logits(images),
        atol=1e-6)
  assert abs(by_hand(data)["loss"] - by_hand(data, 12.5)["loss"]) > 0.1
  with pytest.raises(config.InputError, match="no branch 'augmented'; this "
                     "network has clean, adversarial"):
    clean.Evaluator(network, LOSS, branch="augmented")


@pytest.mark.parametrize("replicas", [1, 2])
def test_one_trace_for_many_evaluations(
    mirrored: tf.distribute.Strategy, replicas: int) -> None:
  traced = []

  def loss(label: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    traced.append(1)
    return LOSS(label, outputs)

  strategy = mirrored if replicas == 2 else tf.distribute.get_strategy()
  with strategy.scope():
    network = with_statistics()
  evaluator = clean.Evaluator(network, loss, strategy)
  before = evaluator(pipeline.evaluation_dataset(examples(10), 4))
  # Later weights and another dataset of the same batch size.
  network.variables[1].assign([100.0] + [0.0] * (CLASSES - 1))  # beta
  after = evaluator(pipeline.evaluation_dataset(examples(10), 4))
  evaluator(pipeline.evaluation_dataset(examples(7), 4))
  assert len(traced) == replicas
  assert_same(before, by_hand(examples(10)))
  assert_same(after, by_hand(examples(10), -100.0))


def test_soft_labels() -> None:
  data = examples(10)
  hard = by_hand(data)
  network = pixels_as_logits()
  loss = per_example.per_example_loss(
      tf.keras.losses.CategoricalCrossentropy(from_logits=True))
  batches = pipeline.evaluation_dataset(data, 4).map(
      lambda image, label, weight: (
          image, tf.one_hot(label, CLASSES, 0.9 + 0.1 / 7, 0.1 / 7), weight))
  found = clean.Evaluator(network, loss)(batches)
  # sum_j p_j loss_j = 0.9 loss_label + 0.1 mean_j loss_j.
  images, _ = data.read(tf.range(10, dtype=tf.int64))
  logits = images.numpy().reshape([-1, CLASSES]) / 16.0
  every = np.log(np.exp(logits).sum(1)) - logits.mean(1)
  assert_same(found, {**hard, "loss": 0.9 * hard["loss"] + 0.1 * every.mean()})


def test_top_5_only_where_it_says_something() -> None:
  network = pixels_as_logits(5)
  data = source.ArraySource(np.zeros([3, 1, 1, 5], np.uint8), np.arange(3),
                            num_classes=5)
  found = clean.Evaluator(network, LOSS)(pipeline.evaluation_dataset(data, 2))
  # Equal logits: the lowest class is predicted.
  assert found == {"loss": pytest.approx(math.log(5)), "accuracy": 1 / 3,
                   "examples": 3.0}


def test_ranks_with_ties_and_nan() -> None:
  nan = math.nan
  outputs = tf.constant([
      [3.0, 1.0, 3.0, 2.0], [3.0, 1.0, 3.0, 2.0], [3.0, 1.0, 3.0, 2.0],
      [nan, nan, nan, nan], [nan, 5.0, 1.0, 0.0]])
  labels = tf.constant([0, 2, 1, 0, 1])
  for rank in (clean.label_rank, tf.function(clean.label_rank),
               tf.function(clean.label_rank, jit_compile=True)):
    assert rank(labels, outputs).numpy().tolist() == [0, 1, 3, 3, 1]
    assert rank(labels[:, None], outputs).numpy().tolist() == [0, 1, 3, 3, 1]


def test_infinite_loss_of_padding_does_not_count() -> None:
  images = np.array([[[[16, 0]]], [[[0, 0]]]], np.uint8)
  dataset = tf.data.Dataset.from_tensors(
      (images, np.array([0, 1], np.int32), np.array([1, 0], np.float32)))

  def loss(label: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    return 1.0 / outputs[:, 0]

  found = clean.Evaluator(pixels_as_logits(2), loss)(dataset)
  assert found == {"loss": 1.0, "accuracy": 1.0, "examples": 1.0}


def test_nothing_to_evaluate() -> None:
  evaluator = clean.Evaluator(pixels_as_logits(), LOSS)
  batches = pipeline.evaluation_dataset(examples(4), 2)
  padding = batches.map(lambda image, label, weight: (image, label, 0 * weight))
  for dataset in (padding, batches.take(0)):
    with pytest.raises(config.InputError, match="has no examples"):
      evaluator(dataset)
  with pytest.raises(ValueError, match="one static size"):
    evaluator(batches.unbatch().batch(3))


def test_generalisation_gap_is_train_minus_validation() -> None:
  gap = clean.generalisation_gap({"accuracy": 0.75}, {"accuracy": 0.5})
  assert gap == 0.25
