"""The branch for TPUs, as far as it goes without one: nothing is executed."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import tensorflow as tf

from conadv_tf import config
from conadv_tf import experiment as experiments
from conadv_tf.distribute import strategies
from conadv_tf.training import trainer as trainers
from tests import fake_tpu, tiny, tpu_programs

_LOCAL = strategies.Machines(tpu='local')
_TINY = 'runtime.strategy=tpu,runtime.deterministic=false'


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[mock.Mock]:
  """TensorFlow's calls for TPUs, recorded; two cores."""
  system = mock.Mock()
  strategy = fake_tpu.strategy(2)
  system.TPUStrategy.return_value = strategy
  monkeypatch.setattr(
      tf.distribute.cluster_resolver, 'TPUClusterResolver', system.Resolver)
  monkeypatch.setattr(
      tf.config, 'experimental_connect_to_cluster', system.connect)
  monkeypatch.setattr(
      tf.tpu.experimental, 'initialize_tpu_system', system.initialize)
  monkeypatch.setattr(tf.distribute, 'TPUStrategy', system.TPUStrategy)
  strategies._strategy.cache_clear()
  yield system
  strategies._strategy.cache_clear()


def test_one_host(system: mock.Mock) -> None:
  made = strategies.get('tpu', machines=_LOCAL)
  assert made is strategies.get('tpu', 2, machines=_LOCAL)  # one connection
  resolver = system.Resolver.return_value
  assert system.mock_calls == [
      mock.call.Resolver(tpu='local', zone=None, project=None),
      mock.call.initialize(resolver), mock.call.TPUStrategy(resolver)]


def test_a_pod_is_connected_to(system: mock.Mock) -> None:
  strategies.get('tpu', machines=strategies.Machines(
      tpu='pod', tpu_zone='z', tpu_project='p'))
  resolver = system.Resolver.return_value
  assert system.mock_calls[:3] == [
      mock.call.Resolver(tpu='pod', zone='z', project='p'),
      mock.call.connect(resolver), mock.call.initialize(resolver)]


def test_cores_are_counted_or_must_agree(system: mock.Mock) -> None:
  del system
  loaded = tiny.load(_TINY)
  strategies.connect(loaded.runtime, _LOCAL)
  assert loaded.runtime.num_replicas == 2
  with pytest.raises(config.InputError, match='num_replicas=8.* has 2 here'):
    strategies.get('tpu', 8, machines=_LOCAL)


def test_without_a_tpu_one_line_says_so() -> None:
  strategies._strategy.cache_clear()
  with pytest.raises(config.InputError, match='--tpu=local cannot be used'):
    strategies.get('tpu', machines=_LOCAL)
  with pytest.raises(config.InputError, match='tpu needs --tpu=local or'):
    strategies.get('tpu')
  with pytest.raises(config.InputError, match='--tpu=local and one_device'):
    strategies.get('one_device', machines=_LOCAL)


@pytest.mark.parametrize('override, key', [
    ('runtime.deterministic=true', 'deterministic'),
    ('runtime.jit_compile=true', 'jit_compile'),
    ('runtime.precision=mixed_float16', 'precision'),
])
def test_what_a_tpu_cannot_do_is_refused(override: str, key: str) -> None:
  with pytest.raises(config.InputError, match=f'runtime.{key}.*strategy=tpu'):
    tiny.load(_TINY, override)


def test_a_whole_experiment_traces(
    system: mock.Mock, monkeypatch: pytest.MonkeyPatch) -> None:
  del system
  traced: dict[str, Any] = {}

  def execute(self: trainers.Trainer, iterator: Any) -> dict[str, float]:
    traced['update'] = self._loop.one.get_concrete_function(iterator)
    traced['prime'] = self._loop.prime.get_concrete_function(
        iterator, tf.constant(0))
    return {'loss': 0.0}

  monkeypatch.setattr(trainers.Trainer, '_execute', execute)
  experiment = experiments.build(
      tiny.load(_TINY, 'runtime.on_nan=skip_step'), machines=_LOCAL)
  assert experiment.config.derived.virtual_replicas == 2
  experiment.trainer.fit(
      experiment.train_dataset(0), steps_per_epoch=1, verbose=0)
  for phase, function in traced.items():
    assert not tpu_programs.faults(function, phase)
