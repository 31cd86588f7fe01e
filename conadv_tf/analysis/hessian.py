"""Exact products of a network's Hessian with vectors.

The Hessian of the mean training loss of clean examples, with moving batch
statistics (EVAL): a fixed function of the weights, which no product changes.
"""

import functools

import numpy as np
import tensorflow as tf

from conadv_tf.analysis import curvature
from conadv_tf.layers import network as networks
from conadv_tf.layers import outputs as output_lib
from conadv_tf.layers import routed_layer_norm, routing
from conadv_tf.objectives import per_example


class Hessian:
  """Multiplies by the Hessian of a network; traced once.

  Under a strategy every replica takes its part of each micro batch, and every
  worker must make the same calls; all of them get the same numbers.

  Attributes:
    layers: names of the layers whose weights are meant, in the model's order.
    size: of the vectors: how many weights these layers have. Their order is
      that of `model.trainable_variables`.
  """

  def __init__(self, model: networks.Network | tf.keras.Model,
               loss: per_example.PerExampleLoss, *, last_layers: int = 0
               ) -> None:
    """Chooses the weights; nothing is computed yet.

    Args:
      model: a network, whose clean branch is meant, or any built Keras model
        of one input and one output.
      loss: of single examples. The model's own losses (weight decay) are
        left out, and adversaries are none of this class's business.
      last_layers: k > 0 means the block of the last k layers with trainable
        weights (a batch normalisation is one): the sub-matrix of their
        weights, for which nothing is propagated back beyond them. 0 means
        all layers.

    Raises:
      ValueError: if no layer is trainable or there are fewer than k, or a
        layer's second derivative is wrong; names it.
    """
    self._network = model if isinstance(model, networks.Network) else None
    self._model = model.model if self._network else model
    self._loss = loss
    self._strategy = self._model.distribute_strategy
    routed_layer_norm.check(self._model, self._network is not None)
    groups = _trainable_layers(self._model)
    if not groups:
      raise ValueError(f"model {self._model.name!r} has no trainable layers, "
                       "so there is no Hessian")
    if not 0 <= last_layers <= len(groups):
      raise ValueError(
          f"a block of the last {last_layers} layers: model "
          f"{self._model.name!r} has {len(groups)} with trainable weights")
    groups = groups[-last_layers:]  # all of them for 0
    self.layers = tuple(name for name, _ in groups)
    self._variables = [v for _, variables in groups for v in variables]
    self._ends = np.cumsum([
        sum(v.shape.num_elements() for v in variables)
        for _, variables in groups])
    self.size = int(self._ends[-1])
    self._step = tf.function(self._summed_product, autograph=False)

  def product_on(self, image: np.ndarray | tf.Tensor,
                 label: np.ndarray | tf.Tensor,
                 weight: np.ndarray | tf.Tensor | None = None, *,
                 rows: int = 128
                 ) -> curvature.Product:
    """The products of the mean loss over these examples.

    Args:
      image: [n, h, w, c], as in training.
      label: [n] or [n, classes].
      weight: float [n], of each example; default 1.
      rows: examples at a time over all replicas, rounded up to a multiple of
        these; memory grows with it, the mean does not depend on it.

    Returns:
      A function float64 [size] -> [size], for the weights as they are when it
      is called. It raises NotFinite, naming the first layer whose part is not
      finite.

    Raises:
      ValueError: if no example counts.
    """
    image, label = np.asarray(image), np.asarray(label)
    count = len(image)
    weight = np.ones(count) if weight is None else np.asarray(weight)
    total = float(np.sum(weight, dtype=np.float64))
    if not total > 0:
      raise ValueError("a Hessian needs an example that counts")
    replicas = self._strategy.num_replicas_in_sync
    rows = -(-min(rows, count) // replicas) * replicas
    # Copies of an example, where zeros might have an infinite loss.
    places = np.minimum(np.arange(-(-count // rows) * rows), count - 1)
    weight = np.where(np.arange(len(places)) < count, weight[places], 0)

    def product(vector: np.ndarray) -> np.ndarray:
      vector = tf.constant(vector.astype(np.float32))
      result = np.zeros(self.size)
      for first in range(0, len(places), rows):
        part = places[first:first + rows]
        result += self._step(
            vector, tf.constant(image[part]), tf.constant(label[part]),
            tf.constant(weight[first:first + rows], tf.float32)).numpy()
      if not np.isfinite(result.sum()):  # one pass: weights may be many
        self._raise_not_finite(result)
      result /= total
      return result

    return product

  def _raise_not_finite(self, result: np.ndarray) -> None:
    first = int(np.argmin(np.isfinite(result)))
    name = self.layers[int(np.searchsorted(self._ends, first, "right"))]
    raise curvature.NotFinite(
        f"the Hessian product is not finite, first in layer {name!r}")

  def _summed_product(self, vector: tf.Tensor, image: tf.Tensor,
                      label: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """Of the summed loss of one micro batch, float32 [size]."""
    products = self._strategy.run(
        self._replica_product, args=(vector, image, label, weight))
    return self._strategy.reduce(
        tf.distribute.ReduceOp.SUM, products, axis=None)

  def _replica_product(self, vector: tf.Tensor, *batch: tf.Tensor
                       ) -> tf.Tensor:
    """Of this replica's rows of the micro batch.

    By reverse over reverse mode: forward over reverse takes about as long
    (docs/performance.md), and twice as long to trace. Batch normalisation
    goes by single operations, not by the fused kernel, whose second
    derivative is slow.
    """
    replica = tf.distribute.get_replica_context()
    rows = batch[0].shape[0] // replica.num_replicas_in_sync
    own = tf.range(rows) + rows * tf.cast(
        replica.replica_id_in_sync_group, tf.int32)
    image, label, weight = (tf.gather(x, own) for x in batch)
    tape = functools.partial(
        tf.GradientTape, watch_accessed_variables=False)
    zero = tf.UnconnectedGradients.ZERO
    try:
      with tape() as outer:
        outer.watch(self._variables)
        with tape() as inner:
          inner.watch(self._variables)
          # A sum: a mean's gradients underflow in float16.
          loss = tf.reduce_sum(self._loss(label, self._outputs(image)) * weight)
        # Dense, also to tables of embeddings, of which rows would come.
        slopes = [tf.convert_to_tensor(slope) for slope in inner.gradient(
            loss, self._variables, unconnected_gradients=zero)]
      products = outer.gradient(
          slopes, self._variables, output_gradients=self._unpack(vector),
          unconnected_gradients=zero)
    except LookupError as error:
      raise ValueError(
          f"model {self._model.name!r} has an operation without a second "
          f"derivative: {error}") from error
    return tf.concat([
        tf.cast(tf.reshape(tf.convert_to_tensor(p), [-1]), tf.float32)
        for p in products], axis=0)

  def _outputs(self, image: tf.Tensor) -> tf.Tensor:
    """Float32 [b, classes], with moving statistics."""
    if self._network:
      return self._network.logits(
          image, ((routing.CLEAN, -1),), routing.Mode.EVAL, fused=False)
    inputs = self._model.inputs
    image = tf.cast(image, inputs[0].dtype if inputs else tf.float32)
    return output_lib.as_float32(self._model(image, training=False))

  def _unpack(self, vector: tf.Tensor) -> list[tf.Tensor]:
    sizes = [v.shape.num_elements() for v in self._variables]
    return [tf.cast(tf.reshape(part, v.shape), v.dtype) for part, v in zip(
        tf.split(vector, sizes), self._variables, strict=True)]


def _trainable_layers(model: tf.keras.Model
                      ) -> list[tuple[str, list[tf.Variable]]]:
  """Each layer that owns trainable weights, and these, in their order."""
  owners = {
      id(v): layer.name
      for layer in model._flatten_layers()  # pylint: disable=protected-access
      for v in layer._trainable_weights}  # pylint: disable=protected-access
  groups: list[tuple[str, list[tf.Variable]]] = []
  for variable in model.trainable_variables:
    name = owners.get(id(variable), variable.name)
    if not groups or groups[-1][0] != name:
      groups.append((name, []))
    groups[-1][1].append(variable)
  return groups
