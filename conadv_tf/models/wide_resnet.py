"""Wide residual networks.

Zagoruyko and Komodakis, "Wide residual networks" (BMVC 2016), Table 1: depth
6n+4, three stages of n blocks with 16k, 32k and 64k filters behind a
convolution of 16. A block normalises and activates before each of its two 3x3
convolutions; where the shape changes, a 1x1 convolution of the activated input
is the shortcut. A last batch normalisation and ReLU come before the pooling.
"""

from typing import Any

import tensorflow as tf

from conadv_tf.models import arguments, parts

layers = tf.keras.layers
_STEM_WIDTH = 16


def wrn_16_4(
    input_shape: arguments.ImageShape, num_classes: int, **args: Any
) -> tf.keras.Model:
  """Depth 16, widening 4, 2.7 million parameters; as `wide_resnet`."""
  return _checked(16, 4, input_shape, num_classes, args)


def wrn_28_10(
    input_shape: arguments.ImageShape, num_classes: int, **args: Any
) -> tf.keras.Model:
  """Depth 28, widening 10, 36.5 million parameters; as `wide_resnet`."""
  return _checked(28, 10, input_shape, num_classes, args)


def wide_resnet(
    input_shape: arguments.ImageShape,
    num_classes: int,
    *,
    depth: int,
    widening: int,
    dropout: float = 0.0,
    pixel_mean: parts.PixelStatistic = 127.5,
    pixel_std: parts.PixelStatistic = 127.5,
    batch_norm_momentum: float = 0.9,
    batch_norm_epsilon: float = 1e-5,
) -> tf.keras.Model:
  """Builds the network.

  Args:
    input_shape: (height, width, channels) of the images.
    num_classes: number of logits.
    depth: 6n+4, the number of layers with weights.
    widening: k, the factor of the residual network's 16, 32 and 64 filters.
    dropout: share of activations dropped between a block's convolutions.
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
  parts.require("depth", depth,
                isinstance(depth, int) and depth >= 10 and depth % 6 == 4,
                "6n+4 (10, 16, 22, 28, ...)")
  parts.require_whole("widening", widening)
  parts.require_share("dropout", dropout)
  part = parts.Parts(batch_norm_momentum, batch_norm_epsilon)
  inputs = layers.Input(input_shape, name="image")
  x = parts.rescaling(input_shape[-1], pixel_mean, pixel_std)(inputs)
  x = part.convolution(x, _STEM_WIDTH, 3, 1, "stem")
  for stage in range(3):
    for block in range((depth - 4) // 6):
      x = part.preactivated_block(
          x, _STEM_WIDTH * widening * 2**stage, 2 if stage and not block else 1,
          f"stage{stage + 1}_block{block + 1}", dropout)
  x = part.norm_relu(x, "last")
  return tf.keras.Model(
      inputs, parts.head(x, num_classes), name=f"wrn_{depth}_{widening}")


def _checked(
    depth: int, widening: int, input_shape: arguments.ImageShape,
    num_classes: int, args: dict[str, Any],
) -> tf.keras.Model:
  arguments.check(wide_resnet, args, f"wrn_{depth}_{widening}",
                  taken=("input_shape", "num_classes", "depth", "widening"))
  return wide_resnet(input_shape, num_classes, depth=depth, widening=widening,
                     **args)
