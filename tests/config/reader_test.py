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
      'seed': 3, 'model': {'args': args}, 'runtime': {'num_replicas': 2,
      'strategy': 'mirrored'}, 'attack': {'random_start': 1e-5},
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
