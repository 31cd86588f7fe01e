"""Published checkpoints of BERT and RoBERTa: their sizes, their weights.

Read are folders in Hugging Face's layout (`config.json`,
`model.safetensors`), checkpoints of google-research/bert (`bert_config.json`,
names such as `bert/encoder/layer_0/...`), and object-based checkpoints of
Model Garden's `BertEncoder` and `BertEncoderV2`.
"""

from collections.abc import Callable, Sequence
import glob
import itertools
import json
import os
import re
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from conadv_tf import config
from conadv_tf.models import encoder

_CONFIGS = ("config.json", "bert_config.json")
_WEIGHTS = "model.safetensors"
# Arguments of an encoder, and what a checkpoint's config calls them.
_SIZES = {
    "hidden_size": "hidden_size", "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size", "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size", "layer_norm_eps": "layer_norm_eps",
    "pad_id": "pad_token_id"}
_RATES = {"hidden_dropout": "hidden_dropout_prob",
          "attention_dropout": "attention_probs_dropout_prob"}
# Google's configs are BERT's, and leave out what always is the same.
_ALWAYS = {"model_type": "bert", "layer_norm_eps": 1e-12, "pad_token_id": 0,
           "position_embedding_type": "absolute", "hidden_act": "gelu"}

# Layers of ours; as Hugging Face names them, which is as Google does with dots
# for slashes; as Model Garden does, where `BertEncoder` (but for what is in its
# blocks) knows only positions among the layers with weights.
_TABLE = {
    encoder.WORD_EMBEDDINGS: (
        "embeddings.word_embeddings", "_embedding_layer", 0),
    encoder.POSITIONS: (
        "embeddings.position_embeddings", "_position_embedding_layer", 1),
    "type_embeddings": (
        "embeddings.token_type_embeddings", "_type_embedding_layer", 2),
    "embedding_norm": (
        "embeddings.LayerNorm", "_embedding_norm_layer", 3),
    "pooler": ("pooler.dense", "_pooler_layer", -1),
}
_FIRST_BLOCK = 4
_BLOCK = {
    "self_attention/query": (
        "attention.self.query", "_attention_layer/_query_dense"),
    "self_attention/key": (
        "attention.self.key", "_attention_layer/_key_dense"),
    "self_attention/value": (
        "attention.self.value", "_attention_layer/_value_dense"),
    "self_attention/attention_output": (
        "attention.output.dense", "_attention_layer/_output_dense"),
    "self_attention_layer_norm": (
        "attention.output.LayerNorm", "_attention_layer_norm"),
    "intermediate": ("intermediate.dense", "_intermediate_dense"),
    "output": ("output.dense", "_output_dense"),
    "output_layer_norm": ("output.LayerNorm", "_output_layer_norm"),
}
_TORCH = {"kernel": "weight", "gamma": "weight", "embeddings": "weight",
          "beta": "bias", "bias": "bias"}


class _Names(NamedTuple):
  """A variable's names, without what a checkpoint puts before all of them."""

  torch: str
  google: str
  garden: str
  garden_v2: str


class _Source(NamedTuple):
  """An open checkpoint.

  Attributes:
    kind: of `_Names`.
    prefix: before all names.
    shapes: by full name.
    read: the tensor of a full name.
    skipped: rows of the positions that are before the first token's.
  """

  kind: str
  prefix: str
  shapes: dict[str, tuple[int, ...]]
  read: Callable[[str], np.ndarray]
  skipped: int = 0

  def name(self, names: _Names) -> str | None:
    """The full name of a tensor, if there is one."""
    name = self.prefix + getattr(names, self.kind)
    # Early conversions from TensorFlow kept its names here.
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta")
    return next((n for n in (name, old) if n in self.shapes), None)


def is_checkpoint(path: str) -> bool:
  """Whether `path` is a folder or prefix that `values` could read."""
  folder = os.path.isdir(path) and any(
      os.path.exists(os.path.join(path, name))
      for name in (*_CONFIGS, _WEIGHTS))
  return folder or _prefix(path) is not None


def known(args: dict[str, Any]) -> dict[str, Any]:
  """Those of a run's arguments that a checkpoint gave, if all sizes are."""
  if not _SIZES.keys() <= args.keys():
    return {}
  return {key: value for key, value in args.items()
          if key in (*_SIZES, *_RATES)}


def arguments(name: str, args: dict[str, Any], path: str) -> dict[str, Any]:
  """Completes an encoder's arguments by those of a checkpoint.

  With fewer `num_layers` than it has, its first ones are taken.

  Args:
    name: in `encoder.PRESETS`.
    args: as the user gave them.
    path: folder or prefix of the checkpoint; of anything else, such as a
      run, nothing is taken.

  Raises:
    InputError: if the checkpoint is of another kind or has other sizes than
      the name or `args` say, or its config is missing or damaged.
  """
  if not is_checkpoint(path):
    if path.endswith((".safetensors", ".bin")):
      raise config.InputError(
          f"model.initial_weights: {path} is a file; give the folder that "
          f"holds it, with config.json and {_WEIGHTS}")
    if not os.path.exists(path):
      raise config.InputError(f"model.initial_weights: {path} does not exist")
    return args
  file, found = _read_config(path)
  if file is None:
    raise config.InputError(
        f"model.initial_weights: {path} has no {' or '.join(_CONFIGS)}, which "
        "says the encoder's sizes; put it there")
  kind = encoder.PRESETS[name].kind
  for key, wanted in (("model_type", kind), ("hidden_act", "gelu"),
                      ("position_embedding_type", "absolute")):
    if found[key] != wanted:
      raise config.InputError(
          f"model.initial_weights: {file} says {key}={found[key]}, and "
          f"model.name={name} needs {wanted}")
  try:
    sizes = {ours: found[theirs] for ours, theirs in _SIZES.items()}
  except KeyError as error:
    raise config.InputError(
        f"model.initial_weights: {file} does not say {error}") from error
  layers = args.get("num_layers")
  if isinstance(layers, int) and 1 <= layers < sizes["num_layers"]:
    sizes["num_layers"] = layers  # the first ones of a deeper encoder
  elif isinstance(layers, int) and layers > sizes["num_layers"]:
    raise _too_few_layers(file, sizes["num_layers"], layers)
  for key, value in sizes.items():
    if args.get(key, value) != value:
      raise config.InputError(
          f"model.args.{key} is {args[key]!r} and {value!r} in {file}; leave "
          "it out")
  encoder.check_preset(name, sizes)
  rates = {ours: found[theirs] for ours, theirs in _RATES.items()
           if theirs in found}
  return {**rates, **sizes, **args}


def values(model: tf.keras.Model, path: str) -> list[np.ndarray | None]:
  """The weights of an encoder in a checkpoint.

  Args:
    model: of `encoder`.
    path: folder or prefix, see `is_checkpoint`.

  Returns:
    One for each of `model.variables`, in its shape, float32; None for the
    head's, and for the pooler's where the checkpoint has none.

  Raises:
    InputError: if a tensor is missing, has another shape or holds a number
      that is not finite (the first one is named), there are fewer layers than
      the model has, or the file cannot be read.
  """
  source = _open(path)
  blocks = sum(layer.name.startswith("layer_") for layer in model.layers)
  layers = _layers(source)
  if 0 < layers < blocks:
    raise _too_few_layers(path, layers, blocks)
  found = []
  for variable in model.variables:
    names = _names(variable.name.partition(":")[0], layers)
    found.append(None if names is None else _value(
        source, names, variable, path))
  if all(value is None for value in found):
    raise config.InputError(
        f"model.initial_weights: {path} holds an encoder, and this model has "
        f"none of its layers; name the model {' or '.join(encoder.PRESETS)}")
  return found


def _too_few_layers(path: str, there: int, wanted: int) -> config.InputError:
  return config.InputError(
      f"model.args.num_layers is {wanted}, and the encoder in {path} has "
      f"{there} layer(s); ask for at most {there}, or leave it out")


def _layers(source: _Source) -> int:
  """How many layers of the transformer a checkpoint holds any part of."""
  def holds(number: int) -> bool:
    return any(source.name(_names(
        f"layer_{number}/{part}/{'beta' if 'norm' in part else 'bias'}", 0))
               for part in _BLOCK)
  return next(n for n in itertools.count() if not holds(n))


def _names(ours: str, blocks: int) -> _Names | None:
  """What others call a variable of an encoder of so many blocks.

  None if it is the head's.
  """
  layer, _, leaf = ours.rpartition("/")
  block = re.fullmatch(r"layer_(\d+)/(.+)", layer)
  if block and block[2] in _BLOCK:
    number, part = int(block[1]), block[2]
    torch, attribute = _BLOCK[part]
    torch = f"encoder.layer.{number}.{torch}"
    position = f"{_FIRST_BLOCK + number}/{attribute}"
    attribute = f"_transformer_layers/{number}/{attribute}"
  elif layer in _TABLE:
    torch, attribute, number = _TABLE[layer]
    position = str(_FIRST_BLOCK + blocks if number < 0 else number)
  else:
    return None
  google = re.sub(r"layer\.(\d+)", r"layer_\1", torch).replace(".", "/")
  if leaf != "embeddings":
    google += f"/{leaf}"
  ending = f"/{leaf}/.ATTRIBUTES/VARIABLE_VALUE"
  return _Names(f"{torch}.{_TORCH[leaf]}", google,
                f"layer_with_weights-{position}{ending}", attribute + ending)


def _value(source: _Source, names: _Names, variable: tf.Variable, path: str
           ) -> np.ndarray | None:
  """A tensor in the shape of our variable."""
  name = source.name(names)
  if name is None:
    if "pooler" in names.torch:
      return None
    raise config.InputError(
        f"model.initial_weights: {path} has no tensor "
        f"{source.prefix + getattr(names, source.kind)}")
  ours = tuple(variable.shape)
  there, turned = ours, False
  if source.kind in ("torch", "google"):
    there = _flat(variable)
    turned = source.kind == "torch" and "/kernel" in variable.name
    there = there[::-1] if turned else there
  skipped = source.skipped if "position_embeddings" in name else 0
  there = (there[0] + skipped, *there[1:])
  if source.shapes[name] != there:
    raise config.InputError(
        f"model.initial_weights: {name} has the shape {source.shapes[name]} "
        f"in {path}, and this model needs {there}; model.args and the "
        "checkpoint must agree")
  value = source.read(name)[skipped:].astype(np.float32)
  if not np.isfinite(value).all():
    raise config.InputError(
        f"model.initial_weights: {name} in {path} holds numbers that are not "
        "finite; get it again, or take an earlier checkpoint")
  return np.reshape(value.T if turned else value, ours)


def _flat(variable: tf.Variable) -> tuple[int, ...]:
  """The shape as (inputs, outputs), or (outputs), without heads."""
  shape = tuple(variable.shape)
  if "/kernel" not in variable.name:
    return shape if "embeddings" in variable.name else (int(np.prod(shape)),)
  inputs = len(shape) - 1 if "attention_output" in variable.name else 1
  return int(np.prod(shape[:inputs])), int(np.prod(shape[inputs:]))


def _read_config(path: str) -> tuple[str | None, dict[str, Any]]:
  """The config's path, or None, and what it says."""
  folder = path if os.path.isdir(path) else os.path.dirname(path)
  for name in _CONFIGS:
    file = os.path.join(folder, name)
    if os.path.exists(file):
      try:
        with open(file, encoding="utf-8") as opened:
          return file, {**_ALWAYS, **json.load(opened)}
      except (OSError, ValueError, TypeError) as error:
        raise config.InputError(
            f"model.initial_weights: {file} cannot be read: {error}"
        ) from error
  return None, dict(_ALWAYS)


def _prefix(path: str) -> str | None:
  """The prefix of the TensorFlow checkpoint that `path` is or holds."""
  if os.path.exists(path + ".index"):
    return path
  if not os.path.isdir(path):
    return None
  found = [name.removesuffix(".index")
           for name in sorted(glob.glob(os.path.join(path, "*.index")))]
  return tf.train.latest_checkpoint(path) or (found[-1] if found else None)


def _open(path: str) -> _Source:
  weights = os.path.join(path, _WEIGHTS)
  if os.path.exists(weights):
    return _open_torch(path, weights)
  prefix = _prefix(path)
  if prefix is None:
    raise config.InputError(
        f"model.initial_weights: {path} has no {_WEIGHTS} and no TensorFlow "
        "checkpoint; other formats are not read")
  return _open_tensorflow(prefix)


def _open_torch(path: str, weights: str) -> _Source:
  import safetensors  # only these folders need it
  try:
    file = safetensors.safe_open(weights, framework="np")
    shapes = {name: tuple(file.get_slice(name).get_shape())
              for name in file.keys()}
  except (OSError, safetensors.SafetensorError) as error:
    raise config.InputError(
        f"model.initial_weights: {weights} cannot be read: {error}"
    ) from error
  found = _read_config(path)[1]
  skipped = found["pad_token_id"] + 1 if found[
      "model_type"] == "roberta" else 0
  first = _names(f"{encoder.WORD_EMBEDDINGS}/embeddings", 0)
  return _Source("torch", _before(first.torch, shapes), shapes,
                 file.get_tensor, skipped)


def _open_tensorflow(prefix: str) -> _Source:
  try:
    reader = tf.train.load_checkpoint(prefix)
  except (tf.errors.OpError, ValueError) as error:
    raise config.InputError(
        f"model.initial_weights: {prefix} cannot be read: {error}") from error
  shapes = {name: tuple(shape) for name, shape in
            reader.get_variable_to_shape_map().items()}
  first = _names(f"{encoder.WORD_EMBEDDINGS}/embeddings", 0)
  for kind in ("google", "garden", "garden_v2"):
    if any(name.endswith(getattr(first, kind)) for name in shapes):
      before = _before(getattr(first, kind), shapes)
      return _Source(kind, before, shapes, reader.get_tensor)
  raise config.InputError(
      f"model.initial_weights: {prefix} holds no word embeddings of a BERT "
      "encoder")


def _before(ending: str, names: Sequence[str]) -> str:
  """What comes before the word embeddings' name, the shortest if several."""
  found = [name.removesuffix(ending) for name in names
           if name.endswith(ending)]
  return min(found, key=len, default="")
