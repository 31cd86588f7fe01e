"""What a run leaves behind, and how it goes on from there."""

from collections.abc import Callable
import json
import logging
import pathlib
import shutil

import numpy as np
import pytest

from conadv_tf import config, exits, runs
from conadv_tf.training import run_directory
from tests import commands, events, tiny

_SETTINGS = ('runtime.micro_batches=2,checkpoint.every_epochs=0.33333,'
             'checkpoint.keep=9,evaluation.train_examples=6')


@pytest.fixture(scope='module')
def finished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """An unbroken run with a checkpoint after each of its 6 updates."""
  path = tmp_path_factory.mktemp('finished')
  runs.run(tiny.load(_SETTINGS), str(path), quiet=True)
  return path


@pytest.fixture
def copied(finished: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
  return shutil.copytree(finished, tmp_path / 'run')


def _checkpoint(path: pathlib.Path, step: int) -> pathlib.Path:
  return path / 'checkpoints' / f'step-{step:08d}'


def _as_after_update(path: pathlib.Path, step: int) -> None:
  for later in range(step + 1, 7):
    shutil.rmtree(_checkpoint(path, later))
  (path / 'results.json').unlink()


def _records(path: pathlib.Path) -> list[dict[str, float]]:
  lines = (path / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
  return [json.loads(line) for line in lines]


def _assert_same_end(one: pathlib.Path, other: pathlib.Path) -> None:
  with np.load(_checkpoint(one, 6) / 'state.npz') as expected, np.load(
      _checkpoint(other, 6) / 'state.npz') as actual:
    assert expected.files == actual.files
    for name in expected.files:
      np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)
  ours, theirs = _records(one), _records(other)
  assert [r['step'] for r in theirs] == [r['step'] for r in ours] == [3, 6]
  for key in ('validation/loss', 'validation/accuracy'):
    assert theirs[-1][key] == ours[-1][key]


def test_results_and_metrics(finished: pathlib.Path) -> None:
  records = _records(finished)
  results = json.loads((finished / 'results.json').read_text())
  assert [(r['step'], r['epoch']) for r in records] == [(3, 1.0), (6, 2.0)]
  assert results == records[-1]
  assert set(results) == {
      'step', 'epoch', 'examples_per_second', 'seconds',
      'updates', 'batch_size', 'learning_rate',
      'train/loss', 'train/accuracy', 'train/clean_loss',
      'train/adversarial_loss', 'train/adversarial_accuracy',
      'train/perturbation_linf', 'train/perturbation_l2',
      'train/gradient_norm', 'train/trust_ratio',
      'validation/loss', 'validation/accuracy', 'validation/examples',
      'validation/generalization_gap'}
  assert results['validation/examples'] == 6
  assert results['train/loss'] == pytest.approx(
      (results['train/clean_loss'] + results['train/adversarial_loss']) / 2)
  assert 0 < results['train/perturbation_linf'] <= 16.001
  assert records[0]['seconds'] < results['seconds'] < 600
  assert sorted(p.name for p in finished.iterdir()) == [
      'checkpoints', 'metrics.jsonl', 'params.yaml', 'results.json', 'train',
      'validation']


def test_events(finished: pathlib.Path) -> None:
  train, validation = (
      events.scalars(finished / name) for name in ('train', 'validation'))
  for scalars, prefix in ((train, 'train'), (validation, 'validation')):
    for record in _records(finished):
      for key, value in record.items():
        if key.startswith(prefix) and not key.endswith('/examples'):
          assert scalars[key.split('/')[1]][record['step']] == pytest.approx(
              value, rel=1e-6), key
  assert {step: round(v, 6) for step, v in train['epoch'].items()} == {
      3: 1.0, 6: 2.0}
  assert set(train['examples_per_second']) == {3, 6}
  # Peak 1 after 2 updates of warm-up, then 4 of decay to 1e-4 with power 2:
  # of updates 2 and 5.
  assert train['learning_rate'][3] == pytest.approx(1.0)
  assert train['learning_rate'][6] == pytest.approx(
      (1 - 1e-4) * 0.25**2 + 1e-4, rel=1e-5)


def test_event_pictures(finished: pathlib.Path) -> None:
  shown = events.pictures(finished / 'train')
  assert set(shown) == {3, 6}
  for images in shown.values():
    assert len(images) == 6  # of the first batch that evaluation reads
    for image in images:
      assert image.shape == (16, 48, 3)
      clean, _, adversarial = np.split(image.astype(int), 3, axis=1)
      assert 1 <= np.abs(adversarial - clean).max() <= 17


def test_a_finished_run_stays_as_it_is(
    copied: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
  before = commands.digest(copied)
  results = runs.run(tiny.load(_SETTINGS, 'checkpoint.keep=1'), str(copied))
  assert capsys.readouterr().out == (
      f'finished already: {copied}/results.json\n')
  assert results == _records(copied)[-1]
  assert commands.digest(copied) == before


def test_another_configuration_changes_nothing(copied: pathlib.Path) -> None:
  _as_after_update(copied, 3)
  before = commands.digest(copied)
  for change in ('attack.radius=8', 'seed=1', 'schedule.epochs=3',
                 'model.name=resnet8', 'data.num_examples=23'):
    with pytest.raises(config.InputError, match='different configuration'):
      runs.run(tiny.load(_SETTINGS, change), str(copied))
  assert commands.digest(copied) == before


def test_params_run_again_give_the_same_run(
    finished: pathlib.Path, tmp_path: pathlib.Path) -> None:
  runs.run(config.load([str(finished / 'params.yaml')]), str(tmp_path / 'run'),
           quiet=True)
  _assert_same_end(finished, tmp_path / 'run')
  for one, other in zip(_records(finished), _records(tmp_path / 'run')):
    for key in one:
      assert one[key] == other[key] or key in ('seconds',
                                               'examples_per_second')


def test_damaged_checkpoints_are_passed_over(
    finished: pathlib.Path, copied: pathlib.Path,
    caplog: pytest.LogCaptureFixture) -> None:
  state = _checkpoint(copied, 6) / 'state.npz'
  state.write_bytes(state.read_bytes()[:-1])
  state = _checkpoint(copied, 5) / 'state.npz'
  state.write_bytes(state.read_bytes().replace(b'network', b'netwerk', 1))
  (_checkpoint(copied, 4) / 'state.npz').unlink()
  (_checkpoint(copied, 3) / 'manifest.json').write_text('garbage')
  (copied / 'results.json').unlink()
  runs.run(tiny.load(_SETTINGS), str(copied), quiet=True)
  loud = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
  assert [f'step-0000000{step}' in line and 'DAMAGED' in line
          for step, line in zip((6, 5, 4, 3), loud, strict=True)] == [True] * 4
  assert 'resuming at update 2 of 6' in caplog.text
  _assert_same_end(finished, copied)


def test_all_checkpoints_damaged(copied: pathlib.Path) -> None:
  for state in copied.glob('checkpoints/*/state.npz'):
    state.write_bytes(b'')
  before = commands.digest(copied)
  for module, options in (
      ('train', [f'--params_override={tiny.SETTINGS}',
                 f'--params_override={_SETTINGS}']),
      ('evaluate', [])):
    message = commands.run(f'conadv_tf.{module}', f'--model_dir={copied}',
                           *options).refusal()
    assert 'every checkpoint is damaged' in message
  assert commands.digest(copied) == before


@pytest.mark.parametrize('change, message', [
    ('checkpoint.every_epochs=2,checkpoint.keep=2,evaluation.every_epochs=2,'
     'evaluation.train_examples=0,runtime.steps_per_execution=2', ''),
    pytest.param(
        'runtime.strategy=mirrored,runtime.num_replicas=2',
        'runtime.micro_batches is 1, so that the 2 virtual replicas',
        marks=pytest.mark.slow),
])
def test_other_hardware_and_other_intervals(
    finished: pathlib.Path, copied: pathlib.Path,
    caplog: pytest.LogCaptureFixture, mirrored: object, change: str,
    message: str) -> None:
  del mirrored  # it must exist before the run asks for it
  _as_after_update(copied, 3)
  runs.run(tiny.load(_SETTINGS, change), str(copied), quiet=True)
  assert message in caplog.text
  _assert_same_end(finished, copied)


def test_a_lost_record_is_named(copied: pathlib.Path) -> None:
  (copied / 'metrics.jsonl').unlink()
  (copied / 'results.json').unlink()
  with pytest.raises(config.InputError, match='lost its record of update 6'):
    runs.run(tiny.load(_SETTINGS), str(copied), quiet=True)


@pytest.mark.parametrize('when', [
    pytest.param('forward', marks=pytest.mark.slow), 'save'])
def test_an_exception_leaves_a_run_that_goes_on(
    finished: pathlib.Path, tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch, when: str) -> None:
  """As after ^C: the same process, another experiment."""
  from conadv_tf.training import callbacks, checkpoint

  def interrupt_after(count: int, function: Callable[..., object]
                      ) -> Callable[..., object]:
    def counted(*args: object, **kwargs: object) -> object:
      nonlocal count
      if count == 0:
        raise KeyboardInterrupt
      count -= 1
      return function(*args, **kwargs)
    return counted

  with monkeypatch.context() as patched:
    if when == 'save':
      patched.setattr(checkpoint, 'write_arrays',
                      interrupt_after(3, checkpoint.write_arrays))
    else:
      hook = callbacks.RunCallback.on_train_batch_begin
      patched.setattr(callbacks.RunCallback, 'on_train_batch_begin',
                      interrupt_after(4, hook))
    with pytest.raises(KeyboardInterrupt):
      runs.run(tiny.load(_SETTINGS), str(tmp_path), quiet=True)
  assert not (tmp_path / 'results.json').exists()
  runs.run(tiny.load(_SETTINGS), str(tmp_path), quiet=True)
  _assert_same_end(finished, tmp_path)


def test_a_second_run_in_the_same_directory_is_refused(
    tmp_path: pathlib.Path) -> None:
  directory = run_directory.RunDirectory(str(tmp_path / 'run'))
  with directory.locked():
    with pytest.raises(config.InputError, match='in use by another process'):
      runs.run(tiny.load(), str(tmp_path / 'run'), quiet=True)
  assert not (tmp_path / 'run').exists()


def test_damaged_records_are_made_again(
    copied: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
  expected = (copied / 'results.json').read_text()
  (copied / 'results.json').write_text('{"a":')
  with open(copied / 'metrics.jsonl', 'a', encoding='utf-8') as file:
    file.write('{}\n')
  with caplog.at_level(logging.WARNING):
    runs.run(tiny.load(_SETTINGS), str(copied), quiet=True)
  assert (copied / 'results.json').read_text() == expected
  assert sum('damaged' in r.getMessage() for r in caplog.records) >= 2


def test_finite_weights_of_no_use_stop_a_run(
    tmp_path: pathlib.Path) -> None:
  # One finite update, after which nothing makes sense.
  diverging = tiny.load(
      'optimizer.name=sgd', 'schedule.name=constant',
      'schedule.warmup_epochs=0', 'schedule.epochs=0.34',
      'schedule.peak_lr=1e36')
  with pytest.raises(exits.Diverged, match='validation loss is nan'):
    runs.run(diverging, str(tmp_path), quiet=True)
  assert not list((tmp_path / 'checkpoints').glob('step-*'))
  assert not (tmp_path / 'metrics.jsonl').exists()


def test_sizes_that_are_hardly_meant_are_warned_of(
    caplog: pytest.LogCaptureFixture) -> None:
  def warned(overrides: str) -> list[str]:
    caplog.clear()
    loaded = config.load([], [
        'data.name=synthetic,data.global_batch_size=8', overrides])
    runs._warn_of_sizes(config.resolve(loaded, 24))
    return [record.getMessage() for record in caplog.records]

  for fine in ('attack.radius=0', 'attack.radius=0.25',
               'data.global_batch_size=24',
               'method.name=vanilla,attack.radius=0.1'):
    assert warned(fine) == []
  (message,) = warned('data.global_batch_size=32')
  assert 'global_batch_size=32 is more than the 24 training' in message
  (message,) = warned('attack.radius=0.2')  # of the range: 0.2 * 255
  assert message.endswith('0.2 of the range is attack.radius=51')
