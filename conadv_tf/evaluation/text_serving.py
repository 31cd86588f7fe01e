"""Exports a plain Keras model of tokens as a SavedModel that takes sentences.

Where the tokeniser is of `tensorflow_text`, a program that loads the SavedModel
must import that package first, since it brings the operations.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from conadv_tf.evaluation import saved_models

_GOLDEN_SENTENCES = (
    "a good film .", "It was slow, dull and far too long.", "Fine", "42 % off")


class Tokenizer(Protocol):
  """Sentences to tokens in a graph, usually `data.tokenizer.WordPiece`.

  A `tf.Module`, where it holds tables that must be saved.
  """

  def tokens(self, sentences: tf.Tensor, second: tf.Tensor | None = None
             ) -> tf.Tensor:
    """Strings [b], two for pairs -> int32 [b, L, 2], ids and segments."""


def export(model: tf.keras.Model, output_dir: str, *,
           length: int, tokenizer: Tokenizer | None,
           columns: Sequence[str], class_names: Sequence[str] | None,
           card: Mapping[str, Any], outputs: str = "logits") -> None:
  """Writes a SavedModel, its model card and inputs with known outputs.

  The signatures are `serving_default`, from int32 `tokens` [b, L, 2] (ids in
  [..., 0], segments in [..., 1], padded at the right end), and
  `serving_sentences`, from one string [b] (UTF-8) a column. Both give float32
  `logits` and `probabilities` [b, classes] and int64 `classes` [b]; a model
  with one output is a regression and gives float32 `values` [b]. The directory
  is written and checked as by `serving.export`.

  Args:
    model: plain; int32 [b, L, 2] -> [b, classes].
    output_dir: new, empty, or an earlier export, which is replaced.
    length: L.
    tokenizer: that the model was trained with; None leaves out
      `serving_sentences` (RoBERTa's is no operation of TensorFlow).
    columns: names of the one or two sentences.
    class_names: one per class, or None.
    card: what the card shall say besides, such as `config` and `metrics`.
    outputs: what the model ends in, "logits" or "probabilities".

  Raises:
    InputError: if `output_dir` holds anything else or cannot be written.
    ValueError: if another argument does not fit the model.
    RuntimeError: if the SavedModel gives other numbers than the model.
  """
  target = saved_models.checked_target(output_dir)
  served = _served(model, length, tokenizer, columns, outputs)
  results = served.signatures["serving_default"].structured_outputs
  text = _card_text(card, served, results, length, class_names, outputs)
  with saved_models.replacing(target) as folder:
    saved_models.save(served, folder, text)


def _served(model: tf.keras.Model, length: int, tokenizer: Tokenizer | None,
            columns: Sequence[str], outputs: str) -> saved_models.Served:
  """Traces the signatures."""
  root = tf.Module(name="sentences")
  root.model_variables = model.variables
  root.tokenizer = tokenizer

  def classify(tokens: tf.Tensor) -> saved_models.Outputs:
    values = model(tokens, training=False)
    if values.shape.rank != 2 or values.shape[1] is None:
      raise ValueError(f"model {model.name!r} must give [b, classes], it "
                       f"gives {values.shape}")
    if values.shape[1] == 1:
      return {"values": tf.cast(values[:, 0], tf.float32)}
    return saved_models.classified(values, outputs)

  def classify_sentences(*sentences: tf.Tensor) -> saved_models.Outputs:
    return classify(tokenizer.tokens(*sentences))

  signatures = {"serving_default": tf.function(
      classify, autograph=False).get_concrete_function(
          tf.TensorSpec([None, length, 2], tf.int32, "tokens"))}
  if tokenizer is None:
    # Ids and segments that every vocabulary has.
    tokens = np.random.default_rng(0).integers(
        0, 2, (len(_GOLDEN_SENTENCES), length, 2), dtype=np.int32)
    return saved_models.Served(root, signatures, {"tokens": tokens}, {
        "serving_default": {"tokens": tf.constant(tokens)}})
  signatures["serving_sentences"] = tf.function(
      classify_sentences, autograph=False).get_concrete_function(
          *(tf.TensorSpec([None], tf.string, name) for name in columns))
  golden = dict(zip(columns, (_GOLDEN_SENTENCES, _GOLDEN_SENTENCES[::-1])))
  sentences = {name: tf.constant(value) for name, value in golden.items()}
  tokens = tokenizer.tokens(*sentences.values())
  return saved_models.Served(
      root, signatures, {"tokens": tokens.numpy(), **golden},
      {"serving_default": {"tokens": tokens}, "serving_sentences": sentences})


def _card_text(card: Mapping[str, Any], served: saved_models.Served,
               results: saved_models.Outputs, length: int,
               class_names: Sequence[str] | None, outputs: str) -> str:
  """The model card as JSON."""
  inputs = {"serving_default": {
      "name": "tokens", "dtype": "int32", "shape": [None, length, 2],
      "content": "ids in [..., 0], segments in [..., 1], padded at the right "
                 "end"}}
  ours = {"inputs": inputs}
  if "serving_sentences" in served.signatures:
    inputs["serving_sentences"] = {
        "names": list(served.fed["serving_sentences"]), "dtype": "string",
        "shape": [None], "encoding": "UTF-8",
        "tokenisation": "inside the model"}
    ours["loading"] = ("`import tensorflow_text` before the SavedModel is "
                       "loaded, whichever signature is used")
  if "values" in results:
    ours["outputs"] = {"values": "float32 [b], the predicted score"}
  else:
    ours.update(saved_models.classes_card(
        results["logits"].shape[1], class_names, outputs))
  return saved_models.card_text(ours, card)
