"""The tasks of GLUE, from TSV files or TensorFlow Datasets."""

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Any, NamedTuple
import unicodedata

import numpy as np
import tensorflow as tf

from conadv_tf.config import ExperimentConfig, InputError
from conadv_tf.data import source, tfds_source, tokenizer, tsv

_BATCH = 2048
_SCORES = (0.0, 5.0)  # Of similarity.


@dataclasses.dataclass(frozen=True)
class Task:
  """What a task's files hold and how it is scored.

  Attributes:
    columns: of the sentences, one or two; as TensorFlow Datasets names them.
    classes: names, in the order of their labels; () is regression.
    metrics: figures of an evaluation, the task's main one first; see
      `evaluation.text`.
    sizes: published numbers of training and validation examples.
    files: the TSV files `<files[0]>.tsv` and `<files[1]>.tsv`.
    splits: of the builder.
  """
  columns: tuple[str, ...]
  classes: tuple[str, ...]
  metrics: tuple[str, ...]
  sizes: tuple[int, int]
  files: tuple[str, str]
  splits: tuple[str, str] = ('train', 'validation')

  @property
  def num_classes(self) -> int:
    """Outputs of the model, 1 for regression."""
    return len(self.classes) or 1

  @property
  def label(self) -> str:
    """The TSV column of labels."""
    return 'label' if self.classes else 'score'


def _files(name: str) -> tuple[str, str]:
  return f'{name}_train', f'{name}_dev'


_TWO = ('sentence1', 'sentence2')
_NLI = ('entailment', 'not_entailment')
_MNLI = dict(columns=('premise', 'hypothesis'), metrics=('accuracy',),
             classes=('entailment', 'neutral', 'contradiction'))
_SAME = ('not_equivalent', 'equivalent')
TASKS = {
    'sst2': Task(('sentence',), ('negative', 'positive'), ('accuracy',),
                 (67349, 872), _files('sst2')),
    'cola': Task(('sentence',), ('unacceptable', 'acceptable'),
                 ('matthews', 'accuracy'), (8551, 1043), _files('cola')),
    'mrpc': Task(_TWO, _SAME, ('f1', 'accuracy'), (3668, 408), _files('mrpc')),
    'rte': Task(_TWO, _NLI, ('accuracy',), (2490, 277), _files('rte')),
    'stsb': Task(_TWO, (), ('pearson', 'spearman'), (5749, 1500),
                 _files('stsb')),
    'mnli': Task(**_MNLI, sizes=(392702, 9815), files=_files('mnli'),
                 splits=('train', 'validation_matched')),
    'mnli_mismatched': Task(
        **_MNLI, sizes=(392702, 9832),
        files=('mnli_train', 'mnli_mismatched_dev'),
        splits=('train', 'validation_mismatched')),
    'qnli': Task(('question', 'sentence'), _NLI, ('accuracy',),
                 (104743, 5463), _files('qnli')),
    'qqp': Task(('question1', 'question2'), ('not_duplicate', 'duplicate'),
                ('f1', 'accuracy'), (363846, 40430), _files('qqp')),
}


class TokenSource(source.DecodedSource):
  """Tokens and labels held in memory; an "image" is int32 [L, 2].

  `labels` are float32 where `num_classes` is 1 (regression).
  """

  def __init__(self, tokens: np.ndarray, labels: np.ndarray, *,
               num_classes: int,
               class_names: Sequence[str] | None = None) -> None:
    """Takes integers [n, L, 2] and labels [n]."""
    self.num_examples, self.num_classes = len(tokens), num_classes
    self.image_shape = tuple(tokens.shape[1:])
    self.class_names = tuple(class_names) if class_names else None
    with tf.device('CPU:0'):
      self._tokens = tf.constant(tokens)
      self._labels = tf.constant(
          labels, tf.float32 if num_classes == 1 else tf.int32)

  def read(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """See the base class; tokens are int32 [b, L, 2]."""
    return (tf.cast(tf.gather(self._tokens, indices), tf.int32),
            tf.gather(self._labels, indices))


class _Rows(NamedTuple):
  """A split as text: UTF-8 strings, one list per column, and labels."""
  sentences: list[np.ndarray]
  labels: np.ndarray


def load(config: ExperimentConfig) -> source.Splits:
  """Loads and tokenises a task.

  Args:
    config: `text` names task, vocabulary and length; `data.builder` a builder
      `glue/<task>` (`data.path` is then its data_dir), else `data.path` is the
      folder of the TSV files.

  Raises:
    InputError: for whatever is missing or malformed; of a file with the line.
  """
  data, task = config.data, TASKS[config.text.task]
  if not data.builder and not data.path:
    raise InputError(
        'data.path is null; data.name=glue needs the folder of '
        f'{task.files[0]}.tsv and {task.files[1]}.tsv, or data.builder.')
  words = tokenizer.load(
      config.text.vocabulary, config.model.initial_weights,
      config.text.lower_case, config.text.sequence_length)
  _check_vocabulary(words, config.model.args or {})
  splits = _read_builder(config) if data.builder else [
      _read_file(tsv.find(data.path, name), task) for name in task.files]
  tokens = words.tokens
  if words.is_in_graph:
    tokens = tf.function(tokens, input_signature=[
        tf.TensorSpec([None], tf.string)] * len(task.columns))
  # Ids of two bytes take half the memory, where they fit.
  dtype = np.uint16 if words.vocabulary_size <= 2**16 else np.int32
  train, validation = (
      TokenSource(_tokenised(rows, tokens, dtype), rows.labels,
                  num_classes=task.num_classes, class_names=task.classes)
      for rows in splits)
  return source.Splits(
      source.truncate(train, data.num_examples), validation)


def _check_vocabulary(
    words: tokenizer.WordPiece | tokenizer.ByteLevelBpe,
    args: dict[str, Any]) -> None:
  """Raises InputError where ids are not those of the encoder."""
  size, pad_id = args.get('vocab_size'), args.get('pad_id')
  if isinstance(size, int) and words.vocabulary_size > size:
    raise InputError(
        f'text.vocabulary: has {words.vocabulary_size} tokens, the encoder '
        f'{size} (model.args.vocab_size); give the vocabulary of the encoder')
  if pad_id is not None and words.pad_id != pad_id:
    raise InputError(
        f'text.vocabulary: padding is token {words.pad_id}, of the encoder '
        f'{pad_id} (model.args.pad_id); give the vocabulary of the encoder')


def check(config: ExperimentConfig) -> None:
  """Raises InputError for what the task does not go with; loads nothing."""
  task, name = TASKS[config.text.task], config.text.task
  shortest = 1 + 2 * len(task.columns)
  if config.text.sequence_length < shortest:
    raise InputError(
        f'text.sequence_length: {config.text.sequence_length} leaves no token '
        f'of a sentence of text.task={name}; set at least {shortest}')
  builder = (config.data.builder or '').partition(':')[0].split('/')
  own = task.files[0].removesuffix('_train')
  # Without a name TensorFlow Datasets takes its first, CoLA.
  if builder[0] == 'glue' and [*builder, 'cola'][1] != own:
    raise InputError(
        f'data.builder={config.data.builder}: text.task={name} is in '
        f'glue/{own}; set one to the other, or for TSV files '
        'data.builder=null,data.path=FOLDER')
  smoothing = config.objective.label_smoothing
  if smoothing and not task.classes:
    raise InputError(
        f'objective.label_smoothing: {smoothing:g} and text.task={name} '
        'exclude each other (its labels are numbers, not classes); set 0')
  target = config.evaluation.target_accuracy
  if target is not None and 'accuracy' not in task.metrics:
    raise InputError(
        f'evaluation.target_accuracy: text.task={name} has no accuracy, its '
        f'figures are {", ".join(task.metrics)}; leave it out')


def sizes(config: ExperimentConfig) -> tuple[int, int]:
  """Training and validation examples, of the files or as published.

  The published ones where the files are not there, or are a builder's.
  """
  data, task = config.data, TASKS[config.text.task]
  found = task.sizes
  if data.path and not data.builder and tf.io.gfile.isdir(data.path):
    found = tuple(tsv.count(tsv.find(data.path, n)) for n in task.files)
  train = data.num_examples or found[0]
  if train > found[0]:
    raise InputError(
        f'data.num_examples={train}: must lie in 1 .. {found[0]}, the size of '
        'the training set.')
  return train, found[1]


def _read_file(path: str, task: Task) -> _Rows:
  """Reads and checks a TSV file."""
  table = tsv.read(path, (*task.columns, task.label))
  for name in task.columns:
    for number, sentence in enumerate(table[name], 2):
      if _is_empty(sentence):
        raise InputError(
            f'{path}, line {number}: {name} is empty; mend or remove the '
            'line.')
  labels = [_label(value, task, f'{path}, line {number}')
            for number, value in enumerate(table[task.label], 2)]
  return _Rows([np.array([s.encode('utf-8') for s in table[name]], object)
                for name in task.columns], np.array(labels))


def _is_empty(sentence: str) -> bool:
  """Whether no token comes of it: BERT drops controls, and lone accents."""
  return all(c.isspace() or unicodedata.category(c) in ('Cc', 'Cf', 'Mn')
             for c in sentence)


def _label(value: str | int | float, task: Task, where: str) -> int | float:
  """Returns one label, or raises InputError."""
  kind = int if task.classes else float
  low, high = (0, len(task.classes) - 1) if task.classes else _SCORES
  try:
    number = kind(value)
  except ValueError:
    number = math.nan
  if not low <= number <= high:
    raise InputError(
        f'{where}: {task.label} {value!r} is no '
        f'{"integer" if task.classes else "number"} in {low:g} .. {high:g}; '
        'mend or remove it.')
  return number


def _read_builder(config: ExperimentConfig) -> list[_Rows]:
  """Reads both splits of a builder of TensorFlow Datasets."""
  import tensorflow_datasets as tfds  # Slow to import.

  data, task = config.data, TASKS[config.text.task]
  builder = tfds_source.prepared_builder(data.builder, data.path)
  known = dict(builder.info.features.items())
  wanted = (*task.columns, 'label')
  absent = [name for name in wanted if name not in known]
  if absent:
    raise InputError(
        f'data.builder={data.builder}: no feature {", ".join(absent)}, which '
        f'text.task={config.text.task} has; its features are '
        f'{", ".join(known)}.')
  missing = [name for name in task.splits if name not in builder.info.splits]
  if missing:
    raise InputError(
        f'data.builder={data.builder}: no split {", ".join(missing)}; its '
        f'splits are {", ".join(builder.info.splits)}.')
  found = []
  for split in task.splits:
    dataset = builder.as_dataset(
        split=split, shuffle_files=False,
        read_config=tfds.ReadConfig(try_autocache=False))
    batches = list(tfds.as_numpy(dataset.batch(_BATCH)))
    column = {name: np.concatenate([batch[name] for batch in batches])
              for name in wanted}
    for name in task.columns:
      for row, sentence in enumerate(column[name]):
        if _is_empty(sentence.decode('utf-8', 'replace')):
          raise InputError(
              f'data.builder={data.builder} ({split}), example {row}: {name} '
              'is empty.')
    labels = [
        _label(value, task,
               f'data.builder={data.builder} ({split}), example {row}')
        for row, value in enumerate(column['label'].tolist())]
    found.append(_Rows([column[name] for name in task.columns],
                       np.array(labels)))
  return found


def _tokenised(rows: _Rows, tokens: Callable[..., tf.Tensor], dtype: type
               ) -> np.ndarray:
  """Returns integers [n, L, 2]."""
  parts = []
  with tf.device('CPU:0'):
    for first in range(0, len(rows.labels), _BATCH):
      parts.append(tokens(*(
          tf.constant(column[first:first + _BATCH].tolist())
          for column in rows.sentences)).numpy().astype(dtype))
  return np.concatenate(parts)
