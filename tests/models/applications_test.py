"""Models of tf.keras.applications: names, pixels, precision, saving."""

import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import conadv_tf as ca
from conadv_tf import config
from conadv_tf.layers import network, routing
from conadv_tf.models import applications

# A small model for each way of preprocessing, with the layer that ends it.
FAMILIES = {
    "ResNet50": ("preprocess", tf.keras.applications.resnet),
    "MobileNetV2": ("preprocess", tf.keras.applications.mobilenet_v2),
    "DenseNet121": ("preprocess", tf.keras.applications.densenet),
}
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406])
IMAGENET_STD = np.array([0.229, 0.224, 0.225])


def images(*shape: int) -> np.ndarray:
  return np.random.uniform(0, 255, shape).astype(np.float32)


def tap(model: tf.keras.Model, layer: str) -> tf.keras.Model:
  """The model's part up to a layer."""
  return tf.keras.Model(model.input, model.get_layer(layer).output)


@pytest.mark.parametrize("name", [
    "MobileNetV2", *(pytest.param(name, marks=pytest.mark.slow)
                     for name in ("ResNet50", "EfficientNetB0"))])
def test_builds_logits_of_any_size(name: str) -> None:
  model = applications.builder(name)((64, 64, 3), 7)
  logits = model(images(2, 64, 64, 3))
  assert logits.shape == (2, 7) and logits.dtype == tf.float32
  assert model.output_shape == (None, 7)
  # A softmax at the end would make the rows sum to one.
  assert abs(float(tf.reduce_sum(logits[0])) - 1) > 1e-3


@pytest.mark.parametrize("name", [
    "MobileNetV2", *(pytest.param(name, marks=pytest.mark.slow)
                     for name in ("ResNet50", "DenseNet121"))])
def test_preprocesses_as_the_family_does(name: str) -> None:
  layer, family = FAMILIES[name]
  model = applications.builder(name)((32, 32, 3), 5)
  x = images(2, 32, 32, 3)
  np.testing.assert_allclose(
      tap(model, layer)(x), family.preprocess_input(x.copy()),
      rtol=1e-5, atol=1e-4)


def test_every_family_is_preprocessed() -> None:
  """A family without a mode of ours leaves the pixels to its own layers."""
  probe = images(1, 4, 4, 3)
  seen = set()
  for name in applications.names():
    family = getattr(tf.keras.applications, name).__module__.rsplit(".", 1)[-1]
    module = getattr(tf.keras.applications, family)
    x = tf.keras.Input((4, 4, 3))
    ours = tf.keras.Model(x, applications._preprocess(x, family))
    np.testing.assert_allclose(
        ours(probe), module.preprocess_input(probe.copy()),
        rtol=1e-5, atol=1e-4, err_msg=family)
    seen.add(family)
  assert len(seen) == 17


def test_efficientnet_is_normalised_by_constants() -> None:
  model = applications.builder("EfficientNetB0")((32, 32, 3), 5)
  x = images(2, 32, 32, 3)
  np.testing.assert_allclose(
      tap(model, "normalization")(x), (x / 255 - IMAGENET_MEAN) / IMAGENET_STD,
      rtol=1e-4, atol=1e-5)
  assert not [v for v in model.variables if "normalization/mean" in v.name]


def test_grey_images_are_repeated() -> None:
  model = applications.builder("MobileNetV2")((32, 32, 1), 5, alpha=0.35)
  assert model.input_shape == (None, 32, 32, 1)
  x = images(2, 32, 32, 1)
  np.testing.assert_allclose(
      tap(model, "preprocess")(x), np.repeat(x, 3, -1) / 127.5 - 1, atol=1e-6)
  assert model(x).shape == (2, 5)


@pytest.mark.parametrize("name, last_preprocessing", [
    ("VGG16", "preprocess"),
    pytest.param("MobileNetV2", "preprocess", marks=pytest.mark.slow),
    pytest.param("EfficientNetB0", "normalization", marks=pytest.mark.slow),
])
def test_mixed_precision_keeps_pixels_and_logits_in_float32(
    name: str, last_preprocessing: str) -> None:
  tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
  model = applications.builder(name)((32, 32, 3), 5)
  assert "bfloat16" in {layer.compute_dtype for layer in model.layers}
  assert model.output.dtype == tf.float32
  # In bfloat16 200.25 is 200: the quarter of a pixel would be lost.
  part = tap(model, last_preprocessing)
  x = np.full((1, 32, 32, 3), 200, np.float32)
  assert np.all(np.abs(part(x + 0.25) - part(x)) > 1e-4)


def test_round_trip(tmp_path: pathlib.Path) -> None:
  model = applications.builder("ResNet50")((32, 32, 1), 5)
  x = images(2, 32, 32, 1)
  # All of it in the fast format, what we added in the strict one as well.
  for part, file in (
      (model, "model.h5"), (tap(model, "preprocess"), "model.keras")):
    expected = part(x).numpy()
    part.save(tmp_path / file)
    np.testing.assert_array_equal(
        tf.keras.models.load_model(tmp_path / file)(x), expected)


@pytest.mark.parametrize("name, near", [
    ("resnet50", "ResNet50"), ("EfficientNet_B0", "EfficientNetB0"),
    ("MobilNetV2", "MobileNetV2"), ("qqqq", "DenseNet121, DenseNet169")])
def test_unknown_name_lists_near_ones(name: str, near: str) -> None:
  with pytest.raises(config.InputError, match="has no") as error:
    applications.builder(name)
  assert near in str(error.value)


@pytest.mark.parametrize("shape, args, words", [
    ((64, 64, 4), {}, "1 or 3 channels, the data has 4"),
    ((8, 8, 3), {}, "cannot be built for (8, 8, 3) images"),
    ((64, 64, 3), {"weights": "imagenet"}, "model.args.weights"),
    ((64, 64, 3), {"alhpa": 0.5}, "did you mean alpha?"),
    ((64, 64, 3), {"alpha": "thin"}, "MobileNetV2 cannot be built"),
])
def test_wrong_arguments(
    shape: tuple[int, int, int], args: dict[str, Any], words: str) -> None:
  with pytest.raises(config.InputError) as error:
    applications.builder("MobileNetV2")(shape, 5, **args)
  assert words in str(error.value)
  assert "\n" not in str(error.value)


def test_names_are_all_constructors() -> None:
  names = applications.names()
  assert {"ResNet50", "VGG16", "ConvNeXtTiny", "NASNetLarge"} <= set(names)
  assert len(names) == len(set(names)) > 70


EFFICIENTNETS = {  # batch normalisations, dropouts
    "EfficientNetB0": (49, 10), "EfficientNetB1": (69, 17),
    "EfficientNetB2": (69, 17), "EfficientNetB3": (78, 20),
    "EfficientNetB4": (96, 26), "EfficientNetB5": (116, 33),
    "EfficientNetB6": (134, 39), "EfficientNetB7": (163, 49),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EFFICIENTNETS)
def test_efficientnets_take_split_batch_normalisation(name: str) -> None:
  norms, dropouts = EFFICIENTNETS[name]
  model = applications.builder(name)((32, 32, 3), 5)
  assert sum(isinstance(layer, tf.keras.layers.Dropout)
             for layer in model.layers) == dropouts
  converted = network.convert(model)
  assert len(converted.layers) == len(converted._called) == norms
  rows = images(4, 32, 32, 3)
  segments = ((routing.CLEAN, 2), (routing.ADVERSARIAL, 2))
  np.testing.assert_array_equal(
      converted.logits(rows, segments, routing.Mode.EVAL), model(rows))

  def trained(key: int) -> np.ndarray:
    return converted.logits(
        rows, segments, routing.Mode.TRAIN, tf.constant([0, key]))[0].numpy()

  # Dropout and drop-connect masks are a function of the key alone.
  first = trained(1)
  np.testing.assert_array_equal(trained(1), first)
  assert np.abs(trained(2) - first).max() > 1e-3


@pytest.mark.slow
def test_efficientnet_b0_trains_with_conadv() -> None:
  model = applications.builder("EfficientNetB0")((32, 32, 3), 5)
  before = model.get_weights()
  trainer = ca.Trainer(model, ca.methods.ConAdv(lag=1),
                       ca.attacks.Pgd(radius=4), pixel_range=(0.0, 255.0))
  trainer.compile(
      ca.optimizers.Lars(0.1),
      tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
  data = tf.data.Dataset.from_tensor_slices(
      (images(8, 32, 32, 3), np.arange(8) % 5)).batch(4)
  history = trainer.fit(data, verbose=0).history
  assert int(trainer.optimizer.iterations) == 2
  assert np.isfinite(history["loss"]).all()
  assert history["perturbation_linf"] == [pytest.approx(4, abs=1e-3)]
  after = trainer.merge().get_weights()
  assert not any(np.array_equal(a, b) for a, b in zip(
      before, after, strict=True))
