"""A split network behind the interface of a Keras model."""

from typing import Any

import tensorflow as tf

from conadv_tf.layers import network as networks
from conadv_tf.layers import routing
from conadv_tf.objectives import per_example
from conadv_tf.training import means, memory_optimizer


class SplitModel(tf.keras.Model):
  """Predicts through the clean branch and saves the merged model.

  A subclass's `compile` sets the loss of examples and the means.

  Attributes:
    network: the converted clone of the user's model.
  """

  _per_example_loss: per_example.PerExampleLoss
  _means: means.Means

  def __init__(self, model: tf.keras.Model, branches: tuple[str, ...],
               name: str, bn_group_size: int = 1):
    """Clones and converts a built model, in its strategy's scope.

    Raises:
      ValueError: if the model cannot be converted; names the layer.
    """
    memory_optimizer.disable()
    strategy = (tf.distribute.get_strategy() if tf.distribute.has_strategy()
                else model.distribute_strategy)
    with strategy.scope():
      # The model's own policy decides on loss scaling; inputs stay as they
      # come, since half precision would round small perturbations away.
      super().__init__(name=name, dtype=model.dtype_policy, autocast=False)
      self.network = networks.Network(model, branches, bn_group_size)
    self.built = True
    # Metrics are aggregated when they are read; Keras would add up what
    # several workers have read, where not all metrics are among the logs.
    self.distribute_reduction_method = "first"

  def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
    """Clean branch, moving statistics, whatever `training` says."""
    del training
    segments = ((routing.CLEAN, -1),)  # all rows; one segment is not cut
    return self.network.logits(inputs, segments, routing.Mode.EVAL)

  @property
  def weights(self) -> list[tf.Variable]:
    """The network's; counters and other state of training are not weights."""
    return self.trainable_weights + self.non_trainable_weights

  @property
  def trainable_weights(self) -> list[tf.Variable]:
    """The network's, the other branches' gamma and beta last."""
    return self.network.trainable_variables

  @property
  def non_trainable_weights(self) -> list[tf.Variable]:
    """The network's other variables: moving statistics of all branches."""
    trainable = {id(v) for v in self.network.trainable_variables}
    return [v for v in self.network.variables if id(v) not in trainable]

  def test_step(self, data: Any) -> dict[str, tf.Tensor]:
    """Clean loss and compiled metrics, weighted by `sample_weight`."""
    x, y, weight = tf.keras.utils.unpack_x_y_sample_weight(data)
    outputs = self(x, training=False)
    values = (self._per_example_loss(y, outputs)
              + self.network.regularisation())
    self._means.loss.update_state(values, weight)
    self.compiled_metrics.update_state(y, outputs, weight)
    shown = [self._means.loss] + self.compiled_metrics.metrics
    return {m.name: m.result() for m in shown}

  def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
    """Refused: one batch is not enough for methods that look ahead."""
    raise NotImplementedError("use fit, with steps_per_epoch=1")

  def merge(self, branch: str = routing.CLEAN) -> tf.keras.Model:
    """A plain Keras model with one branch's weights."""
    return self.network.merge(branch)

  def save(self, *args: Any, **kwargs: Any) -> None:
    """Saves the merged model, as `tf.keras.Model.save` does."""
    self.merge().save(*args, **kwargs)

  def export(self, *args: Any, **kwargs: Any) -> None:
    """Exports the merged model, as `tf.keras.Model.export` does."""
    self.merge().export(*args, **kwargs)

  def summary(self, *args: Any, **kwargs: Any) -> None:
    """Prints the layers of the network's model."""
    self.network.model.summary(*args, **kwargs)

  @property
  def metrics_names(self) -> list[str]:
    """Names of what `evaluate` returns."""
    names = ["loss"] + [m.name for m in self.compiled_metrics.metrics]
    return names if self._is_compiled else []

  def save_weights(self, *args: Any, **kwargs: Any) -> Any:
    """Saves the merged model's weights."""
    return self.merge().save_weights(*args, **kwargs)

  def load_weights(self, *args: Any, **kwargs: Any) -> None:
    """Loads the merged model's weights; every branch starts from them."""
    model = self.merge()
    model.load_weights(*args, **kwargs)
    self.network.assign(
        networks.Network(model, self.network.branches).variables)

  def get_config(self) -> dict[str, Any]:
    """Refused: what is saved is the merged model."""
    raise NotImplementedError("save() writes the merged model")
