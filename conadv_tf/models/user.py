"""The user's own Keras model, named as `module.path:function`."""

from collections.abc import Sequence
import importlib
import os
import sys
from typing import Any, Callable

import tensorflow as tf

from conadv_tf import config
from conadv_tf.models import arguments


def builder(name: str) -> arguments.Builder:
  """Imports the function `name` and wraps it with checks.

  The module is looked for on Python's path and in the working directory. The
  function is called as `function(input_shape, num_classes, **model.args)` and
  returns a Keras model from float images [b, h, w, c] in 0..255, or from the
  tokens int32 [b, L, 2] of `data.name: glue`, to [b, num_classes].

  Args:
    name: for instance `my_package.my_models:wide_resnet`.

  Returns:
    `build(input_shape, num_classes, **args)`.
  """
  function = _find(name)

  def build(
      input_shape: arguments.ImageShape, num_classes: int, **args: Any
  ) -> tf.keras.Model:
    _check_arguments(function, args, name)
    model = function(input_shape, num_classes, **args)
    _check_model(model, input_shape, num_classes, name)
    return model

  return build


def _find(name: str) -> Callable[..., Any]:
  module_name, _, function_name = name.partition(":")
  if not all(part.isidentifier() for part in module_name.split(".")) or (
      not function_name.isidentifier()):
    raise config.InputError(
        f"model.name is {name!r}: your own model is named "
        "module.path:function")
  # Console scripts, unlike `python -m`, do not look in the working directory.
  if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())
  try:
    module = importlib.import_module(module_name)
  except ImportError as error:
    raise config.InputError(
        f"model.name: importing {module_name!r} failed with {error}; run from "
        "the directory that holds it, or install it") from error
  function = getattr(module, function_name, None)
  if not callable(function):
    own = [key for key, value in vars(module).items() if callable(value)
           and getattr(value, "__module__", None) == module.__name__]
    raise config.InputError(
        f"model.name: {module_name} ({module.__file__}) has no function "
        f"{function_name!r}; it has {', '.join(own) or 'none'}")
  return function


def _check_arguments(
    function: Callable[..., Any], args: dict[str, Any], name: str
) -> None:
  """The first two parameters are ours, whatever the user calls them."""
  parameters = arguments.parameters(function)
  positional = [p.name for p in parameters if p.kind in (
      p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
  starred = any(p.kind is p.VAR_POSITIONAL for p in parameters)
  if len(positional) < 2 and not starred:
    raise config.InputError(
        f"model.name: {name} must take (input_shape, num_classes, ...)")
  arguments.check(function, args, name, taken=tuple(positional[:2]),
                  takes_any=True)


def _check_model(
    model: Any, input_shape: arguments.ImageShape, num_classes: int, name: str
) -> None:
  """Raises InputError unless `model` maps images to one row of classes."""
  if not isinstance(model, tf.keras.Model):
    raise config.InputError(
        f"model.name: {name} must return a tf.keras.Model, it returned "
        f"{type(model).__name__}")
  try:
    # A symbolic call: it also builds a subclassed model's variables.
    output = model(tf.keras.Input(input_shape, dtype=_dtype(input_shape)))
  except (TypeError, ValueError) as error:
    kind = "tokens" if _is_text(input_shape) else "images"
    raise config.InputError(
        f"model.name: {name} does not take {kind} [b, "
        f"{', '.join(map(str, input_shape))}]: {error}") from error
  shape = getattr(output, "shape", None)
  if shape is None or shape.as_list() != [None, num_classes]:
    raise config.InputError(
        f"model.name: {name} must give [b, {num_classes}] for {num_classes} "
        f"classes, it gives {output if shape is None else shape.as_list()}")


def _is_text(input_shape: Sequence[int]) -> bool:
  """Whether an example is tokens (L, 2), see `data.glue.TokenSource`."""
  return len(input_shape) == 2


def _dtype(input_shape: Sequence[int]) -> tf.DType:
  return tf.int32 if _is_text(input_shape) else tf.float32


def outputs(model: tf.keras.Model, input_shape: arguments.ImageShape) -> str:
  """What a model ends in: "probabilities" after a softmax, else "logits".

  Judged by what it gives for a few images, since a softmax can hide anywhere:
  in an activation, a layer of its own or a subclass's `call`.
  """
  dtype = _dtype(input_shape)
  images = tf.random.stateless_uniform(
      [4, *input_shape], [0, 0], 0, 2 if dtype.is_integer else 255, dtype)
  values = tf.cast(model(images, training=False), tf.float32)
  sums = tf.reduce_sum(values, axis=1)
  if values.shape[1] == 1:
    return "logits"  # of regression
  is_softmax = tf.reduce_all(values >= 0) & tf.reduce_all(
      tf.abs(sums - 1.0) < 1e-2)
  return "probabilities" if bool(is_softmax) else "logits"
