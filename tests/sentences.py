"""The smallest text tasks: files and a vocabulary made on the spot."""

from collections.abc import Sequence
import pathlib

import tensorflow as tf

from conadv_tf import config

layers = tf.keras.layers

WORDS = ('good', 'bad', 'film', 'very', 'un', '##watch', '##able', '.', 'é',
         'e')
# Ids of a vocabulary: 4 + the place of the word above.
VOCABULARY = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', *WORDS)
# 16 updates of 8 examples, 2 an epoch.
SETTINGS = (
    'data.name=glue,data.global_batch_size=8,data.num_examples=16,'
    'text.sequence_length=8,method.name=vanilla,optimizer.name=adamw,'
    'schedule.epochs=8,schedule.peak_lr=0.1,schedule.name=constant,'
    'evaluation.batch_size=5,'
    f'model.name={__name__}:model,runtime.deterministic=true')


def model(input_shape: tuple[int, int], num_classes: int) -> tf.keras.Model:
  """The mean of word embeddings, and a dense layer."""
  inputs = layers.Input(input_shape, dtype='int32')
  vectors = layers.Embedding(len(VOCABULARY), 4, name='word_embeddings')(
      inputs[..., 0])
  return tf.keras.Model(inputs, layers.Dense(num_classes)(
      layers.GlobalAveragePooling1D()(vectors)))


def write(path: pathlib.Path, columns: Sequence[str],
          rows: Sequence[Sequence[object]]) -> None:
  """Writes a TSV file."""
  path.write_text(''.join(
      '\t'.join(map(str, row)) + '\n' for row in (columns, *rows)),
      encoding='utf-8')


def make(folder: pathlib.Path, task: str = 'sst2') -> str:
  """Writes a task of 16 and 6 examples; returns the keys that name it."""
  (folder / 'vocab.txt').write_text('\n'.join(VOCABULARY) + '\n', 'utf-8')
  single = task in ('sst2', 'cola')
  columns = ['sentence'] if single else ['sentence1', 'sentence2']
  columns.append('score' if task == 'stsb' else 'label')
  for part, count in (('train', 16), ('dev', 6)):
    rows = [(*((f'very {WORDS[i % 2]} film .', 'film')[:len(columns) - 1]),
             1.5 * (i % 2) + 0.5 if task == 'stsb' else (i + 1) % 2)
            for i in range(count)]
    write(folder / f'{task}_{part}.tsv', columns, rows)
  return f'data.path={folder},text.vocabulary={folder},text.task={task}'


def load(*overrides: str) -> config.ExperimentConfig:
  """The settings above, overridden."""
  return config.load([], [SETTINGS, *overrides])
