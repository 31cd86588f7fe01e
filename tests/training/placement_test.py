"""Replicas that only attack change no number, and do only that."""

from collections.abc import Callable
import functools
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import config as config_lib
from conadv_tf import description, experiment, methods, runs
from conadv_tf.attacks import compact, gradient
from conadv_tf.config import InputError
from conadv_tf.training import placement, run_directory
from conadv_tf.training import trainer as trainers
from tests import tiny
from tests.methods import running

_ConAdv = methods.ConAdv
_SPLIT = 'runtime.placement=split'
_MIRRORED = 'runtime.strategy=mirrored,runtime.num_replicas=2'
_FGSM = gradient.Pgd(radius=16, random_start=0.0)


def _make(strategy: tf.distribute.Strategy, method: methods.ConAdv,
          options: dict[str, Any] | None = None,
          attack: gradient.Pgd | None = None,
          **compile_options: Any) -> placement.TrainerWithAttackers:
  """As `running.make`: one replica trains, one attacks."""
  with strategy.scope():
    trainer = placement.TrainerWithAttackers(
        running.small_network(), method, attack or gradient.Pgd(radius=16),
        **{'deterministic': True, **(options or {})})
    trainer.compile(tf.keras.optimizers.SGD(0.5, momentum=0.9), running.LOSS,
                    metrics=['accuracy'], **compile_options)
  return trainer


def _fit(trainer: trainers.Trainer, updates: int = 4
         ) -> dict[str, list[float]]:
  data = running.dataset(32 // trainer.micro_batches)
  return trainer.fit(data, steps_per_epoch=updates, verbose=0).history


@functools.cache
def _together(lag: int = 1, micro_batches: int = 1, deterministic: bool = True,
              attack: gradient.Pgd | None = None, updates: int = 4
              ) -> tuple[np.ndarray, dict[str, list[float]]]:
  """One device that does both."""
  trainer = running.make(
      _ConAdv(lag=lag),
      attack=attack,
      options={'micro_batches': micro_batches,
               'deterministic': deterministic})
  history = _fit(trainer, updates)
  return running.values(trainer), history


def _assert_same_metrics(found: dict[str, list[float]],
                         expected: dict[str, list[float]]) -> None:
  """Attackers count in none."""
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


def _operations(trainer: trainers.Trainer) -> list[tuple[str, str]]:
  """(type, device) of all that an update runs, bodies of loops included."""
  (traced,) = trainer._loop.one._list_all_concrete_functions()
  definition = traced.graph.as_graph_def()
  found = _needed(definition.node, [
      *(t.op.name for t in traced.graph.outputs),
      *(op.name for op in traced.graph.control_outputs)])
  for function in definition.library.function:
    found += _needed(function.node_def, [
        *function.ret.values(), *function.control_ret.values()])
  return found


def _needed(nodes: Any, results: list[str]) -> list[tuple[str, str]]:
  """(type, device) of the nodes that results wait for; TensorFlow prunes."""
  by_name = {node.name: node for node in nodes}
  waiting, needed = list(results), {}
  while waiting:
    name = waiting.pop().lstrip('^').split(':')[0]
    if name in by_name and name not in needed:
      needed[name] = by_name[name].op, by_name[name].device
      waiting += by_name[name].input
  return list(needed.values())


# ---- The same numbers.


def test_numbers_are_those_of_one_device(
    mirrored: tf.distribute.Strategy) -> None:
  trainer = _make(mirrored, _ConAdv(lag=2), {'micro_batches': 2},
                  steps_per_execution=3)
  history = _fit(trainer)
  values, expected = _together(2, 2)
  np.testing.assert_array_equal(running.values(trainer), values)
  _assert_same_metrics(history, expected)


def test_trainers_attack_nothing_and_attackers_train_nothing(
    mirrored: tf.distribute.Strategy) -> None:
  # Perturbations of one byte here, of two above.
  trainer = _make(mirrored, _ConAdv(), attack=_FGSM)
  history = _fit(trainer)
  values, expected = _together(attack=_FGSM)
  np.testing.assert_array_equal(running.values(trainer), values)
  _assert_same_metrics(history, expected)
  # The network's only convolution sees images: a pass that differentiates to
  # images has an input gradient of it, one to weights a filter gradient.
  operations = _operations(trainer)
  count = {kind: [sum(kind == type_ and f'CPU:{i}' in device
                      for type_, device in operations) for i in (0, 1)]
           for kind in ('Conv2D', 'Conv2DBackpropInput',
                        'Conv2DBackpropFilter')}
  assert count == {'Conv2D': [1, 1], 'Conv2DBackpropInput': [0, 1],
                   'Conv2DBackpropFilter': [1, 0]}


@pytest.mark.slow
def test_a_replica_that_is_not_known_while_tracing(
    mirrored: tf.distribute.Strategy, monkeypatch: pytest.MonkeyPatch
) -> None:
  # As on a TPU: both roles are in every replica's graph.
  conditions = []

  def by_role(self: placement.TrainerWithAttackers, train: Callable[[], Any],
              attack: Callable[[], Any]) -> Any:
    conditions.append(self)
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    unknown = self.step_counter.read_value() >= 0  # true when it runs
    return tf.cond(tf.less(replica, self.roles.trainers) & unknown,
                   train, attack)

  monkeypatch.setattr(placement.TrainerWithAttackers, '_by_role', by_role)
  trainer = _make(mirrored, _ConAdv(), attack=_FGSM)
  history = _fit(trainer)
  assert conditions
  values, expected = _together(attack=_FGSM)
  np.testing.assert_array_equal(running.values(trainer), values)
  _assert_same_metrics(history, expected)


@pytest.mark.slow
def test_numbers_are_close_without_deterministic(
    mirrored: tf.distribute.Strategy) -> None:
  trainer = _make(mirrored, _ConAdv(lag=2),
                  {'micro_batches': 2, 'deterministic': False})
  _fit(trainer, 3)
  np.testing.assert_allclose(
      running.values(trainer), _together(2, 2, False, updates=3)[0],
      rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_comparison_can_fail(mirrored: tf.distribute.Strategy,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
  # Adversaries that get lost on the way.
  monkeypatch.setattr(placement, 'from_words', lambda packed, code: tf.zeros(
      code.shape, code.dtype))
  trainer = _make(mirrored, _ConAdv())
  _fit(trainer)
  assert np.abs(running.values(trainer) - _together()[0]).max() > 1e-3


def test_together_is_the_default_and_knows_no_roles() -> None:
  config = tiny.load()
  assert config.runtime.placement == 'together'
  assert experiment._trainer_type(config.runtime) is trainers.Trainer
  assert trainers.Trainer.roles is None
  assert config_lib.training_replicas(
      config_lib.RuntimeConfig(num_replicas=3)) == 3
  unused = config_lib.unused_keys(tiny.load('runtime.attack_replicas=2'))
  assert unused == ['runtime.attack_replicas']


# ---- Rows.


def test_slices_and_parts() -> None:
  roles = placement.Roles(4, 2)  # replicas 4 and 5 attack for two each
  assert [roles.slices(r) for r in range(6)] == [
      [0, 0], [1, 1], [2, 2], [3, 3], [0, 1], [2, 3]]
  # An input pipeline for each replica reads what it needs, others everything.
  assert [roles.part(i, 6) for i in range(6)] == [
      (0, 4), (1, 4), (2, 4), (3, 4), (0, 2), (1, 2)]
  assert {roles.part(i, 2) for i in range(2)} == {(0, 1)}


@pytest.mark.parametrize('pipelines', [1, 2, 3, 6])
def test_rows_of_every_replica(pipelines: int) -> None:
  roles, rows = placement.Roles(4, 2), np.arange(8)  # slice s: 2s, 2s + 1
  found = []
  for pipeline in range(pipelines):
    part, parts = roles.part(pipeline, pipelines)
    size = 8 // parts
    x = rows[part * size:(part + 1) * size]
    data = roles.arrange(tf.data.Dataset.from_tensors(
        ({'image': x, 'augmented': x + 8}, x)), pipeline, pipelines)
    (views, y), = data.as_numpy_iterator()
    np.testing.assert_array_equal(views['image'], y)
    np.testing.assert_array_equal(views['augmented'], y + 8)
    found += np.reshape(y, (-1, 4)).tolist()
  assert found == [[0, 1, 0, 1], [2, 3, 2, 3], [4, 5, 4, 5], [6, 7, 6, 7],
                   [0, 1, 2, 3], [4, 5, 6, 7]]


def test_global_batches_must_divide_among_trainers() -> None:
  data = tf.data.Dataset.from_tensors((np.zeros((9, 2)), np.zeros(9)))
  with pytest.raises(ValueError, match='9 examples.*2 replicas that train'):
    placement.Roles(2, 1).arrange(data)


@pytest.mark.parametrize('dtype', ['int8', 'bfloat16'])
@pytest.mark.parametrize('count', [1, 3, 4])
def test_bytes_survive_the_way(dtype: str, count: int) -> None:
  code = tf.cast([[-1.0, 0.5, 1.0, 0.0][:count]], dtype)
  packed = placement.to_words(code)
  spec = tf.TensorSpec(code.shape, code.dtype)
  size = count * (1 if dtype == 'int8' else 2)
  assert packed.dtype == tf.int32
  assert packed.shape[0] == placement.words(spec) == -(-size // 4)
  np.testing.assert_array_equal(placement.from_words(packed, spec), code)


def test_both_forms_of_perturbations_were_exchanged_above() -> None:
  assert compact.dtype(gradient.Pgd(random_start=0.0)) == tf.int8
  assert compact.dtype(gradient.Pgd(random_start=1.0)) == tf.bfloat16


# ---- Refusals.


@pytest.mark.parametrize('method', [
    methods.Vanilla(), methods.DisAdv(), methods.Recycled(), _ConAdv(lag=0),
    _ConAdv(execution='sequential'), _ConAdv(pairing='next_batch'),
    _ConAdv(attack_every=2)])
def test_methods_without_an_attack_beside_the_update(
    method: methods.ConAdv) -> None:
  with pytest.raises(ValueError, match='that does not wait for the update'):
    placement.TrainerWithAttackers(running.small_network(), method)


@pytest.mark.parametrize('arguments, options, message', [
    ((1, 1), {'bn_group_size': 2}, 'exclude groups'),
    ((1, 1), {}, r'1 replica\(s\), of which 1 attack'),  # no strategy
    ((3, 2), None, '3 replicas that train do not divide among 2')])
def test_counts(arguments: tuple[int, int], options: dict[str, Any] | None,
                message: str) -> None:
  with pytest.raises(ValueError, match=message):
    if options is None:
      placement.Roles(*arguments)
    else:
      placement.TrainerWithAttackers(
          running.small_network(), _ConAdv(), **options)


@pytest.mark.parametrize('overrides, message', [
    ('method.name=vanilla', 'method.name: "vanilla" and runtime.placement'),
    ('method.name=disadv', 'method.name: "disadv" and'),
    ('method.adversary=recycled', 'method.adversary: "recycled" and'),
    ('method.lag=0', 'method.lag: 0 and'),
    ('method.execution=sequential', 'method.execution: "sequential" and'),
    ('method.pairing=next_batch', 'method.pairing: "next_batch" and'),
    ('method.attack_every=2', 'method.attack_every: 2 and'),
    ('bn.group_size=0', 'bn.group_size: 0 and'),
    ('runtime.strategy=one_device,runtime.num_replicas=1',
     'runtime.strategy: "one_device" and'),
    ('runtime.num_replicas=1', 'runtime.attack_replicas: 1 of 1 '
     'runtime.num_replicas leave 0 that train'),
    ('runtime.num_replicas=5,runtime.attack_replicas=2',
     'leave 3 that train, which do not divide'),
    ('runtime.num_replicas=4', 'data.global_batch_size: 8 does not divide '
     r'among 3 runtime.num_replicas \(without 1 that attack\) x 1'),
    ('runtime.attack_replicas=0', 'runtime.attack_replicas: must be at least')])
def test_configurations_that_are_refused(overrides: str, message: str) -> None:
  with pytest.raises(InputError, match=message):
    config_lib.check_batch(tiny.load(_MIRRORED, _SPLIT, overrides))


# ---- Runs.


def _config(*overrides: str) -> config_lib.ExperimentConfig:
  return tiny.load('runtime.strategy=mirrored,runtime.num_replicas=3', _SPLIT,
                   *overrides)


def test_describe_names_roles_and_bytes() -> None:
  text = description.describe_config(_config('runtime.micro_batches=2'))
  lines = dict(line.split(': ', 1) for line in text.splitlines())
  assert lines['batch'].startswith(
      '8 = 4 virtual replica(s) of 2 = 2 replica(s) x 2 micro batch(es)')
  # 2 rows of 4 * 4 * 3 values of 2 bytes for each of 4 virtual replicas.
  assert lines['placement'] == (
      'replicas 0 to 1 train, 2 to 2 attack, each for 2; a step sums '
      '768 bytes of perturbations over all replicas, 384 bytes a micro batch')
  assert 'placement' not in description.describe_config(tiny.load())


def test_virtual_replicas_of_a_resumed_run_are_those_that_train() -> None:
  saved = _config('runtime.micro_batches=2')  # 2 train: V is 4
  one = tiny.load('runtime.num_replicas=1')
  run_directory.keep_virtual_replicas(saved, one)
  assert one.runtime.micro_batches == 4
  split = _config('runtime.num_replicas=5,runtime.attack_replicas=1')
  run_directory.keep_virtual_replicas(saved, split)
  assert split.runtime.micro_batches == 1


@pytest.mark.slow
@pytest.mark.parametrize('change', [
    f'{_MIRRORED},{_SPLIT}', 'runtime.micro_batches=2'])
def test_resuming_at_3_equals_straight_to_6(
    change: str, whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
  path = shutil.copytree(whole, tmp_path / 'run')
  (path / 'results.json').unlink()
  for step in (4, 5, 6):
    shutil.rmtree(path / f'checkpoints/step-{step:08d}')
  _run(path, change)
  expected, found = _state(whole), _state(path)
  assert expected.keys() == found.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory,
          mirrored: tf.distribute.Strategy) -> pathlib.Path:
  """An unbroken run with an attacker, every update saved."""
  del mirrored  # it must exist before the run asks for it
  path = tmp_path_factory.mktemp('whole')
  _run(path, f'{_MIRRORED},{_SPLIT}')
  return path


def _run(path: pathlib.Path, change: str) -> None:
  """Trains two virtual replicas to update 6."""
  runs.run(tiny.load(
      'method.lag=2,runtime.micro_batches=2,checkpoint.every_epochs=0.33333,'
      'checkpoint.keep=9', change), str(path), evaluates=False, quiet=True)


def _state(path: pathlib.Path) -> dict[str, np.ndarray]:
  with np.load(path / 'checkpoints/step-00000006/state.npz') as file:
    return dict(file)
