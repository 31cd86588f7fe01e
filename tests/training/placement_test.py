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


def _fit(trainer: trainers.Trainer, updates: int = 4, offset: int = 0,
         **options: Any) -> dict[str, list[float]]:
  data = running.dataset(32 // trainer.micro_batches, offset)
  return trainer.fit(data, steps_per_epoch=updates, verbose=0,
                     **options).history


@functools.cache
def _together(lag: int = 1, micro_batches: int = 1, deterministic: bool = True,
              random_start: float = 1.0, updates: int = 4
              ) -> tuple[np.ndarray, dict[str, list[float]]]:
  """One device that does both."""
  trainer = running.make(
      _ConAdv(lag=lag),
      attack=gradient.Pgd(radius=16, random_start=random_start),
      options={'micro_batches': micro_batches,
               'deterministic': deterministic})
  history = _fit(trainer, updates)
  return running.values(trainer), history


# ---- The same numbers.


@pytest.mark.parametrize('options, split', [
    ({}, {}),
    ({'lag': 2, 'micro_batches': 2}, {'steps_per_execution': 3}),
    # Perturbations of one byte; 8 * 8 * 3 of them fill their words.
    ({'random_start': 0.0}, {}),
])
def test_numbers_are_those_of_one_device(
    options: dict[str, Any], split: dict[str, Any],
    mirrored: tf.distribute.Strategy) -> None:
  trainer = _make(
      mirrored, _ConAdv(lag=options.get('lag', 1)),
      {'micro_batches': options.get('micro_batches', 1)},
      gradient.Pgd(radius=16, random_start=options.get('random_start', 1.0)),
      **split)
  history = _fit(trainer)
  values, expected = _together(**options)
  np.testing.assert_array_equal(running.values(trainer), values)
  # Attackers count in no metric.
  for name, value in expected.items():
    np.testing.assert_allclose(history[name], value, rtol=1e-6, err_msg=name)


def test_the_comparison_can_fail(mirrored: tf.distribute.Strategy,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
  # Adversaries that get lost on the way.
  monkeypatch.setattr(placement, 'from_words', lambda packed, code: tf.zeros(
      code.shape, code.dtype))
  trainer = _make(mirrored, _ConAdv())
  _fit(trainer)
  assert np.abs(running.values(trainer) - _together()[0]).max() > 1e-3


def test_numbers_are_close_without_deterministic(
    mirrored: tf.distribute.Strategy) -> None:
  trainer = _make(mirrored, _ConAdv(lag=2),
                  {'micro_batches': 2, 'deterministic': False})
  _fit(trainer, 3)
  np.testing.assert_allclose(
      running.values(trainer), _together(2, 2, False, updates=3)[0],
      rtol=0, atol=1e-5)


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
  trainer = _make(mirrored, _ConAdv())
  _fit(trainer)
  assert conditions
  np.testing.assert_array_equal(running.values(trainer), _together()[0])


def test_resuming_at_3_equals_straight_to_6(
    mirrored: tf.distribute.Strategy) -> None:
  class Snapshot(tf.keras.callbacks.Callback):
    """Asks for a snapshot before the last update, as a checkpoint does."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
      if batch == 2:
        self.model.snapshot_next = True

  def state(trainer: trainers.Trainer) -> list[tf.Variable]:
    lagged = trainer.staleness.lagged
    return (list(trainer.network.variables)
            + [v for s in lagged.sets for v in s]
            + trainer.optimizer.variables + [trainer.step_counter])

  def resume(first: trainers.Trainer, second: trainers.Trainer) -> np.ndarray:
    _fit(first, 3, callbacks=[Snapshot()])
    for target, source in zip(state(second), state(first), strict=True):
      target.assign(source.numpy())
    second.staleness.restore_snapshot(first.staleness.snapshot)
    _fit(second, 3, 96)
    return running.values(second)

  straight = _together(2, updates=6)[0]
  split = lambda: _make(mirrored, _ConAdv(lag=2))
  together = lambda: running.make(_ConAdv(lag=2))
  np.testing.assert_array_equal(resume(split(), split()), straight)
  # Where the adversaries of a run are made may change.
  np.testing.assert_array_equal(resume(split(), together()), straight)


# ---- Who does what.


def _operations(trainer: trainers.Trainer,
                strategy: tf.distribute.Strategy) -> list[tuple[str, str, str]]:
  """(type, device, name) of all of an update, bodies of loops included."""
  data = strategy.experimental_distribute_dataset(
      running.dataset(32).map(lambda x, y: (
          tf.concat([x, x], 0), tf.concat([y, y], 0))))
  graph = trainer._loop.one.get_concrete_function(iter(data)).graph
  found = [(op.type, op.device, op.name) for op in graph.get_operations()]
  for function in graph.as_graph_def().library.function:
    found += [(node.op, node.device, f'{function.signature.name}/{node.name}')
              for node in function.node_def]
  return found


def test_trainers_attack_nothing_and_attackers_train_nothing(
    mirrored: tf.distribute.Strategy) -> None:
  # The network's only convolution sees images: a pass that differentiates to
  # images has an input gradient of it, one to weights a filter gradient.
  trainer = _make(mirrored, _ConAdv())
  _fit(trainer, 1)
  devices = {
      kind: [device for type_, device, _ in _operations(trainer, mirrored)
             if type_ == kind]
      for kind in ('Conv2D', 'Conv2DBackpropInput', 'Conv2DBackpropFilter')}
  count = {kind: [sum(f'CPU:{i}' in device for device in found)
                  for i in (0, 1)] for kind, found in devices.items()}
  assert count == {'Conv2D': [1, 1], 'Conv2DBackpropInput': [0, 1],
                   'Conv2DBackpropFilter': [1, 0]}


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
  config = tiny.load(
      'runtime.strategy=mirrored,runtime.num_replicas=2', _SPLIT, overrides)
  with pytest.raises(InputError, match=message):
    config_lib.validate(config)
    config_lib.check_batch(config)


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


def test_a_run_goes_on_with_another_placement(
    tmp_path: pathlib.Path, mirrored: tf.distribute.Strategy) -> None:
  del mirrored  # it must exist before the run asks for it
  settings = ('method.lag=2,runtime.micro_batches=2,'
              'checkpoint.every_epochs=0.33333,checkpoint.keep=9')
  split = 'runtime.strategy=mirrored,runtime.num_replicas=2'
  whole, part = tmp_path / 'whole', tmp_path / 'part'
  train = functools.partial(runs.run, evaluates=False, quiet=True)

  def state(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path / 'checkpoints/step-00000006/state.npz') as file:
      return dict(file)

  results = train(tiny.load(settings), str(whole))
  shutil.copytree(whole, part)
  (part / 'results.json').unlink()
  for step in (4, 5, 6):
    shutil.rmtree(part / f'checkpoints/step-{step:08d}')
  again = train(tiny.load(settings, split, _SPLIT), str(part))
  expected, found = state(whole), state(part)
  assert expected.keys() == found.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)
  assert again['validation/loss'] == results['validation/loss']
