"""Tasks of GLUE from files and builders."""

from collections.abc import Iterator
import gzip
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from conadv_tf.config import InputError
from conadv_tf.data import glue, pipeline, source
from tests import sentences

_REAL = pathlib.Path(__file__).resolve().parents[3] / 'shared/data/glue'


def _load(folder: pathlib.Path, task: str = 'sst2', pairs: str = 'seed=0'
          ) -> source.Splits:
  return glue.load(sentences.load(sentences.make(folder, task), pairs))


def _tokens(data: source.Source) -> tuple[np.ndarray, np.ndarray]:
  (tokens, labels, _), = pipeline.evaluation_dataset(
      data, data.num_examples).as_numpy_iterator()
  return tokens, labels


def test_sentences_and_labels(tmp_path: pathlib.Path) -> None:
  splits = _load(tmp_path)
  tokens, labels = _tokens(splits.validation)
  assert tokens.dtype == np.int32 and labels.dtype == np.int32
  word = sentences.VOCABULARY.index
  np.testing.assert_array_equal(
      tokens[0, :, 0], [2, word('very'), word('good'), word('film'), word('.'),
                        3, 0, 0])
  np.testing.assert_array_equal(labels, [1, 0, 1, 0, 1, 0])
  assert splits.train.class_names == ('negative', 'positive')
  assert splits.train._tokens.dtype == tf.uint16  # pylint: disable=protected-access


def test_pairs_of_regression(tmp_path: pathlib.Path) -> None:
  splits = _load(tmp_path, 'stsb')
  tokens, labels = _tokens(splits.validation)
  assert splits.validation.num_classes == 1
  np.testing.assert_array_equal(
      tokens[1, :, 1], [0, 0, 0, 0, 0, 0, 1, 1])
  np.testing.assert_array_equal(
      labels, np.float32([0.5, 2, 0.5, 2, 0.5, 2]))


def test_pipelines_take_tokens(tmp_path: pathlib.Path) -> None:
  splits = _load(tmp_path, pairs='data.num_examples=10')
  assert splits.train.num_examples == 10
  known = {row.tobytes() for row in _tokens(splits.train)[0]}
  (tokens, labels, weight), = pipeline.train_dataset(
      splits.train, global_batch_size=10, num_steps=1).as_numpy_iterator()
  assert tokens.shape == (10, 8, 2) and weight.sum() == 10
  # A permutation of the 10: "good" and its label go together.
  assert {row.tobytes() for row in tokens} == known
  good = sentences.VOCABULARY.index('good')
  np.testing.assert_array_equal((tokens[..., 0] == good).any(axis=1), labels)
  drawn, _, _ = pipeline.drawn_dataset(
      splits.train, 4, seed=0, number=0).get_single_element()
  assert drawn.dtype == tf.int32 and drawn.shape == (4, 8, 2)


@pytest.mark.parametrize('content, message', [
    (b'sentence\tlabel\nok\t1\nok\n', 'line 3: 1 fields, the header has 2'),
    (b'sentence\tlabel\nok\t1\n\xff\xfe\t1\n', 'line 3: invalid UTF-8 at byte'),
    (b'sentence\tlabel\nok\t1\n \t1\n', 'line 3: sentence is empty'),
    ('sentence\tlabel\n\u200b\x7f\t1\n'.encode(), 'line 2: sentence is empty'),
    ('sentence\tlabel\n\u0301\t1\n'.encode(), 'line 2: sentence is empty'),
    (b'sentence\tlabel\nok\t2\n', "line 2: label '2' is no integer in 0 .. 1"),
    (b'sentence\tlabel\nok\t1.0\n', "line 2: label '1.0' is no integer"),
    (b'sentence\tscore\nok\t1\n', 'no column label; its header line has '
     'sentence, score'),
    (b'sentence\tlabel\n', 'has no rows'), (b'', 'is empty')])
def test_bad_files(content: bytes, message: str,
                   tmp_path: pathlib.Path) -> None:
  keys = sentences.make(tmp_path)
  (tmp_path / 'sst2_train.tsv').write_bytes(content)
  with pytest.raises(InputError, match=message):
    glue.load(sentences.load(keys))


def test_scores_out_of_range(tmp_path: pathlib.Path) -> None:
  keys = sentences.make(tmp_path, 'stsb')
  sentences.write(tmp_path / 'stsb_dev.tsv', ['score', 'sentence2',
                                              'sentence1'],
                  [[0.5, 'a', 'b'], ['nan', 'a', 'b']])
  with pytest.raises(InputError, match="stsb_dev.tsv, line 3: score 'nan' is "
                     'no number in 0 .. 5'):
    glue.load(sentences.load(keys))


def test_missing_and_damaged_files(tmp_path: pathlib.Path) -> None:
  keys = sentences.make(tmp_path)
  path = tmp_path / 'sst2_dev.tsv'
  content = path.read_bytes()
  path.unlink()
  with pytest.raises(InputError, match='no sst2_dev.tsv or sst2_dev.tsv.gz'):
    glue.load(sentences.load(keys))
  packed = tmp_path / 'sst2_dev.tsv.gz'
  packed.write_bytes(gzip.compress(content)[:-9])
  with pytest.raises(InputError, match='sst2_dev.tsv.gz: cannot be read'):
    glue.load(sentences.load(keys))
  packed.write_bytes(gzip.compress(content))
  assert glue.load(sentences.load(keys)).validation.num_examples == 6
  with pytest.raises(InputError, match='data.path is null'):
    glue.load(sentences.load('text.vocabulary=x'))


class ConadvGlue(tfds.core.GeneratorBasedBuilder):
  """Two pairs of MRPC's kind."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({
        'sentence1': tfds.features.Text(), 'sentence2': tfds.features.Text(),
        'label': tfds.features.ClassLabel(num_classes=2),
        'idx': np.int32}))

  def _split_generators(self, manager: object) -> dict:
    return {'train': self._generate_examples(),
            'validation': self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict]]:
    for i in range(2):
      yield i, {'sentence1': 'good film', 'sentence2': 'bad', 'label': i,
                'idx': i}


def test_a_builder(tmp_path: pathlib.Path) -> None:
  keys = sentences.make(tmp_path)
  pairs = 'data.builder=conadv_glue,data.num_examples=null'
  splits = glue.load(sentences.load(keys, pairs, 'text.task=mrpc'))
  tokens, labels = _tokens(splits.validation)
  np.testing.assert_array_equal(np.sort(labels), [0, 1])
  np.testing.assert_array_equal(tokens[0, :, 0], [2, 4, 6, 3, 5, 3, 0, 0])
  with pytest.raises(InputError, match='no feature sentence, which '
                     'text.task=sst2 has'):
    glue.load(sentences.load(keys, pairs))


@pytest.mark.skipif(not _REAL.is_dir(), reason='needs the GLUE files')
@pytest.mark.parametrize('task', ['sst2', 'cola', 'mrpc', 'rte', 'stsb'])
def test_the_real_files_have_the_published_sizes(task: str) -> None:
  assert glue.sizes(sentences.load(
      f'data.path={_REAL},data.num_examples=null,text.task={task}')
  ) == glue.TASKS[task].sizes
