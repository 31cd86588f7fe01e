"""Networks that take token ids: passes from given word embeddings."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.layers import network as networks
from conadv_tf.layers import routing
from tests import tiny_text

_TRAIN, _PROBE, _EVAL = (
    routing.Mode.TRAIN, routing.Mode.PROBE, routing.Mode.EVAL)
_TOKENS = tf.constant(tiny_text.TOKENS[:4])
_SEGMENTS = ((routing.CLEAN, 4),)
_KEY, _OTHER = tf.constant([1, 2]), tf.constant([1, 3])


@functools.cache
def _converted(name: str) -> tuple[tf.keras.Model, networks.Network]:
  model = getattr(tiny_text, name)()
  return model, networks.convert(model, routing.BRANCHES[1])


def _outputs(network: networks.Network, mode: routing.Mode, key: tf.Tensor,
             from_: tf.Tensor | None = None) -> tf.Tensor:
  found = (network.logits(_TOKENS, _SEGMENTS, mode, key) if from_ is None else
           network.logits_from(from_, _TOKENS, _SEGMENTS, mode, key))
  return found[0] if mode is _TRAIN else found


@pytest.mark.parametrize('name', ['model', 'encoder'])
def test_looked_up_embeddings_give_the_same_bits_and_gradients(
    name: str) -> None:
  model, network = _converted(name)
  np.testing.assert_array_equal(
      _outputs(network, _EVAL, _KEY), model(_TOKENS, training=False))
  for mode in (_TRAIN, _EVAL):
    found = []
    for from_embeddings in (False, True):
      with tf.GradientTape() as tape:
        outputs = _outputs(network, mode, _KEY, network.embed(_TOKENS)
                           if from_embeddings else None)
        loss = tf.reduce_sum(outputs**2)
      gradients = tape.gradient(loss, network.trainable_variables)
      found.append([outputs, *map(tf.convert_to_tensor, gradients)])
    for a, b in zip(*found, strict=True):
      np.testing.assert_array_equal(a, b)
    assert np.abs(found[0][1]).max() > 0  # the table's


@pytest.mark.parametrize('name', ['model', 'encoder'])
def test_every_dropout_obeys_the_mode_and_the_key(name: str) -> None:
  _, network = _converted(name)
  embeddings = network.embed(_TOKENS)
  run = lambda mode, key: _outputs(network, mode, key, embeddings).numpy()
  for mode in (_PROBE, _EVAL):
    np.testing.assert_array_equal(run(mode, _KEY), run(mode, _OTHER))
  np.testing.assert_array_equal(run(_TRAIN, _KEY), run(_TRAIN, _KEY))
  assert np.abs(run(_TRAIN, _KEY) - run(_TRAIN, _OTHER)).max() > 1e-3
  drops = [layer for layer in network.model._flatten_layers()
           if isinstance(layer, tf.keras.layers.Dropout)]
  # Of the block: attention's probabilities and output, inner and output.
  assert len(drops) == (4 if name == 'encoder' else 1)
  route = routing.Route(_SEGMENTS, _TRAIN, _KEY)
  with routing.routing(route):
    network.model(_TOKENS, training=True)
  assert len(route.calls) == len(drops)


def test_clone_and_merge_keep_the_model_and_its_padding() -> None:
  model = tiny_text.encoder()
  model.pad_id = 3
  network = networks.convert(model)
  merged = network.merge()
  assert [w.shape for w in merged.weights] == [w.shape for w in model.weights]
  again = networks.convert(merged)
  for other in (network, network.copy(), again):
    assert other.pad_id == 3
    np.testing.assert_array_equal(
        other.logits(_TOKENS, _SEGMENTS, _EVAL), model(_TOKENS))
  np.testing.assert_array_equal(
      again.token_mask(_TOKENS)[..., 0], tiny_text.TOKENS[:4, :, 0] != 3)
  merged.weights[0].assign_add(tf.ones_like(merged.weights[0]))
  np.testing.assert_array_equal(
      network.logits(_TOKENS, _SEGMENTS, _EVAL), model(_TOKENS))


def test_a_tiny_perturbation_survives_half_precision() -> None:
  # Under mixed_bfloat16 embeddings of 1 + 1e-5 would be 1.
  tf.keras.mixed_precision.set_global_policy('mixed_bfloat16')
  try:
    model = tiny_text.encoder(0.0)
  finally:
    tf.keras.mixed_precision.set_global_policy('float32')
  network = networks.convert(model)
  table = network.word_embeddings.weights[0]
  table.assign(tf.ones_like(table) + 1e-5 * tf.random.stateless_normal(
      table.shape, [1, 2]))
  embeddings = network.embed(_TOKENS)
  assert embeddings.dtype == tf.float32
  norm = next(layer for layer in network.model.layers
              if isinstance(layer, tf.keras.layers.LayerNormalization))
  seen = []
  call = norm.call
  norm.call = lambda x: seen.append(x) or call(x)
  delta = tf.constant([1e-5, 0, 0, 0])
  for change in (0.0, 1.0):
    _outputs(network, _EVAL, _KEY, embeddings + change * delta)
  assert seen[0].dtype == tf.float32
  np.testing.assert_allclose(
      (seen[1] - seen[0])[0, 0], [1e-5, 0, 0, 0], rtol=0, atol=2e-7)


def test_the_layer_is_found_by_name_else_it_is_the_only_one() -> None:
  def model(*names: str) -> tf.keras.Model:
    tokens = tf.keras.Input((6,), dtype=tf.int32)
    x = tf.add_n([tf.keras.layers.Embedding(5, 3, name=name)(tokens)
                  for name in names])
    return tf.keras.Model(tokens, tf.keras.layers.Dense(2)(x[:, 0]))

  for names, expected in ((('a',), 'a'), (('a', 'word_embeddings'),
                                          'word_embeddings')):
    assert networks.convert(model(*names)).word_embeddings.name == expected
  with pytest.raises(ValueError, match='takes int32 images'):
    networks.convert(model('a', 'b'))
