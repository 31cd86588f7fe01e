"""Sentences to token ids: WordPiece in the graph, byte-level BPE outside it."""

import json
import os
from typing import Any

import tensorflow as tf

from conadv_tf.config import InputError
from conadv_tf.data import checks

_WORDPIECE = 'vocab.txt'
_BPE = ('vocab.json', 'merges.txt')


class WordPiece(tf.Module):
  """BERT's tokeniser as TensorFlow operations, which a SavedModel may hold.

  [CLS] a [SEP], for pairs [CLS] a [SEP] b [SEP]; the longer sentence of a
  pair loses its last tokens first.

  Attributes:
    pad_id: of the token behind the end.
    vocabulary_size: of ids.
  """

  is_in_graph = True

  def __init__(self, words: list[str], lower_case: bool, length: int,
               where: str = 'the vocabulary') -> None:
    """Takes the tokens in the order of their ids.

    Args:
      words: of a vocab.txt.
      lower_case: whether to lower case and take accents off.
      length: L, of every example.
      where: what the vocabulary is, for messages.

    Raises:
      InputError: [PAD], [UNK], [CLS] or [SEP] is missing.
    """
    import tensorflow_text as tf_text  # Slow to import.

    super().__init__(name='word_piece')
    special = ('[PAD]', '[UNK]', '[CLS]', '[SEP]')
    missing = [word for word in special if word not in words]
    if missing:
      raise InputError(
          f'text.vocabulary: {where} has no {", ".join(missing)}; give the '
          'vocab.txt of a BERT.')
    self.vocabulary_size, self._length = len(words), length
    self.pad_id, _, self._start, self._end = map(words.index, special)
    with tf.device('CPU:0'):
      # BertTokenizer gives the same tokens and takes six times as long.
      self._tokenizer = tf_text.FastBertTokenizer(
          words, token_out_type=tf.int32)
    self._lower_case = lower_case
    self._text = tf_text

  def tokens(self, sentences: tf.Tensor, second: tf.Tensor | None = None
             ) -> tf.Tensor:
    """Makes tokens; works in a `tf.function`.

    Args:
      sentences: strings [b], UTF-8.
      second: strings [b] of a task on pairs, else None.

    Returns:
      int32 [b, L, 2]: ids, padded at the right end, and segments (0 for the
      first sentence and padding, 1 for the second).
    """
    parts = [self._tokenizer.tokenize(self._cased(part))
             for part in (sentences, second) if part is not None]
    parts = _trimmed(parts, self._length - 1 - len(parts))
    ids, segments = self._text.combine_segments(
        parts, self._start, self._end)
    ids, segments = (
        self._text.pad_model_inputs(value, self._length, pad)[0]
        for value, pad in ((ids, self.pad_id), (segments, 0)))
    return tf.ensure_shape(
        tf.stack([ids, segments], axis=-1), [None, self._length, 2])

  def _cased(self, sentences: tf.Tensor) -> tf.Tensor:
    if not self._lower_case:
      return sentences
    # The tokeniser's own lower case takes apart characters that BERT's
    # leaves, such as an ellipsis.
    return tf.strings.regex_replace(self._text.normalize_utf8(
        tf.strings.lower(sentences, 'utf-8'), 'NFD'), r'\p{Mn}', '')


def _trimmed(parts: list[tf.RaggedTensor], room: int
             ) -> list[tf.RaggedTensor]:
  """Cuts one or two sentences, [b, (tokens)], to `room` tokens in all.

  The longer of two is cut first, and of two long ones the second gets half,
  rounded down. This is RoundRobinTrimmer of tensorflow_text, whose operation
  the binaries of TensorFlow Serving do not have.
  """
  lengths = [part.row_lengths() for part in parts]
  if len(parts) == 1:
    kept = [tf.minimum(lengths[0], room)]
  else:
    first = tf.minimum(
        lengths[0], tf.maximum(room - lengths[1], (room + 1) // 2))
    kept = [first, tf.minimum(lengths[1], room - first)]
  return [tf.RaggedTensor.from_tensor(part.to_tensor(shape=[None, room]), size)
          for part, size in zip(parts, kept)]


class ByteLevelBpe:
  """RoBERTa's tokeniser, of the optional package `tokenizers`.

  <s> a </s>, for pairs <s> a </s></s> b </s>, all of segment 0; longest first
  as above.
  """

  is_in_graph = False

  def __init__(self, folder: str, length: int) -> None:
    """Reads vocab.json and merges.txt.

    Raises:
      InputError: the package is not installed, or the files are damaged.
    """
    try:
      from tokenizers import implementations, processors
    except ImportError as error:
      raise InputError(
          f'text.vocabulary: {folder} is of a RoBERTa, whose tokeniser needs '
          'the package tokenizers; pip install -c constraints.txt -r '
          'requirements-extra.txt') from error
    try:
      self._tokenizer = implementations.ByteLevelBPETokenizer(
          *(os.path.join(folder, name) for name in _BPE))
    except Exception as error:  # The package raises plain Exception.
      raise InputError(
          f'text.vocabulary: {folder} cannot be read '
          f'({checks.first_line(error)}); give vocab.json and merges.txt of a '
          'RoBERTa.') from error
    ids = {word: self._tokenizer.token_to_id(word)
           for word in ('<s>', '</s>', '<pad>')}
    missing = [word for word, number in ids.items() if number is None]
    if missing:
      raise InputError(
          f'text.vocabulary: {folder} has no {", ".join(missing)}; give '
          'vocab.json and merges.txt of a RoBERTa.')
    self.pad_id, self._length = ids['<pad>'], length
    self.vocabulary_size = self._tokenizer.get_vocab_size()
    self._tokenizer.post_processor = processors.RobertaProcessing(
        ('</s>', ids['</s>']), ('<s>', ids['<s>']), add_prefix_space=False)
    self._tokenizer.enable_truncation(length)  # Longest first.
    self._tokenizer.enable_padding(
        pad_id=self.pad_id, pad_token='<pad>', length=length)

  def tokens(self, sentences: tf.Tensor, second: tf.Tensor | None = None
             ) -> tf.Tensor:
    """Makes tokens, eagerly only; see `WordPiece.tokens`."""
    parts = [[text.decode('utf-8') for text in part.numpy()]
             for part in (sentences, second) if part is not None]
    texts = parts[0] if len(parts) == 1 else list(zip(*parts, strict=True))
    ids = tf.constant(
        [e.ids for e in self._tokenizer.encode_batch(texts)], tf.int32)
    return tf.stack([ids, tf.zeros_like(ids)], axis=-1)


Tokenizer = WordPiece | ByteLevelBpe


def load(vocabulary: str | None, initial_weights: str | None,
         lower_case: bool | None, length: int) -> Tokenizer:
  """Makes the tokeniser that a configuration names.

  Args:
    vocabulary: `text.vocabulary`, a vocab.txt or a folder with one, or with
      RoBERTa's vocab.json and merges.txt; null means the folder of
      `initial_weights`.
    initial_weights: `model.initial_weights`, a folder or a checkpoint's
      prefix in one.
    lower_case: null is do_lower_case of tokenizer_config.json beside the
      vocabulary, or true where that says nothing.
    length: `text.sequence_length`.

  Raises:
    InputError: no vocabulary, or one that cannot be read.
  """
  option, path = 'text.vocabulary', vocabulary
  if path is None:
    if initial_weights is None:
      raise InputError(
          'text.vocabulary is null, and so is model.initial_weights; name a '
          'vocab.txt or the folder of an encoder.')
    option, path = 'model.initial_weights', initial_weights
    if not tf.io.gfile.isdir(path):
      path = os.path.dirname(path)
  if not tf.io.gfile.isdir(path):
    return _word_piece(option, path, os.path.dirname(path), lower_case, length)
  if tf.io.gfile.exists(os.path.join(path, _WORDPIECE)):
    return _word_piece(
        option, os.path.join(path, _WORDPIECE), path, lower_case, length)
  if all(tf.io.gfile.exists(os.path.join(path, name)) for name in _BPE):
    return ByteLevelBpe(path, length)
  raise InputError(
      f'{option}={path}: holds no vocabulary (vocab.txt, or vocab.json and '
      'merges.txt); set text.vocabulary to one.')


def _word_piece(option: str, path: str, folder: str, lower_case: bool | None,
                length: int) -> WordPiece:
  """Reads a vocab.txt."""
  if not path or not tf.io.gfile.exists(path):
    raise InputError(
        f'{option}={path}: no such file; name a vocab.txt or the folder of an '
        'encoder.')
  try:
    words = _read(path).split('\n')
  except UnicodeDecodeError as error:
    raise InputError(
        f'{option}={path}: not UTF-8 ({checks.first_line(error)}); give the '
        'vocab.txt of a BERT.') from error
  # A token may be any character but a line feed.
  words = [word.removesuffix('\r') for word in words]
  if words[-1] == '':
    words.pop()
  if len(set(words)) < len(words):
    twice = next(w for i, w in enumerate(words) if w in words[:i])
    raise InputError(
        f'{option}={path}: holds {twice!r} twice; give the vocab.txt of a '
        'BERT.')
  if lower_case is None:
    lower_case = _settings(folder).get('do_lower_case', True)
  return WordPiece(words, bool(lower_case), length, path)


def _settings(folder: str) -> dict[str, Any]:
  """The tokenizer_config.json of a folder, {} without one."""
  path = os.path.join(folder, 'tokenizer_config.json')
  if not tf.io.gfile.exists(path):
    return {}
  try:
    settings = json.loads(_read(path))
  except ValueError as error:
    raise InputError(
        f'{path}: not JSON ({checks.first_line(error)}); mend it, or set '
        'text.vocabulary to a vocab.txt elsewhere.') from error
  return settings if isinstance(settings, dict) else {}


def _read(path: str) -> str:
  with tf.io.gfile.GFile(path, 'rb') as file:
    return file.read().decode('utf-8')
