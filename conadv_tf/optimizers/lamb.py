"""LAMB with its variants as options, on the current Keras optimizer."""

from collections.abc import Sequence
import math
from typing import Any

import tensorflow as tf

from conadv_tf.optimizers import trust_ratio as trust_ratio_lib

_LearningRate = (
    float | tf.keras.optimizers.schedules.LearningRateSchedule)
_Gradient = tf.Tensor | tf.IndexedSlices
_CHOICES = {
    'epsilon_placement': ('outside_root', 'inside_root'),
    'decay_placement': ('inside_update', 'outside_update'),
    'scope': ('tensor', 'layer', 'none'),
}


@tf.keras.saving.register_keras_serializable(package='conadv_tf')
class Lamb(tf.keras.optimizers.Optimizer):
  """Layer-wise Adam (You et al., 2020, arXiv:1904.00962).

  With weights `w` and gradient `g`, t counting updates from 1:

    m = beta_1 * m + (1 - beta_1) * g
    v = beta_2 * v + (1 - beta_2) * g^2
    m^, v^ = m / (1 - beta_1^t), v / (1 - beta_2^t)    (bias_correction)
    u = m^ / (sqrt(v^) + epsilon)                      (outside_root)
        m^ / sqrt(v^ + epsilon)                        (inside_root)
    u = u + weight_decay * w                           (inside_update)
    w = w - learning_rate * phi(|w|) / |u| * u
          - learning_rate * weight_decay * w           (outside_update)

  where phi(|w|) = min(max(|w|, c_l), c_u). The ratio is 1 if |w| or |u| is 0.
  Without bias correction m^ = m and v^ = v.

  Algorithm A2 of DAT (Zhang et al., 2022, arXiv:2206.06257) is
  `epsilon_placement='inside_root', scope='layer', trust_clip=(0, 10)`; its
  released code is `bias_correction=False, trust_clip=(0, 10)`.
  `scope='none'` is Adam, or AdamW with `decay_placement='outside_update'`.
  """

  def __init__(
      self,
      learning_rate: _LearningRate = 0.001,
      beta_1: float = 0.9,
      beta_2: float = 0.999,
      epsilon: float = 1e-6,
      weight_decay: float = 0.0,
      trust_clip: Sequence[float] | None = None,
      bias_correction: bool = True,
      epsilon_placement: str = 'outside_root',
      decay_placement: str = 'inside_update',
      scope: str = 'tensor',
      scale_vectors: bool = True,
      decay_vectors: bool = True,
      name: str = 'Lamb',
      **kwargs: Any,
  ) -> None:
    """Builds the optimizer.

    Args:
      learning_rate: a number or a schedule of the update's index.
      beta_1: share of the first moment that is kept, at least 0 and below 1.
      beta_2: share of the second moment that is kept, at least 0 and below 1.
      epsilon: added to the denominator, or below its root.
      weight_decay: coefficient of `w`; Keras's own decay is off.
      trust_clip: (c_l, c_u), bounds of |w| in the ratio; None is off.
      bias_correction: whether the moments are divided by what they lack.
      epsilon_placement: 'outside_root' or 'inside_root'.
      decay_placement: 'inside_update', before the ratio, or 'outside_update'.
      scope: one ratio a 'tensor' or a 'layer' (all tensors of a Keras layer);
        'none': ratios are 1.
      scale_vectors: whether tensors of rank 1 or less (batch normalisation,
        biases) take part in ratios; else theirs is 1.
      decay_vectors: whether they decay.
      name: name of the optimizer.
      **kwargs: those of every Keras optimizer: clipping, averages, XLA.

    Raises:
      ValueError: if an argument is out of range or no known choice.
    """
    _check_numbers(learning_rate, beta_1, beta_2, epsilon, weight_decay)
    trust_ratio_lib.check_clip(trust_clip)
    _check_choices(epsilon_placement=epsilon_placement,
                   decay_placement=decay_placement, scope=scope)
    super().__init__(name=name, weight_decay=None, **kwargs)
    self._learning_rate = self._build_learning_rate(learning_rate)
    self.beta_1 = beta_1
    self.beta_2 = beta_2
    self.epsilon = epsilon
    self.weight_decay = weight_decay
    self.trust_clip = None if trust_clip is None else tuple(trust_clip)
    self.bias_correction = bias_correction
    self.epsilon_placement = epsilon_placement
    self.decay_placement = decay_placement
    self.scope = scope
    self.scale_vectors = scale_vectors
    self.decay_vectors = decay_vectors

  def build(self, var_list: Sequence[tf.Variable]) -> None:
    """Makes two moments per variable."""
    super().build(var_list)
    if getattr(self, '_built', False):
      return
    self.momentums, self.velocities = (
        [self.add_variable_from_reference(variable, name)
         for variable in var_list] for name in ('m', 'v'))
    # Decided here, since a replica's copy of a variable has another name.
    self._layers = trust_ratio_lib.layer_numbers([v.name for v in var_list])
    self._built = True

  def update_step(
      self,
      gradient: _Gradient | tuple[_Gradient, tf.Tensor],
      variable: tf.Variable,
  ) -> None:
    """Updates one variable; a sparse gradient is made dense.

    Args:
      gradient: of the variable, with its layer's ratio where that is shared.
      variable: one that the optimizer was built with.
    """
    gradient, ratio = (
        gradient if isinstance(gradient, tuple) else (gradient, None))
    index = self._index_dict[self._var_key(variable)]
    dtype = variable.dtype
    weights = tf.convert_to_tensor(variable)
    m, v, direction = self._direction(gradient, variable)
    if ratio is None:
      ratio = (self._ratio(weights, direction) if self._scales(variable)
               else 1.0)
    rate = tf.cast(self.learning_rate, dtype)
    step = rate * tf.cast(ratio, dtype) * direction
    if self._decays(variable, 'outside_update'):
      step += rate * tf.cast(self.weight_decay, dtype) * weights
    self.momentums[index].assign(m)
    self.velocities[index].assign(v)
    variable.assign_sub(step)

  def trust_ratios(
      self,
      gradients: Sequence[tf.Tensor],
      variables: Sequence[tf.Variable],
  ) -> tf.Tensor:
    """Returns the ratios that an update would now take, float32 [n].

    In a replica. Of the gradients as given: Keras clips them afterwards.
    """
    ratios = list(self._ratios_by_layer(gradients, variables).values())
    return tf.stack(ratios) if ratios else tf.ones([1])

  def get_config(self) -> dict[str, Any]:
    """Returns the constructor's arguments."""
    return {
        **super().get_config(),
        'learning_rate': self._serialize_hyperparameter(self._learning_rate),
        'beta_1': self.beta_1,
        'beta_2': self.beta_2,
        'epsilon': self.epsilon,
        'weight_decay': self.weight_decay,
        'trust_clip': None if self.trust_clip is None else [*self.trust_clip],
        'bias_correction': self.bias_correction,
        'epsilon_placement': self.epsilon_placement,
        'decay_placement': self.decay_placement,
        'scope': self.scope,
        'scale_vectors': self.scale_vectors,
        'decay_vectors': self.decay_vectors,
    }

  def _internal_apply_gradients(
      self, grads_and_vars: Sequence[tuple[_Gradient, tf.Variable]]
  ) -> tf.Tensor:
    """Gives a layer's tensors their ratio: `update_step` sees one at a time."""
    if self.scope == 'layer':
      gradients, variables = zip(*grads_and_vars, strict=True)
      ratios = self._ratios_by_layer(gradients, variables)
      one = tf.ones([])
      grads_and_vars = [
          ((g, ratios[self._layer(v)] if self._scales(v) else one), v)
          for g, v in grads_and_vars]
    return super()._internal_apply_gradients(grads_and_vars)

  def _apply_weight_decay(self, variables: Sequence[tf.Variable]) -> None:
    """Does nothing: the decay is part of `update_step`."""

  def _direction(self, gradient: _Gradient, variable: tf.Variable
                 ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the new moments, and u as in the class's formulas."""
    index = self._index_dict[self._var_key(variable)]
    dtype = variable.dtype
    gradient = tf.cast(tf.convert_to_tensor(gradient), dtype)
    beta_1, beta_2, epsilon = (
        tf.cast(x, dtype) for x in (self.beta_1, self.beta_2, self.epsilon))
    m = beta_1 * self.momentums[index] + (1 - beta_1) * gradient
    v = beta_2 * self.velocities[index] + (1 - beta_2) * tf.square(gradient)
    mean, square = m, v
    if self.bias_correction:
      updates = tf.cast(self.iterations + 1, dtype)
      mean = m / (1 - tf.pow(beta_1, updates))
      square = v / (1 - tf.pow(beta_2, updates))
    if self.epsilon_placement == 'inside_root':
      direction = tf.math.divide_no_nan(mean, tf.sqrt(square + epsilon))
    else:
      direction = tf.math.divide_no_nan(mean, tf.sqrt(square) + epsilon)
    if self._decays(variable, 'inside_update'):
      direction += tf.cast(self.weight_decay, dtype) * variable
    return m, v, direction

  def _ratios_by_layer(
      self, gradients: Sequence[_Gradient], variables: Sequence[tf.Variable]
  ) -> dict[int, tf.Tensor]:
    """Returns the ratio of each layer, or of each tensor, that has one."""
    members: dict[int, list[tuple[tf.Tensor, tf.Tensor]]] = {}
    for gradient, variable in zip(gradients, variables, strict=True):
      if self._scales(variable):
        members.setdefault(self._layer(variable), []).append((
            tf.convert_to_tensor(variable),
            self._direction(gradient, variable)[-1]))
    return {layer: self._ratio(*map(list, zip(*tensors, strict=True)))
            for layer, tensors in members.items()}

  def _ratio(self, w: Any, u: Any) -> tf.Tensor:
    return trust_ratio_lib.trust_ratio(w, u, clip=self.trust_clip)

  def _layer(self, variable: tf.Variable) -> int:
    index = self._index_dict[self._var_key(variable)]
    return self._layers[index] if self.scope == 'layer' else index

  def _scales(self, variable: tf.Variable) -> bool:
    return self.scope != 'none' and (
        self.scale_vectors or variable.shape.rank > 1)

  def _decays(self, variable: tf.Variable, placement: str) -> bool:
    return (self.weight_decay > 0 and self.decay_placement == placement
            and (self.decay_vectors or variable.shape.rank > 1))


def _check_numbers(learning_rate: _LearningRate, beta_1: float, beta_2: float,
                   epsilon: float, weight_decay: float) -> None:
  if isinstance(learning_rate, (int, float)):
    _require(learning_rate >= 0, 'learning_rate', '>= 0', learning_rate)
  _require(0 <= beta_1 < 1, 'beta_1', 'in [0, 1)', beta_1)
  _require(0 <= beta_2 < 1, 'beta_2', 'in [0, 1)', beta_2)
  _require(epsilon >= 0, 'epsilon', '>= 0', epsilon)
  _require(weight_decay >= 0, 'weight_decay', '>= 0', weight_decay)


def _check_choices(**chosen: str) -> None:
  for key, value in chosen.items():
    if value not in _CHOICES[key]:
      raise ValueError(
          f'{key} must be one of {", ".join(_CHOICES[key])}, got {value!r}')


def _require(is_legal: bool, name: str, expected: str, value: float) -> None:
  if not (is_legal and math.isfinite(value)):
    raise ValueError(f'{name} must be {expected}, got {value}')
