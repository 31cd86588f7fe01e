import pathlib

import pytest

from conadv_tf import config


def _message(raised: pytest.ExceptionInfo) -> str:
  message = str(raised.value)
  assert len(message.splitlines()) == 1
  return message


def test_resolve_computes_what_is_derived() -> None:
  original = config.load(
      [], 'data.global_batch_size=48,schedule.epochs=2.5,'
      'schedule.warmup_epochs=0.5,runtime.micro_batches=3,'
      'runtime.num_replicas=2,runtime.strategy=mirrored,attack.steps=5')
  derived = config.resolve(original, 1000).derived
  assert derived.num_examples == 1000
  assert derived.steps_per_epoch == pytest.approx(1000 / 48, rel=1e-12)
  assert derived.total_steps == 52  # 2.5 * 1000 / 48 = 52.08
  assert derived.warmup_steps == 10  # 0.5 * 1000 / 48 = 10.4
  assert derived.micro_batch_size == 16
  assert derived.replica_batch_size == 8
  assert derived.virtual_replicas == 6
  assert derived.step_size == 2.0  # 2.5 * 4 / 5
  assert original.derived.total_steps == 0


def test_what_a_run_saved_is_resolved_again(tmp_path: pathlib.Path) -> None:
  path = tmp_path / 'params.yaml'
  saved = config.resolve(config.load(
      [], 'data.global_batch_size=48,schedule.epochs=2.5'), 1000)
  config.save(saved, str(path))
  assert config.load_resolved(str(path)) == saved
  for text in ('seed: 1', 'derived: 3', 'derived: {num_examples: 0}'):
    path.write_text(text)
    with pytest.raises(config.InputError) as raised:
      config.load_resolved(str(path))
    assert 'no derived.num_examples' in _message(raised)


@pytest.mark.parametrize('override, expected', [
    ('attack.radius=3', 3.0), ('attack.radius=3,attack.step_size=1', 1.0),
    ('attack.radius=3,attack.steps=10', 0.75), ('attack.radius=0', 0.0)])
def test_step_size(override: str, expected: float) -> None:
  resolved = config.resolve(config.load([], override), 1000)
  assert resolved.derived.step_size == expected


def test_a_changed_batch_changes_what_is_derived(
    tmp_path: pathlib.Path) -> None:
  resolved = config.resolve(
      config.load([], 'data.global_batch_size=100,schedule.epochs=3'), 1000)
  assert resolved.derived.total_steps == 30
  again = config.resolve(
      resolved.replace(data={'global_batch_size': 50}), 1000)
  assert again.derived.total_steps == 60
  path = str(tmp_path / 'params.yaml')
  config.save(resolved, path)
  loaded = config.load([path], 'data.global_batch_size=50')
  assert config.resolve(loaded, 1000) == again


@pytest.mark.parametrize('override, expected', [
    # 1000 / 48 = 20.83 updates an epoch, 417 in all.
    ('', 417), ('schedule.decay_epochs=20', 417),
    ('schedule.decay_epochs=2.5', 52),
    ('schedule.decay_epochs=2.5,schedule.convention=mlperf', 50),
    ('schedule.decay_epochs=0.01', 1)])
def test_steps_of_a_decay(override: str, expected: int) -> None:
  loaded = config.load([], f'data.global_batch_size=48,{override}'.rstrip(','))
  derived = config.resolve(loaded, 1000).derived
  assert derived.decay_steps == expected


@pytest.mark.parametrize('convention, expected', [
    # 1000 / 48 = 20.83: 2.5 * 20.83 = 52.08, 1.72 * 20.83 = 35.8.
    ('exact', (1000 / 48, 52, 36)),
    # 1000 // 48 = 20: 2.5 * 20 = 50, 1.72 * 20 = 34.4.
    ('mlperf', (20.0, 50, 34))])
def test_conventions_of_counting(
    convention: str, expected: tuple[float, int, int]) -> None:
  loaded = config.load([], (
      'data.global_batch_size=48,schedule.epochs=2.5,'
      f'schedule.warmup_epochs=1.72,schedule.convention={convention}'))
  derived = config.resolve(loaded, 1000).derived
  assert (derived.steps_per_epoch, derived.total_steps,
          derived.warmup_steps) == expected


def test_whole_updates_need_a_whole_batch() -> None:
  loaded = config.load(
      [], 'data.global_batch_size=48,schedule.convention=mlperf')
  with pytest.raises(config.InputError, match='round to 0 updates'):
    config.resolve(loaded, 47)


def test_a_resolved_config_is_locked() -> None:
  resolved = config.resolve(config.ExperimentConfig(), 1000)
  with pytest.raises(ValueError, match='locked'):
    resolved.seed = 1
  with pytest.raises(ValueError, match='locked'):
    resolved.method.lag = 2
  assert resolved.method.lag == 1


def test_resolve_refuses_a_run_without_updates() -> None:
  short = config.load([], 'schedule.epochs=0.1')
  with pytest.raises(config.InputError) as raised:
    config.resolve(short, 1000)
  assert _message(raised) == (
      'schedule.epochs: 0.1 epochs of 1000 examples in batches of 256 round to '
      '0 updates; raise schedule.epochs or lower data.global_batch_size')


def test_resolve_refuses_boundaries_on_one_update() -> None:
  close = config.load([], (
      'schedule.name=piecewise,schedule.boundaries=[10,10.1],'
      'schedule.values=[1,0.1,0.01]'))
  assert config.resolve(close, 10_000).derived.total_steps == 781
  with pytest.raises(config.InputError) as raised:
    config.resolve(close, 1000)
  assert _message(raised) == (
      'schedule.boundaries: [10.0, 10.1] epochs fall on the updates [39, 39]; '
      'put them further apart')


def test_differences() -> None:
  old = config.resolve(config.ExperimentConfig(), 1000)
  new = config.resolve(config.load(
      [], 'data.global_batch_size=64,model.args={depth: 8},data.path=x,'
      'runtime.micro_batches=2,checkpoint.keep=1,evaluation.every_epochs=2'),
      1000)
  assert config.differences(old, new) == [
      'data.path: null -> x', 'data.global_batch_size: 256 -> 64',
      'model.args: null -> {"depth": 8}']
  assert config.differences(old, old) == []


@pytest.mark.parametrize('override, expected', [
    ('', []),
    ('method.lag=2,attack.radius=1', []),
    ('method.name=vanilla,method.lag=2,attack.radius=1',
     ['method.lag', 'attack.radius']),
    ('method.name=vanilla,method.augmented_stream=split,'
     'data.augment=autoaugment', []),
    ('method.name=vanilla,method.augmented_stream=off', []),
    ('method.name=disadv,method.lag=2,attack.radius=1', ['method.lag']),
    ('method.name=dat,method.lag=2,method.clean_weight=1', []),
    ('method.name=dat,method.lag=0,method.execution=sequential,'
     'method.bn_branches=1,method.trades_weight=1,attack.branch=clean',
     ['method.execution', 'method.bn_branches', 'method.trades_weight',
      'attack.branch']),
    ('method.name=dat,method.regularizer=trades,method.clean_weight=1,'
     'method.trades_weight=1', []),
    ('method.clean_weight=1,method.regularizer=trades',
     ['method.clean_weight', 'method.regularizer']),
    ('method.name=smooth_at,method.lag=2,method.sigma=0,method.gamma=0,'
     'attack.branch=clean',
     ['method.lag', 'method.gamma', 'attack.branch']),
    ('method.sigma=0', ['method.sigma']),
    ('method.name=vanilla,method.noise_copies=1', ['method.noise_copies']),
    ('method.name=absa,method.lag=0,method.sigma=0', ['method.sigma']),
    ('method.lag=0,method.execution=sequential', ['method.execution']),
    ('method.lag=1,method.execution=sequential', []),
    ('optimizer.name=sgd,optimizer.eeta=0.1,optimizer.momentum=0.8',
     ['optimizer.eeta']),
    ('optimizer.name=adamw,optimizer.momentum=0.8', ['optimizer.momentum']),
    ('optimizer.beta_1=0.8', ['optimizer.beta_1']),
    ('optimizer.trust_clip=[0,10],optimizer.scope=layer', ['optimizer.scope']),
    ('optimizer.name=lamb,optimizer.trust_clip=[0,10],optimizer.scope=layer,'
     'optimizer.scale_vectors=false', []),
    ('optimizer.name=lamb,optimizer.trust_clip=[0,10],optimizer.scope=none,'
     'optimizer.scale_vectors=false,optimizer.momentum=0.8',
     ['optimizer.momentum', 'optimizer.trust_clip', 'optimizer.scale_vectors']),
    ('schedule.name=constant,schedule.power=3', ['schedule.power']),
    ('schedule.name=cosine,schedule.end_lr=0,schedule.decay_epochs=2', []),
    ('schedule.name=constant,schedule.decay_epochs=2',
     ['schedule.decay_epochs']),
    ('schedule.name=cyclic,schedule.warmup_epochs=1',
     ['schedule.warmup_epochs']),
    ('data.builder=mnist', ['data.builder']),
    ('data.name=tfds,data.builder=svhn_cropped,data.train_split=extra', []),
    ('data.train_split=extra', ['data.train_split']),
    ('data.label_offset=0,data.train_examples=3,data.shuffle_buffer=9,'
     'data.deterministic=false',
     ['data.train_examples', 'data.label_offset', 'data.shuffle_buffer',
      'data.deterministic']),
    ('data.name=tfrecord,data.label_offset=0,data.train_examples=3,'
     'data.shuffle_buffer=9,data.deterministic=false', ['data.shuffle_buffer']),
    ('data.name=tfrecord,data.shuffle_buffer=9,data.cache=false', []),
    ('evaluation.monitor=loss', ['evaluation.monitor']),
    ('evaluation.monitor=loss,evaluation.patience=3', []),
    ('mlperf.platform=cpu', ['mlperf.platform']),
    ('mlperf.platform=cpu,mlperf.log=true', []),
])
def test_unused_keys(override: str, expected: list[str]) -> None:
  assert config.unused_keys(config.load([], override)) == expected
