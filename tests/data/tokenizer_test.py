"""Tokens of sentences, against ids worked out by hand."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from conadv_tf.config import InputError
from conadv_tf.data import tokenizer
from tests import sentences

_PAD, _UNK, _CLS, _SEP = range(4)


def _id(word: str) -> int:
  return sentences.VOCABULARY.index(word)


def _words(length: int = 8, lower_case: bool = True) -> tokenizer.WordPiece:
  return tokenizer.WordPiece(list(sentences.VOCABULARY), lower_case, length)


def test_word_pieces_segments_and_padding() -> None:
  tokens = tf.function(_words().tokens)(
      tf.constant(['unwatchable film.', 'GOOD']),
      tf.constant(['very bad', 'zzz']))
  assert tokens.dtype == tf.int32 and tokens.shape[1:] == [8, 2]
  # 4 + 1 pieces and [CLS], 2 + 2 and two [SEP] are 10: the longer sentence
  # gives way until both have what is left of 5.
  un, watch, able = map(_id, ('un', '##watch', '##able'))
  np.testing.assert_array_equal(tokens[..., 0], [
      [_CLS, un, watch, able, _SEP, _id('very'), _id('bad'), _SEP],
      [_CLS, _id('good'), _SEP, _UNK, _SEP, _PAD, _PAD, _PAD]])
  np.testing.assert_array_equal(tokens[..., 1], [
      [0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0, 0]])


def test_one_sentence_is_cut_to_the_length() -> None:
  tokens = _words(4).tokens(tf.constant(['very very bad film']))
  np.testing.assert_array_equal(
      tokens[0, :, 0], [_CLS, _id('very'), _id('very'), _SEP])


# BERT's rule: while both are too long, take a token off the longer one, and
# off the second where they are equal.
@pytest.mark.parametrize('first, second', [
    (9, 2), (2, 9), (9, 9), (4, 3), (1, 1), (3, 4)])
def test_the_longer_sentence_is_cut_first(first: int, second: int) -> None:
  tokens = _words(10).tokens(tf.constant([' '.join(['good'] * first)]),
                             tf.constant([' '.join(['bad'] * second)]))
  while first + second > 10 - 3:
    if first > second:
      first -= 1
    else:
      second -= 1
  ids = tokens[0, :, 0].numpy().tolist()
  assert (ids.count(_id('good')), ids.count(_id('bad'))) == (first, second)


def test_case_and_accents() -> None:
  # An ellipsis is one character, not three full stops.
  lower = _words().tokens(tf.constant(['É Good …']))[0, 1:5, 0]
  np.testing.assert_array_equal(lower, [_id('e'), _id('good'), _UNK, _SEP])
  kept = _words(lower_case=False).tokens(tf.constant(['é Good']))[0, 1:3, 0]
  np.testing.assert_array_equal(kept, [_id('é'), _UNK])


def test_the_folder_says_whether_it_is_lower_case(
    tmp_path: pathlib.Path) -> None:
  sentences.make(tmp_path)
  text = tf.constant(['Good'])

  def second_id(*args: object) -> int:
    return int(tokenizer.load(*args, 8).tokens(text)[0, 1, 0])

  path = str(tmp_path)
  assert second_id(path, None, None) == _id('good')
  (tmp_path / 'tokenizer_config.json').write_text(
      json.dumps({'do_lower_case': False}))
  assert second_id(path, None, None) == _UNK
  assert second_id(f'{path}/vocab.txt', None, None) == _UNK
  assert second_id(path, None, True) == _id('good')
  assert second_id(None, path, None) == _UNK
  assert second_id(None, f'{path}/bert_model.ckpt', None) == _UNK


def test_a_saved_model_holds_it(tmp_path: pathlib.Path) -> None:
  words = _words()
  module = tf.Module()
  module.words = words
  module.tokens = tf.function(
      words.tokens, input_signature=2 * [tf.TensorSpec([None], tf.string)])
  tf.saved_model.save(module, str(tmp_path / 'saved'))
  text = tf.constant(['unwatchable film', 'good'])
  loaded = tf.saved_model.load(str(tmp_path / 'saved'))
  np.testing.assert_array_equal(
      loaded.tokens(text, text[::-1]), words.tokens(text, text[::-1]))
  # TensorFlow Serving holds those of tensorflow_text 2.12, not of 2.15.
  proto = saved_model_pb2.SavedModel.FromString(
      (tmp_path / 'saved' / 'saved_model.pb').read_bytes())
  graph = proto.meta_graphs[0].graph_def
  operations = {node.op for nodes in (
      graph.node, *(f.node_def for f in graph.library.function))
                for node in nodes}
  functions = {f.signature.name for f in graph.library.function}
  assert {op for op in operations - functions
          if not hasattr(tf.raw_ops, op)} == {
              'FastBertNormalize', 'FastWordpieceTokenizeWithOffsets',
              'NormalizeUTF8'}


def test_bad_vocabularies(tmp_path: pathlib.Path) -> None:
  def refused(message: str, *args: object) -> None:
    with pytest.raises(InputError, match=message):
      tokenizer.load(*args, None, 8)

  refused('text.vocabulary is null, and so is model.initial_weights', None,
          None)
  refused('text.vocabulary=/no/vocab.txt: no such file', '/no/vocab.txt', None)
  refused('holds no vocabulary', str(tmp_path), None)
  refused(f'model.initial_weights={tmp_path}: holds no vocabulary', None,
          str(tmp_path))
  path = tmp_path / 'vocab.txt'
  path.write_text('[PAD]\n[UNK]\ngood\n')
  refused(r'has no \[CLS\], \[SEP\]', str(path), None)
  path.write_text('good\nbad\ngood\n')
  refused("holds 'good' twice", str(path), None)
  path.write_bytes(b'good\n\xff\n')
  refused('not UTF-8', str(path), None)
  sentences.make(tmp_path)
  (tmp_path / 'tokenizer_config.json').write_text('{')
  refused('tokenizer_config.json: not JSON', str(path), None)


def _bpe(folder: pathlib.Path) -> str:
  """A tiny RoBERTa vocabulary: bytes, and one merge."""
  words = ['<s>', '<pad>', '</s>', '<unk>', 'o', 'k', 'ok', 'Ġ', 'Ġok']
  (folder / 'vocab.json').write_text(
      json.dumps({word: i for i, word in enumerate(words)}))
  (folder / 'merges.txt').write_text('#version: 0.2\no k\nĠ ok\n')
  return str(folder)


def test_byte_level_bpe(tmp_path: pathlib.Path) -> None:
  pytest.importorskip('tokenizers')
  words = tokenizer.load(_bpe(tmp_path), None, None, 8)
  assert not words.is_in_graph and words.pad_id == 1
  tokens = words.tokens(tf.constant(['ok ok ok', 'ok']),
                        tf.constant(['ok', 'k']))
  np.testing.assert_array_equal(tokens[..., 0], [
      [0, 6, 8, 8, 2, 2, 6, 2], [0, 6, 2, 2, 5, 2, 1, 1]])
  assert not tokens[..., 1].numpy().any()


def test_byte_level_bpe_needs_a_package(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setitem(__import__('sys').modules, 'tokenizers', None)
  with pytest.raises(InputError, match='needs the package tokenizers'):
    tokenizer.load(_bpe(tmp_path), None, None, 8)
