"""Pre-activation residual networks for small images.

He et al., "Identity mappings in deep residual networks" (ECCV 2016): a block
normalises and activates before each of its two convolutions. The network of
depth 18 that papers on adversarial training use has the four stages of the
ImageNet network behind a 3x3 convolution, without pooling. Some of their code
ends in a batch normalisation and a ReLU, as the paper does; DAT's does not.
"""

from typing import Any

import tensorflow as tf

from conadv_tf.models import arguments, parts

layers = tf.keras.layers
_STAGES, _BLOCKS = 4, 2


def preact_resnet18(
    input_shape: arguments.ImageShape, num_classes: int, **args: Any
) -> tf.keras.Model:
  """Depth 18, 11.2 million parameters; `args` as in `preact_resnet`."""
  arguments.check(preact_resnet, args, "preact_resnet18",
                  taken=("input_shape", "num_classes"))
  return preact_resnet(input_shape, num_classes, **args)


def preact_resnet(
    input_shape: arguments.ImageShape,
    num_classes: int,
    *,
    width: int = 64,
    final_norm: bool = False,
    pixel_mean: parts.PixelStatistic = 127.5,
    pixel_std: parts.PixelStatistic = 127.5,
    batch_norm_momentum: float = 0.9,
    batch_norm_epsilon: float = 1e-5,
) -> tf.keras.Model:
  """Builds the network.

  Args:
    input_shape: (height, width, channels) of the images.
    num_classes: number of logits.
    width: filters of the first stage; the others double it in turn.
    final_norm: whether a batch normalisation and a ReLU come before the
      pooling.
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
  parts.require_whole("width", width)
  parts.require("final_norm", final_norm, isinstance(final_norm, bool),
                "true or false")
  part = parts.Parts(batch_norm_momentum, batch_norm_epsilon)
  inputs = layers.Input(input_shape, name="image")
  x = parts.rescaling(input_shape[-1], pixel_mean, pixel_std)(inputs)
  x = part.convolution(x, width, 3, 1, "stem")
  for stage in range(_STAGES):
    for block in range(_BLOCKS):
      x = part.preactivated_block(
          x, width * 2**stage, 2 if stage and not block else 1,
          f"stage{stage + 1}_block{block + 1}")
  if final_norm:
    x = part.norm_relu(x, "last")
  return tf.keras.Model(
      inputs, parts.head(x, num_classes), name="preact_resnet18")
