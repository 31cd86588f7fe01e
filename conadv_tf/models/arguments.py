"""Checks `model.args` before they reach a model's constructor."""

import difflib
import inspect
from typing import Any, Callable, Mapping, Protocol

import tensorflow as tf

from conadv_tf import config

ImageShape = tuple[int, int, int]  # height, width, channels


class Builder(Protocol):
  """What every named model is: images in 0..255 in, float32 logits out."""

  def __call__(
      self, input_shape: ImageShape, num_classes: int, **args: Any
  ) -> tf.keras.Model:
    """Builds the model; `args` are the config's `model.args`."""


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
  """The parameters of `function`, in order."""
  return list(inspect.signature(function).parameters.values())


def check(
    function: Callable[..., Any], args: Mapping[str, Any], model: str,
    taken: tuple[str, ...], takes_any: bool = False,
) -> None:
  """Raises InputError unless `function` takes `args`.

  Args:
    function: the constructor that will be called with `args`.
    args: keyword arguments out of the configuration.
    model: the model's name, for the message.
    taken: parameters that are not the user's to set.
    takes_any: whether a `**kwargs` of the function means that it takes more
      than it names; Keras's constructors only refuse it later.
  """
  accepted = parameters(function)
  named = [p for p in accepted if p.name not in taken
           and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
  known = [p.name for p in named]
  takes_any = takes_any and any(p.kind is p.VAR_KEYWORD for p in accepted)
  for key in args:
    if key in taken or not (takes_any or key in known):
      near = difflib.get_close_matches(key, known, n=1)
      hint = f" (did you mean {near[0]}?)" if near else ""
      raise config.InputError(
          f"model.args.{key}: {model} takes no such argument{hint}; it takes "
          f"{', '.join(known) or 'none'}")
  missing = [p.name for p in named
             if p.default is p.empty and p.name not in args]
  if missing:
    raise config.InputError(
        f"model.args: {model} needs {', '.join(missing)}; set "
        + ", ".join(f"model.args.{name}" for name in missing))
