"""Models that hide their batch normalisations in different places."""

from typing import Any

import numpy as np
import tensorflow as tf

keras = tf.keras
BatchNorm = keras.layers.BatchNormalization
SyncBatchNorm = keras.layers.experimental.SyncBatchNormalization


def head(features: tf.Tensor, classes: int = 3) -> tf.Tensor:
  pooled = keras.layers.GlobalAveragePooling2D()(features)
  return keras.layers.Dense(classes)(pooled)


def plain() -> keras.Model:
  """Fused and unfused (rank 2), without gamma, without beta."""
  i = keras.Input((8, 8, 3))
  x = keras.layers.Conv2D(4, 3, use_bias=False)(i)
  x = tf.nn.relu(BatchNorm(name='fused', momentum=0.9)(x))
  x = keras.layers.Conv2D(4, 3)(x)
  x = BatchNorm(scale=False, name='no_gamma')(x)
  x = keras.layers.GlobalAveragePooling2D()(x)
  x = BatchNorm(center=False, name='unfused', momentum=0.8)(x)
  return keras.Model(i, keras.layers.Dense(3)(x))


def nested() -> keras.Model:
  inner = keras.Sequential([
      keras.layers.Conv2D(4, 3), BatchNorm(),
      keras.Sequential([keras.layers.ReLU(), BatchNorm()])])
  i = keras.Input((8, 8, 3))
  x = BatchNorm()(inner(i))
  return keras.Model(i, head(x))


class Block(keras.layers.Layer):
  """Keeps them in a list and in a dictionary."""

  def __init__(self, **kwargs: Any):
    super().__init__(**kwargs)
    self.convolution = keras.layers.Conv2D(4, 3)
    self.listed = [BatchNorm(), SyncBatchNorm()]
    self.named = {'last': [BatchNorm()]}

  def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
    x = self.convolution(x)
    for layer in self.listed:
      x = layer(x, training=training)
    return self.named['last'][0](x)


def custom() -> keras.Model:
  i = keras.Input((8, 8, 3))
  return keras.Model(i, head(Block()(i)))


class Subclassed(keras.Model):
  """Keras writes its config: a plain number is its only argument."""

  def __init__(self, classes: int = 3, **kwargs: Any):
    super().__init__(**kwargs)
    self.block = Block()
    self.dense = keras.layers.Dense(classes)

  def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
    return self.dense(tf.reduce_mean(self.block(x, training=training), [1, 2]))


def subclassed() -> keras.Model:
  model = Subclassed(4)
  model(tf.zeros([2, 8, 8, 3]))
  return model


class Configured(Subclassed):
  """Writes its own config."""

  def __init__(self, width: Any, **kwargs: Any):
    super().__init__(**kwargs)
    self.width = width
    self.first = keras.layers.Conv2D(width['filters'], 1)
    self.norm = BatchNorm()

  def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
    return super().call(self.norm(self.first(x), training), training)

  def get_config(self) -> dict[str, Any]:
    return {'width': self.width, 'name': self.name}


def configured() -> keras.Model:
  model = Configured({'filters': 2})
  model(tf.zeros([2, 8, 8, 3]))
  return model


def frozen_layer() -> keras.Model:
  i = keras.Input((8, 8, 3))
  layer = BatchNorm(name='frozen')
  layer.trainable = False
  x = tf.nn.relu(layer(keras.layers.Conv2D(4, 3)(i)))
  return keras.Model(i, head(BatchNorm(name='live')(x)))


def _backbone() -> keras.Model:
  return keras.Sequential([
      keras.layers.Conv2D(4, 3, input_shape=(8, 8, 3)), BatchNorm(),
      keras.layers.ReLU(), keras.layers.Conv2D(4, 3), BatchNorm()])


def frozen_backbone() -> keras.Model:
  backbone = _backbone()
  backbone.trainable = False
  i = keras.Input((8, 8, 3))
  return keras.Model(i, head(BatchNorm(name='live')(backbone(i))))


def inference_backbone() -> keras.Model:
  """The idiom of transfer learning: trainable, but called as inference."""
  i = keras.Input((8, 8, 3))
  return keras.Model(
      i, head(BatchNorm(name='live')(_backbone()(i, training=False))))


class FrozenInside(keras.layers.Layer):
  """All of its tensors have the same shape, and the first are frozen."""

  def __init__(self, **kwargs: Any):
    super().__init__(**kwargs)
    self.norms = [BatchNorm(), BatchNorm()]

  def call(self, x: tf.Tensor) -> tf.Tensor:
    return self.norms[1](tf.nn.relu(self.norms[0](x)))


def frozen_inside() -> keras.Model:
  i = keras.Input((8, 8, 3))
  layer = FrozenInside()
  model = keras.Model(i, head(layer(keras.layers.Conv2D(4, 3)(i))))
  layer.norms[0].trainable = False
  return model


def shared() -> keras.Model:
  i = keras.Input((8, 8, 3))
  layer = BatchNorm(name='shared', momentum=0.5)
  x = layer(keras.layers.Conv2D(4, 3)(i))
  return keras.Model(i, head(layer(tf.nn.relu(x) * 2.0 + 1.0)))


def resnet50() -> keras.Model:
  return keras.applications.ResNet50(
      input_shape=(32, 32, 3), weights=None, classes=3)


def efficientnet() -> keras.Model:
  return keras.applications.EfficientNetB0(
      input_shape=(32, 32, 3), weights=None, classes=3)


def mobilenet() -> keras.Model:
  return keras.applications.MobileNetV2(
      input_shape=(32, 32, 3), weights=None, classes=3)


def keras_cv_efficientnet() -> keras.Model:
  import keras_cv
  backbone = keras_cv.models.EfficientNetV2Backbone(
      stackwise_kernel_sizes=[3, 3], stackwise_num_repeats=[1, 1],
      stackwise_input_filters=[8, 8], stackwise_output_filters=[8, 16],
      stackwise_expansion_ratios=[1, 4],
      stackwise_squeeze_and_excite_ratios=[0, 0.25],
      stackwise_strides=[1, 2], stackwise_conv_types=['fused', 'unfused'],
      width_coefficient=1., depth_coefficient=1., include_rescaling=True,
      input_shape=(32, 32, 3))
  return keras.Sequential([
      backbone, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)])


def model_garden_resnet() -> keras.Model:
  from official.vision.modeling import classification_model
  from official.vision.modeling.backbones import resnet
  specs = keras.layers.InputSpec(shape=[None, 32, 32, 3])
  return classification_model.ClassificationModel(
      resnet.ResNet(18, input_specs=specs), 3, input_specs=specs)


def images(model: keras.Model, rows: int) -> tf.Tensor:
  shape = model.inputs[0].shape if model.inputs else (None, 8, 8, 3)
  random = np.random.default_rng(0)
  return tf.constant(random.random([rows] + list(shape[1:]), np.float32))


def randomise(model: keras.Model) -> keras.Model:
  """Gives every weight a value of its own, variances positive ones."""
  random = np.random.default_rng(7)
  for weight in model.weights:
    if 'normalization' in weight.name and 'batch' not in weight.name:
      continue  # the adapted constants of a Normalization layer
    noise = random.random(weight.shape)
    if 'gamma' in weight.name or 'variance' in weight.name:
      weight.assign(0.5 + noise)
    elif 'beta' in weight.name or 'moving_mean' in weight.name:
      weight.assign(noise - 0.5)
    else:
      weight.assign_add(0.02 * (noise - 0.5))
  return model
