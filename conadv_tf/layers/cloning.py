"""The same model again, and the values that it is given."""

from collections.abc import Iterator, Sequence
import contextlib

import numpy as np
import tensorflow as tf

from conadv_tf.layers import rebuilding, split_batch_norm


def clone(model: tf.keras.Model) -> tf.keras.Model:
  """Builds the same model again, with the same weights in new variables.

  Args:
    model: a built Keras model. A subclassed one needs `get_config` (Keras
      writes it itself where `__init__` takes plain numbers and strings).

  Raises:
    ValueError: if the model is not built or cannot be built again.
  """
  if not model.built:
    raise ValueError(
        f"model {model.name!r} is not built; call it on one batch first")
  try:
    with _policy_of(model):
      copy = rebuilding.rebuild(model)
      if not copy.built:
        copy(example_inputs(model, rows=1), training=False)
    _copy_flags(model, copy)
    copy.set_weights([read(v) for v in model.weights])
  except (NotImplementedError, TypeError, ValueError) as error:
    raise ValueError(
        f"model {model.name!r} ({type(model).__name__}) cannot be cloned: "
        f"{error}; implement get_config so that from_config(get_config()) "
        "builds it again") from error
  return copy


@contextlib.contextmanager
def _policy_of(model: tf.keras.Model) -> Iterator[None]:
  """Some layers give what they make when they are built the global policy."""
  previous = tf.keras.mixed_precision.global_policy()
  tf.keras.mixed_precision.set_global_policy(model.dtype_policy)
  try:
    yield
  finally:
    tf.keras.mixed_precision.set_global_policy(previous)


def _copy_flags(model: tf.keras.Model, copy: tf.keras.Model) -> None:
  """Copies what configs lose, before weights: their order depends on it."""
  for flag in ("pad_id", "length_buckets"):
    if hasattr(model, flag):
      setattr(copy, flag, getattr(model, flag))
  for source, target in zip(
      model._flatten_layers(), copy._flatten_layers()):  # pylint: disable=protected-access
    # Set on a layer or container after it was built.
    target._trainable = source._trainable  # pylint: disable=protected-access
    if isinstance(source, split_batch_norm.BATCH_NORMS):
      # Not in the config of BatchNormalization(synchronized=True).
      target.synchronized = source.synchronized
      target.fused = source.fused


def _random(zeros: tf.Tensor) -> tf.Tensor:
  """Inputs that hide fewer differences than zeros do."""
  if zeros.dtype.is_floating:
    return tf.random.stateless_uniform(zeros.shape, [0, 1],
                                       dtype=zeros.dtype)
  # The first tokens of any vocabulary; RoBERTa has one type of segment.
  tokens = tf.random.stateless_uniform(
      zeros.shape, [0, 1], minval=0, maxval=2, dtype=zeros.dtype)
  if zeros.shape.rank == 3:
    return tokens * tf.constant([1, 0], zeros.dtype)
  return tokens


def check_same_function(model: tf.keras.Model, copy: tf.keras.Model) -> None:
  """Raises ValueError if a lossy get_config has made another model."""
  example = _random(example_inputs(model, rows=2))

  def outputs(m: tf.keras.Model) -> np.ndarray:
    tensors = tf.nest.flatten(m(example, training=False))
    return np.concatenate([np.ravel(t) for t in tensors]).astype(np.float32)

  def same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)

  expected = outputs(model)
  # A model that is random even in evaluation differs from itself.
  if not same(expected, outputs(copy)) and same(expected, outputs(model)):
    raise ValueError(
        f"model {model.name!r} ({type(model).__name__}) gives other outputs "
        "when it is built again from its config; implement get_config with "
        "all arguments of the model and its layers")


def read(variable: tf.Variable) -> np.ndarray:
  """A variable's value on the first replica.

  Reading a per-replica moving statistic the ordinary way averages it, which
  rounds even where all replicas hold the same value.
  """
  return getattr(variable, "values", (variable,))[0].numpy()


def values(variables: Sequence[tf.Variable]) -> list[np.ndarray]:
  """Values on the first replica."""
  return [read(v) for v in variables]


def example_inputs(model: tf.keras.Model, rows: int) -> tf.Tensor:
  """Zeros of the shape that the model was built for, [rows, ...]."""
  spec = model.inputs[0] if model.inputs else None
  if spec is None:
    saved = model.save_spec()
    if saved is None:
      raise ValueError(
          f"model {model.name!r} does not know its input shape; call it on "
          "one batch first")
    spec = tf.nest.flatten(saved)[0]
  shape = [rows] + list(spec.shape[1:])
  if None in shape:
    shape = [32 if s is None else s for s in shape]
  return tf.zeros(shape, spec.dtype)
