"""The ImageNet networks: counts, parity with the reference, options."""

import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import config
from conadv_tf.layers import network
from conadv_tf.models import resnet

MEAN = np.array([123.68, 116.78, 103.94], np.float32)
Gradients = dict[str, np.ndarray]


def images(*shape: int) -> np.ndarray:
  return np.random.uniform(0, 255, shape).astype(np.float32)


def tap(model: tf.keras.Model, *names: str) -> tf.keras.Model:
  """The model's part up to some layers."""
  return tf.keras.Model(
      model.input, [model.get_layer(name).output for name in names])


def scramble_norms(model: tf.keras.Model) -> None:
  """Gives every batch normalisation other values than it starts with."""
  for layer in model.layers:
    if isinstance(layer, tf.keras.layers.BatchNormalization):
      size = layer.gamma.shape[0]
      layer.set_weights([
          np.random.uniform(0.5, 1.5, size), np.random.normal(0, 0.1, size),
          np.random.normal(0, 0.1, size), np.random.uniform(0.5, 1.5, size)])


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
  """Largest difference over the largest expected value."""
  return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))


def outputs_and_gradients(
    model: tf.keras.Model, x: np.ndarray, training: bool
) -> tuple[np.ndarray, Gradients]:
  """Logits, and gradients of a cross entropy by layer/variable."""
  with tf.GradientTape() as tape:
    x = tf.constant(x)
    tape.watch(x)
    logits = model(x, training=training)
    loss = tf.reduce_sum(tf.keras.losses.sparse_categorical_crossentropy(
        np.arange(len(x)), logits, from_logits=True))
  gradients = tape.gradient(loss, [x, *model.trainable_variables])
  names = ["input", *(v.name for v in model.trainable_variables)]
  return logits.numpy(), {
      name: g.numpy() for name, g in zip(names, gradients, strict=True)}


def legacy_names() -> dict[str, str]:
  """Our layers of ResNet-50 -> those of tf-models-official."""
  names = {"stem_conv": "conv1", "stem_bn": "bn_conv1", "logits": "fc1000"}
  for stage, blocks in enumerate((3, 4, 6, 3)):
    for block in range(blocks):
      branches = {"1": "2a", "2": "2b", "3": "2c"}
      if not block:
        branches["shortcut"] = "1"
      for ours, theirs in branches.items():
        our_name = f"stage{stage + 1}_block{block + 1}_{ours}"
        their_name = f"{stage + 2}{'abcdef'[block]}_branch{theirs}"
        names[f"{our_name}_conv"] = f"res{their_name}"
        names[f"{our_name}_bn"] = f"bn{their_name}"
  return names


@pytest.mark.slow
def test_equals_the_legacy_resnet50_of_tf_models_official() -> None:
  from official.legacy.image_classification.resnet import resnet_model

  legacy = resnet_model.resnet50(10, use_l2_regularizer=False)
  legacy = tf.keras.models.clone_model(
      legacy, input_tensors=tf.keras.Input((64, 64, 3)))
  legacy = tf.keras.Model(legacy.input, legacy.get_layer("fc1000").output)
  scramble_norms(legacy)
  names = legacy_names()
  plain = resnet.resnet50((64, 64, 3), 10)
  blocks = resnet.resnet50((64, 64, 3), 10, space_to_depth=True)
  for model in (plain, blocks):
    for ours, theirs in names.items():
      model.get_layer(ours).set_weights(
          legacy.get_layer(theirs).get_weights())
    assert len(model.weights) == len(legacy.weights) == 267
    assert len(model.trainable_weights) == 161
  x = images(2, 64, 64, 3)

  def compare(training: bool, *models: tf.keras.Model) -> None:
    expected, expected_gradients = outputs_and_gradients(
        legacy, x - MEAN, training)
    for model in models:
      check(*outputs_and_gradients(model, x, training), expected,
            expected_gradients)

  def check(logits: np.ndarray, gradients: Gradients, expected: np.ndarray,
            expected_gradients: Gradients) -> None:
    assert relative(logits, expected) < 1e-5
    assert len(gradients) == len(expected_gradients) == 162
    for name, gradient in gradients.items():
      layer, _, variable = name.partition("/")
      key = f"{names[layer]}/{variable}" if variable else "input"
      assert relative(gradient, expected_gradients[key]) < 1e-5, name

  # A pass in training moves statistics, so it comes last.
  compare(False, plain, blocks)
  compare(True, plain)
  for ours, theirs in names.items():
    for mine, reference in zip(
        plain.get_layer(ours).weights, legacy.get_layer(theirs).weights,
        strict=True):
      np.testing.assert_allclose(mine, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("depth, trainable, tensors", [
    (18, 11_689_512, 62),
    (50, 25_557_032, 161),
    pytest.param(34, 21_797_672, 110, marks=pytest.mark.slow),
    pytest.param(101, 44_549_160, 314, marks=pytest.mark.slow),
    pytest.param(152, 60_192_808, 467, marks=pytest.mark.slow),
])
def test_published_counts(depth: int, trainable: int, tensors: int) -> None:
  model = getattr(resnet, f"resnet{depth}")((32, 32, 3), 1000)
  sizes = [v.shape.num_elements() for v in model.trainable_variables]
  assert (sum(sizes), len(sizes)) == (trainable, tensors)
  assert model.output_shape == (None, 1000)
  assert not any(conv.use_bias for conv in model.layers
                 if isinstance(conv, tf.keras.layers.Conv2D))


def test_strides_and_defaults_of_version_1_5() -> None:
  model = resnet.resnet50((64, 64, 3), 10)
  sides = {
      name: model.get_layer(f"{name}").output_shape[1] for name in (
          "stem_conv", "stem_pool", "stage1_block1_3_conv",
          "stage2_block1_1_conv", "stage2_block1_2_conv",
          "stage2_block1_shortcut_conv", "stage4_block3_relu")}
  assert list(sides.values()) == [32, 16, 16, 16, 8, 8, 2]
  norm = model.get_layer("stem_bn")
  assert (norm.momentum, norm.epsilon) == (0.9, 1e-5)
  assert np.std(model.get_layer("logits").kernel) == pytest.approx(
      0.01, rel=0.05)
  assert not np.any(model.get_layer("logits").bias)


@pytest.mark.parametrize("side", [32, 33])
def test_space_to_depth_kernel_computes_the_same(side: int) -> None:
  x = tf.pad(images(2, side, side, 3),
             [[0, 0], [3, 3 + side % 2], [3, 3 + side % 2], [0, 0]])
  kernel = tf.random.normal([7, 7, 3, 5])
  arranged = resnet.space_to_depth_kernel(kernel)
  assert arranged.shape == (4, 4, 12, 5)
  assert np.count_nonzero(arranged) == 7 * 7 * 3 * 5
  wide = tf.nn.conv2d(tf.nn.space_to_depth(x, 2), arranged, 1, "VALID")
  expected = tf.nn.conv2d(x, kernel, 2, "VALID")[:, :wide.shape[1]]
  assert wide.shape[1] == -(-side // 2)
  assert relative(wide.numpy(),
                  expected[:, :, :wide.shape[2]].numpy()) < 1e-5


def test_space_to_depth_is_the_same_function_of_the_same_weights() -> None:
  plain = resnet.resnet18((33, 32, 3), 5)
  blocks = resnet.resnet18((33, 32, 3), 5, space_to_depth=True)
  assert [(v.name, v.shape) for v in blocks.weights] == [
      (v.name, v.shape) for v in plain.weights]
  scramble_norms(plain)
  blocks.set_weights(plain.get_weights())
  x = images(4, 33, 32, 3)
  for part in ("stem_relu", "logits"):
    # Batch statistics over few pixels enlarge rounding in the last stages.
    training = part == "stem_relu"
    expected, expected_gradients = outputs_and_gradients(
        _with_head(plain, part), x, training)
    logits, gradients = outputs_and_gradients(
        _with_head(blocks, part), x, training)
    assert relative(logits, expected) < 1e-5
    assert list(gradients) == list(expected_gradients)
    for name, gradient in gradients.items():
      assert relative(gradient, expected_gradients[name]) < 1e-5, name


def _with_head(model: tf.keras.Model, part: str) -> tf.keras.Model:
  """The model up to `part`, its pixels summed with random weights."""
  x = model.get_layer(part).output
  if x.shape.rank == 4:
    x = tf.keras.layers.Flatten()(x)
    x = tf.keras.layers.Dense(5, name="probe", kernel_initializer=(
        tf.keras.initializers.RandomNormal(seed=1)))(x)
  return tf.keras.Model(model.input, x)


@pytest.mark.slow
def test_space_to_depth_is_exported_as_a_plain_model(
    tmp_path: pathlib.Path) -> None:
  model = resnet.resnet18((16, 16, 3), 5, space_to_depth=True)
  x = images(2, 16, 16, 3)
  expected = model(x).numpy()
  converted = network.convert(model)
  assert len(converted.layers) == 20
  merged = converted.merge()
  np.testing.assert_array_equal(merged(x), expected)
  # Nothing in a file needs this package to be read.
  assert all(type(layer).__module__.startswith("keras.")
             for layer in merged.layers)
  for suffix in (".keras", ".h5"):
    path = tmp_path / f"model{suffix}"
    merged.save(path)
    np.testing.assert_array_equal(
        tf.keras.models.load_model(path, compile=False)(x), expected)


def test_zero_gamma_starts_every_block_as_an_identity() -> None:
  model = resnet.resnet18((16, 16, 3), 5, zero_gamma=True)
  zero = [layer.name for layer in model.layers
          if isinstance(layer, tf.keras.layers.BatchNormalization)
          and not np.any(layer.gamma)]
  assert sorted(zero) == [
      f"stage{stage}_block{block}_2_bn" for stage in (1, 2, 3, 4)
      for block in (1, 2)]
  before, after = tap(model, "stage2_block1_relu", "stage2_block2_relu")(
      images(2, 16, 16, 3))
  np.testing.assert_array_equal(after, before)
  off = resnet.resnet18((16, 16, 3), 5)
  assert all(np.all(layer.gamma == 1) for layer in off.layers
             if isinstance(layer, tf.keras.layers.BatchNormalization))


@pytest.mark.parametrize("initializer, variance", [
    ("he_normal", 2.0), ("variance_scaling", 1.0)])
def test_initial_variance(initializer: str, variance: float) -> None:
  model = resnet.resnet18((16, 16, 3), 5, initializer=initializer)
  kernel = model.get_layer("stage4_block2_1_conv").kernel
  assert np.var(kernel) * 9 * 512 == pytest.approx(variance, rel=0.01)


@pytest.mark.parametrize("args, expected", [
    ({}, 200 - MEAN),
    ({"normalization": "submission"},
     (200 / 255 - np.array([0.485, 0.456, 0.406]))
     / np.array([0.229, 0.224, 0.225])),
])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_normalised_inside(
    args: dict[str, str], expected: np.ndarray, channels: int) -> None:
  inputs = tf.keras.Input((2, 2, channels))
  model = tf.keras.Model(inputs, resnet._normalized(
      inputs, **({"normalization": "reference"} | args)))
  pixels = model(np.full((1, 2, 2, channels), 200, np.float32)).numpy()
  assert pixels.shape == (1, 2, 2, 3)
  np.testing.assert_allclose(pixels[0, 1, 0], expected, rtol=1e-5)


def test_grey_images_are_taken_three_times() -> None:
  model = resnet.resnet18((8, 8, 1), 5, batch_norm_momentum=0.5,
                          batch_norm_epsilon=1e-3)
  assert model(images(2, 8, 8, 1)).shape == (2, 5)
  assert model.get_layer("stem_conv").kernel.shape == (7, 7, 3, 64)
  norm = model.get_layer("stage4_block2_2_bn")
  assert (norm.momentum, norm.epsilon) == (0.5, 1e-3)


@pytest.mark.parametrize("args, words", [
    ({"zero_gama": True}, "model.args.zero_gama: resnet18 takes no such "
     "argument (did you mean zero_gamma?)"),
    ({"depth": 20}, "model.args.depth"),
    ({"zero_gamma": 1}, "model.args.zero_gamma is 1: it must be true"),
    ({"space_to_depth": "yes"}, "model.args.space_to_depth is 'yes'"),
    ({"normalization": "torch"}, "it must be reference or submission"),
    ({"normalization": ["reference"]}, "model.args.normalization"),
    ({"initializer": "zeros"}, "it must be he_normal or variance_scaling"),
    ({"batch_norm_momentum": 1}, "model.args.batch_norm_momentum is 1"),
    ({"batch_norm_epsilon": None}, "model.args.batch_norm_epsilon is None"),
])
def test_wrong_arguments(args: dict[str, Any], words: str) -> None:
  with pytest.raises(config.InputError) as error:
    resnet.resnet18((8, 8, 3), 10, **args)
  assert words in str(error.value)


def test_other_channels_are_refused() -> None:
  with pytest.raises(config.InputError, match="the data has 4"):
    resnet.resnet50((32, 32, 4), 10)
