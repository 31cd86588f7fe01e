"""Small folders in the layout of published encoders, of random weights."""

import json
import pathlib
from typing import Any

import numpy as np

from tests.reference import bert

_SIZES = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
              intermediate_size=12, hidden_act="gelu", hidden_dropout_prob=0.1,
              attention_probs_dropout_prob=0.1)
BERT = dict(_SIZES, model_type="bert", vocab_size=20, layer_norm_eps=1e-12,
            max_position_embeddings=10, type_vocab_size=2, pad_token_id=0)
ROBERTA = dict(_SIZES, model_type="roberta", vocab_size=21,
               layer_norm_eps=1e-5, max_position_embeddings=12,
               type_vocab_size=1, pad_token_id=1)
LENGTH = 8


def tokens(config: dict[str, Any]) -> np.ndarray:
  """Int32 [3, 8, 2]: full, of one token, and with two segments."""
  ids = np.random.default_rng(1).integers(2, config["vocab_size"], (3, LENGTH))
  segments = np.zeros_like(ids)
  ids[1, 1:] = ids[2, 5:] = config["pad_token_id"]
  if config["type_vocab_size"] > 1:
    segments[2, 2:5] = 1
  return np.stack([ids, segments], axis=-1).astype(np.int32)


def write(folder: pathlib.Path, config: dict[str, Any],
          tensors: bert.Tensors | None = None) -> bert.Tensors:
  """Writes config.json and model.safetensors; returns what is in it."""
  from safetensors import numpy as safetensors

  tensors = bert.random_tensors(config) if tensors is None else tensors
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config))
  safetensors.save_file(tensors, str(folder / "model.safetensors"))
  return tensors
