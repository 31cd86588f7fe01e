"""Published checkpoints of BERT and RoBERTa: sizes and weights.

Read are folders in Hugging Face's layout (`config.json`,
`model.safetensors`), checkpoints of google-research/bert (names such as
`bert/encoder/layer_0/...`), and object-based ones of Model Garden's
`BertEncoder` and `BertEncoderV2`. One table, `_TABLE`, says what is what.
"""

from collections.abc import Iterable
import json
import os
import re
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from conadv_tf import config

_CONFIGS = ("config.json", "bert_config.json")
_WEIGHTS = "model.safetensors"
# Arguments of `encoder.encoder` and what a config calls them.
_SIZES = {
    "hidden_size": "hidden_size", "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size", "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size", "layer_norm_eps": "layer_norm_eps",
    "pad_id": "pad_token_id"}
_RATES = {"hidden_dropout": "hidden_dropout_prob",
          "attention_dropout": "attention_probs_dropout_prob"}
# Those of Google are BERT's and leave out what is always the same.
_DEFAULTS = {"model_type": "bert", "layer_norm_eps": 1e-12, "pad_token_id": 0,
             "position_embedding_type": "absolute", "hidden_act": "gelu"}

# A layer of ours; Hugging Face's name, which is Google's with dots for slashes;
# the position among the encoder's layers with weights and the attribute in
# Model Garden's; `{n}` is a block.
_TABLE = (
    ("word_embeddings", "embeddings.word_embeddings", "0", "_embedding_layer"),
    ("position_embeddings", "embeddings.position_embeddings", "1",
     "_position_embedding_layer"),
    ("type_embeddings", "embeddings.token_type_embeddings", "2",
     "_type_embedding_layer"),
    ("embedding_norm", "embeddings.LayerNorm", "3", "_embedding_norm_layer"),
    ("pooler", "pooler.dense", "{last}", "_pooler_layer"),
)
# Parts of block n: ours, Hugging Face's, Model Garden's.
_BLOCK = (
    ("self_attention/query", "attention.self.query",
     "_attention_layer/_query_dense"),
    ("self_attention/key", "attention.self.key",
     "_attention_layer/_key_dense"),
    ("self_attention/value", "attention.self.value",
     "_attention_layer/_value_dense"),
    ("self_attention/attention_output", "attention.output.dense",
     "_attention_layer/_output_dense"),
    ("self_attention_layer_norm", "attention.output.LayerNorm",
     "_attention_layer_norm"),
    ("intermediate", "intermediate.dense", "_intermediate_dense"),
    ("output", "output.dense", "_output_dense"),
    ("output_layer_norm", "output.LayerNorm", "_output_layer_norm"),
)
_FIRST_BLOCK = 4  # among Model Garden's layers with weights
