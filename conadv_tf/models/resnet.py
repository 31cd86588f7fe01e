"""Residual networks for ImageNet, as the MLPerf reference has them.

He et al., "Deep residual learning for image recognition" (CVPR 2016), Table 1,
in the form known as v1.5: a bottleneck strides in its 3x3 convolution and in
the 1x1 convolution of its shortcut. Padding, initial values and batch
normalisation are those of the TensorFlow reference of MLPerf Training; the
options (last gamma of a block at 0, another initial distribution, mean and
standard deviation, space-to-depth) are those of its TPU submissions.
"""

from typing import Any

import tensorflow as tf

from conadv_tf import config
from conadv_tf.models import arguments

layers = tf.keras.layers

# Blocks of each stage, and whether they are bottlenecks (1x1, 3x3, 1x1).
_STAGES = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
_WIDTH = 64
# RGB in 0..255: what is subtracted, and what divides then.
_NORMALIZATIONS = {
    "reference": ((123.68, 116.78, 103.94), (1.0, 1.0, 1.0)),
    "submission": ((0.485 * 255, 0.456 * 255, 0.406 * 255),
                   (0.229 * 255, 0.224 * 255, 0.225 * 255)),
}
_INITIALIZERS = {
    "he_normal": tf.keras.initializers.HeNormal,
    "variance_scaling": tf.keras.initializers.VarianceScaling,
}
_STEM = 7  # side of the first convolution's kernel


def resnet18(
    input_shape: arguments.ImageShape, num_classes: int, **args: Any
) -> tf.keras.Model:
  """Depth 18, 11.7 million parameters; `args` as in `resnet`."""
  return _checked(18, input_shape, num_classes, args)


def resnet34(
    input_shape: arguments.ImageShape, num_classes: int, **args: Any
) -> tf.keras.Model:
  """Depth 34, 21.8 million parameters; `args` as in `resnet`."""
  return _checked(34, input_shape, num_classes, args)


def resnet50(
    input_shape: arguments.ImageShape, num_classes: int, **args: Any
) -> tf.keras.Model:
  """Depth 50, 25.6 million parameters; `args` as in `resnet`."""
  return _checked(50, input_shape, num_classes, args)


def resnet101(
    input_shape: arguments.ImageShape, num_classes: int, **args: Any
) -> tf.keras.Model:
  """Depth 101, 44.5 million parameters; `args` as in `resnet`."""
  return _checked(101, input_shape, num_classes, args)


def resnet152(
    input_shape: arguments.ImageShape, num_classes: int, **args: Any
) -> tf.keras.Model:
  """Depth 152, 60.2 million parameters; `args` as in `resnet`."""
  return _checked(152, input_shape, num_classes, args)


def resnet(
    input_shape: arguments.ImageShape,
    num_classes: int,
    *,
    depth: int,
    normalization: str = "reference",
    zero_gamma: bool = False,
    space_to_depth: bool = False,
    initializer: str = "he_normal",
    batch_norm_momentum: float = 0.9,
    batch_norm_epsilon: float = 1e-5,
) -> tf.keras.Model:
  """Builds the network.

  Args:
    input_shape: (height, width, channels) of the images; a single channel is
      taken three times.
    num_classes: number of logits.
    depth: 18, 34, 50, 101 or 152, the number of layers with weights.
    normalization: "reference" subtracts ImageNet's mean colour; "submission"
      also divides by the standard deviations.
    zero_gamma: whether the last gamma of every block starts at 0, so that
      the blocks start as identities (Goyal et al., 2017, section 5.1).
    space_to_depth: whether the first convolution runs on 2x2 blocks of pixels
      as 12 channels, which suits matrix units better than 3 channels do. The
      function, the weights and their gradients are the same.
    initializer: of the convolutions: "he_normal", or "variance_scaling"
      (truncated normal with variance 1 / fan_in).
    batch_norm_momentum: share of the old moving statistics in the new.
    batch_norm_epsilon: added to the variance.

  Returns:
    A functional model: float images [b, h, w, c] in 0..255 -> float32 logits
    [b, num_classes].

  Raises:
    InputError: that names the first argument that cannot be.
  """
  _check(normalization, zero_gamma, space_to_depth, initializer,
         batch_norm_momentum, batch_norm_epsilon)
  parts = _Parts(_INITIALIZERS[initializer], zero_gamma, batch_norm_momentum,
                 batch_norm_epsilon)
  inputs = layers.Input(input_shape, name="image")
  x = _normalized(inputs, normalization)
  x = _first_convolution(x, parts, space_to_depth)
  x = layers.ReLU(name="stem_relu")(parts.norm(x, "stem"))
  x = layers.MaxPooling2D(3, strides=2, padding="same", name="stem_pool")(x)
  blocks, is_bottleneck = _STAGES[depth]
  for stage, count in enumerate(blocks):
    for block in range(count):
      x = parts.block(
          x, _WIDTH * 2**stage, 2 if stage and not block else 1,
          is_bottleneck, f"stage{stage + 1}_block{block + 1}")
  # The head stays in float32 under mixed precision.
  x = layers.GlobalAveragePooling2D(dtype="float32", name="pool")(x)
  logits = layers.Dense(
      num_classes, dtype="float32", name="logits",
      kernel_initializer=tf.keras.initializers.RandomNormal(stddev=0.01))(x)
  return tf.keras.Model(inputs, logits, name=f"resnet{depth}")


def space_to_depth_kernel(kernel: tf.Tensor) -> tf.Tensor:
  """Rearranges a kernel of stride 2 for an image of 2x2 blocks of pixels.

  `conv2d(x, kernel, 2)` equals `conv2d(space_to_depth(x, 2), this, 1)`, both
  without padding, for images of even height and width.

  Args:
    kernel: [7, 7, c, filters].

  Returns:
    [4, 4, 4 * c, filters]; the taps of the eighth row and column are zeros.
  """
  channels, filters = kernel.shape[-2:]
  half = (_STEM + 1) // 2
  padded = tf.pad(kernel, [[0, 1], [0, 1], [0, 0], [0, 0]])
  blocks = tf.reshape(padded, [half, 2, half, 2, channels, filters])
  return tf.reshape(
      tf.transpose(blocks, [0, 2, 1, 3, 4, 5]),
      [half, half, 4 * channels, filters])


def _checked(
    depth: int, input_shape: arguments.ImageShape, num_classes: int,
    args: dict[str, Any],
) -> tf.keras.Model:
  """Builds the network of a given depth from unchecked arguments."""
  name = f"resnet{depth}"
  arguments.check(resnet, args, name,
                  taken=("input_shape", "num_classes", "depth"))
  if input_shape[-1] not in (1, 3):
    raise config.InputError(
        f"model.name: {name} takes images with 1 or 3 channels, the data has "
        f"{input_shape[-1]}")
  return resnet(input_shape, num_classes, depth=depth, **args)


def _check(
    normalization: Any, zero_gamma: Any, space_to_depth: Any,
    initializer: Any, momentum: Any, epsilon: Any) -> None:
  """Raises InputError that names the first argument that cannot be."""

  def is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < 1

  def is_name(value: Any, table: dict[str, Any]) -> bool:
    return isinstance(value, str) and value in table

  for key, value, valid, wanted in (
      ("normalization", normalization,
       is_name(normalization, _NORMALIZATIONS), " or ".join(_NORMALIZATIONS)),
      ("zero_gamma", zero_gamma, isinstance(zero_gamma, bool),
       "true or false"),
      ("space_to_depth", space_to_depth, isinstance(space_to_depth, bool),
       "true or false"),
      ("initializer", initializer, is_name(initializer, _INITIALIZERS),
       " or ".join(_INITIALIZERS)),
      ("batch_norm_momentum", momentum, is_share(momentum),
       "a number in [0, 1)"),
      ("batch_norm_epsilon", epsilon, is_share(epsilon),
       "a number in [0, 1)")):
    if not valid:
      raise config.InputError(
          f"model.args.{key} is {value!r}: it must be {wanted}")


def _normalized(x: tf.Tensor, normalization: str) -> tf.Tensor:
  """(pixel - mean) / std, of three channels.

  In float32 also under mixed precision: above 128 bfloat16 has whole pixels
  only, so it would round small perturbations away.
  """
  if x.shape[-1] == 1:
    x = layers.Concatenate(dtype="float32", name="grey_to_rgb")([x, x, x])
  mean, std = _NORMALIZATIONS[normalization]
  return layers.Rescaling(
      scale=[1 / s for s in std],
      offset=[-m / s for m, s in zip(mean, std, strict=True)],
      dtype="float32", name="normalize")(x)


class _Parts:
  """Makes the layers that repeat, with the options they share."""

  def __init__(
      self, initializer: type[tf.keras.initializers.Initializer],
      zero_gamma: bool, momentum: float, epsilon: float) -> None:
    self._initializer = initializer
    self._zero_gamma = zero_gamma
    self._momentum = momentum
    self._epsilon = epsilon

  def convolution(
      self, filters: int, kernel_size: int, strides: int, name: str,
      padding: str = "same") -> layers.Layer:
    """A convolution without bias, as a batch normalisation follows."""
    return layers.Conv2D(
        filters, kernel_size, strides=strides, padding=padding,
        use_bias=False, kernel_initializer=self._initializer(),
        name=f"{name}_conv")

  def norm(self, x: tf.Tensor, name: str, ends_block: bool = False
           ) -> tf.Tensor:
    """Batch normalisation."""
    starts_at_0 = ends_block and self._zero_gamma
    return layers.BatchNormalization(
        momentum=self._momentum, epsilon=self._epsilon,
        gamma_initializer="zeros" if starts_at_0 else "ones",
        name=f"{name}_bn")(x)

  def block(
      self, x: tf.Tensor, width: int, strides: int, is_bottleneck: bool,
      name: str) -> tf.Tensor:
    """A residual block; `width` is that of its 3x3 convolutions."""
    # (filters, kernel, strides) of the convolutions.
    path = [(width, 3, strides), (width, 3, 1)]
    if is_bottleneck:
      path = [(width, 1, 1), (width, 3, strides), (4 * width, 1, 1)]
    filters = path[-1][0]
    shortcut = x
    if strides > 1 or x.shape[-1] != filters:
      side = f"{name}_shortcut"
      shortcut = self.norm(
          self.convolution(filters, 1, strides, side)(x), side)
    for number, part in enumerate(path, start=1):
      own = f"{name}_{number}"
      last = number == len(path)
      x = self.norm(self.convolution(*part, own)(x), own, ends_block=last)
      if not last:
        x = layers.ReLU(name=f"{own}_relu")(x)
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.ReLU(name=f"{name}_relu")(x)


def _first_convolution(
    x: tf.Tensor, parts: _Parts, space_to_depth: bool) -> tf.Tensor:
  """7x7 convolution with stride 2, three pixels of zeros on every side."""
  border = _STEM // 2
  if not space_to_depth:
    x = layers.ZeroPadding2D(border, name="stem_pad")(x)
    return parts.convolution(_WIDTH, _STEM, 2, "stem", padding="valid")(x)
  height, width, channels = x.shape[1:]
  # One row or column more where the image would not part into blocks.
  x = layers.ZeroPadding2D(
      ((border, border + height % 2), (border, border + width % 2)),
      name="stem_pad")(x)
  convolution = parts.convolution(_WIDTH, _STEM, 1, "stem", padding="valid")
  # The kernel's owner is the same layer as without space-to-depth, so that
  # checkpoints and optimizers see the same weight. A plain layer gives its
  # kernel away as what it makes of every image with a single one in it.
  taps = _STEM * _STEM * channels
  # From the input's rank: Keras records only what depends on an input.
  numbers = tf.range(tf.multiply(tf.rank(x), 0), taps)
  units = tf.reshape(tf.one_hot(numbers, taps),
                     [taps, _STEM, _STEM, channels])
  kernel = tf.reshape(convolution(units), [_STEM, _STEM, channels, _WIDTH])
  x = tf.nn.space_to_depth(tf.cast(x, convolution.compute_dtype), 2)
  return tf.nn.conv2d(x, space_to_depth_kernel(kernel), 1, "VALID")
