import pathlib
from typing import Any

import pytest
import yaml

from conadv_tf import config


def _write(folder: pathlib.Path, text: str, name: str = 'c.yaml') -> str:
  path = folder / name
  path.write_text(text, encoding='utf-8')
  return str(path)


def _message(raised: pytest.ExceptionInfo) -> str:
  message = str(raised.value)
  assert len(message.splitlines()) == 1
  return message


def test_defaults_are_legal_and_no_sources_give_them() -> None:
  assert config.load([]) == config.ExperimentConfig()
  config.validate(config.ExperimentConfig())


def test_later_sources_win(tmp_path: pathlib.Path) -> None:
  first = _write(tmp_path, 'method: {lag: 2, execution: sequential}\nseed: 5',
                 'a.yaml')
  second = _write(tmp_path, '{"method": {"lag": 3}, "attack": {"radius": 1E1}}',
                  'b.json')
  third = _write(tmp_path, 'seed: 7', 'c.yaml')
  loaded = config.load([first, second], [third, 'attack.steps=4'])
  assert loaded.method.lag == 3
  assert loaded.method.execution == 'sequential'
  assert loaded.attack.radius == 10.0
  assert loaded.attack.steps == 4
  assert loaded.seed == 7
  assert config.load(first, 'method.lag=9').method.lag == 9


@pytest.mark.parametrize('pair, key, expected', [
    ('attack.radius=1e-3', 'attack.radius', 1e-3),
    ('attack.radius=8', 'attack.radius', 8.0),
    ('attack.radius=.5', 'attack.radius', 0.5),
    ('attack.radius=+2.', 'attack.radius', 2.0),
    ('seed=010', 'seed', 10),
    ('data.cache=false', 'data.cache', False),
    ('data.cache=True', 'data.cache', True),
    ('data.path=no', 'data.path', 'no'),
    ('data.path=on', 'data.path', 'on'),
    ('data.path=2024-01-01', 'data.path', '2024-01-01'),
    ('data.path=1_000', 'data.path', '1_000'),
    ('data.path=12:30', 'data.path', '12:30'),
    ('data.path="010"', 'data.path', '010'),
    ('data.path=gs://bucket/a=b', 'data.path', 'gs://bucket/a=b'),
    ("data.path='a,b'", 'data.path', 'a,b'),
    ("data.path=it's", 'data.path', "it's"),
    ('data.path=null', 'data.path', None),
    ('data.path=none', 'data.path', None),
    ('data.path=', 'data.path', None),
    ('attack.target=none', 'attack.target', 'none'),
    ('evaluation.attacks=[pgd20,apgd]', 'evaluation.attacks',
     ['pgd20', 'apgd']),
    ('evaluation.attacks=[]', 'evaluation.attacks', []),
    ('schedule.boundaries=[1, 2.5]', 'schedule.boundaries', [1.0, 2.5]),
    ('model.args={depth: 8, names: [a, no], deep: {x: null}}', 'model.args',
     {'depth': 8, 'names': ['a', 'no'], 'deep': {'x': None}}),
    ('model.args.deep.x=1e-3', 'model.args', {'deep': {'x': 1e-3}}),
])
def test_values_are_read_by_type(pair: str, key: str, expected: object) -> None:
  # Neighbours on both sides show that splitting leaves them alone.
  loaded = config.load([], f'method.lag=3,{pair},method.bn_branches=1')
  assert (loaded.method.lag, loaded.method.bn_branches) == (3, 1)
  value = loaded.as_dict()
  for part in key.split('.'):
    value = value[part]
  assert value == expected and type(value) is type(expected)


def test_model_arguments_are_a_plain_dict_and_merge(
    tmp_path: pathlib.Path) -> None:
  first = _write(tmp_path, 'model: {args: {depth: 8, deep: {a: 1}}}', 'a.yaml')
  second = _write(tmp_path, 'model: {args: {deep: {b: 2}}}', 'b.yaml')
  args = config.load([first, second]).model.args
  assert args == {'depth': 8, 'deep': {'a': 1, 'b': 2}}
  assert type(args) is dict and type(args['deep']) is dict
  assert config.load([first], 'model.args=null').model.args is None


_TRICKY = ['no', 'on', 'null', 'none', '', '~', 'true', '010', '1e-3', '1_000',
           '12:30', '2024-01-01', '.inf', '=', '<<', ' a: b # c', 'x\ny', 'ä']


@pytest.mark.parametrize('args', [
    None, {}, {'depth': 8}, {'deep': {'x': None, 'y': [1, 2.5, True, 'z']}},
    {'strings': _TRICKY, **{text: 1 for text in _TRICKY}},
    {'floats': [1e-5, 1e22, -0.0, 1.0], 'lists': [[1], [], {}]},
])
def test_saving_and_loading_gives_an_equal_config(
    tmp_path: pathlib.Path, args: dict[str, Any] | None) -> None:
  original = config.ExperimentConfig()
  original.override({
      'seed': 3, 'model': {'args': args}, 'attack': {'random_start': 1e-5},
      'schedule': {'boundaries': [1.0, 2.5], 'peak_lr': 31.2},
      'evaluation': {'attacks': ['pgd20', 'no']}})
  path = str(tmp_path / 'new' / 'params.yaml')
  config.save(original, path)
  loaded = config.load([path])
  assert loaded == original
  assert loaded.model.args == args
  resolved = config.resolve(original, 1000)
  config.save(resolved, path)
  assert config.load([path]) == original
  assert config.resolve(config.load([path]), 1000) == resolved
  assert [p.name for p in (tmp_path / 'new').iterdir()] == ['params.yaml']
  # Other tools read the same values.
  assert yaml.safe_load(pathlib.Path(path).read_text(encoding='utf-8'))[
      'model']['args'] == args


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
    ('method.name=vanilla', []),
    ('method.name=disadv,method.lag=2,attack.radius=1', ['method.lag']),
    ('method.lag=0,method.execution=sequential', ['method.execution']),
    ('method.lag=1,method.execution=sequential', []),
    ('optimizer.name=sgd,optimizer.eeta=0.1,optimizer.momentum=0.8',
     ['optimizer.eeta']),
    ('optimizer.name=adamw,optimizer.momentum=0.8', ['optimizer.momentum']),
    ('optimizer.beta_1=0.8', ['optimizer.beta_1']),
    ('schedule.name=constant,schedule.power=3', ['schedule.power']),
    ('schedule.name=cosine,schedule.end_lr=0', []),
    ('schedule.name=cyclic,schedule.warmup_epochs=1',
     ['schedule.warmup_epochs']),
    ('data.builder=mnist', ['data.builder']),
    ('data.name=tfds,data.builder=mnist', []),
])
def test_unused_keys(override: str, expected: list[str]) -> None:
  assert config.unused_keys(config.load([], override)) == expected


@pytest.mark.parametrize('override, parts', [
    # Unknown keys.
    ('method.lagg=1', ['method.lagg', 'unknown', 'method.lag']),
    ('lag=1', ['lag: unknown', 'is method.lag']),
    ('methd.lag=1', ['methd: unknown', 'is method']),
    ('optimizer.lr=1', ['optimizer.lr: unknown', 'is optimizer.']),
    ('derived.total_steps=5', ['derived.total_steps', 'leave it out']),
    # Types.
    ('method=conadv', ['method: expected a group of keys, got "conadv"']),
    ('method.lag=abc', ['method.lag: expected an integer, got "abc"']),
    ('method.lag=1.0', ['method.lag: expected an integer, got 1.0']),
    ('method.lag=true', ['method.lag: expected an integer, got true']),
    ('method.lag=[1]', ['method.lag: expected an integer, got [1]']),
    ('method.lag.x=1', ['method.lag: expected an integer, got {"x": 1}']),
    ('attack.radius=', ['attack.radius: expected a number, got null']),
    ('attack.radius=true', ['attack.radius: expected a number, got true']),
    ('attack.radius=4px', ['attack.radius: expected a number, got "4px"']),
    ('attack.radius=.nan', ['attack.radius: expected a finite number']),
    ('attack.radius=-.inf', ['attack.radius: expected a finite number']),
    ('attack.radius=1e999', ['attack.radius: expected a finite number']),
    ('attack.radius=nan', ['attack.radius: expected a number, got "nan"']),
    (f'attack.radius=1{"0" * 400}', ['attack.radius: expected a finite']),
    ('data.cache=no', ['data.cache: expected true or false, got "no"']),
    ('data.cache=1', ['data.cache: expected true or false, got 1']),
    ('data.name=5', ['data.name: expected a string, got 5']),
    ('data.name=null', ['data.name: expected a string, got null']),
    ('data.path=[a]', ['data.path: expected a string, got ["a"]']),
    ('evaluation.attacks=pgd', ['evaluation.attacks: expected a list']),
    ('evaluation.attacks=[1]', ['evaluation.attacks[0]: expected a string']),
    ('schedule.values=[1,x]', ['schedule.values[1]: expected a number']),
    ('model.args=5', ['model.args: expected a mapping, got 5']),
    # Choices.
    ('attack.norm=l1', ['attack.norm: expected one of linf, l2']),
    ('attack.direction=sgn', ['attack.direction', 'did you mean sign?']),
    ('attack.target=all', ['attack.target: expected one of none, random']),
    ('attack.branch=x', ['attack.branch: expected one of adversarial, clean']),
    ('attack.mode=train', ['attack.mode: expected one of batch, moving']),
    ('method.execution=parallel', ['method.execution: expected one of']),
    ('method.adversary=old', ['method.adversary: expected one of']),
    ('method.pairing=same_batc', ['mean same_batch?']),
    ('method.bn_branches=4', ['method.bn_branches: expected one of 1, 2, 3']),
    ('method.bn_branches=true', ['method.bn_branches', 'got true']),
    ('runtime.strategy=tpu', ['runtime.strategy: expected one of']),
    ('runtime.precision=float16', ['runtime.precision', 'mixed_float16']),
    ('data.augment=flip', ['data.augment: expected one of']),
    ('optimizer.name=adam', ['optimizer.name', 'did you mean adamw?']),
    ('schedule.name=linear', ['schedule.name: expected one of']),
    # Not there yet.
    ('method.adversary=recycled', ['method.adversary', 'not available yet']),
    ('method.pairing=next_batch', ['method.pairing', 'not available yet']),
    # Ranges.
    ('seed=-1', ['seed: must be from 0 to 2147483647, got -1']),
    ('seed=2147483648', ['seed: must be']),
    ('data.global_batch_size=0', ['data.global_batch_size: must be at least']),
    ('data.image_size=0', ['data.image_size: must be at least 1']),
    ('data.num_classes=1', ['data.num_classes: must be at least 2']),
    ('data.num_examples=0', ['data.num_examples: must be at least 1']),
    ('objective.label_smoothing=1', ['objective.label_smoothing: must be']),
    ('method.lag=-1', ['method.lag: must be 0 or more, got -1']),
    ('method.adversarial_fraction=0', ['method.adversarial_fraction: must']),
    ('method.adversarial_fraction=1.5', ['method.adversarial_fraction: must']),
    ('method.adversarial_weight=1.1', ['method.adversarial_weight: must be']),
    ('attack.radius=-1', ['attack.radius: must be 0 or more, got -1.0']),
    ('attack.step_size=-1', ['attack.step_size: must be 0 or more']),
    ('attack.steps=0', ['attack.steps: must be at least 1', 'attack.radius=0']),
    ('attack.random_start=2', ['attack.random_start: must be from 0 to 1']),
    ('optimizer.momentum=1', ['optimizer.momentum: must be at least 0 and']),
    ('optimizer.weight_decay=-1', ['optimizer.weight_decay: must be']),
    ('optimizer.eeta=0', ['optimizer.eeta: must be above 0, got 0.0']),
    ('optimizer.epsilon=-1', ['optimizer.epsilon: must be 0 or more']),
    ('optimizer.beta_1=1', ['optimizer.beta_1: must be']),
    ('optimizer.beta_2=1', ['optimizer.beta_2: must be']),
    ('schedule.epochs=0', ['schedule.epochs: must be above 0']),
    ('schedule.peak_lr=-1', ['schedule.peak_lr: must be 0 or more']),
    ('schedule.warmup_epochs=-1', ['schedule.warmup_epochs: must be 0']),
    ('schedule.power=0', ['schedule.power: must be above 0']),
    ('schedule.end_lr=-1', ['schedule.end_lr: must be 0 or more']),
    ('schedule.values=[1,-1]', ['schedule.values: must be 0 or more']),
    ('schedule.boundaries=[-1]', ['schedule.boundaries: must be 0 or more']),
    ('runtime.num_replicas=0', ['runtime.num_replicas: must be at least 1']),
    ('runtime.micro_batches=0', ['runtime.micro_batches: must be at least 1']),
    ('runtime.steps_per_execution=0', ['runtime.steps_per_execution: must']),
    ('checkpoint.every_epochs=0', ['checkpoint.every_epochs: must be above']),
    ('checkpoint.every_minutes=0', ['checkpoint.every_minutes: must be above']),
    ('checkpoint.keep=0', ['checkpoint.keep: must be at least 1']),
    ('evaluation.every_epochs=0', ['evaluation.every_epochs: must be']),
    ('evaluation.offset_epochs=-1', ['evaluation.offset_epochs: must be']),
    ('evaluation.batch_size=0', ['evaluation.batch_size: must be']),
    ('evaluation.train_examples=-1', ['evaluation.train_examples: must be']),
    # Combinations.
    ('data.global_batch_size=100,runtime.num_replicas=4,'
     'runtime.micro_batches=8,runtime.strategy=mirrored',
     ['data.global_batch_size: 100 ', '4 runtime.num_replicas',
      '8 runtime.micro_batches', '= 32', 'is 96']),
    ('data.global_batch_size=1,runtime.micro_batches=4', ['is 4']),
    ('runtime.num_replicas=2', ['runtime.num_replicas', 'strategy=mirrored']),
    ('schedule.warmup_epochs=21',
     ['schedule.warmup_epochs', 'at most schedule.epochs (20.0), got 21.0']),
    ('schedule.end_lr=3', ['schedule.end_lr', 'schedule.peak_lr (2.0)']),
    ('schedule.name=piecewise', ['schedule.values: 0 schedule.boundaries']),
    ('schedule.name=piecewise,schedule.boundaries=[3,3],'
     'schedule.values=[1,1,1]', ['schedule.boundaries: must increase']),
    ('schedule.name=piecewise,schedule.boundaries=[3],'
     'schedule.values=[1]', ['schedule.values', 'need 2 values, got [1.0]']),
    ('schedule.name=piecewise,schedule.boundaries=[3],schedule.values=[1,1],'
     'schedule.warmup_epochs=5', ['schedule.boundaries', 'warmup_epochs']),
    # Syntax.
    ('method.lag=1,method.lag=2', ['method.lag: duplicate key']),
    ('method=x,method.lag=2', ['method.lag', 'method is given a value too']),
    ('method.lag=1,oops', ['expected key=value, got "oops"']),
    ('method.lag=1,', ['expected key=value, got ""']),
    ('=3', ['expected key=value, got "=3"']),
    ('method.lag=[1', ['method.lag', 'correct the YAML']),
    ('model.args={a: 1, a: 2}', ['model.args', "duplicate key 'a'"]),
    ('no/such/file.yaml', ['no/such/file.yaml: cannot read it']),
])
def test_illegal_overrides(override: str, parts: list[str]) -> None:
  with pytest.raises(config.InputError) as raised:
    config.load([], override)
  message = _message(raised)
  for part in parts:
    assert part in message


@pytest.mark.parametrize('text, parts', [
    ('method:\n  lagg: 1', ['method.lagg', 'c.yaml', 'method.lag']),
    ('method:\n  lag: x', ['method.lag', 'expected an integer', 'c.yaml']),
    ('1: 2', ['1: unknown key', 'c.yaml']),
    ('method:', ['method: expected a group of keys, got null', 'c.yaml']),
    ('', ['c.yaml: expected groups of keys', 'got null']),
    ('- a', ['c.yaml: expected groups of keys', 'got ["a"]']),
    ('conadv', ['c.yaml: expected groups of keys']),
    ('seed: 1\nseed: 2', ['c.yaml: line 2', "duplicate key 'seed'"]),
    ('method: {lag: 1}\nattack: [', ['c.yaml: line 2', 'correct the YAML']),
    ('seed: *x', ['c.yaml: line 1', 'undefined alias']),
    ('seed: !!python/object:os.system 1', ['c.yaml: line 1', 'could not']),
    ('model: {args: &a {x: *a}}', ['c.yaml: not YAML']),
    ('model: {args: {? [1] : 2}}', ['c.yaml']),
    ('"method\\nx": 1', ['method', 'unknown key']),
])
def test_illegal_files(
    tmp_path: pathlib.Path, text: str, parts: list[str]) -> None:
  with pytest.raises(config.InputError) as raised:
    config.load([_write(tmp_path, text)])
  message = _message(raised)
  for part in parts:
    assert part in message


def test_unreadable_files(tmp_path: pathlib.Path) -> None:
  binary = tmp_path / 'b.yaml'
  binary.write_bytes(b'\xff\xfe\x00')
  for path, reason in ((tmp_path / 'missing.yaml', 'No such file'),
                       (tmp_path, 'Is a directory'),
                       (binary, 'not a UTF-8 text file')):
    with pytest.raises(config.InputError, match=reason) as raised:
      config.load([str(path)])
    assert str(path) in _message(raised)


def test_a_loaded_derived_group_is_ignored(tmp_path: pathlib.Path) -> None:
  path = _write(tmp_path, 'derived: {total_steps: 7, unknown: x}')
  assert config.load([path]).derived.total_steps == 0


def test_shared_and_merged_yaml_nodes(tmp_path: pathlib.Path) -> None:
  path = _write(tmp_path, (
      'model: {args: {a: &a {x: 1, y: 2}, b: {<<: *a, y: 3}, c: *a}}'))
  assert config.load([path]).model.args == {
      'a': {'x': 1, 'y': 2}, 'b': {'x': 1, 'y': 3}, 'c': {'x': 1, 'y': 2}}


def test_a_config_made_in_python_is_checked_too() -> None:
  made = config.ExperimentConfig(
      method=config.MethodConfig(lag=2), attack=config.AttackConfig(radius=8))
  resolved = config.resolve(made, 1000)
  assert resolved.method.lag == 2
  assert type(resolved.attack.radius) is float
  made.method.lag = '3'
  with pytest.raises(config.InputError, match='method.lag: expected an int'):
    config.resolve(made, 1000)


def test_input_error_is_one_line() -> None:
  assert str(config.InputError('a\n  b\r\nc')) == 'a b c'
