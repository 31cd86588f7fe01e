"""docs/bring_your_own_model.md: its models, its code and what it refuses."""

from collections.abc import Callable
import functools
import json
import os
import pathlib
import re
import shlex
import sys
from typing import Any

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

import conadv_tf as ca
from conadv_tf import config
from conadv_tf.evaluation import serving
from conadv_tf.models import user
from tests import commands

_ROOT = pathlib.Path(__file__).parent.parent
_PAGE = (_ROOT / "docs" / "bring_your_own_model.md").read_text("utf-8")
_MODELS, _FROM_PYTHON = re.findall(r"```python\n(.*?)```", _PAGE, re.DOTALL)
_COMMANDS, = re.findall(r"```\n(conadv-.*?)```", _PAGE, re.DOTALL)
layers = tf.keras.layers


@pytest.fixture(autouse=True)
def working_directory(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
  """The user's directory, with the page's first block as a module."""
  (tmp_path / "my_models.py").write_text(_MODELS)
  (tmp_path / "configs").symlink_to(_ROOT / "configs")
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
  monkeypatch.delitem(sys.modules, "my_models", raising=False)
  return tmp_path


@pytest.mark.parametrize("name, norms", [
    ("small", 2), *(pytest.param(name, 13, marks=pytest.mark.slow)
                    for name in ("from_keras_cv", "from_model_garden"))])
def test_a_model_is_trained_evaluated_and_exported(
    name: str, norms: int, working_directory: pathlib.Path) -> None:
  model = user.builder(f"my_models:{name}")((32, 32, 3), 3)
  kind, before = type(model), model.get_weights()
  trainer = ca.Trainer(model, ca.methods.ConAdv(lag=1),
                       ca.attacks.Pgd(radius=4), pixel_range=(0.0, 255.0))
  assert len(trainer.network.layers) == norms
  trainer.compile(
      ca.optimizers.Lars(0.1),
      tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
      metrics=["accuracy"])
  images = np.random.randint(0, 256, (8, 32, 32, 3)).astype(np.uint8)
  data = tf.data.Dataset.from_tensor_slices(
      (images, np.arange(8) % 3)).batch(4)
  history = trainer.fit(data, verbose=0).history
  assert int(trainer.optimizer.iterations) == 2
  assert np.isfinite(history["adversarial_loss"]).all()
  assert history["perturbation_linf"] == [pytest.approx(4, abs=1e-3)]
  figures = trainer.evaluate(data, verbose=0, return_dict=True)
  assert 0 <= figures["accuracy"] <= 1

  for old, same in zip(before, model.get_weights(), strict=True):
    np.testing.assert_array_equal(same, old)
  merged = trainer.merge()
  assert type(merged) is kind
  changed = [not np.array_equal(old, new) for old, new in zip(
      before, merged.get_weights(), strict=True)]
  assert all(changed)
  logits = trainer(images).numpy()
  serving.export(merged, str(working_directory / "export"), class_names=None,
                 card={}, image_shape=(32, 32, 3))
  served = tf.saved_model.load(str(working_directory / "export"))
  np.testing.assert_allclose(
      served.signatures["serving_default"](images=tf.constant(images))[
          "logits"], logits, rtol=1e-5, atol=1e-5)


def test_the_python_block_runs(working_directory: pathlib.Path) -> None:
  scope: dict[str, Any] = {}
  exec(compile(_FROM_PYTHON, "page", "exec"), scope)  # pylint: disable=exec-used
  assert int(scope["model"].optimizer.iterations) == 2
  assert set(scope["figures"]) >= {"loss", "accuracy"}
  loaded = tf.keras.models.load_model(working_directory / "plain.keras")
  images = tf.cast(scope["images"], tf.float32)
  np.testing.assert_array_equal(loaded(images), scope["model"](images))


@pytest.mark.slow
def test_the_commands_run(working_directory: pathlib.Path) -> None:
  generator = np.random.default_rng(0)
  for split in ("train", "validation"):
    for label in range(3):
      folder = working_directory / "photos" / split / f"class{label}"
      folder.mkdir(parents=True)
      for number in range(4):
        pixels = generator.integers(0, 256, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
  lines = _COMMANDS.strip().splitlines()
  assert len(lines) == 3
  printed = {}
  for line in lines:
    name, *arguments = shlex.split(line)
    if name == "conadv-train":  # 12 images: 2 updates of 6
      arguments += ["--params_override=data.global_batch_size=6,"
                    "runtime.micro_batches=1,schedule.epochs=1,"
                    "schedule.warmup_epochs=0,data.augment=none,"
                    "evaluation.every_epochs=1"]
    finished = commands.run(
        name.replace("-", "_tf."), *arguments,
        before=functools.partial(os.chdir, working_directory))
    assert finished.code == 0, finished.err
    printed[name] = finished.out
  run = working_directory / "runs" / "mine"
  results = json.loads((run / "results.json").read_text())
  assert results["step"] == 2 and results["validation/examples"] == 12
  assert "robust_accuracy_pgd20" in printed["conadv-evaluate"]
  card = json.loads((run / "export" / serving.CARD).read_text())
  assert card["config"]["model"]["name"] == "my_models:small"
  served = tf.saved_model.load(str(run / "export"))
  golden = np.load(run / "export" / serving.GOLDEN)
  images = tf.constant(golden["images"])
  np.testing.assert_allclose(
      served.signatures["serving_default"](images=images)["logits"],
      golden["logits"], atol=1e-5)


def _sequential(*stack: layers.Layer, dtype: str = "float32"
                ) -> tf.keras.Model:
  return tf.keras.Sequential([
      tf.keras.Input((4, 4, 1), dtype=dtype), *stack, layers.Flatten(),
      layers.Dense(3)])


class _OwnNorm(layers.Layer):
  moving_mean = moving_variance = 0.0


class _Counts(layers.Layer):
  def build(self, input_shape: tf.TensorShape) -> None:
    self.count = self.add_weight(name="count", trainable=False)

  def call(self, x: tf.Tensor) -> tf.Tensor:
    self.count.assign_add(1.0)
    return x


class _Scale(layers.Layer):
  def __init__(self, factor: float = 1.0, **kwargs: Any) -> None:
    super().__init__(**kwargs)
    self.factor = factor

  def call(self, x: tf.Tensor) -> tf.Tensor:
    return x * self.factor

  def get_config(self) -> dict[str, Any]:
    return super().get_config()  # forgets the factor


class _Subclass(tf.keras.Model):
  def __init__(self, head: layers.Layer) -> None:
    super().__init__()
    self.head = head

  def call(self, x: tf.Tensor) -> tf.Tensor:
    return self.head(tf.reshape(x, [-1, 16]))

  def get_config(self) -> dict[str, Any]:
    raise NotImplementedError


def _subclass() -> tf.keras.Model:
  model = _Subclass(layers.Dense(3))
  model(tf.zeros([1, 4, 4, 1]))
  return model


def _two_outputs() -> tf.keras.Model:
  base = _sequential()
  return tf.keras.Model(base.input, [base.output, base.output])


_REFUSED: dict[str, Callable[[], tf.keras.Model]] = {
    "is not built": lambda: tf.keras.Sequential([layers.Dense(3)]),
    "cannot be combined with split batch normalisation":
        lambda: _sequential(
            tf.compat.v1.keras.layers.BatchNormalization(renorm=True)),
    "is not a Keras BatchNormalization": lambda: _sequential(_OwnNorm()),
    "assigns a variable during the forward pass":
        lambda: _sequential(_Counts()),
    "cannot be cloned": _subclass,
    "gives other outputs when it is built again":
        lambda: _sequential(_Scale(3.0)),
    "so no gradient reaches them": lambda: _sequential(
        layers.Rescaling(1.0), dtype="int32"),
    "must have one output": _two_outputs,
}
_REFUSED_BY_COMMANDS: dict[str, Callable[..., tf.keras.Model]] = {
    "must take (input_shape, num_classes, ...)": lambda: _sequential(),
    "classes, it gives": lambda shape, classes: tf.keras.Sequential([
        tf.keras.Input(shape), layers.Flatten(), layers.Dense(classes + 1)]),
}


@pytest.mark.parametrize("words", _REFUSED)
def test_a_trainer_refuses(words: str) -> None:
  assert f"| {words} |" in _PAGE
  with pytest.raises(ValueError, match=re.escape(words)) as error:
    ca.Trainer(_REFUSED[words](), ca.methods.ConAdv(), ca.attacks.Pgd())
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("words", _REFUSED_BY_COMMANDS)
def test_the_commands_refuse(
    words: str, monkeypatch: pytest.MonkeyPatch) -> None:
  assert f"| {words} |" in _PAGE
  user.builder("my_models:small")  # imports it
  monkeypatch.setattr(
      sys.modules["my_models"], "small", _REFUSED_BY_COMMANDS[words])
  with pytest.raises(config.InputError, match=re.escape(words)):
    user.builder("my_models:small")((4, 4, 1), 3)


def test_every_refusal_of_the_page_is_tested() -> None:
  table = _PAGE.split("## What is refused")[1].split("##")[0]
  rows = [line.split("|")[2].strip() for line in table.splitlines()
          if line.startswith("|")][2:]
  assert rows == [*_REFUSED, *_REFUSED_BY_COMMANDS]
