"""The smallest text models, and sentences for them."""

import numpy as np
from official.nlp.modeling import layers as nlp_layers
import tensorflow as tf

layers = tf.keras.layers
LENGTH, WIDTH, WORDS = 6, 4, 11

_random = np.random.default_rng(0)
_IDS = _random.integers(1, WORDS, (160, LENGTH))
_REAL = np.arange(LENGTH) < _random.integers(2, LENGTH + 1, (160, 1))
# [n, L, 2]: ids, 0 at padding, and types.
TOKENS = np.stack([_IDS * _REAL, _random.integers(0, 2, _IDS.shape)],
                  -1).astype(np.int32)
LABELS = (TOKENS[..., 0].sum(1) % 3).astype(np.int32)


def model(dropout: float = 0.3, classes: int = 3) -> tf.keras.Model:
  """Word embeddings, tanh, mean over real tokens, a dense layer."""
  tf.keras.utils.set_random_seed(1)
  tokens = tf.keras.Input((LENGTH, 2), dtype=tf.int32)
  ids = tokens[..., 0]
  x = layers.Embedding(WORDS, WIDTH, name='word_embeddings', dtype='float32',
                       embeddings_initializer='normal')(ids)
  if dropout:
    x = layers.Dropout(dropout)(x)
  x = layers.Dense(5, 'tanh')(x)
  real = tf.cast(ids > 0, x.dtype)[..., None]
  x = tf.reduce_sum(x * real, 1) / tf.reduce_sum(real, 1)
  return tf.keras.Model(tokens, layers.Dense(classes, dtype='float32')(x))


def encoder(dropout: float = 0.5) -> tf.keras.Model:
  """One block of Model Garden's with its three kinds of dropout."""
  tf.keras.utils.set_random_seed(1)
  tokens = tf.keras.Input((LENGTH, 2), dtype=tf.int32)
  ids, types = tokens[..., 0], tokens[..., 1]
  words = nlp_layers.OnDeviceEmbedding(
      WORDS, WIDTH, name='word_embeddings', dtype='float32')(ids)
  x = layers.Add(dtype='float32')([
      words, nlp_layers.PositionEmbedding(LENGTH, dtype='float32')(words),
      nlp_layers.OnDeviceEmbedding(2, WIDTH, dtype='float32')(types)])
  x = layers.LayerNormalization(dtype='float32', epsilon=1e-12)(x)
  mask = nlp_layers.SelfAttentionMask()(x, tf.cast(ids > 0, tf.int32))
  x = nlp_layers.TransformerEncoderBlock(
      2, 8, 'gelu', output_dropout=dropout, attention_dropout=dropout,
      inner_dropout=dropout)([x, mask])
  return tf.keras.Model(tokens, layers.Dense(3, dtype='float32')(x[:, 0]))
