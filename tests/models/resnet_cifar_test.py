"""The networks for small images: shapes, counts, shortcuts, pixels."""

import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import config
from conadv_tf.models import resnet_cifar

RESNETS = {
    8: resnet_cifar.resnet8,
    20: resnet_cifar.resnet20,
    32: resnet_cifar.resnet32,
    56: resnet_cifar.resnet56,
}


def parameters(depth: int, channels: int, classes: int, width: int) -> int:
  """Trainable parameters, counted by hand; option A has none in shortcuts."""
  n = (depth - 2) // 6
  first, second, third = width, 2 * width, 4 * width
  convolutions = 9 * (
      channels * first + 2 * n * first**2
      + first * second + (2 * n - 1) * second**2
      + second * third + (2 * n - 1) * third**2)
  norms = 2 * (first + 2 * n * (first + second + third))
  return convolutions + norms + third * classes + classes


def images(*shape: int) -> np.ndarray:
  return np.random.uniform(0, 255, shape).astype(np.float32)


@pytest.mark.parametrize("depth, published", [
    (20, 269722), pytest.param(32, 464154, marks=pytest.mark.slow),
    pytest.param(56, 853018, marks=pytest.mark.slow)])
def test_counts_on_cifar10(depth: int, published: int) -> None:
  model = RESNETS[depth]((32, 32, 3), 10)
  count = sum(v.shape.num_elements() for v in model.trainable_variables)
  assert count == published == parameters(depth, 3, 10, 16)


def test_counts_with_other_width_channels_and_classes() -> None:
  model = resnet_cifar.resnet8((8, 8, 1), 7, width=4)
  count = sum(v.shape.num_elements() for v in model.trainable_variables)
  assert count == parameters(8, 1, 7, 4)
  assert model(images(3, 8, 8, 1)).shape == (3, 7)


@pytest.mark.parametrize("depth, norms", [
    (8, 7), (20, 19), pytest.param(56, 55, marks=pytest.mark.slow)])
def test_a_batch_normalisation_after_every_convolution(
    depth: int, norms: int) -> None:
  model = RESNETS[depth]((8, 8, 1), 10)
  kinds = [type(layer) for layer in model.layers]
  assert kinds.count(tf.keras.layers.BatchNormalization) == norms
  assert kinds.count(tf.keras.layers.Conv2D) == norms
  assert not any(conv.use_bias for conv in model.layers
                 if isinstance(conv, tf.keras.layers.Conv2D))


def test_batch_normalisation_has_the_asked_momentum_and_epsilon() -> None:
  for args, expected in (
      ({}, (0.9, 1e-5)),
      ({"batch_norm_momentum": 0.99, "batch_norm_epsilon": 1e-3},
       (0.99, 1e-3))):
    model = resnet_cifar.resnet8((8, 8, 1), 10, **args)
    layer = model.get_layer("stem_bn")
    assert (layer.momentum, layer.epsilon) == expected


@pytest.mark.parametrize("size", [32, 7])
def test_stages_halve_the_image(size: int) -> None:
  model = resnet_cifar.resnet8((size, size, 3), 10)
  sizes = [model.get_layer(f"stage{stage}_block1_relu").output_shape[1:]
           for stage in (1, 2, 3)]
  half = -(-size // 2)
  quarter = -(-half // 2)
  assert sizes == [
      (size, size, 16), (half, half, 32), (quarter, quarter, 64)]


def test_shortcut_takes_every_second_pixel_and_zero_channels() -> None:
  model = resnet_cifar.resnet8((8, 8, 1), 10, width=4)
  taps = tf.keras.Model(model.input, [
      model.get_layer("stage1_block1_relu").output,
      model.get_layer("stage2_block1_new_channels").output])
  before, after = (t.numpy() for t in taps(images(2, 8, 8, 1)))
  assert after.shape == (2, 4, 4, 8)
  np.testing.assert_array_equal(after[..., 2:6], before[:, ::2, ::2])
  assert not after[..., :2].any() and not after[..., 6:].any()


def test_strided_convolution_is_centred_on_the_shortcut_pixel() -> None:
  model = resnet_cifar.resnet8((8, 8, 1), 10, width=4)
  conv = model.get_layer("stage2_block1_1_conv")
  kernel = np.zeros((3, 3, 4, 8), np.float32)
  kernel[1, 1, :, 2:6] = np.eye(4)  # the centre alone: the identity
  conv.set_weights([kernel])
  taps = tf.keras.Model(model.input, [
      conv.output, model.get_layer("stage2_block1_new_channels").output])
  convolved, shortcut = taps(images(2, 8, 8, 1))
  np.testing.assert_allclose(convolved, shortcut, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("args, expected", [
    ({}, [-1.0, 0.0, 1.0]),
    ({"pixel_mean": 51.0, "pixel_std": 102.0}, [-0.5, 0.75, 2.0])])
def test_pixels_are_normalised_inside(
    args: dict[str, float], expected: list[float]) -> None:
  layer = resnet_cifar.resnet8((8, 8, 1), 10, **args).get_layer("normalize")
  pixels = np.array([0.0, 127.5, 255.0], np.float32).reshape(3, 1, 1, 1)
  np.testing.assert_allclose(
      np.ravel(layer(pixels)), expected, rtol=1e-6, atol=1e-6)


def test_pixels_are_normalised_per_channel() -> None:
  model = resnet_cifar.resnet8(
      (8, 8, 3), 10, pixel_mean=[125.0, 123.0, 114.0],
      pixel_std=[63.0, 62.0, 67.0])
  pixels = np.array([125.0, 123.0 + 62.0, 114.0 - 67.0], np.float32)
  normalized = model.get_layer("normalize")(pixels.reshape(1, 1, 1, 3))
  np.testing.assert_allclose(np.ravel(normalized), [0, 1, -1], atol=1e-6)


def test_mixed_precision_keeps_small_perturbations_and_float32_logits() -> None:
  tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
  model = resnet_cifar.resnet8((8, 8, 1), 10, pixel_mean=200.0, pixel_std=1.0)
  assert model.get_layer("stem_conv").compute_dtype == "bfloat16"
  # In bfloat16 200.25 is 200: the quarter of a pixel would be lost.
  assert float(model.get_layer("normalize")(tf.constant([[200.25]]))) == 0.25
  assert model(images(2, 8, 8, 1)).dtype == tf.float32


@pytest.mark.parametrize("suffix", [
    ".keras", ".h5", pytest.param("", marks=pytest.mark.slow)])
def test_round_trip(suffix: str, tmp_path: pathlib.Path) -> None:
  model = resnet_cifar.resnet8((8, 8, 1), 10)
  x = images(4, 8, 8, 1)
  expected = model(x).numpy()
  assert np.ptp(expected) > 0.01
  path = str(tmp_path / f"model{suffix}")
  model.save(path)
  np.testing.assert_array_equal(
      tf.keras.models.load_model(path)(x), expected)
  clone = tf.keras.models.clone_model(model)
  clone.set_weights(model.get_weights())
  np.testing.assert_array_equal(clone(x), expected)


@pytest.mark.parametrize("args, words", [
    ({"widht": 8}, "model.args.widht: resnet8 takes no such argument "
     "(did you mean width?)"),
    ({"depth": 20}, "model.args.depth"),
    ({"width": 0}, "model.args.width is 0"),
    ({"width": "wide"}, "model.args.width is 'wide'"),
    ({"pixel_mean": [1.0, 2.0]}, "model.args.pixel_mean is [1.0, 2.0]"),
    ({"pixel_mean": "grey"}, "model.args.pixel_mean is 'grey'"),
    ({"pixel_std": 0}, "model.args.pixel_std is 0"),
    ({"batch_norm_momentum": "slow"}, "model.args.batch_norm_momentum"),
    ({"batch_norm_epsilon": -1.0}, "model.args.batch_norm_epsilon"),
])
def test_wrong_arguments(args: dict[str, Any], words: str) -> None:
  with pytest.raises(config.InputError) as error:
    resnet_cifar.resnet8((8, 8, 3), 10, **args)
  assert words in str(error.value)


@pytest.mark.parametrize("depth", [2, 18, 19, 20.0, "20", True])
def test_wrong_depth(depth: Any) -> None:
  with pytest.raises(config.InputError, match="must be 6n"):
    resnet_cifar.resnet((8, 8, 3), 10, depth=depth)
