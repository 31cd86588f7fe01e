"""Batch normalisation with one set of statistics per branch.

AdvProp (Xie et al., 2020) trains clean and adversarial images through
separate batch normalisations; Algorithm 1 of ConAdv calls them main and
adversarial BN. A converted layer keeps its own variables as the clean branch
and borrows those of the other branches from its `Network`.
"""

import dataclasses

import tensorflow as tf

from conadv_tf.layers import group_statistics, routing

# Siblings that share a base class which Keras does not export.
BATCH_NORMS = (
    tf.keras.layers.BatchNormalization,
    tf.keras.layers.experimental.SyncBatchNormalization,
    tf.compat.v1.keras.layers.BatchNormalization,
)
BatchNorm = tf.keras.layers.Layer  # one of BATCH_NORMS, for signatures


@dataclasses.dataclass
class BranchVariables:
  """Scale, shift and moving statistics of one layer in one branch.

  Attributes:
    gamma: float [channels], None where the layer has `scale=False`.
    beta: float [channels], None where the layer has `center=False`.
    moving_mean: float [channels], not trainable.
    moving_variance: float [channels], not trainable.
  """

  gamma: tf.Variable | None
  beta: tf.Variable | None
  moving_mean: tf.Variable
  moving_variance: tf.Variable

  def trainable(self) -> list[tf.Variable]:
    """gamma and beta, those that there are."""
    return [v for v in (self.gamma, self.beta) if v is not None]

  def moving(self) -> list[tf.Variable]:
    """Moving mean and variance."""
    return [self.moving_mean, self.moving_variance]


def own_variables(layer: BatchNorm) -> BranchVariables:
  """The layer's own variables, which are the clean branch."""
  return BranchVariables(layer.gamma, layer.beta, layer.moving_mean,
                         layer.moving_variance)


def copy_variables(layer: BatchNorm, branch: str) -> BranchVariables:
  """Creates another branch's variables with the layer's current values."""
  def copy(source: tf.Variable | None, name: str) -> tf.Variable | None:
    if source is None:
      return None
    return tf.Variable(
        tf.convert_to_tensor(source), trainable=layer.trainable,
        name=f"{layer.name}/{branch}/{name}",
        constraint=getattr(layer, f"{name}_constraint", None))

  def copy_moving(source: tf.Variable, name: str) -> tf.Variable:
    return tf.Variable(
        tf.convert_to_tensor(source), trainable=False,
        name=f"{layer.name}/{branch}/{name}",
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.MEAN)

  return BranchVariables(
      copy(layer.gamma, "gamma"), copy(layer.beta, "beta"),
      copy_moving(layer.moving_mean, "moving_mean"),
      copy_moving(layer.moving_variance, "moving_variance"))


def check_supported(layer: tf.keras.layers.Layer) -> None:
  """Refuses batch normalisations that cannot be split.

  Raises:
    ValueError: naming the layer, if it uses renorm or virtual_batch_size, or
      keeps moving statistics without being a Keras batch normalisation.
  """
  if not isinstance(layer, BATCH_NORMS):
    if hasattr(layer, "moving_mean") and hasattr(layer, "moving_variance"):
      raise ValueError(
          f"layer {layer.name!r} ({type(layer).__name__}) keeps moving "
          "statistics but is not a Keras BatchNormalization, so it cannot be "
          "split; use tf.keras.layers.BatchNormalization")
    return
  for option in ("renorm", "virtual_batch_size"):
    if getattr(layer, option, None):
      raise ValueError(
          f"batch normalisation {layer.name!r} uses {option}, which cannot "
          "be combined with split batch normalisation; turn it off")


def route(layer: BatchNorm, index: int,
          branches: dict[str, BranchVariables]) -> None:
  """Makes `layer` obey the active route.

  Args:
    layer: a built batch normalisation; changed in place.
    index: its position, the key of its statistics in `Route.statistics`.
    branches: branch name -> variables, the clean branch included.
  """
  original = layer.call

  @tf.autograph.experimental.do_not_convert
  def call(inputs: tf.Tensor, training: bool | None = None,
           mask: tf.Tensor | None = None) -> tf.Tensor:
    active = routing.active()
    if active is None:
      return original(inputs, training=training, mask=mask)
    # A frozen layer, or one that the model itself calls with training=False,
    # normalises with moving statistics whatever the mode (Keras's rule).
    use_moving = (active.mode is routing.Mode.EVAL or not layer.trainable
                  or (training is not None and not training))
    masks = ([None] * len(active.segments) if mask is None
             else [m for _, m in active.split(mask, layer.name)])
    outputs = []
    for (branch, x), piece_mask in zip(
        active.split(inputs, layer.name), masks):
      variables = branches.get(branch)
      if variables is None:
        raise ValueError(
            f"batch normalisation {layer.name!r} has no branch {branch!r}; "
            f"it has {sorted(branches)}")
      if use_moving and branch == routing.CLEAN and active.fused:
        y = original(x, training=False, mask=piece_mask)
      elif use_moving:
        y = _normalise_moving(layer, x, variables, active.fused)
      else:
        train = active.mode is routing.Mode.TRAIN
        normalise = (_normalise_group if train and active.group_size != 1
                     else _normalise_batch)
        y, mean, variance = normalise(layer, x, variables, piece_mask, active)
        if train:
          active.statistics.setdefault((index, branch), []).append(
              (mean, variance))
      outputs.append(y)
    return routing.join(outputs)

  layer.call = call


def _scale_and_shift(
    layer: BatchNorm,
    variables: BranchVariables) -> tuple[tf.Tensor, tf.Tensor]:
  shape = variables.moving_mean.shape
  dtype = variables.moving_mean.dtype
  gamma = tf.ones(shape, dtype) if variables.gamma is None else variables.gamma
  beta = tf.zeros(shape, dtype) if variables.beta is None else variables.beta
  return gamma, beta


def _normalise_moving(layer: BatchNorm, x: tf.Tensor,
                      variables: BranchVariables, fused: bool) -> tf.Tensor:
  """Normalises with the branch's moving statistics, by Keras's own ops."""
  if layer.fused and fused:
    gamma, beta = _scale_and_shift(layer, variables)
    return tf.compat.v1.nn.fused_batch_norm(
        x, gamma, beta, mean=variables.moving_mean,
        variance=variables.moving_variance, epsilon=layer.epsilon,
        is_training=False, data_format=layer._data_format)[0]  # pylint: disable=protected-access
  return _normalise_unfused(layer, x, variables, variables.moving_mean,
                            variables.moving_variance)


def _normalise_batch(
    layer: BatchNorm, x: tf.Tensor, variables: BranchVariables,
    mask: tf.Tensor | None, active: routing.Route
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Normalises with batch statistics.

  Args:
    layer: the Keras layer, for its options.
    x: [rows, ...].
    variables: the branch's.
    mask: Keras mask or None.
    active: the route. A SyncBatchNormalization may talk to other replicas in
      training; an attack is local (ConAdv section 3.2).

  Returns:
    (normalised x, mean, variance). The variance is what Keras would feed the
    moving variance: with Bessel's correction from the fused kernel, without
    it elsewhere.
  """
  if layer.fused:
    gamma, beta = _scale_and_shift(layer, variables)
    return tf.compat.v1.nn.fused_batch_norm(
        x, gamma, beta, epsilon=layer.epsilon, is_training=True,
        data_format=layer._data_format)  # pylint: disable=protected-access
  y = tf.cast(x, variables.moving_mean.dtype)
  axes = [i for i in range(x.shape.rank) if i not in layer.axis]
  keep_dims = len(layer.axis) > 1
  moments = (layer._calculate_mean_and_var
             if active.mode is routing.Mode.TRAIN
             else layer._no_sync_calculate_mean_and_var)  # pylint: disable=protected-access
  mean, variance = moments(y, axes, keep_dims, mask=mask)
  return (_normalise_unfused(layer, x, variables, mean, variance), mean,
          variance)


def _normalise_group(
    layer: BatchNorm, x: tf.Tensor, variables: BranchVariables,
    mask: tf.Tensor | None, active: routing.Route
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """As `_normalise_batch`, over a group of replicas."""
  dtype = variables.moving_mean.dtype
  axes = [i for i in range(x.shape.rank) if i not in layer.axis]
  mean, variance = layer._no_sync_calculate_mean_and_var(  # pylint: disable=protected-access
      tf.cast(x, dtype), axes, len(layer.axis) > 1, mask=mask)
  size = tf.cast(tf.size(x), dtype) / tf.cast(tf.size(mean), dtype)
  if mask is not None:
    size *= tf.reduce_mean(tf.cast(mask, dtype))
  mean, variance, size = group_statistics.moments(
      mean, variance, size, variables.moving_mean, active.group_size)
  y = _normalise_unfused(layer, x, variables, mean, variance)
  if layer.fused:  # whose kernel reports the unbiased variance
    variance *= size / tf.maximum(size - 1, 1)
  return y, mean, variance


def _normalise_unfused(layer: BatchNorm, x: tf.Tensor,
                       variables: BranchVariables, mean: tf.Tensor,
                       variance: tf.Tensor) -> tf.Tensor:
  dtype = x.dtype
  if dtype in (tf.float16, tf.bfloat16):
    x = tf.cast(x, tf.float32)  # as Keras does, against overflow
  shape = [1] * x.shape.rank
  for axis in layer.axis:
    shape[axis] = x.shape[axis]

  def prepare(value: tf.Tensor | None) -> tf.Tensor | None:
    if value is None:
      return None
    return tf.reshape(tf.cast(value, x.dtype), shape)

  y = tf.nn.batch_normalization(
      x, prepare(mean), prepare(variance), prepare(variables.beta),
      prepare(variables.gamma), layer.epsilon)
  return tf.cast(y, dtype)
