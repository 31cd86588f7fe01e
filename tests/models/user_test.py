"""The user's own model: found, called, checked."""

import pathlib
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import config
from conadv_tf.models import user

MODULE = """
import tensorflow as tf
layers = tf.keras.layers

def linear(input_shape, num_classes):
  return tf.keras.Sequential([
      layers.Input(input_shape), layers.Flatten(), layers.Dense(num_classes)])

def deep(shape, classes, *, units, activation="relu"):
  return tf.keras.Sequential([
      layers.Flatten(), layers.Dense(units, activation), layers.Dense(classes)])

class Subclassed(tf.keras.Model):
  def __init__(self, input_shape, num_classes):
    super().__init__()
    self.pool = layers.GlobalAveragePooling2D()
    self.dense = layers.Dense(num_classes)
  def call(self, x):
    return self.dense(self.pool(x))

def no_model(input_shape, num_classes):
  return 3

def one_too_many(input_shape, num_classes):
  return linear(input_shape, num_classes + 1)

def convolution_only(input_shape, num_classes):
  return tf.keras.Sequential([layers.Conv2D(num_classes, 3)])

def two_heads(input_shape, num_classes):
  x = layers.Input(input_shape)
  return tf.keras.Model(x, [linear(input_shape, num_classes)(x)] * 2)

def other_size(input_shape, num_classes):
  return linear((5, 5, 1), num_classes)

def anything(*args, **kwargs):
  return linear(*args[:2])

def broken(input_shape, num_classes):
  return 1 / 0

def no_parameters():
  pass

constant = 3
"""


@pytest.fixture(autouse=True)
def working_directory(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  """A directory that is not on Python's path, with the user's modules."""
  (tmp_path / "my_models.py").write_text(MODULE)
  (tmp_path / "my_broken.py").write_text("import no_such_thing_at_all")
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr("sys.path", [*sys.path])
  monkeypatch.delitem(sys.modules, "my_models", raising=False)


def build(name: str, **args: Any) -> tf.keras.Model:
  return user.builder(f"my_models:{name}")((4, 4, 2), 3, **args)


def test_a_two_line_model() -> None:
  model = build("linear")
  x = np.random.uniform(0, 255, (5, 4, 4, 2)).astype(np.float32)
  assert model(x).shape == (5, 3)
  assert model.count_params() == 4 * 4 * 2 * 3 + 3
  assert model.output_shape == (None, 3)


def test_arguments_reach_the_function() -> None:
  model = build("deep", units=6, activation="tanh")
  # (32 + 1) * 6 + (6 + 1) * 3: the checks have built the deferred layers.
  assert model.count_params() == 219
  assert model.layers[1].activation is tf.keras.activations.tanh


def test_a_subclassed_model_is_built() -> None:
  model = build("Subclassed")
  assert model.built and model.count_params() == 2 * 3 + 3


def test_a_function_that_takes_anything() -> None:
  assert build("anything", whatever=1).output_shape == (None, 3)


@pytest.mark.parametrize("name, words", [
    ("my_models", "is 'my_models': your own model is named module.path:"),
    (":linear", "is named module.path:function"),
    ("my_models:", "is named module.path:function"),
    ("my-models:linear", "is named module.path:function"),
    ("no_such_module:f", "importing 'no_such_module' failed with No module"),
    ("my_broken:f", "No module named 'no_such_thing_at_all'"),
    ("my_models:linaer", "no function 'linaer'; it has linear, deep"),
    ("my_models:constant", "has no function 'constant'"),
])
def test_what_cannot_be_found(name: str, words: str) -> None:
  with pytest.raises(config.InputError) as error:
    user.builder(name)
  assert words in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, args, words", [
    ("no_model", {}, "must return a tf.keras.Model, it returned int"),
    ("one_too_many", {}, "must give [b, 3] for 3 classes, it gives [None, 4]"),
    ("convolution_only", {}, "it gives [None, 2, 2, 3]"),
    ("two_heads", {}, "must give [b, 3]"),
    ("other_size", {}, "does not take images [b, 4, 4, 2]"),
    ("deep", {}, "needs units; set model.args.units"),
    ("deep", {"units": 2, "unit": 3}, "model.args.unit: my_models:deep takes "
     "no such argument (did you mean units?)"),
    ("deep", {"units": 2, "shape": 3}, "model.args.shape"),
    ("no_parameters", {}, "must take (input_shape, num_classes, ...)"),
])
def test_what_does_not_fit(
    name: str, args: dict[str, Any], words: str) -> None:
  with pytest.raises(config.InputError) as error:
    build(name, **args)
  assert words in str(error.value)
  assert "\n" not in str(error.value)


def test_an_error_inside_the_function_keeps_its_traceback() -> None:
  with pytest.raises(ZeroDivisionError):
    build("broken")
