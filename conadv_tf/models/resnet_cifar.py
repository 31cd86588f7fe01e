"""Residual networks for small images.

He et al., "Deep residual learning for image recognition" (CVPR 2016), section
4.2: depth 6n+2, three stages of n two-convolution blocks with 16, 32 and 64
filters, batch normalisation after every convolution and before the ReLU. The
shortcuts are the paper's option A: where the shape changes, every second pixel
and zeros for the new channels, so they have no parameters.
"""

from typing import Any, Sequence

import tensorflow as tf

from conadv_tf import config
from conadv_tf.models import arguments

layers = tf.keras.layers
PixelStatistic = float | Sequence[float]


def resnet8(
    input_shape: arguments.ImageShape, num_classes: int, **args: Any
) -> tf.keras.Model:
  """Depth 8, small enough for tests; `args` as in `resnet`."""
  return _checked(8, input_shape, num_classes, args)


def resnet20(
    input_shape: arguments.ImageShape, num_classes: int, **args: Any
) -> tf.keras.Model:
  """Depth 20, 0.27 million parameters; `args` as in `resnet`."""
  return _checked(20, input_shape, num_classes, args)


def resnet32(
    input_shape: arguments.ImageShape, num_classes: int, **args: Any
) -> tf.keras.Model:
  """Depth 32, 0.46 million parameters; `args` as in `resnet`."""
  return _checked(32, input_shape, num_classes, args)


def resnet56(
    input_shape: arguments.ImageShape, num_classes: int, **args: Any
) -> tf.keras.Model:
  """Depth 56, 0.85 million parameters; `args` as in `resnet`."""
  return _checked(56, input_shape, num_classes, args)


def resnet(
    input_shape: arguments.ImageShape,
    num_classes: int,
    *,
    depth: int,
    width: int = 16,
    pixel_mean: PixelStatistic = 127.5,
    pixel_std: PixelStatistic = 127.5,
    batch_norm_momentum: float = 0.9,
    batch_norm_epsilon: float = 1e-5,
) -> tf.keras.Model:
  """Builds the network.

  Args:
    input_shape: (height, width, channels) of the images.
    num_classes: number of logits.
    depth: 6n+2, the number of layers with weights.
    width: filters of the first stage; the others have twice and four times.
    pixel_mean: subtracted from the pixels, one number or one per channel.
    pixel_std: divides them then. The defaults bring 0..255 to -1..1.
    batch_norm_momentum: share of the old moving statistics in the new.
    batch_norm_epsilon: added to the variance.

  Returns:
    A functional model: float images [b, h, w, c] in 0..255 -> float32 logits
    [b, num_classes].
  """
  _check(depth, width, batch_norm_momentum, batch_norm_epsilon)

  def normalize(x: tf.Tensor, name: str) -> tf.Tensor:
    return layers.BatchNormalization(
        momentum=batch_norm_momentum, epsilon=batch_norm_epsilon,
        name=f"{name}_bn")(x)

  inputs = layers.Input(input_shape, name="image")
  x = _rescaling(input_shape[-1], pixel_mean, pixel_std)(inputs)
  x = _convolution(x, width, 1, "stem")
  x = layers.ReLU(name="stem_relu")(normalize(x, "stem"))
  for stage in range(3):
    filters = width * 2**stage
    for block in range((depth - 2) // 6):
      name = f"stage{stage + 1}_block{block + 1}"
      strides = 2 if stage and not block else 1
      shortcut = _shortcut(x, filters, strides, name)
      x = _convolution(x, filters, strides, f"{name}_1")
      x = layers.ReLU(name=f"{name}_1_relu")(normalize(x, f"{name}_1"))
      x = normalize(_convolution(x, filters, 1, f"{name}_2"), f"{name}_2")
      x = layers.Add(name=f"{name}_add")([x, shortcut])
      x = layers.ReLU(name=f"{name}_relu")(x)
  # The head stays in float32 under mixed precision.
  x = layers.GlobalAveragePooling2D(dtype="float32", name="pool")(x)
  logits = layers.Dense(
      num_classes, kernel_initializer="he_normal", dtype="float32",
      name="logits")(x)
  return tf.keras.Model(inputs, logits, name=f"resnet{depth}")


def _checked(
    depth: int, input_shape: arguments.ImageShape, num_classes: int,
    args: dict[str, Any],
) -> tf.keras.Model:
  """Builds the network of a given depth from unchecked arguments."""
  arguments.check(resnet, args, f"resnet{depth}",
                  taken=("input_shape", "num_classes", "depth"))
  return resnet(input_shape, num_classes, depth=depth, **args)


def _check(depth: Any, width: Any, momentum: Any, epsilon: Any) -> None:
  """Raises InputError that names the first argument that cannot be."""

  def is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and value >= least

  def is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < 1

  for key, value, valid, wanted in (
      ("depth", depth, is_whole(depth, 8) and depth % 6 == 2,
       "6n+2 (8, 20, 32, 56, ...)"),
      ("width", width, is_whole(width, 1), "a positive whole number"),
      ("batch_norm_momentum", momentum, is_share(momentum),
       "a number in [0, 1)"),
      ("batch_norm_epsilon", epsilon, is_share(epsilon),
       "a number in [0, 1)")):
    if not valid:
      raise config.InputError(
          f"model.args.{key} is {value!r}: it must be {wanted}")


def _rescaling(
    channels: int, mean: PixelStatistic, std: PixelStatistic
) -> layers.Layer:
  """The layer that computes (pixel - mean) / std.

  It runs in float32 under mixed precision: bfloat16 has no pixels between the
  whole ones above 128, so it would round small perturbations away.
  """
  values = {}
  for key, statistic in (("pixel_mean", mean), ("pixel_std", std)):
    row = [statistic] if isinstance(statistic, (int, float)) else statistic
    numbers = isinstance(row, (list, tuple)) and all(
        isinstance(value, (int, float)) for value in row)
    if not numbers or len(row) not in (1, channels):
      raise config.InputError(
          f"model.args.{key} is {statistic!r}: it must be one number or one "
          f"per channel ({channels})")
    values[key] = [float(value) for value in row] * (channels // len(row))
  if min(values["pixel_std"]) <= 0:
    raise config.InputError(
        f"model.args.pixel_std is {std!r}: it must be positive")
  return layers.Rescaling(
      scale=[1 / s for s in values["pixel_std"]],
      offset=[-m / s for m, s in zip(*values.values(), strict=True)],
      dtype="float32", name="normalize")


def _convolution(
    x: tf.Tensor, filters: int, strides: int, name: str
) -> tf.Tensor:
  """3x3 convolution, one pixel of zeros on every side."""
  # TensorFlow's "same" pads a strided convolution on the far side only, which
  # would shift it by a pixel against its shortcut.
  x = layers.ZeroPadding2D(1, name=f"{name}_pad")(x)
  return layers.Conv2D(
      filters, 3, strides=strides, use_bias=False,
      kernel_initializer="he_normal", name=f"{name}_conv")(x)


def _shortcut(
    x: tf.Tensor, filters: int, strides: int, name: str
) -> tf.Tensor:
  """Option A: every `strides`-th pixel, zeros as the missing channels."""
  if strides == 1:
    return x
  x = layers.AveragePooling2D(1, strides=strides, name=f"{name}_subsample")(x)
  missing = filters - x.shape[-1]
  # Read as [b, channels, h, w], the last axis of our tensor is a "width", which
  # a plain layer can pad.
  return layers.ZeroPadding2D(
      ((0, 0), (missing // 2, missing - missing // 2)),
      data_format="channels_first", name=f"{name}_new_channels")(x)
