"""The comparison of growing batches: its split, its runs, its table."""

import pathlib
import subprocess

import numpy as np
import pytest

from conadv_tf import config
from tests import commands
from tools import absa_study_runs


def _data(folder: pathlib.Path) -> pathlib.Path:
  random = np.random.default_rng(0)
  arrays = {}
  for split, count in (('train', 16000), ('test', 300)):
    arrays[f'x_{split}'] = random.integers(
        0, 256, (count, 4, 4, 3)).astype(np.uint8)
    arrays[f'y_{split}'] = (np.arange(count) % 10).astype(np.uint8)
  arrays['x_train'][:, 0, 0, 0] = np.arange(16000) // 256
  arrays['x_train'][:, 0, 0, 1] = np.arange(16000) % 256
  np.savez(folder / 'data.npz', **arrays)
  return folder / 'data.npz'


def test_the_test_split_is_not_in_what_is_trained_on(
    tmp_path: pathlib.Path) -> None:
  data = _data(tmp_path)
  absa_study_runs.split(data, tmp_path)
  with np.load(tmp_path / 'train.npz') as arrays:
    numbers = {split: arrays[f'x_{split}'][:, 0, 0, :2] @ [256, 1]
               for split in ('train', 'test')}
    np.testing.assert_array_equal(
        arrays['y_train'], numbers['train'] % 10)
  assert len(set(numbers['train'])) == 10000
  assert numbers['train'].max() < 11000
  assert numbers['test'].tolist() == list(range(11000, 16000))


@pytest.mark.parametrize('way', absa_study_runs.WAYS)
def test_every_way_resolves_with_the_same_budget(way: str) -> None:
  run = config.load(['configs/cifar10/absa_study.yaml'],
                    list(absa_study_runs.WAYS[way]))
  config.validate(run)
  assert config.unused_keys(run) == []
  resolved = config.resolve(run, 10000)
  batch = resolved.data.global_batch_size
  assert resolved.derived.total_steps == round(120000 / batch)
  assert batch // resolved.runtime.micro_batches == 32
  most = resolved.growth.max_batch_size or batch
  assert most == int(way.split('_')[1])


def test_table() -> None:
  results = {'bl_32': {
      seed: {'test/accuracy': accuracy, 'validation/accuracy': 0.5,
             'step': 1562, 'updates': 1562, 'seconds': 10.4}
      for seed, accuracy in ((0, 0.5), (1, 0.51), (2, 0.52))}}
  results['fb_512'] = {0: None, 1: results['bl_32'][0], 2: None}
  results['x'] = {0: None}
  assert absa_study_runs.table(results).splitlines()[2:] == [
      '| bl_32 | 3 | 51.00 ± 1.00 | 50.00 ± 0.00 | 1,562, 1,562, 1,562 | 10 |',
      '| fb_512 (2 diverged) | 1 | 50.00 | 50.00 | 1,562 | 10 |',
      '| x (1 diverged) | 0 | - | - | - | - |']


def test_only_what_is_not_done_is_trained(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  commands_, codes = [], [0, 3, 1]

  def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
    commands_.append(command)
    return subprocess.CompletedProcess(command, codes[len(commands_) - 1])

  monkeypatch.setattr(absa_study_runs.subprocess, 'run', run)
  done, other = (absa_study_runs.Run('gg_512', seed, tmp_path / str(seed))
                 for seed in (0, 1))
  done.path.mkdir()
  (done.path / 'results.json').write_text('{}')
  train = absa_study_runs.train
  assert [train(done), train(other), train(other)] == [True, True, False]
  with pytest.raises(config.InputError, match='1 ended with code 1, see'):
    train(other)
  command = commands_[0]
  assert command[1:3] == ['-m', 'conadv_tf.train']
  assert f'--model_dir={tmp_path / "1"}' in command
  assert '--params_override=seed=1' in command
  assert '--params_override=growth.name=scheduled' in command


def test_bad_input(tmp_path: pathlib.Path) -> None:
  done = commands.run('tools.absa_study', f'--data={tmp_path / "x.npz"}',
                      f'--output={tmp_path}', '--only=abc')
  assert done.code == 2 and done.err.startswith('error: --only=abc: known are')
