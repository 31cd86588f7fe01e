"""Figures of text tasks, worked out by hand and over replicas."""

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.data import glue, pipeline
from conadv_tf.evaluation import text
from conadv_tf.layers import network
from conadv_tf.objectives import per_example
from tests import sentences


def test_metrics_by_hand() -> None:
  labels = np.array([1, 1, 1, 0, 0, 0, 0, 0])
  predicted = np.array([1, 1, 0, 1, 0, 0, 0, 0])
  outputs = np.eye(2, dtype=np.float32)[predicted]
  figures = text.figures(['accuracy', 'f1', 'matthews'], labels, outputs)
  # True positives 2, false 1, false negatives 1, true negatives 4.
  assert figures['accuracy'] == 6 / 8
  assert figures['f1'] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
  assert figures['matthews'] == pytest.approx(
      (2 * 4 - 1 * 1) / np.sqrt(3 * 3 * 5 * 5))


def test_correlations_by_hand() -> None:
  labels = np.array([0.0, 1.0, 2.0])
  outputs = np.float32([[1.0], [2.0], [9.0]])
  figures = text.figures(['pearson', 'spearman'], labels, outputs)
  # Around their means: (-1, 0, 1) and (-3, -2, 5).
  assert figures['pearson'] == pytest.approx(8 / np.sqrt(2 * 38))
  assert figures['spearman'] == pytest.approx(1.0)


def test_what_has_no_figure_is_0() -> None:
  names = list(text.METRICS)
  assert set(text.figures(
      names, np.array([1, 0]), np.float32([[np.nan, 0], [0, 1]])).values()
  ) == {0.0}
  assert text.figures(['pearson', 'spearman'], np.array([1.0, 2.0]),
                      np.float32([[3], [3]])) == {'pearson': 0, 'spearman': 0}
  assert text.figures(['f1', 'matthews'], np.array([1, 0]), np.float32(
      [[1, 0], [1, 0]])) == {'f1': 0, 'matthews': 0}


def test_every_task_has_known_figures() -> None:
  for task in glue.TASKS.values():
    assert set(task.metrics) <= set(text.METRICS)
    # What takes accuracy for granted elsewhere is of classes.
    assert ('accuracy' in task.metrics) == bool(task.classes)


def test_every_example_counts_once(mirrored: tf.distribute.Strategy) -> None:
  random = np.random.default_rng(0)
  tokens = np.stack([random.integers(4, 14, (11, 8)),
                     np.zeros([11, 8], int)], axis=-1).astype(np.uint16)
  labels = random.uniform(0, 5, 11).astype(np.float32)
  data = glue.TokenSource(tokens, labels, num_classes=1)
  with mirrored.scope():
    tf.keras.utils.set_random_seed(0)
    net = network.convert(sentences.model((8, 2), 1), ('clean',))
  evaluator = text.TextEvaluator(
      net, per_example.per_example_loss(tf.keras.losses.MeanSquaredError()),
      ['pearson'], mirrored)
  outputs = net.model(tokens.astype(np.float32)).numpy()[:, 0]
  for batch in (4, 5, 16):
    figures = evaluator(pipeline.evaluation_dataset(data, batch))
    assert figures['examples'] == 11
    assert figures['pearson'] == pytest.approx(
        np.corrcoef(labels, outputs)[0, 1], rel=1e-5)
    assert figures['loss'] == pytest.approx(
        np.mean((labels - outputs) ** 2), rel=1e-5)
