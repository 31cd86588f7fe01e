import json
import os
import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import config, experiment
from conadv_tf.training import checkpoint
from tests import tiny

_EXTRA = {'seconds': 1.5, 'virtual_replicas': 2}


def _state(step: int) -> dict[str, np.ndarray]:
  return {'network/00000': np.full([2, 3], step, np.float32),
          'step/00000': np.int64(step), 'flag': np.array([True, False])}


def _filled(folder: pathlib.Path, *steps: int) -> checkpoint.Checkpoints:
  checkpoints = checkpoint.Checkpoints(str(folder / 'checkpoints'), keep=9)
  for step in steps:
    checkpoints.save(step, _state(step), _EXTRA)
  return checkpoints


def _file(checkpoints: checkpoint.Checkpoints, step: int,
          name: str) -> pathlib.Path:
  return pathlib.Path(checkpoints.directory, f'step-{step:08d}', name)


def test_what_is_saved_is_read_back(tmp_path: pathlib.Path) -> None:
  checkpoints = checkpoint.Checkpoints(str(tmp_path / 'checkpoints'))
  assert checkpoints.latest() is None and checkpoints.steps() == []
  assert not (tmp_path / 'checkpoints').exists()  # looking writes nothing
  path = checkpoints.save(7, _state(7), _EXTRA)
  assert sorted(os.listdir(path)) == ['manifest.json', 'state.npz']
  latest = checkpoints.latest()
  assert (latest.step, latest.extra) == (7, _EXTRA)
  assert latest.state.keys() == _state(7).keys()
  for name, value in _state(7).items():
    assert latest.state[name].dtype == value.dtype
    np.testing.assert_array_equal(latest.state[name], value)


def test_the_oldest_go_first(tmp_path: pathlib.Path) -> None:
  checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=2)
  for step in (3, 6, 9, 123456789):
    checkpoints.save(step, _state(step), {})
  assert checkpoints.steps() == [9, 123456789]
  # After falling back the newest is not the one that was just written.
  checkpoints.save(4, _state(4), {})
  assert checkpoints.steps() == [4, 9, 123456789]


def test_some_are_kept_and_preferred(tmp_path: pathlib.Path) -> None:
  checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=1)
  for step in (3, 6, 9):
    checkpoints.save(step, _state(step), {}, keep=(3,))
  assert checkpoints.steps() == [3, 9]
  assert checkpoints.latest().step == checkpoints.latest(prefer=6).step == 9
  assert checkpoints.latest(prefer=3).step == 3
  _file(checkpoints, 3, 'state.npz').unlink()
  assert checkpoints.latest(prefer=3).step == 9
  checkpoints.save(12, _state(12), {})
  assert checkpoints.steps() == [12]


def test_saving_a_step_again_replaces_it(tmp_path: pathlib.Path) -> None:
  checkpoints = _filled(tmp_path, 3)
  _file(checkpoints, 3, 'state.npz').write_bytes(b'damaged')
  checkpoints.save(3, _state(3), {})
  assert checkpoints.latest().step == 3
  assert os.listdir(checkpoints.directory) == ['step-00000003']


def _truncate(path: pathlib.Path) -> None:
  path.write_bytes(path.read_bytes()[:-100])


def _flip(path: pathlib.Path) -> None:
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def _manifest(**changes: Any) -> Any:
  def change(path: pathlib.Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
  return change


@pytest.mark.parametrize('name, damage', [
    ('state.npz', _truncate), ('state.npz', _flip),
    ('state.npz', pathlib.Path.unlink), ('manifest.json', pathlib.Path.unlink),
    ('manifest.json', _truncate),
    ('manifest.json', lambda path: path.write_bytes(b'\xff\x00garbage')),
    ('manifest.json', lambda path: path.write_text('')),
    ('manifest.json', lambda path: path.write_text('[]')),
    ('manifest.json', _manifest(format=2)),
    ('manifest.json', _manifest(step=5)),
    ('manifest.json', _manifest(files=[])),
    ('manifest.json', _manifest(files={})),
])
def test_damage_is_noticed(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, name: str,
    damage: Any) -> None:
  checkpoints = _filled(tmp_path, 3, 6)
  damage(_file(checkpoints, 6, name))
  assert checkpoints.latest().step == 3
  assert len(caplog.records) == 1
  assert 'DAMAGED CHECKPOINT' in caplog.text and 'step-00000006' in caplog.text
  damage(_file(checkpoints, 3, name))
  with pytest.raises(config.InputError) as raised:
    checkpoints.latest()
  message = str(raised.value)
  assert message.startswith('every checkpoint is damaged (')
  assert 'step-00000003' in message and 'step-00000006' in message
  assert message.endswith(f'delete {checkpoints.directory} to start over')


@pytest.mark.parametrize('module, name', [
    (checkpoint, 'write_arrays'), (os, 'fsync'), (json, 'dump'),
    (os, 'rename')])
def test_a_failed_save_leaves_the_others(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, module: Any,
    name: str) -> None:
  checkpoints = _filled(tmp_path, 3)

  def fail(*args: Any, **kwargs: Any) -> None:
    raise OSError('No space left on device')

  with monkeypatch.context() as patched:
    patched.setattr(module, name, fail)
    with pytest.raises(OSError, match='No space'):
      checkpoints.save(6, _state(6), {})
  assert os.listdir(checkpoints.directory) == ['step-00000003']
  assert checkpoints.latest().step == 3
  checkpoints.save(6, _state(6), {})
  assert checkpoints.latest().step == 6


def test_a_kill_while_a_step_is_saved_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  checkpoints = _filled(tmp_path, 3)
  before, rename = checkpoints.latest(), os.rename

  def killed(source: str, target: str) -> None:
    if os.path.basename(target) == 'step-00000003':
      raise KeyboardInterrupt
    rename(source, target)

  with monkeypatch.context() as patched:
    patched.setattr(os, 'rename', killed)
    with pytest.raises(KeyboardInterrupt):
      checkpoints.save(3, _state(4), {})
  assert 'step-00000003' not in os.listdir(checkpoints.directory)
  assert checkpoints.steps() == [3]
  np.testing.assert_equal(checkpoints.latest().state, before.state)
  checkpoints.save(6, _state(6), {})
  assert sorted(os.listdir(checkpoints.directory)) == [
      'step-00000003', 'step-00000006']


def test_what_a_kill_leaves_is_no_checkpoint(tmp_path: pathlib.Path) -> None:
  checkpoints = _filled(tmp_path, 3)
  left = pathlib.Path(checkpoints.directory, 'tmp-00000006')
  left.mkdir()
  (left / 'state.npz').write_bytes(b'half')
  assert checkpoints.steps() == [3]
  checkpoints.save(6, _state(6), {})
  assert sorted(os.listdir(checkpoints.directory)) == [
      'step-00000003', 'step-00000006']


def _trainer(*overrides: str) -> Any:
  return experiment.build(tiny.load(*overrides)).trainer


def test_capture_and_restore_are_inverse() -> None:
  """All weights, both branches, slots, lagged sets and the loss scale."""
  options = ('method.lag=2,method.execution=sequential,'
             'runtime.precision=mixed_float16')
  one, other = _trainer(options), _trainer(options)
  captured = checkpoint.capture(one)
  groups = [name.split('/')[0] for name in captured]
  # 4 of convolution and dense, 4 of batch normalisation in each branch;
  # momentum of 8 trainable ones, and the optimizer's iterations.
  assert {name: groups.count(name) for name in groups} == {
      'network': 12, 'optimizer': 9, 'loss_scale': 2, 'step': 1,
      'lagged0': 12, 'lagged1': 12}
  for i, name in enumerate(sorted(captured)):
    captured[name] = np.full_like(captured[name], i)
  checkpoint.restore(other, captured)
  again = checkpoint.capture(other)
  assert again.keys() == captured.keys()
  for name, value in captured.items():
    np.testing.assert_array_equal(again[name], value, err_msg=name)


def test_weights_only() -> None:
  one, other = _trainer(), _trainer()
  for variable in one.network.variables + list(one.optimizer.variables):
    variable.assign(tf.ones_like(variable))
  checkpoint.restore(other, checkpoint.capture(one), weights_only=True)
  assert all((v.numpy() == 1).all() for v in other.network.variables)
  momentum = other.optimizer.variables[-1]
  assert (momentum.numpy() == 0).all()


def test_a_checkpoint_of_another_model_is_refused() -> None:
  trainer = _trainer()
  before = checkpoint.capture(trainer)
  other = checkpoint.capture(_trainer('data.num_classes=4'))
  lost = {k: v for k, v in before.items() if k != 'optimizer/00003'}
  for state, name in ((other, 'network/'), (lost, 'optimizer/00003')):
    with pytest.raises(config.InputError) as raised:
      checkpoint.restore(
          trainer, {k: np.ones_like(v) for k, v in state.items()})
    assert f'the checkpoint has no {name}' in str(raised.value)
  after = checkpoint.capture(trainer)  # nothing was assigned
  for name, value in before.items():
    np.testing.assert_array_equal(after[name], value)
