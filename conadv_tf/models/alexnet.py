"""AlexNet, and the small network of its kind for 32-pixel images.

Krizhevsky, "One weird trick for parallelizing convolutional neural networks"
(2014), section 5: one tower of five convolutions and three dense layers, no
batch normalisation. Its widths and initial weights are those of the version
that PyTorch's torchvision ships and trains at learning rate 0.01.

`svhn_c1` is the network C1 of Yao et al., "Hessian-based analysis of large
batch training and robustness to adversaries" (NeurIPS 2018): two convolutions,
each with ReLU, batch normalisation and pooling in that order, and three dense
layers.
"""

from typing import Any

import tensorflow as tf

from conadv_tf import config
from conadv_tf.models import arguments, parts

layers = tf.keras.layers
# (filters, side of the kernel, stride, zeros on every side, pooling follows).
_CONVOLUTIONS = ((64, 11, 4, 2, True), (192, 5, 1, 2, True),
                 (384, 3, 1, 1, False), (256, 3, 1, 1, False),
                 (256, 3, 1, 1, True))
_ALEXNET_LEAST = 63  # pixels, for one to be left after the last pooling


def _uniform() -> tf.keras.initializers.Initializer:
  """PyTorch's default: uniform within 1 / sqrt(fan-in).

  With HeNormal's six-fold variance, and no batch normalisation, the first
  updates at 0.01 make losses of 100.
  """
  return tf.keras.initializers.VarianceScaling(
      1 / 3, mode="fan_in", distribution="uniform")


def alexnet(
    input_shape: arguments.ImageShape, num_classes: int, **args: Any
) -> tf.keras.Model:
  """61.1 million parameters at 224 pixels and 1,000 classes; `_alexnet`."""
  arguments.check(_alexnet, args, "alexnet",
                  taken=("input_shape", "num_classes"))
  return _alexnet(input_shape, num_classes, **args)


def svhn_c1(
    input_shape: arguments.ImageShape, num_classes: int, **args: Any
) -> tf.keras.Model:
  """1.8 million parameters at 32 pixels; `args` as in `_svhn_c1`."""
  arguments.check(_svhn_c1, args, "svhn_c1",
                  taken=("input_shape", "num_classes"))
  return _svhn_c1(input_shape, num_classes, **args)


def _alexnet(
    input_shape: arguments.ImageShape,
    num_classes: int,
    *,
    dropout: float = 0.5,
    pixel_mean: parts.PixelStatistic = 127.5,
    pixel_std: parts.PixelStatistic = 127.5,
) -> tf.keras.Model:
  """Builds AlexNet.

  The first dense layer takes the last map as it is (6x6 at 224 pixels, where
  torchvision's resizing pool does nothing), so the number of its parameters
  depends on the size of the images.

  Args:
    input_shape: (height, width, channels) of the images, 63 pixels or more.
    num_classes: number of logits.
    dropout: share dropped before each of the two hidden dense layers.
    pixel_mean: subtracted from the pixels, one number or one per channel.
    pixel_std: divides them then. The defaults bring 0..255 to -1..1.

  Returns:
    A functional model: float images [b, h, w, c] in 0..255 -> float32 logits
    [b, num_classes].

  Raises:
    InputError: that names the first argument that cannot be.
  """
  parts.require_share("dropout", dropout)
  _require_size("alexnet", input_shape, _ALEXNET_LEAST)
  inputs = layers.Input(input_shape, name="image")
  x = parts.rescaling(input_shape[-1], pixel_mean, pixel_std)(inputs)
  for number, (filters, side, strides, border, pools) in enumerate(
      _CONVOLUTIONS, start=1):
    x = layers.ZeroPadding2D(border, name=f"conv{number}_pad")(x)
    x = layers.Conv2D(
        filters, side, strides=strides, activation="relu",
        kernel_initializer=_uniform(), name=f"conv{number}")(x)
    if pools:
      x = layers.MaxPooling2D(3, strides=2, name=f"conv{number}_pool")(x)
  x = layers.Flatten(name="flatten")(x)
  for number in (1, 2):
    if dropout:
      x = layers.Dropout(dropout, name=f"dense{number}_dropout")(x)
    x = layers.Dense(4096, activation="relu", kernel_initializer=_uniform(),
                     name=f"dense{number}")(x)
  logits = layers.Dense(num_classes, kernel_initializer=_uniform(),
                        dtype="float32", name="logits")(x)
  return tf.keras.Model(inputs, logits, name="alexnet")


def _svhn_c1(
    input_shape: arguments.ImageShape,
    num_classes: int,
    *,
    pixel_mean: parts.PixelStatistic = 127.5,
    pixel_std: parts.PixelStatistic = 127.5,
    batch_norm_momentum: float = 0.9,
    batch_norm_epsilon: float = 1e-5,
) -> tf.keras.Model:
  """Builds the network.

  Its 3x3 pooling with stride 2 has its border on the far side, as
  TensorFlow's "same" has; PyTorch's pads both, so that the windows of ported
  weights are one pixel off.

  Args:
    input_shape: (height, width, channels) of the images.
    num_classes: number of logits.
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
  part = parts.Parts(batch_norm_momentum, batch_norm_epsilon, use_bias=True)
  inputs = layers.Input(input_shape, name="image")
  x = parts.rescaling(input_shape[-1], pixel_mean, pixel_std)(inputs)
  for name in ("conv1", "conv2"):
    x = part.convolution(x, 64, 5, 1, name)
    x = part.norm(layers.ReLU(name=f"{name}_relu")(x), name)
    x = layers.MaxPooling2D(
        3, strides=2, padding="same", name=f"{name}_pool")(x)
  x = layers.Flatten(name="flatten")(x)
  for name, units in (("dense1", 384), ("dense2", 192)):
    x = layers.Dense(units, activation="relu", kernel_initializer="he_normal",
                     name=name)(x)
  logits = layers.Dense(num_classes, kernel_initializer="he_normal",
                        dtype="float32", name="logits")(x)
  return tf.keras.Model(inputs, logits, name="svhn_c1")


def _require_size(
    name: str, shape: arguments.ImageShape, least: int) -> None:
  if min(shape[:2]) < least:
    raise config.InputError(
        f"model.name: {name} takes images of {least} pixels or more, the data "
        f"has {shape[0]}x{shape[1]}; set data.image_size")
