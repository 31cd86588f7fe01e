"""SqueezeNext for small images.

Gholami et al., "SqueezeNext: hardware-aware neural network design" (CVPRW
2018), with the stem that CIFAR takes: a 3x3 convolution of 64, no pooling. A
block squeezes twice with 1x1 convolutions, goes through a 1x3 and a 3x1
convolution and expands again; each of the five has a bias, batch normalisation
and ReLU, and so has the 1x1 shortcut where the shape changes. The figures and
the counts of parameters are those of a public CIFAR version
(luuuyi/SqueezeNext.PyTorch), whose recipe is the one that the ABSA paper has
for its model C3.
"""

from typing import Any

import tensorflow as tf

from conadv_tf.models import arguments, parts

layers = tf.keras.layers
_STEM_WIDTH, _LAST_WIDTH = 64, 128
_STAGE_WIDTHS = (32, 64, 128, 256)


def squeezenext23(
    input_shape: arguments.ImageShape, num_classes: int, **args: Any
) -> tf.keras.Model:
  """Blocks 6, 6, 8, 1; 0.59 million parameters; as `squeezenext`."""
  return _checked("squeezenext23", (6, 6, 8, 1), input_shape, num_classes,
                  args)


def squeezenext23_v5(
    input_shape: arguments.ImageShape, num_classes: int, **args: Any
) -> tf.keras.Model:
  """Blocks 2, 4, 14, 1; 0.79 million parameters; as `squeezenext`."""
  return _checked("squeezenext23_v5", (2, 4, 14, 1), input_shape, num_classes,
                  args)


def squeezenext(
    input_shape: arguments.ImageShape,
    num_classes: int,
    *,
    blocks: tuple[int, int, int, int],
    name: str = "squeezenext",
    width: float = 1.0,
    pixel_mean: parts.PixelStatistic = 127.5,
    pixel_std: parts.PixelStatistic = 127.5,
    batch_norm_momentum: float = 0.9,
    batch_norm_epsilon: float = 1e-5,
) -> tf.keras.Model:
  """Builds the network.

  Args:
    input_shape: (height, width, channels) of the images.
    num_classes: number of logits.
    blocks: of the four stages, of which all but the first halve the image.
    name: of the model.
    width: factor of all filters.
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
  # The narrowest layer has an eighth of a stage's 32 filters.
  parts.require(
      "width", width, isinstance(width, (int, float)) and width >= 0.25,
      "a number of 0.25 or more")
  part = parts.Parts(batch_norm_momentum, batch_norm_epsilon, use_bias=True)
  inputs = layers.Input(input_shape, name="image")
  x = parts.rescaling(input_shape[-1], pixel_mean, pixel_std)(inputs)
  x = part.norm_relu(
      part.convolution(x, int(width * _STEM_WIDTH), 3, 1, "stem"), "stem")
  for stage, count in enumerate(blocks):
    for block in range(count):
      x = _block(part, x, int(width * _STAGE_WIDTHS[stage]),
                 2 if stage and not block else 1,
                 f"stage{stage + 1}_block{block + 1}")
  x = part.norm_relu(
      part.convolution(x, int(width * _LAST_WIDTH), 1, 1, "last"), "last")
  return tf.keras.Model(inputs, parts.head(x, num_classes), name=name)


def _block(part: parts.Parts, x: tf.Tensor, filters: int, strides: int,
           name: str) -> tf.Tensor:
  channels = x.shape[-1]
  reduction = 0.5
  if strides == 2:
    reduction = 1.0
  elif channels > filters:
    reduction = 0.25
  wide, narrow = int(channels * reduction), int(channels * reduction * 0.5)
  y = x
  for number, (width, kernel, step) in enumerate((
      (wide, 1, strides), (narrow, 1, 1), (wide, (1, 3), 1),
      (wide, (3, 1), 1), (filters, 1, 1)), start=1):
    own = f"{name}_{number}"
    y = part.norm_relu(part.convolution(y, width, kernel, step, own), own)
  if strides == 2 or channels != filters:
    side = f"{name}_shortcut"
    x = part.norm_relu(part.convolution(x, filters, 1, strides, side), side)
  # No ReLU of the sum: neither summand is negative, since `x` is a ReLU's
  # output or a sum of such.
  return layers.Add(name=f"{name}_add")([x, y])


def _checked(
    name: str, blocks: tuple[int, int, int, int],
    input_shape: arguments.ImageShape, num_classes: int, args: dict[str, Any],
) -> tf.keras.Model:
  arguments.check(squeezenext, args, name,
                  taken=("input_shape", "num_classes", "blocks", "name"))
  return squeezenext(input_shape, num_classes, blocks=blocks, name=name, **args)
