"""The means that a trainer shows: loss, the method's terms, the update's."""

from collections.abc import Sequence

import tensorflow as tf

from conadv_tf.distribute import strategies
from conadv_tf.methods import method as methods
from conadv_tf.objectives import per_example


class Means:
  """Keras metrics by name; made before the first trace, under the strategy.

  Attributes:
    loss: the objective's mean.
  """

  def __init__(self, optimizer: tf.keras.optimizers.Optimizer,
               skip_nonfinite: bool):
    """Creates the loss's mean.

    Args:
      optimizer: whose trust ratios are shown, if it has any.
      skip_nonfinite: leaves terms out that are not finite.
    """
    self._skip = skip_nonfinite
    self.loss = tf.keras.metrics.Mean("loss")
    self._optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    self._by_name = {"loss": self.loss}

  def create(self, method: methods.Method, label: tf.TensorSpec,
             outputs: tf.TensorSpec) -> None:
    """Creates the others for a method and the shapes of its data."""
    names = [*method.terms, "gradient_norm"]
    if not per_example.is_classification(label, outputs):
      names = [n for n in names if not n.endswith("accuracy")]
    if hasattr(self._optimizer, "trust_ratios"):
      names.append("trust_ratio")
    for name in names:
      self._by_name.setdefault(name, tf.keras.metrics.Mean(name))

  def others(self) -> list[tf.keras.metrics.Metric]:
    """All but the loss."""
    return [m for m in self._by_name.values() if m is not self.loss]

  def add_terms(self, terms: dict[str, tuple[tf.Tensor, tf.Tensor]]) -> None:
    """Adds one virtual replica's (mean, examples); in replica context."""
    for name, (value, weight) in terms.items():
      if self._skip:
        is_finite = tf.math.is_finite(value)
        value = tf.where(is_finite, value, 0.0)
        weight = tf.where(is_finite, weight, 0.0)
      self._by_name[name].update_state(value, weight)

  def add_update(self, gradients: Sequence[tf.Tensor],
                 variables: Sequence[tf.Variable]) -> None:
    """Adds what describes an update; in replica context."""
    norm = tf.linalg.global_norm(gradients)
    # A float16 update that is skipped for overflow has no norm.
    finite = tf.math.is_finite(norm)
    self._by_name["gradient_norm"].update_state(
        tf.where(finite, norm, 0.0), tf.cast(finite, tf.float32))
    if "trust_ratio" in self._by_name:
      ratios = self._optimizer.trust_ratios(gradients, variables)
      self._by_name["trust_ratio"].update_state(tf.reduce_mean(ratios))


def results(metrics: Sequence[tf.keras.metrics.Metric],
            strategy: tf.distribute.Strategy) -> dict[str, tf.Tensor]:
  """What metrics show, by name; across replicas, in a `tf.function`.

  Keras sums every variable of a metric on its own. Between workers each sum
  costs a latency, two a mean; here all means share one.
  """
  packed = ([m for m in metrics if _is_mean(m)]
            if strategies.has_workers(strategy) else [])
  found = {m.name: m.result() for m in metrics if m not in packed}
  if packed:
    local = strategy.run(lambda: tf.stack(
        [[m.total.read_value(), m.count.read_value()] for m in packed]))
    sums = strategy.reduce(tf.distribute.ReduceOp.SUM, local, axis=None)
    values = tf.unstack(tf.math.divide_no_nan(sums[:, 0], sums[:, 1]))
    found.update(zip((m.name for m in packed), values))
  return {m.name: found[m.name] for m in metrics}


def _is_mean(metric: tf.keras.metrics.Metric) -> bool:
  """Whether `result` is total / count, in float32."""
  mean = tf.keras.metrics.Mean
  return (isinstance(metric, mean) and type(metric).result is mean.result
          and metric.dtype == "float32")
