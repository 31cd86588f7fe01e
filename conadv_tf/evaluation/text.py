"""Figures of text tasks: those of GLUE, by scikit-learn and SciPy."""

from collections.abc import Callable, Sequence
import itertools
import math
from typing import Any

import numpy as np
import tensorflow as tf

from conadv_tf import config
from conadv_tf.evaluation import clean
from conadv_tf.layers import network as networks
from conadv_tf.layers import routing
from conadv_tf.objectives import per_example

# (labels [n], predictions [n]) -> figure
Metric = Callable[[np.ndarray, np.ndarray], float]


def _score(name: str, **options: Any) -> Metric:
  def metric(labels: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn import metrics  # Two seconds, which images are spared.
    return float(getattr(metrics, name)(labels, predictions, **options))
  return metric


def _correlation(name: str) -> Metric:
  """0 for constants, as scikit-learn has it for Matthews's."""
  def metric(labels: np.ndarray, predictions: np.ndarray) -> float:
    from scipy import stats
    if not np.ptp(labels) or not np.ptp(predictions):
      return 0.0
    return float(getattr(stats, name)(labels, predictions).statistic)
  return metric


METRICS: dict[str, Metric] = {
    "accuracy": _score("accuracy_score"),
    "f1": _score("f1_score", zero_division=0.0),  # of class 1
    "matthews": _score("matthews_corrcoef"),
    "pearson": _correlation("pearsonr"),
    "spearman": _correlation("spearmanr"),
}


def figures(names: Sequence[str], labels: np.ndarray, outputs: np.ndarray
            ) -> dict[str, float]:
  """Figures of all examples.

  Args:
    names: of METRICS.
    labels: classes or numbers [n].
    outputs: float32 [n, classes]; with one column predictions are its values,
      else the largest output's class.

  Returns:
    One for each name; 0 where an output is not finite.
  """
  if not np.isfinite(outputs).all():
    return dict.fromkeys(names, 0.0)
  predictions = (outputs[:, 0] if outputs.shape[1] == 1
                 else outputs.argmax(axis=1))
  return {name: METRICS[name](labels, predictions) for name in names}


class TextEvaluator(clean.Evaluator):
  """Evaluates a network on tokens; gathers outputs over replicas.

  Correlations are no sums over examples, so the outputs of all of them come
  to the host, which counts each once and in the order of the dataset: the
  figures depend on neither the batch size nor the number of replicas.
  """

  def __init__(self, network: networks.Network,
               loss: per_example.PerExampleLoss, names: Sequence[str],
               strategy: tf.distribute.Strategy | None = None,
               branch: str = routing.CLEAN) -> None:
    """Keeps the arguments; see the base class.

    Args:
      network: on int32 [b, L, 2].
      loss: of single examples.
      names: of METRICS.
      strategy: whose replicas share every batch.
      branch: whose batch normalisation is used.
    """
    super().__init__(network, loss, strategy, branch)
    self._names = tuple(names)
    self._gathered = tf.function(self._gather_batch, autograph=False)

  def __call__(self,
               dataset: tf.data.Dataset | tf.distribute.DistributedIterator,
               elements: int | None = None,
               between: Callable[[], None] = lambda: None
               ) -> dict[str, float]:
    """Evaluates every example once; arguments as of the base class.

    Returns:
      `loss` (mean), a figure for each of the names, `examples`.

    Raises:
      ValueError: if b is not static.
      InputError: if there are no examples.
    """
    found = []
    for element in itertools.islice(
        self.shared_out(dataset, elements), elements):
      between()
      found.append([value.numpy() for value in self._gathered(element)])
    outputs, labels, losses, weights, positions = (
        np.concatenate(parts) for parts in zip(*found, strict=True)
    ) if found else [np.zeros([0])] * 5
    order = positions[weights > 0].argsort()
    if not len(order):
      raise config.InputError("evaluation: the dataset has no examples")
    outputs, labels, losses = (
        value[weights > 0][order] for value in (outputs, labels, losses))
    return {"loss": math.fsum(losses) / len(losses)
                    if np.isfinite(losses).all() else math.nan,
            **figures(self._names, labels, outputs),
            "examples": float(len(losses))}

  def inputs(self, image: tf.Tensor, label: tf.Tensor, weight: tf.Tensor,
             position: tf.Tensor) -> tf.Tensor:
    """Tokens as they are, int32 [b, L, 2]."""
    del label, weight, position
    return image

  def _gather_batch(self, element: tuple[tf.Tensor, ...]
                    ) -> list[tf.Tensor]:
    values = self._strategy.run(self._replica_outputs, args=element)
    return [self._strategy.gather(value, axis=0) for value in values]

  def _replica_outputs(self, image: tf.Tensor, label: tf.Tensor,
                       weight: tf.Tensor, position: tf.Tensor
                       ) -> tuple[tf.Tensor, ...]:
    """(outputs [b, classes], label, loss, weight, position, each [b])."""
    outputs = self.logits(image)
    return outputs, label, self._loss(label, outputs), weight, position
