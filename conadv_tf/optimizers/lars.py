"""LARS as the MLPerf reference has it, on the current Keras optimizer."""

from collections.abc import Sequence
import math
import re
from typing import Any

import tensorflow as tf

from conadv_tf.optimizers import trust_ratio as trust_ratio_lib

_LearningRate = (
    float | tf.keras.optimizers.schedules.LearningRateSchedule)


@tf.keras.saving.register_keras_serializable(package='conadv_tf')
class Lars(tf.keras.optimizers.Optimizer):
  """Layer-wise adaptive rate scaling (You et al., 2017, arXiv:1708.03888).

  With weights `w`, gradient `g`, velocity `m` and the learning rate inside the
  velocity, so that a change of the rate does not rescale the past:

    trust = eeta * |w| / (|g| + weight_decay * |w| + epsilon)
    m = momentum * m + learning_rate * trust * (g + weight_decay * w)
    w = w - m

  and with Nesterov momentum, `m` being the new velocity:

    w = w - (momentum * m + learning_rate * trust * (g + weight_decay * w))

  trust is 1 if |w| or |g| is 0. Excluded tensors take `g` alone: trust is 1 and
  they do not decay. Excluded are all of rank 1 or less (the scales and shifts
  of normalisation, biases) and those that `exclude_from_scaling` names.
  `trust_clip` bounds the |w| above the fraction line.

  The ratio differs from that of `official.modeling.optimization.lars.LARS`,
  which divides by |g + weight_decay * w|; without decay the two agree.
  """

  def __init__(
      self,
      learning_rate: _LearningRate = 0.01,
      momentum: float = 0.9,
      weight_decay: float = 0.0,
      eeta: float = 0.001,
      epsilon: float = 0.0,
      nesterov: bool = False,
      exclude_from_scaling: Sequence[str] = (),
      trust_clip: Sequence[float] | None = None,
      name: str = 'Lars',
      **kwargs: Any,
  ) -> None:
    """Builds the optimizer.

    Args:
      learning_rate: a number or a schedule of the update's index.
      momentum: share of the velocity that is kept, at least 0 and below 1.
      weight_decay: coefficient of `w` in the gradient. Keras's own argument of
        this name shrinks weights outside the velocity; that is not done here.
      eeta: trust coefficient.
      epsilon: added to the trust ratio's denominator.
      nesterov: whether to look ahead along the velocity.
      exclude_from_scaling: regular expressions; a tensor whose name contains a
        match is excluded, in addition to those of rank 1 or less.
      trust_clip: (c_l, c_u), bounds of |w| in trust's numerator; None is off.
      name: name of the optimizer.
      **kwargs: `clipnorm`, `clipvalue`, `global_clipnorm`, `use_ema`,
        `ema_momentum`, `ema_overwrite_frequency` and `jit_compile`, as in every
        Keras optimizer.
    """
    if isinstance(learning_rate, (int, float)):
      _require(learning_rate >= 0, 'learning_rate', '>= 0', learning_rate)
    _require(0 <= momentum < 1, 'momentum', 'in [0, 1)', momentum)
    _require(weight_decay >= 0, 'weight_decay', '>= 0', weight_decay)
    _require(eeta > 0, 'eeta', '> 0', eeta)
    _require(epsilon >= 0, 'epsilon', '>= 0', epsilon)
    if isinstance(exclude_from_scaling, str):
      raise ValueError('exclude_from_scaling must be a list of regular '
                       f'expressions, got the string {exclude_from_scaling!r}')
    for pattern in exclude_from_scaling:
      try:
        re.compile(pattern)
      except re.error as error:
        raise ValueError('exclude_from_scaling must hold regular expressions, '
                         f'got {pattern!r}: {error}') from error
    trust_ratio_lib.check_clip(trust_clip)
    super().__init__(name=name, weight_decay=None, **kwargs)
    self._learning_rate = self._build_learning_rate(learning_rate)
    self.momentum = momentum
    self.weight_decay = weight_decay
    self.eeta = eeta
    self.epsilon = epsilon
    self.nesterov = nesterov
    self.exclude_from_scaling = tuple(exclude_from_scaling)
    self.trust_clip = None if trust_clip is None else tuple(trust_clip)

  def build(self, var_list: Sequence[tf.Variable]) -> None:
    """Makes one velocity per variable."""
    super().build(var_list)
    if getattr(self, '_built', False):
      return
    self.momentums = [
        self.add_variable_from_reference(variable, 'm')
        for variable in var_list]
    # Decided here, since a replica's copy of a variable has another name.
    self._is_excluded = [self._excludes(variable) for variable in var_list]
    self._built = True

  def update_step(
      self,
      gradient: tf.Tensor | tf.IndexedSlices,
      variable: tf.Variable,
  ) -> None:
    """Updates one variable; a sparse gradient is made dense."""
    index = self._index_dict[self._var_key(variable)]
    velocity = self.momentums[index]
    dtype = variable.dtype
    momentum = tf.cast(self.momentum, dtype)
    rate = tf.cast(self.learning_rate, dtype)
    gradient = tf.cast(tf.convert_to_tensor(gradient), dtype)
    if not self._is_excluded[index]:
      weights = tf.convert_to_tensor(variable)
      trust = trust_ratio_lib.trust_ratio(
          weights, gradient, self.weight_decay, self.eeta, self.epsilon,
          self.trust_clip)
      rate = rate * tf.cast(trust, dtype)
      gradient = gradient + tf.cast(self.weight_decay, dtype) * weights
    step = rate * gradient
    new_velocity = momentum * velocity + step
    velocity.assign(new_velocity)
    if self.nesterov:
      variable.assign_sub(momentum * new_velocity + step)
    else:
      variable.assign_sub(new_velocity)

  def trust_ratios(
      self,
      gradients: Sequence[tf.Tensor],
      variables: Sequence[tf.Variable],
  ) -> tf.Tensor:
    """Returns the ratios of the tensors that are scaled, float32 [n]."""
    ratios = [
        trust_ratio_lib.trust_ratio(
            tf.convert_to_tensor(v), g, self.weight_decay, self.eeta,
            self.epsilon, self.trust_clip)
        for g, v in zip(gradients, variables, strict=True)
        if not self._excludes(v)]
    return tf.stack(ratios) if ratios else tf.ones([1])

  def excluded_names(self, variables: Sequence[tf.Variable]) -> list[str]:
    """Returns the names of those that take the plain gradient."""
    return [v.name for v in variables if self._excludes(v)]

  def get_config(self) -> dict[str, Any]:
    """Returns the constructor's arguments."""
    return {
        **super().get_config(),
        'learning_rate': self._serialize_hyperparameter(self._learning_rate),
        'momentum': self.momentum,
        'weight_decay': self.weight_decay,
        'eeta': self.eeta,
        'epsilon': self.epsilon,
        'nesterov': self.nesterov,
        'exclude_from_scaling': list(self.exclude_from_scaling),
        'trust_clip': None if self.trust_clip is None else [*self.trust_clip],
    }

  def _excludes(self, variable: tf.Variable) -> bool:
    return variable.shape.rank <= 1 or any(
        re.search(pattern, variable.name)
        for pattern in self.exclude_from_scaling)

  def _apply_weight_decay(self, variables: Sequence[tf.Variable]) -> None:
    """Does nothing: the decay is part of `update_step`."""


def _require(is_legal: bool, name: str, expected: str, value: float) -> None:
  if not (is_legal and math.isfinite(value)):
    raise ValueError(f'{name} must be {expected}, got {value}')
