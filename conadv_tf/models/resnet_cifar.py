"""Residual networks for small images.

He et al., "Deep residual learning for image recognition" (CVPR 2016), section
4.2: depth 6n+2, three stages of n two-convolution blocks with 16, 32 and 64
filters, batch normalisation after every convolution and before the ReLU. The
shortcuts are the paper's option A: where the shape changes, every second pixel
and zeros for the new channels, so they have no parameters. Option B, which most
public code has, projects them: `shortcut: projection`.

`resnet18_cifar` is the network that papers on CIFAR call ResNet-18: the four
stages of the ImageNet network behind a 3x3 convolution, without pooling.
"""

from typing import Any

import tensorflow as tf

from conadv_tf.models import arguments, parts

layers = tf.keras.layers


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


def resnet18_cifar(
    input_shape: arguments.ImageShape, num_classes: int, **args: Any
) -> tf.keras.Model:
  """Depth 18, 11.2 million parameters; `args` as in `resnet`.

  Four stages; the width is 64 and shortcuts are projections by default.
  """
  return _checked(18, input_shape, num_classes, args, stages=4, width=64,
                  shortcut="projection")


def resnet(
    input_shape: arguments.ImageShape,
    num_classes: int,
    *,
    depth: int,
    stages: int = 3,
    width: int = 16,
    shortcut: str = "zeros",
    pixel_mean: parts.PixelStatistic = 127.5,
    pixel_std: parts.PixelStatistic = 127.5,
    batch_norm_momentum: float = 0.9,
    batch_norm_epsilon: float = 1e-5,
) -> tf.keras.Model:
  """Builds the network.

  Args:
    input_shape: (height, width, channels) of the images.
    num_classes: number of logits.
    depth: 2*stages*n+2, the number of layers with weights, without those of
      shortcuts.
    stages: each but the first halves the image.
    width: filters of the first stage; the others double it in turn.
    shortcut: where the shape changes, "zeros" (option A) or "projection" (a
      strided 1x1 convolution and batch normalisation, option B).
    pixel_mean: subtracted from the pixels, one number or one per channel.
    pixel_std: divides them then. The defaults bring 0..255 to -1..1.
    batch_norm_momentum: share of the old moving statistics in the new.
    batch_norm_epsilon: added to the variance.

  Returns:
    A functional model: float images [b, h, w, c] in 0..255 -> float32 logits
    [b, num_classes].

  Raises:
    InputError: that names the first argument that cannot be.
  """
  _check(depth, stages, width, shortcut)
  part = parts.Parts(batch_norm_momentum, batch_norm_epsilon)
  inputs = layers.Input(input_shape, name="image")
  x = parts.rescaling(input_shape[-1], pixel_mean, pixel_std)(inputs)
  x = part.norm_relu(part.convolution(x, width, 3, 1, "stem"), "stem")
  for stage in range(stages):
    filters = width * 2**stage
    for block in range((depth - 2) // (2 * stages)):
      name = f"stage{stage + 1}_block{block + 1}"
      strides = 2 if stage and not block else 1
      side = x
      if strides > 1:
        side = (_zeros(x, filters, strides, name) if shortcut == "zeros"
                else _projection(part, x, filters, strides, name))
      x = part.convolution(x, filters, 3, strides, f"{name}_1")
      x = part.norm_relu(x, f"{name}_1")
      x = part.norm(
          part.convolution(x, filters, 3, 1, f"{name}_2"), f"{name}_2")
      x = layers.Add(name=f"{name}_add")([x, side])
      x = layers.ReLU(name=f"{name}_relu")(x)
  return tf.keras.Model(
      inputs, parts.head(x, num_classes), name=f"resnet{depth}")


def _checked(
    depth: int, input_shape: arguments.ImageShape, num_classes: int,
    args: dict[str, Any], stages: int = 3, **defaults: Any,
) -> tf.keras.Model:
  """Builds the network of a given depth from unchecked arguments."""
  arguments.check(resnet, args, f"resnet{depth}",
                  taken=("input_shape", "num_classes", "depth", "stages"))
  return resnet(input_shape, num_classes, depth=depth, stages=stages,
                **{**defaults, **args})


def _check(depth: Any, stages: Any, width: Any, shortcut: Any) -> None:
  """Raises InputError that names the first argument that cannot be."""
  parts.require_whole("stages", stages)
  least, unit = 2 * stages + 2, 2 * stages
  parts.require(
      "depth", depth,
      isinstance(depth, int) and depth >= least and depth % unit == 2 % unit,
      f"{unit}n+2 ({least}, {least + unit}, {least + 2 * unit}, ...)")
  parts.require_whole("width", width)
  parts.require("shortcut", shortcut, shortcut in ("zeros", "projection"),
                "zeros or projection")


def _zeros(
    x: tf.Tensor, filters: int, strides: int, name: str
) -> tf.Tensor:
  """Option A: every `strides`-th pixel, zeros as the missing channels."""
  x = layers.AveragePooling2D(1, strides=strides, name=f"{name}_subsample")(x)
  missing = filters - x.shape[-1]
  # Read as [b, channels, h, w], the last axis of our tensor is a "width", which
  # a plain layer can pad.
  return layers.ZeroPadding2D(
      ((0, 0), (missing // 2, missing - missing // 2)),
      data_format="channels_first", name=f"{name}_new_channels")(x)


def _projection(
    part: parts.Parts, x: tf.Tensor, filters: int, strides: int, name: str
) -> tf.Tensor:
  """Option B: a strided 1x1 convolution and batch normalisation."""
  side = f"{name}_shortcut"
  return part.norm(part.convolution(x, filters, 1, strides, side), side)
