"""An exported model of tokens takes ids and sentences."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import config
from conadv_tf.evaluation import saved_models, text_serving
from conadv_tf.models import encoder

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "good", "bad", "film", ".")
LENGTH = 6


class Words(tf.Module):
  """A tokeniser that knows whole words; in a table, which must be saved."""

  def __init__(self) -> None:
    super().__init__()
    self._table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(
            list(WORDS), tf.range(len(WORDS))), 1)

  def tokens(self, sentences: tf.Tensor, second: tf.Tensor | None = None
             ) -> tf.Tensor:
    parts = [self._table[tf.strings.split(s)] for s in (sentences, second)
             if s is not None]
    ids = tf.concat(parts, axis=1)
    segments = tf.concat(
        [tf.fill(tf.shape(p.to_tensor()), i) for i, p in enumerate(parts)], 1)
    shape = [None, LENGTH]
    pad = LENGTH - tf.minimum(LENGTH, tf.shape(segments)[1])
    segments = tf.pad(segments[:, :LENGTH], [[0, 0], [0, pad]])
    segments = tf.ensure_shape(segments, shape)
    return tf.stack([ids.to_tensor(shape=shape), segments], axis=-1)


def model(classes: int) -> tf.keras.Model:
  tf.keras.utils.set_random_seed(classes)
  built = encoder.builder("bert")(
      (LENGTH, 2), classes, hidden_size=8, num_heads=2, num_layers=1,
      intermediate_size=8, vocab_size=len(WORDS))
  built.set_weights([w * 10 for w in built.get_weights()])
  return built


def export(built: tf.keras.Model, path: pathlib.Path,
           tokenizer: text_serving.Tokenizer | None = None,
           columns: tuple[str, ...] = ("sentence",),
           names: tuple[str, ...] | None = None) -> None:
  text_serving.export(
      built, str(path), length=LENGTH, tokenizer=tokenizer, columns=columns,
      class_names=names, card={"step": 7})


def test_ids_and_sentences(tmp_path: pathlib.Path) -> None:
  built, words = model(2), Words()
  export(built, tmp_path / "out", words, names=("negative", "positive"))
  sentences = tf.constant(["a good film .", "bad", "newt newt"])
  tokens = words.tokens(sentences)
  np.testing.assert_array_equal(tokens[..., 0].numpy(), [
      [4, 5, 7, 8, 0, 0], [6, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]])
  expected = built(tokens).numpy()
  signatures = tf.saved_model.load(str(tmp_path / "out")).signatures
  for served in (signatures["serving_default"](tokens=tokens),
                 signatures["serving_sentences"](sentence=sentences)):
    assert served["logits"].dtype == served["probabilities"].dtype == (
        tf.float32)
    np.testing.assert_allclose(served["logits"], expected, atol=1e-6)
    odds = np.exp(expected)
    np.testing.assert_allclose(
        served["probabilities"], odds / odds.sum(1, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(served["classes"], expected.argmax(1))
  assert np.ptp(expected, axis=0).min() > 1e-3
  card = json.loads((tmp_path / "out" / saved_models.CARD).read_text())
  assert card["inputs"]["serving_sentences"]["names"] == ["sentence"]
  assert card["classes"] == {"count": 2, "names": ["negative", "positive"]}
  assert "import tensorflow_text" in card["loading"] and card["step"] == 7
  golden = np.load(tmp_path / "out" / saved_models.GOLDEN)
  np.testing.assert_allclose(
      signatures["serving_sentences"](
          sentence=tf.constant(golden["sentence"].tolist()))["logits"],
      golden["logits"], atol=1e-6)


def test_a_regression_on_pairs(tmp_path: pathlib.Path) -> None:
  built, words = model(1), Words()
  export(built, tmp_path / "out", words, ("first", "second"))
  pair = tf.constant(["a film", "good"]), tf.constant(["bad", "a good film"])
  served = tf.saved_model.load(str(tmp_path / "out")).signatures[
      "serving_sentences"](first=pair[0], second=pair[1])
  assert set(served) == {"values"} and served["values"].dtype == tf.float32
  np.testing.assert_allclose(
      served["values"], built(words.tokens(*pair))[:, 0], atol=1e-6)
  card = json.loads((tmp_path / "out" / saved_models.CARD).read_text())
  assert card["outputs"] == {"values": "float32 [b], the predicted score"}
  assert "classes" not in card


def test_without_a_tokeniser(tmp_path: pathlib.Path) -> None:
  built = model(2)
  export(built, tmp_path / "out")
  assert list(tf.saved_model.load(str(tmp_path / "out")).signatures) == [
      "serving_default"]
  assert "loading" not in json.loads(
      (tmp_path / "out" / saved_models.CARD).read_text())
  (tmp_path / "out" / "mine.txt").touch()
  with pytest.raises(config.InputError, match="holds 'mine.txt' beside"):
    export(built, tmp_path / "out")
  with pytest.raises(ValueError, match="1 class names for a model of 2"):
    export(built, tmp_path / "new", names=("one",))
  assert not (tmp_path / "new").exists()
