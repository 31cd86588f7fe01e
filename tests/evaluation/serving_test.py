"""The exported SavedModel gives the numbers of the evaluation."""

import json
import math
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import config
from conadv_tf.evaluation import clean, serving
from conadv_tf.layers import network as networks
from conadv_tf.models import resnet_cifar
from conadv_tf.objectives import per_example

LOSS = per_example.per_example_loss(
    tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
NAMES = ("cat", "dog", "newt")


def trained(channels: int = 1) -> networks.Network:
  """ResNet-8 on 8x8 images with some statistics in each branch."""
  model = resnet_cifar.resnet8((8, 8, channels), 3, width=4)
  network = networks.convert(model)
  generator = np.random.default_rng(channels)
  for variable in network.variables:
    if "moving_mean" in variable.name:
      variable.assign(generator.normal(0, 0.3, variable.shape))
    if "moving_variance" in variable.name:
      variable.assign(generator.uniform(0.5, 2, variable.shape))
  return network


def some_images(channels: int, size: int = 8) -> np.ndarray:
  return np.random.default_rng(9).integers(
      0, 256, (5, size, size, channels), dtype=np.uint8)


def export(network: networks.Network, folder: str, channels: int = 1,
           branch: str = "clean") -> None:
  serving.export(network.merge(branch), str(folder), class_names=NAMES,
                 card={}, image_shape=(8, 8, channels))


def evaluated(network: networks.Network, images: np.ndarray,
              branch: str = "clean") -> np.ndarray:
  return clean.Evaluator(network, LOSS, branch=branch).logits(images).numpy()


def small_classifier(activation: str | None = None) -> tf.keras.Model:
  return tf.keras.Sequential([
      tf.keras.layers.Input([8, 8, 1]), tf.keras.layers.Rescaling(1 / 255),
      tf.keras.layers.Flatten(),
      tf.keras.layers.Dense(3, activation=activation)])


@pytest.mark.parametrize("channels, branch", [
    (3, "adversarial"), pytest.param(1, "clean", marks=pytest.mark.slow)])
def test_serves_what_was_evaluated(
    tmp_path: pathlib.Path, channels: int, branch: str) -> None:
  network = trained(channels)
  export(network, tmp_path / "out", channels, branch)
  images = some_images(channels)
  expected = evaluated(network, images, branch)
  loaded = tf.saved_model.load(str(tmp_path / "out"))
  assert set(loaded.signatures) == {"serving_default", "serving_bytes"}
  served = loaded.signatures["serving_default"](images=tf.constant(images))
  assert served["logits"].dtype == served["probabilities"].dtype == tf.float32
  assert served["classes"].dtype == tf.int64
  np.testing.assert_allclose(served["logits"], expected, atol=1e-6, rtol=1e-6)
  odds = np.exp(expected - expected.max(1, keepdims=True))
  np.testing.assert_allclose(
      served["probabilities"], odds / odds.sum(1, keepdims=True), atol=1e-6)
  np.testing.assert_array_equal(served["classes"], expected.argmax(1))

  # PNG keeps every pixel.
  serve_bytes = loaded.signatures["serving_bytes"]
  pngs = tf.stack([tf.io.encode_png(image) for image in images])
  for name, value in serve_bytes(image_bytes=pngs).items():
    np.testing.assert_array_equal(value, served[name])
  # JPEG does not: what counts is what the decoder makes of it.
  jpegs = [tf.io.encode_jpeg(image, quality=90) for image in images]
  decoded = np.stack([tf.io.decode_jpeg(image) for image in jpegs])
  assert decoded.shape == images.shape and (decoded != images).any()
  np.testing.assert_allclose(
      serve_bytes(image_bytes=tf.stack(jpegs))["logits"],
      evaluated(network, decoded, branch), atol=1e-6, rtol=1e-6)


def test_other_sizes_and_channels_are_brought_to_the_models(
    tmp_path: pathlib.Path) -> None:
  network = trained(3)
  export(network, tmp_path / "out", 3)
  # A grey image and one of twice the size. Halving with bilinear sampling
  # takes the middle of each 2x2 block.
  grey, large = some_images(1)[0], some_images(3, 16)[0]
  blocks = large.reshape([8, 2, 8, 2, 3]).astype(np.float64)
  halved = np.rint(blocks.mean((1, 3))).astype(np.uint8)
  expected = evaluated(
      network, np.stack([np.repeat(grey, 3, axis=2), halved]))
  served = tf.saved_model.load(str(tmp_path / "out")).signatures[
      "serving_bytes"](image_bytes=tf.stack([
          tf.io.encode_png(grey), tf.io.encode_png(large)]))
  np.testing.assert_allclose(served["logits"], expected, atol=1e-6, rtol=1e-6)


def test_mixed_precision_serves_the_same_numbers(
    tmp_path: pathlib.Path) -> None:
  tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
  network = trained()
  tf.keras.mixed_precision.set_global_policy("float32")
  export(network, tmp_path / "out")
  images = some_images(1)
  loaded = tf.saved_model.load(str(tmp_path / "out"))
  served = loaded.signatures["serving_default"](images=tf.constant(images))
  assert served["logits"].dtype == served["probabilities"].dtype == tf.float32
  assert {v.dtype for v in loaded.model_variables} == {tf.float32}
  np.testing.assert_allclose(served["logits"], evaluated(network, images),
                             atol=1e-6, rtol=1e-6)


def test_a_softmax_head_serves_log_probabilities(
    tmp_path: pathlib.Path) -> None:
  model = small_classifier("softmax")
  model.layers[-1].bias.assign([0.0, 1.0, -1000.0])  # p_2 is exactly 0
  serving.export(model, str(tmp_path / "out"), class_names=None, card={},
                 image_shape=(8, 8, 1), outputs="probabilities")
  images = some_images(1)
  served = tf.saved_model.load(str(tmp_path / "out")).signatures[
      "serving_default"](images=tf.constant(images))
  expected = model(tf.cast(images, tf.float32)).numpy()
  np.testing.assert_allclose(served["probabilities"], expected, atol=1e-6)
  np.testing.assert_allclose(served["logits"][:, :2],
                             np.log(expected[:, :2]), atol=1e-5)
  np.testing.assert_allclose(served["logits"][:, 2], -126 * math.log(2),
                             rtol=1e-6)
  np.testing.assert_array_equal(served["classes"], expected.argmax(1))


def test_loads_with_tensorflow_alone(tmp_path: pathlib.Path) -> None:
  export(trained(), tmp_path / "out")
  script = """
import sys
from typing import Any
import numpy as np
import tensorflow as tf
golden = dict(np.load("out/golden.npz"))
serve = tf.saved_model.load("out").signatures["serving_default"]
served = serve(images=tf.constant(golden["images"]))
assert sorted(served) == ["classes", "logits", "probabilities"]
for name, value in served.items():
  np.testing.assert_allclose(value, golden[name], atol=1e-6, rtol=1e-6)
assert not any(name.startswith("conadv_tf") for name in sys.modules)
print("same", golden["images"].shape)
"""
  environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path,
                        env=environment, capture_output=True, text=True,
                        check=False)
  assert done.stdout.strip() == "same (4, 8, 8, 1)", done.stderr


def test_the_card_says_what_to_send(tmp_path: pathlib.Path) -> None:
  serving.export(
      small_classifier(), str(tmp_path / "out"), class_names=NAMES,
      image_shape=(8, 8, 1), card={
          "config": {"seed": 3, "tuple": (1, 2)},
          "metrics": {"accuracy": np.float32(0.5), "loss": math.nan,
                      "counts": np.arange(2)}})
  card = json.loads((tmp_path / "out" / "model_card.json").read_text())
  assert card["config"] == {"seed": 3, "tuple": [1, 2]}
  assert card["metrics"] == {"accuracy": 0.5, "loss": None, "counts": [0, 1]}
  images = card["inputs"]["serving_default"]
  assert (images["name"], images["dtype"], images["range"], images["shape"],
          images["channels"]) == (
              "images", "uint8", [0, 255], [None, 8, 8, 1], "grey")
  assert card["inputs"]["serving_bytes"]["name"] == "image_bytes"
  assert card["classes"] == {"count": 3, "names": list(NAMES)}
  assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_an_earlier_export_is_replaced(tmp_path: pathlib.Path) -> None:
  folder = tmp_path / "out"
  folder.mkdir()  # empty is fine
  images = some_images(1)
  for run in (1, 2):
    model = small_classifier()
    model.layers[-1].bias.assign([0.0, 0.0, 10.0 * run])
    serving.export(model, str(folder), class_names=None, card={"run": run},
                   image_shape=(8, 8, 1))
    assert json.loads((folder / "model_card.json").read_text())["run"] == run
    served = tf.saved_model.load(str(folder)).signatures["serving_default"](
        images=tf.constant(images))["logits"].numpy()
    np.testing.assert_allclose(served, model(tf.cast(images, tf.float32)),
                               atol=1e-6, rtol=1e-6)
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("files, message", [
    ({"notes.txt": "mine"}, "is not empty and no earlier export"),
    ({"model_card.json": "{}"}, "is not empty and no earlier export"),
    ({"model_card.json": "no JSON"}, "is not empty and no earlier export"),
    ({"model_card.json": '{"format": "conadv_tf.export"}',
      "notes.txt": "mine"}, "holds 'notes.txt' beside an earlier export"),
])
def test_other_directories_are_left_alone(
    tmp_path: pathlib.Path, files: dict[str, str], message: str) -> None:
  folder = tmp_path / "out"
  folder.mkdir()
  for name, text in files.items():
    (folder / name).write_text(text)
  with pytest.raises(config.InputError, match=message):
    serving.export(small_classifier(), str(folder), class_names=None, card={},
                   image_shape=(8, 8, 1))
  assert {path.name: path.read_text() for path in folder.iterdir()} == files
  assert list(tmp_path.iterdir()) == [folder]


def test_a_file_and_a_bucket_are_refused(tmp_path: pathlib.Path) -> None:
  (tmp_path / "out").write_text("mine")
  for target, message in ((str(tmp_path / "out"), "is a file"),
                          ("gs://bucket/out", "is not a local directory"),
                          (str(tmp_path / "out" / "deeper"), "cannot write")):
    with pytest.raises(config.InputError, match=message):
      serving.export(small_classifier(), target, class_names=None, card={},
                     image_shape=(8, 8, 1))
  assert (tmp_path / "out").read_text() == "mine"


def test_arguments_that_do_not_fit(tmp_path: pathlib.Path) -> None:
  for change, message in (
      ({"class_names": ["one"]}, "1 class names for a model of 3 classes"),
      ({"outputs": "scores"}, "'logits' or 'probabilities', got 'scores'"),
      ({"card": {"classes": 3}}, r"cannot be set: \['classes'\]"),
      ({"image_shape": (9, 8, 1)}, "")):
    arguments = {"class_names": None, "card": {}, "image_shape": (8, 8, 1),
                 **change}
    with pytest.raises(ValueError, match=message):
      serving.export(small_classifier(), str(tmp_path / "out"), **arguments)
  assert not list(tmp_path.iterdir())


def test_a_wrong_saved_model_is_not_exported(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  save = tf.saved_model.save

  def save_another(
      module: tf.Module, folder: str, signatures: dict[str, Any]) -> None:
    module.model_variables[0].assign_add(
        tf.ones_like(module.model_variables[0]))
    save(module, folder, signatures=signatures)
    module.model_variables[0].assign_sub(
        tf.ones_like(module.model_variables[0]))

  def export_run(run: int) -> None:
    serving.export(small_classifier(), str(tmp_path / "out"),
                   class_names=None, card={"run": run}, image_shape=(8, 8, 1))

  export_run(1)
  monkeypatch.setattr(tf.saved_model, "save", save_another)
  with pytest.raises(RuntimeError, match="gives other logits than the model"):
    export_run(2)
  assert list(tmp_path.iterdir()) == [tmp_path / "out"]
  card = json.loads((tmp_path / "out" / "model_card.json").read_text())
  assert card["run"] == 1


def test_images_that_cannot_be_encoded_have_no_bytes_signature(
    tmp_path: pathlib.Path) -> None:
  model = tf.keras.Sequential([
      tf.keras.layers.Input([4, 4, 2]), tf.keras.layers.Flatten(),
      tf.keras.layers.Dense(2)])
  serving.export(model, str(tmp_path / "out"), class_names=None, card={},
                 image_shape=(4, 4, 2))
  loaded = tf.saved_model.load(str(tmp_path / "out"))
  assert set(loaded.signatures) == {"serving_default"}
  card = json.loads((tmp_path / "out" / "model_card.json").read_text())
  assert set(card["inputs"]) == {"serving_default"}
