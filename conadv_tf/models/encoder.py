"""BERT and RoBERTa as classifiers of sentences and of pairs.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for
Language Understanding" (NAACL 2019); Liu et al., "RoBERTa: A Robustly
Optimized BERT Pretraining Approach" (2019). Built of `official.nlp`'s layers.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from conadv_tf import config
from conadv_tf.models import arguments, parts

TokenShape = tuple[int, int]  # sequence length, 2

layers = tf.keras.layers
WORD_EMBEDDINGS = "word_embeddings"
POSITIONS = "position_embeddings"
POOLINGS = ("cls_pooler", "mean")

_BASE = dict(hidden_size=768, num_layers=12, num_heads=12,
             intermediate_size=3072)
_LARGE = dict(hidden_size=1024, num_layers=24, num_heads=16,
              intermediate_size=4096)
_SMALL = dict(hidden_size=384, num_layers=6, num_heads=12,
              intermediate_size=1536)
_BERT = dict(vocab_size=30522, max_positions=512, type_vocab_size=2,
             layer_norm_eps=1e-12, pad_id=0)
# Two of the 514 positions are before the first token's, see `_embed`.
_ROBERTA = dict(vocab_size=50265, max_positions=514, type_vocab_size=1,
                layer_norm_eps=1e-5, pad_id=1)


class Preset(NamedTuple):
  """What a model's name stands for.

  Attributes:
    kind: "bert" or "roberta".
    sizes: that an argument may not change.
    defaults: all sizes.
  """

  kind: str
  sizes: dict[str, Any]
  defaults: dict[str, Any]


PRESETS = {
    "bert": Preset("bert", {}, {**_BASE, **_BERT}),
    "bert_base": Preset("bert", _BASE, {**_BASE, **_BERT}),
    "bert_large": Preset("bert", _LARGE, {**_LARGE, **_BERT}),
    "minilm_l6": Preset("bert", _SMALL, {**_SMALL, **_BERT}),
    "roberta": Preset("roberta", {}, {**_BASE, **_ROBERTA}),
    "roberta_base": Preset("roberta", _BASE, {**_BASE, **_ROBERTA}),
    "roberta_large": Preset("roberta", _LARGE, {**_LARGE, **_ROBERTA}),
}


def builder(name: str) -> arguments.Builder:
  """The function that builds the encoder of a name in `PRESETS`.

  Returns:
    `build(token_shape, num_classes, **args)`, where `args` are those of
    `encoder` that the name does not fix.
  """
  preset = PRESETS[name]

  def build(token_shape: TokenShape, num_classes: int, **args: Any
            ) -> tf.keras.Model:
    sizes = {**preset.defaults, **args}
    arguments.check(encoder, sizes, name, taken=(
        "token_shape", "num_classes", "kind"))
    check_preset(name, args)
    return encoder(token_shape, num_classes, kind=preset.kind, **sizes)

  return build


def check_preset(name: str, args: dict[str, Any]) -> None:
  """Raises InputError if sizes are not those that a name stands for."""
  for key, value in PRESETS[name].sizes.items():
    if args.get(key, value) != value:
      raise config.InputError(
          f"model.args.{key} is {args[key]!r}, and model.name={name} stands "
          f"for {value}; name the model {PRESETS[name].kind} for other sizes")


def encoder(
    token_shape: TokenShape,
    num_classes: int,
    *,
    kind: str,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    intermediate_size: int,
    vocab_size: int,
    max_positions: int,
    type_vocab_size: int,
    layer_norm_eps: float,
    pad_id: int,
    hidden_dropout: float = 0.1,
    attention_dropout: float = 0.1,
    pooling: str = "cls_pooler",
) -> tf.keras.Model:
  """Builds the classifier.

  Args:
    token_shape: (L, 2): L token ids with their segment ids.
    num_classes: number of outputs; 1 is a regression.
    kind: "bert" or "roberta".
    hidden_size: d, of embeddings and of every layer's output.
    num_layers: of the transformer.
    num_heads: that share d in an attention.
    intermediate_size: between the two dense layers of a block.
    vocab_size: rows of the word embeddings.
    max_positions: the longest sequence; for RoBERTa `pad_id` + 1 more.
    type_vocab_size: of the segments' embeddings; 1 looks at no segment ids.
    layer_norm_eps: added to variances.
    pad_id: fills sequences up at their right end; none attends to it.
    hidden_dropout: rate after the embeddings, in blocks, before the head.
    attention_dropout: rate of an attention's weights and of its output.
    pooling: "cls_pooler": a dense layer with tanh on the first token's output;
      "mean": the mean over all tokens but padding.

  Returns:
    A functional model: int32 [b, L, 2] -> float32 logits [b, num_classes].

  Raises:
    InputError: that names the first argument that cannot be.
  """
  _check(locals())
  tokens = layers.Input(token_shape, dtype="int32", name="tokens")
  # Not by slicing, which could not be loaded from a .keras file.
  ids, segments = tf.unstack(tokens, num=2, axis=-1)
  real = tf.not_equal(ids, pad_id)
  first = pad_id + 1 if kind == "roberta" else 0
  x = _embed(ids, segments, hidden_size, vocab_size, max_positions - first,
             type_vocab_size, layer_norm_eps)
  x = layers.Dropout(hidden_dropout, name="embedding_dropout")(x)
  x = _transform(x, real, num_layers, num_heads, intermediate_size,
                 (hidden_dropout, attention_dropout), layer_norm_eps)
  x = _pool(x, real, kind, pooling, hidden_dropout)
  model = tf.keras.Model(
      tokens, _classify(x, num_classes, hidden_dropout), name=kind)
  model.pad_id = pad_id  # for `Network.token_mask`
  return model


def _classify(x: tf.Tensor, num_classes: int, dropout: float) -> tf.Tensor:
  """The head, float32 [b, num_classes]."""
  x = layers.Dropout(dropout, name="head_dropout")(x)
  return layers.Dense(num_classes, kernel_initializer=_initializer(),
                      dtype="float32", name="logits")(x)


def _embed(ids: tf.Tensor, segments: tf.Tensor, hidden_size: int,
           vocab_size: int, positions: int, types: int, epsilon: float
           ) -> tf.Tensor:
  """Word, position and segment embeddings, added and normalised in float32.

  RoBERTa numbers positions from `pad_id` + 1 on and gives padding the row
  `pad_id`. With padding at the right end, which no token attends to, that is
  a table without the rows before the first token's.
  """
  nlp = _nlp_layers()
  options = dict(initializer=_initializer(), dtype="float32")
  # A dtype in a layer's config would not go into a file.
  table = dict(options, weight_fallback_dtype="float32")
  words = nlp.OnDeviceEmbedding(
      vocab_size, hidden_size, name=WORD_EMBEDDINGS, **table)(ids)
  if types == 1:
    segments = tf.zeros_like(segments)
  x = layers.Add(name="embeddings", dtype="float32")([
      words,
      nlp.PositionEmbedding(positions, name=POSITIONS, **options)(words),
      nlp.OnDeviceEmbedding(types, hidden_size, use_one_hot=True,
                            name="type_embeddings", **table)(segments)])
  return layers.LayerNormalization(
      epsilon=epsilon, dtype="float32", name="embedding_norm")(x)


def _transform(x: tf.Tensor, real: tf.Tensor, blocks: int, heads: int,
               inner: int, rates: tuple[float, float], epsilon: float
               ) -> tf.Tensor:
  """Attention among what is no padding, and dense layers; [b, L, d]."""
  nlp = _nlp_layers()
  mask = nlp.SelfAttentionMask(name="attention_mask")(x, real)
  for number in range(blocks):
    x = nlp.TransformerEncoderBlock(
        heads, inner, "gelu",  # the exact one, of erf
        output_dropout=rates[0], attention_dropout=rates[1],
        norm_epsilon=epsilon, kernel_initializer=_initializer(),
        name=f"layer_{number}")([x, mask])
  return x


def _pool(x: tf.Tensor, real: tf.Tensor, kind: str, pooling: str,
          dropout: float) -> tf.Tensor:
  """Outputs [b, L, d] of all tokens -> [b, d]."""
  if pooling == "mean":
    return layers.GlobalAveragePooling1D(name="mean", dtype="float32")(
        x, mask=real)
  width = x.shape[-1]
  # Of any length; not by brackets, see `encoder`.
  x = tf.slice(x, [0, 0, 0], [-1, 1, -1])
  x = layers.Reshape((width,), name="first")(x)
  if kind == "roberta":
    x = layers.Dropout(dropout, name="first_dropout")(x)
  return layers.Dense(width, "tanh", kernel_initializer=_initializer(),
                      name="pooler" if kind == "bert" else "head_dense")(x)


def _nlp_layers() -> Any:
  from official.nlp.modeling import layers as nlp  # takes seconds
  return nlp


def _initializer() -> dict[str, Any]:
  """BERT's; not an object, of which a layer's clones would share one."""
  return {"class_name": "TruncatedNormal", "config": {"stddev": 0.02}}


def _check(values: dict[str, Any]) -> None:
  """Checks the arguments of `encoder`."""
  length = values["token_shape"]
  if len(length) != 2 or length[1] != 2:
    raise config.InputError(
        f"model.name: {values['kind']} takes sentences (data.name=glue), the "
        f"data have the shape {tuple(length)}")
  for key in ("hidden_size", "num_layers", "num_heads", "intermediate_size",
              "vocab_size", "max_positions", "type_vocab_size"):
    parts.require_whole(key, values[key])
  for key in ("hidden_dropout", "attention_dropout", "layer_norm_eps"):
    parts.require_share(key, values[key])
  heads, pad_id = values["num_heads"], values["pad_id"]
  parts.require("num_heads", heads, values["hidden_size"] % heads == 0,
                f"a divisor of hidden_size ({values['hidden_size']})")
  parts.require("pad_id", pad_id, isinstance(pad_id, int)
                and 0 <= pad_id < values["vocab_size"],
                "a row of the vocabulary")
  parts.require("pooling", values["pooling"], values["pooling"] in POOLINGS,
                " or ".join(POOLINGS))
  longest = values["max_positions"] - (
      pad_id + 1 if values["kind"] == "roberta" else 0)
  if length[0] > longest:
    raise config.InputError(
        f"text.sequence_length: {length[0]} tokens, and the encoder's "
        f"positions end at {longest}; shorten the sequences")
