"""The layer-wise trust ratio of LARS and LAMB, and what a layer is."""

from collections.abc import Sequence

import tensorflow as tf


def trust_ratio(
    w: tf.Tensor | Sequence[tf.Tensor],
    g: tf.Tensor | Sequence[tf.Tensor],
    weight_decay: float = 0.0,
    eeta: float = 1.0,
    epsilon: float = 0.0,
    clip: Sequence[float] | None = None,
) -> tf.Tensor:
  """Returns eeta * phi(|w|) / (|g| + weight_decay * |w| + epsilon).

  phi(|w|) = min(max(|w|, c_l), c_u) is equation 3 of DAT (Zhang et al., 2022,
  arXiv:2206.06257) and of LAMB (You et al., 2020, arXiv:1904.00962).

  Args:
    w: weights of one layer, one tensor or several.
    g: what is scaled: LARS's gradient without weight decay, LAMB's direction.
    weight_decay: coefficient of the L2 penalty's gradient.
    eeta: trust coefficient.
    epsilon: added to the denominator.
    clip: (c_l, c_u); None is off, phi(|w|) = |w|.

  Returns:
    A scalar; 1 where |w| or |g| is 0. At least float32: squares of float16
    weights overflow.
  """
  w_norm, g_norm = _norm(w), _norm(g)
  phi = w_norm if clip is None else tf.clip_by_value(w_norm, *clip)
  ratio = tf.math.divide_no_nan(
      eeta * phi, g_norm + weight_decay * w_norm + epsilon)
  is_scaled = tf.logical_and(w_norm > 0, g_norm > 0)
  return tf.where(is_scaled, ratio, tf.ones_like(ratio))


def check_clip(clip: Sequence[float] | None) -> None:
  """Raises ValueError unless `clip` is None or 0 <= c_l <= c_u, c_u > 0."""
  if clip is None:
    return
  if len(clip) != 2 or not (0 <= clip[0] <= clip[1] < float('inf')
                            and clip[1] > 0):
    raise ValueError('trust_clip must be [c_l, c_u] with 0 <= c_l <= c_u and '
                     f'c_u > 0, got {list(clip)}')


def layer_numbers(names: Sequence[str]) -> list[int]:
  """Numbers the layers that variables belong to.

  Neighbours are of one layer if their names agree up to the last slash, as
  those of one Keras layer do. A name that comes again begins another layer:
  nested models may hold layers of one name.

  Args:
    names: of all variables, in the order of the model.

  Returns:
    Its layer's number for each, from 0.
  """
  numbers: list[int] = []
  layer, seen = None, set()
  for name in names:
    own_layer = name.rpartition('/')[0]
    if not own_layer or own_layer != layer or name in seen:
      layer, seen = own_layer, set()
      numbers.append(numbers[-1] + 1 if numbers else 0)
    else:
      numbers.append(numbers[-1])
    seen.add(name)
  return numbers


def _norm(tensors: tf.Tensor | Sequence[tf.Tensor]) -> tf.Tensor:
  """The L2 norm, of several tensors that of all their numbers."""
  if not isinstance(tensors, (list, tuple)):
    tensors = [tensors]
  norms = []
  for tensor in map(tf.convert_to_tensor, tensors):
    dtype = tf.float64 if tensor.dtype == tf.float64 else tf.float32
    norms.append(tf.norm(tf.cast(tensor, dtype)))
  return norms[0] if len(norms) == 1 else tf.norm(tf.stack(norms))
