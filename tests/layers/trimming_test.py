"""Batches of sentences cut to a bucket's length: the same numbers."""

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import attacks, methods
from conadv_tf.evaluation import clean
from conadv_tf.layers import network as networks
from conadv_tf.layers import routing, trimming
from conadv_tf.methods import method as methods_base
from conadv_tf.models import encoder
from conadv_tf.training import trainer as trainers

LENGTH, ROWS, BUCKETS = 12, 4, (3, 6)
# Longest sentences of the batches: 6, 3, 12 and 7 tokens.
LONGEST = (6, 3, 12, 7)


def tokens(kind: str = 'bert') -> np.ndarray:
  """Int32 [16, L, 2]: sentences of 2 tokens and one longer one a batch."""
  pad_id = encoder.PRESETS[kind].defaults['pad_id']
  ids = np.random.default_rng(0).integers(2, 20, (len(LONGEST) * ROWS, LENGTH))
  lengths = np.full(len(ids), 2)
  lengths[1::ROWS] = LONGEST
  ids[np.arange(LENGTH) >= lengths[:, None]] = pad_id
  return np.stack([ids, np.zeros_like(ids)], -1).astype(np.int32)


LABELS = (np.arange(len(LONGEST) * ROWS) % 3).astype(np.int32)


def make(buckets: tuple[int, ...], kind: str = 'bert', **args: object
         ) -> tf.keras.Model:
  tf.keras.utils.set_random_seed(3)
  model = encoder.builder(kind)(
      (LENGTH, 2), 3, hidden_size=8, num_layers=1, num_heads=2,
      intermediate_size=12, vocab_size=20, max_positions=LENGTH + 2,
      hidden_dropout=0.0, attention_dropout=0.0, **args)
  if buckets:
    model.length_buckets = buckets
  return model


@pytest.mark.parametrize('longest, expected', [
    (0, 3), (2, 3), (3, 3), (4, 6), (6, 6), (7, 12), (12, 12)])
def test_the_smallest_bucket_that_holds_all(longest: int, expected: int
                                            ) -> None:
  mask = np.zeros([2, LENGTH, 1], np.float32)
  mask[1, :longest] = 1.0
  assert int(trimming.length(tf.constant(mask), BUCKETS)) == expected


def test_passes_run_at_the_length_of_the_bucket() -> None:
  """Of a copy's too; without buckets nothing is cut."""
  inputs = tf.keras.Input((LENGTH, 2), dtype=tf.int32)
  x = tf.keras.layers.Embedding(20, 1)(inputs[..., 0])
  model = tf.keras.Model(inputs, tf.reduce_sum(tf.ones_like(x), axis=1))
  for buckets, expected in ((BUCKETS, [6, 3, 12, 12]), ((), [12] * 4)):
    model.length_buckets = buckets
    network = networks.Network(model, ('clean',)).copy()
    run = tf.function(lambda x, network=network: network.logits(
        x, (('clean', -1),), routing.Mode.EVAL), autograph=False)
    assert [int(run(tf.constant(batch))[0, 0])
            for batch in np.split(tokens(), len(LONGEST))] == expected
    assert run.experimental_get_tracing_count() == 1


@pytest.mark.parametrize('method', [
    lambda: methods.Scala(attacks.Perturbation(
        radius=0.1, step_size=0.2, start_size=0.1), lag=1, delay=1),
    pytest.param(lambda: methods.FreeLb(), marks=pytest.mark.slow),
    pytest.param(lambda: methods.Scala(attacks.Perturbation(
        radius=0.1, step_size=0.2, start_size=0.1, steps=3), lag=2,
        execution='sequential'), marks=pytest.mark.slow)])
def test_training_is_the_same(method: methods_base.Method) -> None:
  found = []
  for buckets in ((), BUCKETS):
    trainer = trainers.Trainer(make(buckets), method())
    trainer.compile(tf.keras.optimizers.SGD(0.5),
                    tf.keras.losses.SparseCategoricalCrossentropy(True))
    data = tf.data.Dataset.from_tensor_slices(
        (tokens(), LABELS)).batch(ROWS, drop_remainder=True)
    trainer.fit(data.repeat(), steps_per_epoch=len(LONGEST), verbose=0)
    found.append(trainer.network.model.get_weights())
  start = make(()).get_weights()
  assert max(np.abs(a - b).max() for a, b in zip(start, found[0])) > 0.01
  for one, other in zip(*found, strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize('kind, pooling', [
    ('bert', 'mean'), ('roberta', 'cls_pooler')])
def test_evaluation_is_the_same(kind: str, pooling: str) -> None:
  weight = np.ones(len(LABELS), np.float32)
  data = tf.data.Dataset.from_tensor_slices(
      (tokens(kind), LABELS, weight)).batch(ROWS, drop_remainder=True)
  found = []
  for buckets in ((), BUCKETS):
    network = networks.Network(make(buckets, kind, pooling=pooling), ('clean',))
    found.append(clean.Evaluator(
        network, lambda label, outputs:
        tf.nn.sparse_softmax_cross_entropy_with_logits(label, outputs))(data))
  assert found[0]['examples'] == len(LABELS)
  assert found[0] == pytest.approx(found[1], abs=1e-6)
