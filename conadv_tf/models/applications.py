"""Every model of `tf.keras.applications`, from images in 0..255 to logits."""

import difflib
from typing import Any

import tensorflow as tf

from conadv_tf import config
from conadv_tf.models import arguments

layers = tf.keras.layers

# How a family's `preprocess_input` treats pixels; the families that are not
# here do it in their first layers.
_PREPROCESSING = {
    "densenet": "torch",
    "inception_resnet_v2": "tf",
    "inception_v3": "tf",
    "mobilenet": "tf",
    "mobilenet_v2": "tf",
    "nasnet": "tf",
    "resnet": "caffe",
    "resnet_v2": "tf",
    "vgg16": "caffe",
    "vgg19": "caffe",
    "xception": "tf",
}
# ImageNet's statistics: RGB in 0..1, and BGR in 0..255.
_RGB_MEAN = (0.485, 0.456, 0.406)
_RGB_STD = (0.229, 0.224, 0.225)
_BGR_MEAN = (103.939, 116.779, 123.68)
_OURS = (
    "include_preprocessing", "include_top", "weights", "input_tensor",
    "input_shape", "pooling", "classes", "classifier_activation",
)


def names() -> list[str]:
  """The names of all models of this TensorFlow's `tf.keras.applications`."""
  module = tf.keras.applications
  return sorted(name for name in dir(module)
                if name[0].isupper() and callable(getattr(module, name)))


def builder(name: str) -> arguments.Builder:
  """Returns the function that builds `tf.keras.applications.<name>`.

  Args:
    name: for instance `ResNet50`.

  Returns:
    `build(input_shape, num_classes, **args)`, where `args` are those of the
    Keras constructor that do not concern inputs, weights and classes.
  """
  if name not in names():
    lower = {known.lower(): known for known in names()}
    near = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)
    raise config.InputError(
        f"model.name: tf.keras.applications has no {name!r}; "
        + (f"near names: {', '.join(lower[key] for key in near)}" if near
           else f"it has {', '.join(names())}"))

  def build(
      input_shape: arguments.ImageShape, num_classes: int, **args: Any
  ) -> tf.keras.Model:
    return _build(name, input_shape, num_classes, args)

  return build


def _build(
    name: str, input_shape: arguments.ImageShape, num_classes: int,
    args: dict[str, Any],
) -> tf.keras.Model:
  """Randomly initialised model, preprocessing inside, float32 logits."""
  constructor = getattr(tf.keras.applications, name)
  arguments.check(constructor, args, name, taken=_OURS)
  if input_shape[-1] not in (1, 3):
    raise config.InputError(
        f"model.name: {name} takes images with 1 or 3 channels, the data has "
        f"{input_shape[-1]}")
  inputs = layers.Input(input_shape, name="image")
  x = inputs
  if input_shape[-1] == 1:
    x = layers.Concatenate(dtype="float32", name="grey_to_rgb")([x, x, x])
  x = _preprocess(x, constructor.__module__.rsplit(".", 1)[-1])
  try:
    model = constructor(
        weights=None, input_tensor=x, input_shape=(*input_shape[:2], 3),
        classes=num_classes, classifier_activation=None, **args)
  except (TypeError, ValueError) as error:
    raise config.InputError(
        f"model: {name} cannot be built for {input_shape} images with "
        f"arguments {args}: {error}") from error
  return _with_float32_ends(model)


def _preprocess(x: tf.Tensor, family: str) -> tf.Tensor:
  """Applies the family's `preprocess_input`, in layers that Keras can save.

  In float32 also under mixed precision: above 128 bfloat16 has whole pixels
  only, so it would round small perturbations away.
  """
  mode = _PREPROCESSING.get(family)
  if mode == "tf":
    return layers.Rescaling(
        1 / 127.5, offset=-1.0, dtype="float32", name="preprocess")(x)
  if mode == "torch":
    return layers.Rescaling(
        [1 / (255 * std) for std in _RGB_STD],
        offset=[-m / s for m, s in zip(_RGB_MEAN, _RGB_STD, strict=True)],
        dtype="float32", name="preprocess")(x)
  if mode == "caffe":
    return layers.Rescaling(
        1.0, offset=[-mean for mean in _BGR_MEAN], dtype="float32",
        name="preprocess")(_reversed_channels(x))
  return x


def _reversed_channels(x: tf.Tensor) -> tf.Tensor:
  """RGB to BGR; as x[..., ::-1] it could not be loaded from a .keras file."""
  channels = []
  for channel, name in ((2, "blue"), (1, "green"), (0, "red")):
    # Read as [b, channels, h, w], the last axis of our tensor is a "width".
    channels.append(layers.Cropping2D(
        ((0, 0), (channel, 2 - channel)), data_format="channels_first",
        dtype="float32", name=name)(x))
  return layers.Concatenate(dtype="float32", name="bgr")(channels)


def _with_float32_ends(model: tf.keras.Model) -> tf.keras.Model:
  """Puts the built-in preprocessing and the logits into float32.

  EfficientNet's built-in Normalization is without statistics until weights
  are loaded; it gets ImageNet's as constants, as in the other families.

  Args:
    model: as the Keras constructor made it, flat and untrained.

  Returns:
    The model itself where nothing had to change, else a copy of it.
  """
  last = model.output_names[0]

  def config_of(layer: layers.Layer) -> dict[str, Any]:
    wanted = layer.get_config()
    normalizes = isinstance(layer, layers.Normalization)
    if (normalizes or isinstance(layer, layers.Rescaling)
        or layer.name == last) and layer.compute_dtype != "float32":
      wanted["dtype"] = "float32"
    if normalizes and layer.input_mean is None:
      wanted["mean"] = _RGB_MEAN
      wanted["variance"] = [std**2 for std in _RGB_STD]
    return wanted

  if all(config_of(layer) == layer.get_config() for layer in model.layers):
    return model
  return tf.keras.models.clone_model(
      model,
      clone_function=lambda layer: type(layer).from_config(config_of(layer)))
