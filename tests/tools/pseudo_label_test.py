"""From a run's predictions to a run that trains on them."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import config, description, experiment, runs, saved_runs
from conadv_tf.training import run_directory
from tests import commands, tiny
from tools import pseudo_labels

_TOOL = 'tools.pseudo_label'
_PLAIN = 'method.name=vanilla'


def _images() -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), np.uint8)


@pytest.fixture(scope='module')
def teacher(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('teacher')
  runs.run(tiny.load(_PLAIN), str(path), quiet=True)
  return path


@pytest.fixture(scope='module')
def labelled(teacher: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
             ) -> pathlib.Path:
  """What the command makes of images whose labels are wrong."""
  folder = tmp_path_factory.mktemp('labelled')
  np.savez(folder / 'images.npz', x_train=_images(), y_train=np.full(7, 99))
  done = commands.run(_TOOL, f'--model_dir={teacher}',
                      f'--data={folder / "images.npz"}',
                      f'--output={folder / "new" / "labelled.npz"}')
  assert done.code == 0, done.err
  assert done.out.endswith('labelled.npz: 7 of 7 images with pseudo-labels\n')
  return folder / 'new' / 'labelled.npz'


def test_labels_are_the_clean_predictions(
    teacher: pathlib.Path, labelled: pathlib.Path,
    tmp_path: pathlib.Path) -> None:
  restored, _ = saved_runs.restore(str(teacher))
  outputs = tf.nn.softmax(restored.trainer.merge()(_images())).numpy()
  with np.load(labelled) as file:
    assert sorted(file.files) == ['confidence', 'x_train', 'y_train']
    np.testing.assert_array_equal(file['x_train'], _images())
    np.testing.assert_array_equal(file['y_train'], outputs.argmax(1))
    assert file['y_train'].dtype == np.uint8
    np.testing.assert_allclose(file['confidence'], outputs.max(1), atol=1e-6)
    assert file['confidence'].dtype == np.float32
    confidence = file['confidence']
  # Only what is sure enough.
  least = float(np.median(confidence))
  sure = confidence >= least
  assert 0 < sure.sum() < 7
  output = tmp_path / 'sure.npz'
  np.savez(tmp_path / 'images.npz', x_train=_images())
  assert pseudo_labels.label(
      restored, str(tmp_path / 'images.npz'), str(output), least
  ) == (sure.sum(), 7)
  with np.load(output) as file:
    np.testing.assert_array_equal(file['x_train'], _images()[sure])
    np.testing.assert_array_equal(file['y_train'], outputs.argmax(1)[sure])
  with pytest.raises(config.InputError, match='no image reaches it'):
    pseudo_labels.label(restored, str(tmp_path / 'images.npz'), str(output), 1)


@pytest.mark.slow
def test_a_run_on_pseudo_labels_resumes_bit_for_bit(
    labelled: pathlib.Path, tmp_path: pathlib.Path) -> None:
  settings = tiny.load(
      _PLAIN, 'data.unlabelled_fraction=0.5,data.pseudo_labels=true,'
      f'data.unlabelled_path={labelled},runtime.micro_batches=2')
  whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
  runs.run(settings, str(whole), quiet=True)
  shutil.copytree(whole, resumed)
  directory = run_directory.RunDirectory(str(resumed))
  assert directory.checkpoints.steps() == [3, 6]
  shutil.rmtree(next((resumed / 'checkpoints').glob('*6')))
  (resumed / 'results.json').unlink()
  runs.run(settings, str(resumed), quiet=True)
  ends = []
  for path in (whole, resumed):
    restored, saved = saved_runs.restore(str(path))
    assert saved.step == 6
    ends.append([v.numpy() for v in restored.trainer.network.variables])
  for one, other in zip(*ends, strict=True):
    np.testing.assert_array_equal(one, other)
  # Half of the rows are other images, so the weights are others.
  plain = tmp_path / 'plain'
  runs.run(tiny.load(_PLAIN, 'runtime.micro_batches=2'), str(plain),
           quiet=True)
  trained = saved_runs.restore(str(plain))[0].trainer.network.variables
  assert not np.array_equal(trained[0].numpy(), ends[0][0])
  # Epochs count rows of both kinds: the same updates.
  results = [json.loads((path / 'results.json').read_text())
             for path in (whole, plain)]
  assert [(r['step'], r['epoch']) for r in results] == [(6, 2.0)] * 2


def test_a_description_says_what_is_mixed(labelled: pathlib.Path) -> None:
  pairs = f'data.unlabelled_path={labelled},data.pseudo_labels=true'
  fraction = 'data.unlabelled_fraction=0.3'
  assert (f'unlabelled: images of {labelled} fill 2 of the 8 rows of every '
          'virtual replica (pseudo-labels)') in description.describe_config(
              tiny.load(_PLAIN, pairs, fraction)).splitlines()
  pool = description.describe_config(
      tiny.load(_PLAIN, pairs, 'data.unlabelled_fraction=null'))
  assert pool.startswith('data: synthetic, 31 training and ')
  assert 'are part of the training set, drawn like all others' in pool
  off = description.describe_config(tiny.load(_PLAIN, pairs))
  assert off.splitlines()[-1].startswith(
      'set but not used: data.unlabelled_path, data.pseudo_labels')


def test_a_pool_makes_longer_epochs(labelled: pathlib.Path) -> None:
  built = experiment.build(tiny.load(
      _PLAIN, f'data.unlabelled_path={labelled},data.pseudo_labels=true,'
      'data.unlabelled_fraction=null,data.global_batch_size=31'))
  assert built.config.derived.num_examples == 31
  assert built.config.derived.total_steps == 2
  _, labels, _ = next(iter(built.train_dataset(0)))
  with np.load(labelled) as file:
    expected = np.concatenate([
        built.splits.train.read(tf.range(24, dtype=tf.int64))[1],
        file['y_train']])
  np.testing.assert_array_equal(np.sort(labels), np.sort(expected))


@pytest.mark.parametrize('change, message', [
    ({'data': None}, '--data is missing'),
    ({'data': 'gone.npz'}, '--data=gone.npz: no such file'),
    ({'data': 'grey.npz'}, 'have the shape (4, 4, 1), those of the run '
     '(4, 4, 3)'),
    ({'data': 'other.npz'}, 'no x_train; the keys found are images'),
    ({'output': 'grey.npz'}, 'name another file'),
    ({'model_dir': 'nothing'}, 'holds no run'),
    ({'min_confidence': '2'}, 'min_confidence'),
])
def test_refuses(teacher: pathlib.Path, tmp_path: pathlib.Path,
                 monkeypatch: pytest.MonkeyPatch, change: dict,
                 message: str) -> None:
  monkeypatch.chdir(tmp_path)
  np.savez('grey.npz', x_train=_images()[..., 0])
  np.savez('other.npz', images=_images())
  flags = {'model_dir': str(teacher), 'data': 'grey.npz',
           'output': 'out.npz', **change}
  before = sorted(path.name for path in tmp_path.iterdir())
  done = commands.run(_TOOL, *(
      f'--{name}={value}' for name, value in flags.items() if value))
  assert message in done.refusal()
  assert sorted(path.name for path in tmp_path.iterdir()) == before
