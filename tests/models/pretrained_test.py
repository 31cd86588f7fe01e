"""Published checkpoints give the outputs of the models they come from."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import config
from conadv_tf.models import encoder, pretrained
from tests import published_encoders
from tests.reference import bert

BERT, ROBERTA = published_encoders.BERT, published_encoders.ROBERTA
safetensors = pytest.importorskip("safetensors.numpy")


def loaded(path: pathlib.Path | str, name: str = "bert", length: int = 8,
           **args: Any) -> tuple[tf.keras.Model, list[str]]:
  """The encoder of a checkpoint, and the variables that are not in it."""
  model = encoder.builder(name)(
      (length, 2), 2, **pretrained.arguments(name, args, str(path)))
  values = pretrained.values(model, str(path))
  for variable, value in zip(model.variables, values, strict=True):
    if value is not None:
      assert value.dtype == np.float32
      variable.assign(value)
  return model, [v.name.partition(":")[0] for v, value in
                 zip(model.variables, values) if value is None]


def outputs(model: tf.keras.Model, tokens: np.ndarray
            ) -> tuple[np.ndarray, np.ndarray]:
  """The last block's output and the first dense layer's behind it."""
  last = [layer for layer in model.layers
          if layer.name.startswith("layer_")][-1]
  dense = model.layers[-3]
  assert dense.name in ("pooler", "head_dense")
  found = tf.keras.Model(model.input, [last.output, dense.output])(tokens)
  return found[0].numpy(), found[1].numpy()


def assert_same(model: tf.keras.Model, tensors: bert.Tensors,
                settings: dict[str, Any], pools: bool = True) -> None:
  """Compares what is no padding with the twin."""
  tokens = published_encoders.tokens(settings)
  last, pooled = outputs(model, tokens)
  expected = bert.forward(tensors, settings, tokens[..., 0], tokens[..., 1])
  real = tokens[..., 0] != settings["pad_token_id"]
  np.testing.assert_allclose(last[real], expected[0][real], atol=2e-5)
  if pools:
    np.testing.assert_allclose(pooled, expected[1], atol=2e-5)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_bert(tmp_path: pathlib.Path, prefix: str) -> None:
  tensors = bert.random_tensors(BERT)
  named = {prefix + name: value for name, value in tensors.items()}
  if prefix:  # as google-bert/bert-base-uncased has them
    named = {name.replace("Norm.weight", "Norm.gamma").replace(
        "Norm.bias", "Norm.beta"): value for name, value in named.items()}
    named["cls.predictions.bias"] = np.zeros(20, np.float32)
  published_encoders.write(tmp_path, BERT, named)
  model, new = loaded(tmp_path)
  assert new == ["logits/kernel", "logits/bias"]
  assert_same(model, tensors, BERT)


def test_the_first_layers_of_a_deeper_encoder(tmp_path: pathlib.Path) -> None:
  tensors = bert.random_tensors(BERT)
  published_encoders.write(tmp_path, BERT, tensors)
  model, new = loaded(tmp_path, num_layers=1)
  assert new == ["logits/kernel", "logits/bias"]
  assert_same(model, tensors, {**BERT, "num_hidden_layers": 1})


def test_fewer_layers_than_asked_for(tmp_path: pathlib.Path) -> None:
  """By the config, and where that promises more than the weights hold."""
  tensors = published_encoders.write(tmp_path, BERT)
  with pytest.raises(config.InputError) as raised:
    pretrained.arguments("bert", {"num_layers": 3}, str(tmp_path))
  assert str(raised.value) == (
      f"model.args.num_layers is 3, and the encoder in {tmp_path}/config.json "
      "has 2 layer(s); ask for at most 2, or leave it out")
  model = loaded(tmp_path)[0]
  published_encoders.write(tmp_path, BERT, {
      name: value for name, value in tensors.items() if "layer.1." not in name})
  with pytest.raises(config.InputError) as raised:
    pretrained.values(model, str(tmp_path))
  assert str(raised.value) == (
      f"model.args.num_layers is 2, and the encoder in {tmp_path} has 1 "
      "layer(s); ask for at most 1, or leave it out")


@pytest.mark.parametrize("number", [np.nan, -np.inf])
def test_numbers_that_are_not_finite(tmp_path: pathlib.Path, number: float
                                     ) -> None:
  tensors = published_encoders.write(tmp_path, BERT)
  model = loaded(tmp_path)[0]
  name = "encoder.layer.1.intermediate.dense.weight"
  tensors[name][3, 2] = number
  published_encoders.write(tmp_path, BERT, tensors)
  with pytest.raises(config.InputError, match=(
      f"{name} in {tmp_path} holds numbers that are not finite")):
    pretrained.values(model, str(tmp_path))


def test_roberta(tmp_path: pathlib.Path) -> None:
  """Positions begin behind the padding's; half precision is widened."""
  tensors = bert.random_tensors(ROBERTA)
  stored = {f"roberta.{name}": value.astype(np.float16)
            for name, value in tensors.items() if "pooler" not in name}
  published_encoders.write(tmp_path, ROBERTA, stored)
  model, new = loaded(tmp_path, "roberta")
  assert new == ["head_dense/kernel", "head_dense/bias", "logits/kernel",
                 "logits/bias"]
  assert_same(model, {
      name: value.astype(np.float16).astype(np.float32)
      for name, value in tensors.items()}, ROBERTA, pools=False)


def google_names(tensors: bert.Tensors) -> bert.Tensors:
  """As tf.train.Saver wrote them: [inputs, outputs], other names."""
  found = {}
  for name, value in tensors.items():
    new = "bert/" + name.replace(".", "/").replace("layer/", "layer_")
    new = new.replace("LayerNorm/weight", "LayerNorm/gamma").replace(
        "LayerNorm/bias", "LayerNorm/beta").replace("_embeddings/weight",
                                                    "_embeddings")
    if new.endswith("/weight"):
      new, value = new.replace("/weight", "/kernel"), value.T
    found[new] = value
  found["cls/predictions/output_bias"] = np.zeros(20, np.float32)
  return found


def test_original_tensorflow_checkpoint(tmp_path: pathlib.Path) -> None:
  tensors = bert.random_tensors(BERT)
  with tf.Graph().as_default():
    variables = {name: tf.compat.v1.get_variable(name, initializer=value)
                 for name, value in google_names(tensors).items()}
    with tf.compat.v1.Session() as session:
      session.run(tf.compat.v1.global_variables_initializer())
      tf.compat.v1.train.Saver(variables).save(
          session, str(tmp_path / "bert_model.ckpt"))
  settings = {key: value for key, value in BERT.items() if key not in (
      "model_type", "layer_norm_eps", "pad_token_id")}
  (tmp_path / "bert_config.json").write_text(json.dumps(settings))
  for path in (tmp_path, tmp_path / "bert_model.ckpt"):
    model, new = loaded(path)
    assert new == ["logits/kernel", "logits/bias"]
    assert_same(model, tensors, BERT)


@pytest.mark.parametrize("kind, name", [
    ("BertEncoder", "encoder"), ("BertEncoderV2", "model")])
def test_model_garden_checkpoint(tmp_path: pathlib.Path, kind: str, name: str
                                 ) -> None:
  from official.nlp.modeling import networks
  theirs = getattr(networks, kind)(
      vocab_size=20, hidden_size=8, num_layers=2, num_attention_heads=2,
      max_sequence_length=10, type_vocab_size=2, intermediate_size=12,
      dict_outputs=True,
      activation=lambda x: tf.keras.activations.gelu(x, approximate=False))
  tokens = published_encoders.tokens(BERT)
  inputs = dict(input_word_ids=tokens[..., 0], input_type_ids=tokens[..., 1],
                input_mask=(tokens[..., 0] != 0).astype(np.int32))
  theirs(inputs)
  generator = np.random.default_rng(0)
  for variable in theirs.variables:
    variable.assign(generator.normal(0.0, 0.5, variable.shape))
  tf.train.Checkpoint(**{name: theirs}).save(str(tmp_path / "ckpt"))
  (tmp_path / "config.json").write_text(json.dumps(BERT))
  expected = theirs(inputs)
  last, pooled = outputs(loaded(tmp_path)[0], tokens)
  real = tokens[..., 0] != 0
  np.testing.assert_allclose(
      last[real], expected["sequence_output"].numpy()[real], atol=1e-5)
  np.testing.assert_allclose(pooled, expected["pooled_output"], atol=1e-5)
  # The pooler is found behind the layers that are left out.
  assert loaded(tmp_path, num_layers=1)[1] == ["logits/kernel", "logits/bias"]


def test_a_checkpoint_without_a_pooler(tmp_path: pathlib.Path) -> None:
  published_encoders.write(tmp_path, BERT, {
      name: value for name, value in bert.random_tensors(BERT).items()
      if "pooler" not in name})
  assert loaded(tmp_path)[1][:2] == ["pooler/kernel", "pooler/bias"]


def test_sizes_come_from_the_config(tmp_path: pathlib.Path) -> None:
  published_encoders.write(tmp_path, BERT)
  found = pretrained.arguments(
      "bert", dict(pooling="mean", hidden_dropout=0.0), str(tmp_path))
  assert found == dict(
      hidden_size=8, num_layers=2, num_heads=2, intermediate_size=12,
      vocab_size=20, max_positions=10, type_vocab_size=2,
      layer_norm_eps=1e-12, pad_id=0, hidden_dropout=0.0,
      attention_dropout=0.1, pooling="mean")
  known = pretrained.known(found)
  assert known == {k: v for k, v in found.items() if k != "pooling"}
  assert pretrained.known(dict(hidden_size=8)) == {}


@pytest.mark.parametrize("change, message", [
    (dict(hidden_size=16), "hidden_size is 8 and 16 in .*config.json; leave"),
    (dict(model_type="roberta"), "says model_type=roberta, and "
     "model.name=bert needs bert"),
    (dict(hidden_act="relu"), "says hidden_act=relu"),
    (dict(vocab_size=None), "does not say 'vocab_size'"),
    ("{", "config.json cannot be read"),
    (None, "has no config.json or bert_config.json, which")])
def test_bad_configs(tmp_path: pathlib.Path, change: Any, message: str
                     ) -> None:
  published_encoders.write(tmp_path, BERT)
  path = tmp_path / "config.json"
  if isinstance(change, dict):
    path.write_text(json.dumps({key: value for key, value in {
        **BERT, **change}.items() if value is not None}))
  elif change:
    path.write_text(change)
  else:
    path.unlink()
  with pytest.raises(config.InputError, match=message):
    pretrained.arguments("bert", dict(hidden_size=8), str(tmp_path))


def test_what_is_no_checkpoint(tmp_path: pathlib.Path) -> None:
  assert pretrained.arguments("bert", {"pad_id": 3}, str(tmp_path)) == {
      "pad_id": 3}  # a run, perhaps
  with pytest.raises(config.InputError, match="/nowhere does not exist"):
    pretrained.arguments("bert", {}, "/nowhere")
  assert not pretrained.is_checkpoint(str(tmp_path))
  with pytest.raises(config.InputError, match="give the folder that holds it"):
    pretrained.arguments("bert", {}, f"{tmp_path}/model.safetensors")


def test_the_first_tensor_that_differs_is_named(tmp_path: pathlib.Path
                                                ) -> None:
  tensors = published_encoders.write(tmp_path, BERT)
  model = loaded(tmp_path)[0]
  with pytest.raises(config.InputError, match="has none of its layers"):
    pretrained.values(tf.keras.Sequential([
        tf.keras.layers.Input([3]), tf.keras.layers.Dense(2)]), str(tmp_path))
  weights = [w.copy() for w in model.get_weights()]
  for name, shape in (("encoder.layer.1.output.dense.weight", (8, 13)),
                      ("encoder.layer.0.intermediate.dense.weight", (13, 8)),
                      ("pooler.dense.bias", (9,))):
    tensors[name] = np.zeros(shape, np.float32)
  published_encoders.write(tmp_path, BERT, tensors)
  with pytest.raises(config.InputError) as raised:
    pretrained.values(model, str(tmp_path))
  assert str(raised.value) == (
      "model.initial_weights: encoder.layer.0.intermediate.dense.weight has "
      f"the shape (13, 8) in {tmp_path}, and this model needs (12, 8); "
      "model.args and the checkpoint must agree")
  del tensors["encoder.layer.0.attention.self.key.bias"]
  published_encoders.write(tmp_path, BERT, tensors)
  with pytest.raises(config.InputError, match=(
      "has no tensor encoder.layer.0.attention.self.key.bias")):
    pretrained.values(model, str(tmp_path))
  for one, other in zip(model.get_weights(), weights, strict=True):
    np.testing.assert_array_equal(one, other)
  (tmp_path / "model.safetensors").write_bytes(b"no tensors")
  with pytest.raises(config.InputError, match="safetensors cannot be read"):
    pretrained.values(model, str(tmp_path))
  (tmp_path / "model.safetensors").unlink()
  with pytest.raises(config.InputError, match="has no model.safetensors and"):
    pretrained.values(model, str(tmp_path))
