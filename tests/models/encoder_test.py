"""BERT and RoBERTa: parameters, what they ignore, options."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import config
from conadv_tf.layers import network
from conadv_tf.models import encoder
from tests import published_encoders

SIZES = dict(hidden_size=8, num_heads=2, num_layers=2, intermediate_size=12,
             vocab_size=20, max_positions=12)
TOKENS = published_encoders.tokens(published_encoders.BERT)


def build(name: str = "bert", classes: int = 2, length: int = 8, **args: object
          ) -> tf.keras.Model:
  return encoder.builder(name)((length, 2), classes, **{**SIZES, **args})


@pytest.fixture(scope="module")
def model() -> tf.keras.Model:
  return build()


def parameters(kind: str, classes: int = 2, **sizes: int) -> int:
  """Counted by hand."""
  d, inner = sizes["hidden_size"], sizes["intermediate_size"]
  positions = sizes["max_positions"] - (
      sizes["pad_id"] + 1 if kind == "roberta" else 0)
  embeddings = d * (sizes["vocab_size"] + positions + sizes["type_vocab_size"])
  block = 4 * (d * d + d) + (2 * d * inner + inner + d) + 2 * 2 * d
  head = (d * d + d) + (classes * d + classes)
  return embeddings + 2 * d + sizes["num_layers"] * block + head


@pytest.mark.parametrize("name, published", [
    # With the pooler (Hugging Face's BertModel); their classifiers on 2
    # classes less two rows of positions, which no token has.
    ("bert_base", 109_482_240 + 2 * 768 + 2),
    ("bert_large", 335_141_888 + 2 * 1024 + 2),
    ("minilm_l6", 22_713_216 + 2 * 384 + 2),
    ("roberta_base", 124_647_170 - 2 * 768),
    ("roberta_large", 355_361_794 - 2 * 1024)])
def test_published_parameters(name: str, published: int) -> None:
  kind, _, sizes = encoder.PRESETS[name]
  assert parameters(kind, **sizes) == published


def test_parameters(model: tf.keras.Model) -> None:
  for name, found in (("bert", model), ("roberta", build("roberta"))):
    kind, _, sizes = encoder.PRESETS[name]
    assert found.count_params() == parameters(kind, **{**sizes, **SIZES})


def test_it_is_cloned_and_saved_exactly(
    model: tf.keras.Model, tmp_path: pathlib.Path) -> None:
  path = str(tmp_path / "model.keras")
  model.save(path)
  for copy in (network.clone(model), tf.keras.models.load_model(path)):
    np.testing.assert_array_equal(copy(TOKENS), model(TOKENS))
    assert copy.get_layer(encoder.WORD_EMBEDDINGS).vocab_size == 20


@pytest.mark.parametrize("name, pad_id", [
    ("roberta", 1), *(pytest.param("bert", pad_id, marks=pytest.mark.slow)
                      for pad_id in (0, 3))])
def test_padding_is_told_to_the_network(name: str, pad_id: int) -> None:
  """Else padding would be perturbed, and RoBERTa's <s>, id 0, would not."""
  made = network.convert(build(name, pad_id=pad_id), ("clean",))
  ids = [0, 5, 6, 2, pad_id, pad_id, pad_id, pad_id]
  tokens = np.stack([ids, np.zeros(8)], -1)[None].astype(np.int32)
  expected = [i != pad_id for i in ids]
  assert expected[4:] == [False] * 4
  np.testing.assert_array_equal(
      made.token_mask(tf.constant(tokens))[0, :, 0], expected)
  merged = network.convert(made.merge(), ("clean",))
  assert merged.pad_id == pad_id


def test_every_dropout_can_be_reached(model: tf.keras.Model) -> None:
  """Embeddings, head, and in a block: weights, attention, inner (0), output."""
  rates = [layer.rate for layer in model._flatten_layers()
           if isinstance(layer, tf.keras.layers.Dropout)]
  assert sorted(rates) == [0.0] * 2 + [0.1] * 8


@pytest.mark.parametrize("pooling", encoder.POOLINGS)
def test_padding_changes_nothing(pooling: str) -> None:
  """Whatever its segment, and however much of it there is."""
  model = build(pooling=pooling)
  generator = np.random.default_rng(0)
  model.set_weights([
      generator.normal(0, 0.5, w.shape) for w in model.get_weights()])
  short = build(pooling=pooling, length=5)
  short.set_weights(model.get_weights())
  changed = TOKENS.copy()
  changed[1:, 5:, 1] = 1
  outputs = model(TOKENS).numpy()
  np.testing.assert_allclose(model(changed), outputs, atol=1e-5)
  np.testing.assert_allclose(short(TOKENS[1:, :5]), outputs[1:], atol=1e-5)
  # What is no padding matters.
  changed[2, 1, 0] += 1
  assert np.abs(model(changed)[2] - outputs[2]).max() > 1e-2


def test_the_mean_is_over_tokens_only() -> None:
  model = build(pooling="mean")
  last, logits = tf.keras.Model(
      model.input, [model.get_layer("layer_1").output, model.output])(TOKENS)
  real = TOKENS[..., :1] != 0
  mean = (last * real).numpy().sum(1) / real.sum(1)
  kernel, bias = model.get_layer("logits").get_weights()
  np.testing.assert_allclose(logits, mean @ kernel + bias, atol=1e-6)


def test_embeddings_are_float32_under_any_policy() -> None:
  tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
  try:
    model = build()
  finally:
    tf.keras.mixed_precision.set_global_policy("float32")
  compute = {layer.name: layer.compute_dtype for layer in model.layers}
  for name in (encoder.WORD_EMBEDDINGS, encoder.POSITIONS, "type_embeddings",
               "embeddings", "embedding_norm", "logits"):
    assert compute[name] == "float32", name
  assert compute["layer_0"] == "bfloat16"
  assert model(TOKENS).dtype == tf.float32
  assert {v.dtype for v in model.variables} == {tf.float32}


def test_one_type_of_segments_is_not_looked_at() -> None:
  model = build("roberta", type_vocab_size=1)
  other = TOKENS.copy()
  other[..., 1] = 1
  np.testing.assert_array_equal(model(other), model(TOKENS))


def test_a_seed_makes_the_same_start() -> None:
  starts = []
  for _ in range(2):
    tf.keras.utils.set_random_seed(3)
    starts.append(build(num_layers=1).get_weights())
  for one, other in zip(*starts, strict=True):
    np.testing.assert_array_equal(one, other)
  # BERT's: normal, of deviation 0.02, none beyond two of them.
  words = starts[0][0]
  assert np.abs(words).max() <= 0.04 and 0.012 < words.std() < 0.022


@pytest.mark.parametrize("name, args, message", [
    ("bert", dict(hidden_size=9), "num_heads is 2: it must be a divisor of"),
    ("bert", dict(pooling="max"), "pooling is 'max': it must be cls_pooler"),
    ("bert", dict(pad_id=20), "pad_id is 20: it must be a row of"),
    ("bert", dict(hidden_dropout=1.0), "hidden_dropout is 1.0: it must be"),
    ("bert", dict(num_layers=0), "num_layers is 0: it must be a positive"),
    ("bert", dict(max_positions=7), "8 tokens, and the encoder's positions "
     "end at 7"),
    ("roberta", dict(max_positions=9), "positions end at 7"),
    ("bert", dict(hidden=9), "model.args.hidden: bert takes no such argument"),
    ("bert_base", {}, "hidden_size is 8, and model.name=bert_base stands for "
     "768; name the model bert")])
def test_bad_arguments(name: str, args: dict[str, object], message: str
                       ) -> None:
  with pytest.raises(config.InputError, match=message):
    build(name, **args)


def test_images_are_refused() -> None:
  with pytest.raises(config.InputError, match="takes sentences"):
    encoder.builder("bert")((8, 8, 3), 2)
