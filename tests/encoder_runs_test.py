"""Runs that start from a published encoder."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import config, runs, saved_runs
from conadv_tf.training import run_directory, warm_start
from conadv_tf.training import trainer as trainers
from tests import published_encoders, sentences

pytest.importorskip("safetensors")
ENCODER = dict(published_encoders.BERT, vocab_size=len(sentences.VOCABULARY))


def settings(tmp_path: pathlib.Path, *overrides: str
             ) -> config.ExperimentConfig:
  return sentences.load(
      sentences.make(tmp_path), "model.name=bert,schedule.peak_lr=0.01",
      f"model.initial_weights={tmp_path / 'encoder'}", *overrides)


@pytest.mark.slow
def test_from_a_checkpoint_to_an_export(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture) -> None:
  path, run = tmp_path / "encoder", tmp_path / "run"
  tensors = published_encoders.write(path, ENCODER)
  started, load = [], warm_start.load

  # What the first update starts from.
  def loading(trainer: trainers.Trainer, *args: object) -> None:
    load(trainer, *args)
    started.append({v.name: v.numpy() for v in trainer.network.variables})

  monkeypatch.setattr(warm_start, "load", loading)
  runs.run(settings(tmp_path), str(run), quiet=True)
  np.testing.assert_array_equal(
      started[0]["word_embeddings/embeddings:0"],
      tensors["embeddings.word_embeddings.weight"])
  np.testing.assert_array_equal(
      started[0]["layer_1/intermediate/kernel:0"],
      tensors["encoder.layer.1.intermediate.dense.weight"].T)
  assert np.abs(started[0]["logits/kernel:0"]).max() <= 0.04
  assert caplog.text.count(
      "does not hold logits/kernel, logits/bias, which start anew") == 1

  # Nothing of it is needed again.
  shutil.rmtree(path)
  saved = run_directory.RunDirectory(str(run)).saved_config().model.args
  assert saved["hidden_size"] == 8 and saved["max_positions"] == 10
  results = json.loads((run / "results.json").read_text())
  (run / "results.json").unlink()
  assert runs.run(settings(tmp_path), str(run), quiet=True) == results
  restored, checkpoint = saved_runs.restore(str(run))
  assert restored.evaluate()["loss"] == results["validation/loss"]

  saved_runs.export(restored, checkpoint.step, str(tmp_path / "out"))
  texts = tf.constant(["very good film .", "very bad film ."])
  validation = next(iter(restored.evaluation_dataset("validation")))[0]
  expected = restored.evaluator("clean").logits(validation[:2])
  served = tf.saved_model.load(str(tmp_path / "out")).signatures[
      "serving_sentences"](sentence=texts)
  np.testing.assert_allclose(served["logits"], expected, atol=1e-6)
  assert len(started) == 1


def test_refused_sources_write_nothing(tmp_path: pathlib.Path) -> None:
  path, run = tmp_path / "encoder", tmp_path / "run"

  def assert_refused(message: str, *overrides: str) -> None:
    with pytest.raises(config.InputError, match=message):
      runs.run(settings(tmp_path, *overrides), str(run), quiet=True)
    assert not run.exists()

  assert_refused("encoder does not exist")
  tensors = published_encoders.write(path, ENCODER)
  assert_refused("model.args.hidden_size is 16 and 8 in .*config.json",
                 "model.args={hidden_size: 16}")
  words, other = sentences.VOCABULARY, tmp_path / "other.txt"
  other.write_text("\n".join((*words[1:4], words[0], *words[4:])))
  assert_refused(r"padding is token 3, of the encoder 0 \(model.args.pad_id\)",
                 f"text.vocabulary={other}")
  other.write_text("\n".join((*words, "more")))
  assert_refused(r"has 15 tokens, the encoder 14 \(model.args.vocab_size\)",
                 f"text.vocabulary={other}")
  assert_refused("text.sequence_length: 3 leaves no token of a sentence of "
                 "text.task=mrpc; set at least 5",
                 "text.task=mrpc,text.sequence_length=3")
  published_encoders.write(path, dict(ENCODER, intermediate_size=13), tensors)
  assert_refused(r"layer.0.intermediate.dense.weight has the shape \(12, 8\) "
                 r"in .*, and this model needs \(13, 8\)")
  (path / "model.safetensors").unlink()
  assert_refused("has no model.safetensors and no TensorFlow checkpoint")
