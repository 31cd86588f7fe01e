"""Initial weights from runs and files."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import config, experiment, runs, saved_runs
from conadv_tf.layers import network as networks
from conadv_tf.training import averaging, checkpoint, warm_start
from tests import tiny


@pytest.fixture(scope='module')
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A finished run of ConAdv with averages; its branches differ."""
  path = tmp_path_factory.mktemp('source')
  runs.run(tiny.load('optimizer.ema_momentum=0.5'), str(path), quiet=True)
  return path


@pytest.fixture(scope='module')
def restored(source: pathlib.Path) -> experiment.Experiment:
  return saved_runs.restore(str(source))[0]


def _build(*overrides: str) -> experiment.Experiment:
  return experiment.build(tiny.load('seed=5', *overrides))


def _values(network: networks.Network) -> list[np.ndarray]:
  return [networks.read(v) for v in network.variables]


def _assert_equal(ones: list[np.ndarray], others: list[np.ndarray]) -> None:
  for one, other in zip(ones, others, strict=True):
    np.testing.assert_array_equal(one, other)


def test_a_run_starts_where_the_other_ended(
    source: pathlib.Path, restored: experiment.Experiment) -> None:
  """Averages are its weights; nothing else is taken over."""
  mine = _build('optimizer.ema_momentum=0.9')
  fresh = checkpoint.capture(mine.trainer)
  warm_start.load(mine.trainer, str(source))
  results = json.loads((source / 'results.json').read_text())
  assert {f'validation/{k}': v for k, v in mine.evaluate().items()} == {
      k: v for k, v in results.items() if k.startswith('validation/')}
  _assert_equal(_values(mine.trainer.network),
                _values(restored.trainer.network))
  started = checkpoint.capture(mine.trainer)
  for name, value in fresh.items():
    if name.split('/')[0] not in ('network', 'average'):
      np.testing.assert_array_equal(started[name], value, err_msg=name)
  assert int(mine.trainer.step_counter) == 0
  for i, average in averaging.averages(mine.trainer).items():
    np.testing.assert_array_equal(
        average, networks.read(mine.trainer.network.variables[i]))


def _branch(network: networks.Network, name: str) -> list[np.ndarray]:
  variables = network.layer_variables[0][name]
  return [networks.read(v) for v in variables.trainable() + variables.moving()]


@pytest.mark.parametrize('method, origins', [
    ('method.name=vanilla', {'clean': 'clean'}),
    ('method.bn_branches=1', {'clean': 'clean'}),
    ('method.bn_branches=2', {'clean': 'clean', 'adversarial': 'adversarial'}),
])
def test_branches_of_a_run(
    source: pathlib.Path, restored: experiment.Experiment, method: str,
    origins: dict[str, str]) -> None:
  mine = _build(method).trainer
  warm_start.load(mine, str(source))
  _assert_equal([v.numpy() for v in mine.network.model.variables],
                [v.numpy() for v in restored.trainer.network.model.variables])
  assert set(mine.network.branches) == set(origins)
  for branch, origin in origins.items():
    _assert_equal(_branch(mine.network, branch),
                  _branch(restored.trainer.network, origin))
  clean, adversarial = (
      _branch(restored.trainer.network, name)
      for name in ('clean', 'adversarial'))
  assert not np.array_equal(clean[0], adversarial[0])


@pytest.mark.slow
def test_a_branch_of_augmented_images_is_no_adversarial_one(
    tmp_path: pathlib.Path) -> None:
  split = ('method.name=vanilla,method.augmented_stream=split,'
           'data.augment=randaugment')
  runs.run(tiny.load(split, 'schedule.epochs=1'), str(tmp_path), quiet=True)
  restored = saved_runs.restore(str(tmp_path))[0].trainer.network
  same, other = (_build(pairs).trainer for pairs in (split, ''))
  for trainer in (same, other):
    warm_start.load(trainer, str(tmp_path))
  clean, augmented = (
      _branch(restored, name) for name in ('clean', 'augmented'))
  assert not np.array_equal(clean[0], augmented[0])
  _assert_equal(_branch(same.network, 'augmented'), augmented)
  _assert_equal(_branch(other.network, 'adversarial'), clean)


def test_a_branch_that_the_run_lacks_starts_from_the_clean_one(
    tmp_path: pathlib.Path) -> None:
  vanilla = 'method.name=vanilla,schedule.epochs=1'
  runs.run(tiny.load(vanilla), str(tmp_path), quiet=True)
  mine = _build().trainer
  warm_start.load(mine, str(tmp_path))
  restored = saved_runs.restore(str(tmp_path))[0]
  trained = _branch(restored.trainer.network, 'clean')
  for branch in ('clean', 'adversarial'):
    _assert_equal(_branch(mine.network, branch), trained)


@pytest.mark.parametrize('kind', [
    'file.keras', *(pytest.param(kind, marks=pytest.mark.slow)
                    for kind in ('export', 'file.h5', 'saved_model',
                                 'file.weights.h5'))])
def test_plain_models(tmp_path: pathlib.Path,
                      restored: experiment.Experiment, kind: str) -> None:
  path = tmp_path / kind
  if kind == 'export':
    saved_runs.export(restored, 6, str(path))
  elif kind == 'file.weights.h5':
    restored.trainer.save_weights(str(path))
  else:
    restored.trainer.save(str(path))
  mine = _build()
  warm_start.load(mine.trainer, str(path))
  assert mine.evaluate() == restored.evaluate()
  for branch in ('clean', 'adversarial'):
    _assert_equal(_branch(mine.trainer.network, branch),
                  _branch(restored.trainer.network, 'clean'))
  # Another head does not fit, and nothing is loaded.
  other = _build('data.num_classes=4').trainer
  before = _values(other.network)
  with pytest.raises(config.InputError) as raised:
    warm_start.load(other, str(path))
  message = str(raised.value)
  assert message.startswith('model.initial_weights: ')
  assert 'dense' in message and 'kernel' in message
  assert '(16, 4)' in message and '(16, 3)' in message
  _assert_equal(_values(other.network), before)


def test_numbers_that_are_not_finite(tmp_path: pathlib.Path) -> None:
  mine = _build().trainer
  model = mine.merge()
  weights = model.get_weights()
  weights[-1][0] = np.inf
  model.set_weights(weights)
  model.save(tmp_path / 'model.keras')
  before = _values(mine.network)
  with pytest.raises(config.InputError, match=(
      f'{model.weights[-1].name} in .*model.keras holds numbers that are not '
      'finite')):
    warm_start.load(mine, str(tmp_path / 'model.keras'))
  _assert_equal(_values(mine.network), before)


def test_a_run_of_another_shape(source: pathlib.Path) -> None:
  other = _build('data.num_classes=4').trainer
  with pytest.raises(config.InputError) as raised:
    warm_start.load(other, str(source))
  assert ('kernel:0 has the shape (16, 4) here and (16, 3) in '
          f'{source}; all weights must fit') in str(raised.value)
  deeper = _build('model.name=resnet8,data.image_size=8').trainer
  with pytest.raises(config.InputError, match='has the shape|holds 16 weights'):
    warm_start.load(deeper, str(source))


def _model_values(path: str) -> list[np.ndarray]:
  return [v.numpy() for v in
          saved_runs.restore(path)[0].trainer.network.model.variables]


@pytest.mark.parametrize('kind', [
    'export', *(pytest.param(kind, marks=pytest.mark.slow)
                for kind in ('run', 'file.keras'))])
def test_a_replaced_head_keeps_its_own_start(
    source: pathlib.Path, tmp_path: pathlib.Path,
    restored: experiment.Experiment, kind: str) -> None:
  path = source if kind == 'run' else tmp_path / kind
  if kind == 'export':
    saved_runs.export(restored, 6, str(path))
  elif kind == 'file.keras':
    restored.trainer.save(str(path))
  for classes in (4, 3):  # its shape does not matter
    trainer = _build(f'data.num_classes={classes}').trainer
    fresh = [v.numpy() for v in trainer.network.model.variables]
    warm_start.load(trainer, str(path), replace_head=True)
    now = [v.numpy() for v in trainer.network.model.variables]
    # The dense layer's kernel and bias are the last two.
    _assert_equal(now[:-2], _model_values(str(source))[:-2])
    _assert_equal(now[-2:], fresh[-2:])
    assert now[-2].shape[1] == classes and np.abs(now[-2]).min() > 0
  # The branches of a run come along.
  origin = 'adversarial' if kind == 'run' else 'clean'
  _assert_equal(_branch(trainer.network, 'adversarial'),
                _branch(restored.trainer.network, origin))


def test_images_of_another_size(tmp_path: pathlib.Path) -> None:
  """A convolutional body has no weight that depends on it."""
  small, large = (
      _build('model.name=resnet8,method.name=vanilla',
             f'data.image_size={size},data.num_classes={classes}').trainer
      for size, classes in ((8, 3), (16, 5)))
  small.save(str(tmp_path / 'small.keras'))
  head = [v.numpy() for v in large.network.model.variables[-2:]]
  warm_start.load(large, str(tmp_path / 'small.keras'), replace_head=True)
  assert head[0].shape == (64, 5)
  _assert_equal(
      [v.numpy() for v in large.network.model.variables],
      [v.numpy() for v in small.network.model.variables[:-2]] + head)


def test_a_body_that_does_not_fit_is_refused_all_the_same(
    source: pathlib.Path) -> None:
  other = _build('model.name=resnet8,data.image_size=8').trainer
  with pytest.raises(config.InputError, match='has the shape|holds 16 weights'):
    warm_start.load(other, str(source), replace_head=True)


def test_what_is_no_source(tmp_path: pathlib.Path) -> None:
  trainer = _build().trainer
  (tmp_path / 'text.h5').write_text('no model')
  (tmp_path / 'run').mkdir()
  config.save(_build().config, str(tmp_path / 'run/params.yaml'))
  for name, message in (
      ('nothing', 'no .keras or .h5 file and no SavedModel'),
      ('text.h5', 'cannot be loaded into this model'),
      ('run', 'holds no checkpoint yet')):
    with pytest.raises(config.InputError, match=message):
      warm_start.load(trainer, str(tmp_path / name))


def test_only_the_beginning_is_warm(
    source: pathlib.Path, tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch) -> None:
  """A resumed run neither needs nor reads the source."""
  loads = []
  load = warm_start.load
  monkeypatch.setattr(warm_start, 'load', lambda trainer, path, replaces: (
      loads.append(path), load(trainer, path, replaces)))
  settings = tiny.load(
      f'model.initial_weights={source},schedule.peak_lr=0,schedule.end_lr=0,'
      'method.name=vanilla')
  runs.run(settings, str(tmp_path / 'run'), quiet=True)
  # Learning rate 0: the weights are still those of the source.
  restored = saved_runs.restore(str(tmp_path / 'run'))[0].trainer.network
  origin = saved_runs.restore(str(source))[0].trainer.network
  _assert_equal(
      [v.numpy() for v in restored.model.trainable_variables],
      [v.numpy() for v in origin.model.trainable_variables])
  (tmp_path / 'run/results.json').unlink()
  runs.run(settings, str(tmp_path / 'run'), quiet=True)
  assert loads == [str(source)]


def test_a_refused_source_writes_nothing(tmp_path: pathlib.Path) -> None:
  with pytest.raises(config.InputError,
                     match='model.initial_weights: /nowhere is no run'):
    runs.run(tiny.load('model.initial_weights=/nowhere'),
             str(tmp_path / 'run'), quiet=True)
  assert not (tmp_path / 'run').exists()


def test_averages_under_float16(source: pathlib.Path) -> None:
  mine = _build('runtime.precision=mixed_float16,optimizer.ema_momentum=0.9')
  warm_start.load(mine.trainer, str(source))
  averages = averaging.averages(mine.trainer)
  assert len(averages) == len(mine.trainer.network.trainable_variables)
  assert all(average.dtype == tf.float32 for average in averages.values())
