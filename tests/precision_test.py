"""What bfloat16 computes, and what must stay in float32."""

import numpy as np
import pytest
import tensorflow as tf

import conadv_tf as ca
from conadv_tf import randomness
from conadv_tf.layers import network as networks
from conadv_tf.layers import routing
from conadv_tf.models import resnet, resnet_cifar

STD = {"reference": np.ones(3),
       "submission": 255 * np.array([0.229, 0.224, 0.225])}


@pytest.fixture(autouse=True)
def bfloat16() -> None:
  """The policy; the fixture of all tests puts float32 back."""
  tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")


def first_input(normalization: str, pixels: np.ndarray) -> np.ndarray:
  """What the first convolution of a ResNet multiplies, in pixels."""
  inputs = tf.keras.Input(pixels.shape[1:])
  model = tf.keras.Model(inputs, resnet._normalized(inputs, normalization))
  outputs = model(pixels)
  assert outputs.dtype == tf.float32
  layer = tf.keras.layers.Activation("linear")  # casts as any other layer
  seen = layer(outputs)
  assert seen.dtype == tf.bfloat16
  return tf.cast(seen, tf.float32).numpy() * STD[normalization]


@pytest.mark.parametrize("normalization, error", [
    ("reference", 0.03), ("submission", 0.17)])
def test_a_perturbation_of_one_pixel_value_survives(
    normalization: str, error: float) -> None:
  # All 256 values of each channel.
  pixels = np.repeat(np.arange(256, dtype=np.float32), 3).reshape(1, 16, 16, 3)
  for sign in (-1, 1):
    moved = pixels + sign
    inside = (moved >= 0) & (moved <= 255)
    change = (first_input(normalization, moved)
              - first_input(normalization, pixels))[inside] * sign
    # No change is lost or turned round; it is rounded by this much.
    assert change.min() >= 0.5 - 1e-6 and change.max() < 1.9
    assert change.mean() == pytest.approx(1, abs=0.005)
    assert np.sqrt(np.mean((change - 1)**2)) < error


@pytest.mark.parametrize("normalization", list(STD))
def test_a_random_start_survives_but_for_its_smallest_values(
    normalization: str) -> None:
  generator = np.random.default_rng(0)
  pixels = generator.integers(1, 255, (16, 16, 16, 3)).astype(np.float32)
  noise = generator.uniform(-1, 1, pixels.shape).astype(np.float32)
  change = (first_input(normalization, pixels + noise)
            - first_input(normalization, pixels))
  assert 0.78 < np.mean(change != 0) < 0.88
  assert np.corrcoef(change.ravel(), noise.ravel())[0, 1] > 0.95
  # Had the cast come before the normalisation, more would be lost.
  cast = lambda x: tf.cast(tf.cast(x, tf.bfloat16), tf.float32).numpy()
  early = cast(pixels + noise) - cast(pixels)
  error, early_error = (np.sqrt(np.mean((x - noise)**2) / np.mean(noise**2))
                        for x in (change, early))
  assert error < 0.33 < 0.35 < early_error


@pytest.mark.parametrize("space_to_depth", [False, True])
def test_resnet_normalises_and_ends_in_float32(space_to_depth: bool) -> None:
  model = resnet.resnet18((16, 16, 3), 5, space_to_depth=space_to_depth)
  dtypes = {layer.name: layer.output.dtype for layer in model.layers}
  for name in ("normalize", "pool", "logits"):
    assert dtypes[name] == tf.float32, name
  for name in ("stem_pad", "stem_bn", "stage4_block2_relu"):
    assert dtypes[name] == tf.bfloat16, name
  assert all(v.dtype == tf.float32 for v in model.variables)


def test_statistics_logits_loss_and_adversaries_are_float32() -> None:
  model = resnet_cifar.resnet8((8, 8, 3), 5, width=4)
  network = networks.convert(model)
  generator = np.random.default_rng(0)
  images = generator.uniform(0, 255, (8, 8, 8, 3)).astype(np.float32)
  segments = ((routing.CLEAN, 4), (routing.ADVERSARIAL, 4))
  logits, packed = network.logits(
      images, segments, routing.Mode.TRAIN, randomness.make_key(0, 3))
  assert logits.dtype == packed.dtype == tf.float32
  first = packed[:4]  # mean of the first normalisation's clean input
  convolved = tf.keras.Model(
      model.input, model.get_layer("stem_conv").output)(images[:4])
  assert convolved.dtype == tf.bfloat16
  exact = tf.reduce_mean(tf.cast(convolved, tf.float32), axis=[0, 1, 2])
  # bfloat16 would be off by up to 0.4 % of a value.
  np.testing.assert_allclose(first, exact, rtol=1e-4, atol=1e-5)

  trainer = ca.Trainer(
      model, ca.methods.ConAdv(), ca.attacks.Pgd(radius=1, random_start=0.0),
      pixel_range=(0.0, 255.0))
  trainer.compile(
      tf.keras.optimizers.SGD(0.1),
      tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
  history = trainer.fit(images, np.arange(8) % 5, batch_size=4,
                        verbose=0).history
  # Above 128 bfloat16 has whole pixels only: a radius that is exact to 1e-4
  # was made in float32.
  assert history["perturbation_linf"] == [pytest.approx(1, abs=1e-4)]
  assert np.isfinite(history["loss"]).all()
