"""Initial weights from another run or another model."""

import logging
import os

import numpy as np
import tensorflow as tf

from conadv_tf import config as config_lib
from conadv_tf.layers import network as networks
from conadv_tf.layers import routing
from conadv_tf.models import pretrained
from conadv_tf.training import averaging, checkpoint, run_directory, stopping
from conadv_tf.training import trainer as trainers


def load(trainer: trainers.Trainer, path: str,
         replace_head: bool = False) -> None:
  """Replaces the weights and moving statistics of a trainer at update 0.

  Nothing else is taken over: the optimizer's slots start from zero, averages
  and lagged copies from these weights. All weights must fit, the last layer's
  too unless it is replaced; the size of the images need not be the same where
  no weight depends on it.

  Args:
    trainer: compiled.
    path: a run's directory (what it would evaluate and export: its newest
      checkpoint, averaged where it averages, or that of its best evaluation
      where it has `patience`), a `.keras` or `.h5` file of Keras, the
      directory of a SavedModel of Keras or of `conadv-export`, or a published
      encoder (`models/pretrained.py`; its head starts anew). A run gives
      each branch of batch normalisation its own where it has that branch;
      all other branches start from the clean one.
    replace_head: whether the last layer with weights keeps those it has,
      whatever its shape in `path`.

  Raises:
    InputError: if there is nothing of the kind, or a weight does not fit or
      is not finite; no weight was changed.
  """
  layouts = tuple(routing.BRANCHES.values())
  if os.path.exists(os.path.join(path, "params.yaml")):
    values, augments = _of_run(path)
    if augments:
      layouts = (routing.NATURAL_BRANCHES,)
  elif os.path.exists(os.path.join(path, "saved_model.pb")):
    values = _of_saved_model(path)
  elif os.path.isfile(path):
    values = _of_keras_file(trainer.network, path, replace_head)
  elif pretrained.is_checkpoint(path):
    values = _of_encoder(trainer.network, path)
  else:
    raise config_lib.InputError(
        f"model.initial_weights: {path} is no run's directory, no .keras or "
        ".h5 file and no SavedModel, and holds no encoder; name one of these")
  values = _by_branch(trainer.network, values, path, replace_head, layouts)
  for variable, value in zip(trainer.network.variables, values, strict=True):
    if not np.isfinite(value).all():
      raise config_lib.InputError(
          f"model.initial_weights: {variable.name} in {path} holds numbers "
          "that are not finite; take an earlier checkpoint, or another model")
  trainer.network.assign(values)
  averaging.restart(trainer)


def _of_run(path: str) -> tuple[list[np.ndarray], bool]:
  """Values, and whether a second branch is that of augmented images."""
  directory = run_directory.RunDirectory(path)
  saved = directory.saved_config()
  source = stopping.result_checkpoint(directory, saved.evaluation)
  if source is None:
    raise config_lib.InputError(
        f"model.initial_weights: the run in {path} holds no checkpoint yet")
  state = checkpoint.averaged(source.state)
  names = sorted(name for name in state if name.startswith("network/"))
  return ([state[name] for name in names],
          saved.method.augmented_stream == "split")


def _of_saved_model(path: str) -> list[np.ndarray]:
  try:
    loaded = tf.saved_model.load(path)
  except (OSError, ValueError) as error:
    raise _unreadable(path, error) from error
  # Of conadv-export, else of Keras.
  variables = getattr(loaded, "model_variables",
                      getattr(loaded, "variables", ()))
  return [v.numpy() for v in variables]


def _of_keras_file(network: networks.Network, path: str, replace_head: bool
                   ) -> list[np.ndarray]:
  try:
    if replace_head:  # weights alone cannot be read into another shape
      model = tf.keras.models.load_model(path, compile=False)
    else:
      model = network.merge()
      model.load_weights(path)
  except (OSError, ValueError, KeyError, NotImplementedError) as error:
    raise _unreadable(path, error) from error
  return [v.numpy() for v in model.variables]


def _of_encoder(network: networks.Network, path: str) -> list[np.ndarray]:
  variables = network.model.variables
  values = pretrained.values(network.model, path)
  new = [v.name.partition(":")[0] for v, value in zip(variables, values)
         if value is None]
  logging.warning("%s does not hold %s, which start anew", path,
                  ", ".join(new))
  return [networks.read(v) if value is None else value
          for v, value in zip(variables, values)]


def _unreadable(path: str, error: Exception) -> config_lib.InputError:
  return config_lib.InputError(
      f"model.initial_weights: {path} cannot be loaded into this model: "
      f"{error}")


def head(model: tf.keras.Model) -> list[tf.Variable]:
  """The weights of the last layer that has any and holds no other layer."""
  layers = model._flatten_layers(include_self=False)  # pylint: disable=protected-access
  leaves = [layer for layer in layers if layer.weights and not any(
      True for _ in layer._flatten_layers(include_self=False))]  # pylint: disable=protected-access
  return leaves[-1].weights if leaves else []


def _by_branch(network: networks.Network, values: list[np.ndarray],
               path: str, replace_head: bool,
               layouts: tuple[tuple[str, ...], ...]) -> list[np.ndarray]:
  """Values for `network.variables`.

  Args:
    network: to be loaded into.
    values: of a network of this model with any of the layouts, in the order
      of its `variables`; of a plain model with none but the clean branch.
    path: where they come from.
    replace_head: whether the head's are the network's present ones.
    layouts: branches that the values may be of; their number decides.
  """
  kept = {id(v) for v in head(network.model)} if replace_head else set()
  own = len(network.model.variables)
  clean = {id(v): i for i, v in enumerate(network.model.variables)}
  # The extra branches' variables as (clean variable's position, branch), in
  # the order of a network's.
  def extra(branches: tuple[str, ...]) -> list[tuple[int, str]]:
    return [(clean[id(v)], branch)
            for layer in network.layer_variables for branch in branches[1:]
            for v in (layer[routing.CLEAN].trainable()
                      + layer[routing.CLEAN].moving())]

  for branches in layouts:
    if len(values) == own + len(extra(branches)):
      break
  else:
    # Names the first weight that does not fit, where one does not.
    branches = routing.BRANCHES[1]
  positions = [*range(own), *(i for i, _ in extra(branches))]
  for variable, value in zip(
      [network.model.variables[i] for i in positions], values):
    if id(variable) not in kept and tuple(variable.shape) != value.shape:
      raise config_lib.InputError(
          f"model.initial_weights: {variable.name} has the shape "
          f"{tuple(variable.shape)} here and {value.shape} in {path}; all "
          "weights must fit" + ("" if replace_head else ", the last layer's "
                                "too (or set model.replace_head)"))
  if len(values) != len(positions):
    raise config_lib.InputError(
        f"model.initial_weights: {path} holds {len(values)} weights, which "
        f"is no {own}-weight model like this one")
  of_branch = dict(zip(extra(branches), values[own:]))
  values = [networks.read(v) if id(v) in kept else value
            for v, value in zip(network.model.variables, values)]
  return values + [
      of_branch.get((i, branch), values[i])
      for i, branch in extra(network.branches)]
