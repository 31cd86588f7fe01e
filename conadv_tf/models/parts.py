"""What the networks for small images have in common."""

import dataclasses
from typing import Any, Sequence

import tensorflow as tf

from conadv_tf import config

layers = tf.keras.layers
PixelStatistic = float | Sequence[float]


def require(key: str, value: Any, valid: bool, wanted: str) -> None:
  """Raises InputError that names `model.args.<key>` unless it is valid."""
  if not valid:
    raise config.InputError(
        f"model.args.{key} is {value!r}: it must be {wanted}")


def require_whole(key: str, value: Any) -> None:
  """Raises InputError unless the value is a positive whole number."""
  valid = (isinstance(value, int) and not isinstance(value, bool)
           and value >= 1)
  require(key, value, valid, "a positive whole number")


def require_share(key: str, value: Any) -> None:
  """Raises InputError unless the value is a number in [0, 1)."""
  valid = (isinstance(value, (int, float)) and not isinstance(value, bool)
           and 0 <= value < 1)
  require(key, value, valid, "a number in [0, 1)")


def rescaling(
    channels: int, mean: PixelStatistic, std: PixelStatistic
) -> layers.Layer:
  """The layer that computes (pixel - mean) / std.

  It runs in float32 under mixed precision: bfloat16 has no pixels between the
  whole ones above 128, so it would round small perturbations away.

  Args:
    channels: of the images.
    mean: in pixels (0..255), one number or one per channel.
    std: likewise, positive.

  Raises:
    InputError: that names the statistic that cannot be.
  """
  values = {}
  for key, statistic in (("pixel_mean", mean), ("pixel_std", std)):
    row = [statistic] if isinstance(statistic, (int, float)) else statistic
    numbers = isinstance(row, (list, tuple)) and all(
        isinstance(value, (int, float)) for value in row)
    require(key, statistic, numbers and len(row) in (1, channels),
            f"one number or one per channel ({channels})")
    values[key] = [float(value) for value in row] * (channels // len(row))
  require("pixel_std", std, min(values["pixel_std"]) > 0, "positive")
  return layers.Rescaling(
      scale=[1 / s for s in values["pixel_std"]],
      offset=[-m / s for m, s in zip(*values.values(), strict=True)],
      dtype="float32", name="normalize")


@dataclasses.dataclass(frozen=True)
class Parts:
  """Makes the layers that repeat, with the options they share.

  Attributes:
    momentum: share of the old moving statistics in the new.
    epsilon: added to the variance.
    use_bias: whether convolutions have biases.

  Raises:
    InputError: momentum or epsilon is no number in [0, 1).
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  use_bias: bool = False

  def __post_init__(self) -> None:
    require_share("batch_norm_momentum", self.momentum)
    require_share("batch_norm_epsilon", self.epsilon)

  def convolution(
      self, x: tf.Tensor, filters: int, kernel: int | tuple[int, int],
      strides: int, name: str) -> tf.Tensor:
    """A convolution with half its kernel of zeros on every side."""
    rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
    if (rows, columns) != (1, 1):
      # TensorFlow's "same" pads a strided convolution on the far side only,
      # which would shift it by a pixel against its shortcut.
      x = layers.ZeroPadding2D((rows // 2, columns // 2), name=f"{name}_pad")(x)
    return layers.Conv2D(
        filters, (rows, columns), strides=strides, use_bias=self.use_bias,
        kernel_initializer="he_normal", name=f"{name}_conv")(x)

  def norm(self, x: tf.Tensor, name: str) -> tf.Tensor:
    """Batch normalisation."""
    return layers.BatchNormalization(
        momentum=self.momentum, epsilon=self.epsilon, name=f"{name}_bn")(x)

  def norm_relu(self, x: tf.Tensor, name: str) -> tf.Tensor:
    """Batch normalisation, then ReLU."""
    return layers.ReLU(name=f"{name}_relu")(self.norm(x, name))

  def preactivated_block(self, x: tf.Tensor, filters: int, strides: int,
                         name: str, dropout: float = 0.0) -> tf.Tensor:
    """Two 3x3 convolutions, each of what is normalised and activated before.

    Where the shape changes, the shortcut is a 1x1 convolution of the activated
    input.
    """
    activated = self.norm_relu(x, f"{name}_1")
    if strides > 1 or x.shape[-1] != filters:
      x = self.convolution(activated, filters, 1, strides, f"{name}_shortcut")
    y = self.convolution(activated, filters, 3, strides, f"{name}_1")
    y = self.norm_relu(y, f"{name}_2")
    if dropout:
      y = layers.Dropout(dropout, name=f"{name}_dropout")(y)
    y = self.convolution(y, filters, 3, 1, f"{name}_2")
    return layers.Add(name=f"{name}_add")([x, y])


def head(x: tf.Tensor, num_classes: int) -> tf.Tensor:
  """Mean over the image and a dense layer, in float32 whatever the policy."""
  x = layers.GlobalAveragePooling2D(dtype="float32", name="pool")(x)
  return layers.Dense(
      num_classes, kernel_initializer="he_normal", dtype="float32",
      name="logits")(x)
