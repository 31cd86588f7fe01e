"""The experiment's configuration: load, check, resolve, save.

Built on `official.modeling.hyperparams`, which merges and saves but checks
neither types nor ranges; that part is here.
"""

from collections.abc import Iterator, Mapping, Sequence
import copy
import dataclasses
import difflib
import itertools
import json
import math
import os
import re
import types
import typing
from typing import Any, Literal, Union

from official.modeling.hyperparams import base_config
import yaml

# The base class takes list[str] for a class on Python 3.10, and fails.
_List = typing.List  # noqa: UP006, UP035


class InputError(ValueError):
  """Bad user input; the message is one line: what, where, what to do."""

  def __init__(self, message: object) -> None:
    super().__init__(
        ' '.join(line.strip() for line in str(message).splitlines()))


@dataclasses.dataclass
class DataConfig(base_config.Config):
  """What is trained on; `builder` is the TFDS name, null means no limit."""
  name: str = 'digits'
  path: str | None = None
  builder: str | None = None
  global_batch_size: int = 256
  image_size: int | None = None
  num_classes: int | None = None
  augment: Literal['none', 'crop_flip', 'autoaugment', 'randaugment'] = 'none'
  cache: bool = True
  num_examples: int | None = None


@dataclasses.dataclass
class ModelConfig(base_config.Config):
  """Which network; `args` go to its constructor and stay a plain dict."""
  # The base class would turn `args` into a Config, whose methods shadow keys.
  IMMUTABLE_TYPES = base_config.Config.IMMUTABLE_TYPES + (dict,)

  name: str = 'resnet20'
  args: dict | None = None

  def _set(self, k: str, v: Any) -> None:
    if k == 'args':
      self.__dict__[k] = copy.deepcopy(v)
    else:
      super()._set(k, v)

  def _override(
      self, override_dict: Mapping[str, Any], is_strict: bool = True) -> None:
    rest = dict(override_dict)
    if 'args' in rest:
      self._set('args', rest.pop('args'))
    super()._override(rest, is_strict)


@dataclasses.dataclass
class ObjectiveConfig(base_config.Config):
  """What is minimised."""
  label_smoothing: float = 0.0


@dataclasses.dataclass
class MethodConfig(base_config.Config):
  """How clean and adversarial examples are combined, and how stale."""
  name: str = 'conadv'
  lag: int = 1
  execution: Literal['concurrent', 'sequential'] = 'concurrent'
  adversary: Literal['fresh', 'recycled'] = 'fresh'
  adversarial_fraction: float = 1.0
  adversarial_weight: float = 0.5
  pairing: Literal['same_batch', 'next_batch'] = 'same_batch'
  bn_branches: Literal[1, 2, 3] = 2
  rebalance_branch_gradients: bool = False


@dataclasses.dataclass
class AttackConfig(base_config.Config):
  """How an adversary is made; radius and step_size are in 1/255.

  Null `step_size` means radius for 1 step, else 2.5 * radius / steps; null
  `random_start` and `branch` mean the method's own default.
  """
  radius: float = 4.0
  step_size: float | None = None
  steps: int = 1
  norm: Literal['linf', 'l2'] = 'linf'
  direction: Literal['sign', 'raw', 'l2'] = 'sign'
  random_start: float | None = None
  target: Literal['none', 'random'] = 'none'
  branch: Literal['adversarial', 'clean'] | None = None
  mode: Literal['batch', 'moving'] = 'batch'


@dataclasses.dataclass
class OptimizerConfig(base_config.Config):
  """Null `epsilon` means the optimizer's own default."""
  name: Literal['lars', 'sgd', 'adamw'] = 'lars'
  momentum: float = 0.9
  nesterov: bool = False
  weight_decay: float = 1e-4
  eeta: float = 1e-3
  epsilon: float | None = None
  beta_1: float = 0.9
  beta_2: float = 0.999


@dataclasses.dataclass
class ScheduleConfig(base_config.Config):
  """Learning rate over time, in epochs; `values` are factors of peak_lr."""
  name: Literal[
      'polynomial', 'piecewise', 'cosine', 'cyclic', 'constant'] = 'polynomial'
  epochs: float = 20.0
  peak_lr: float = 2.0
  warmup_epochs: float = 0.0
  power: float = 2.0
  end_lr: float = 1e-4
  boundaries: _List[float] = dataclasses.field(default_factory=list)
  values: _List[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class RuntimeConfig(base_config.Config):
  """Where and how it runs; changes no result beyond rounding."""
  strategy: Literal['one_device', 'mirrored'] = 'one_device'
  num_replicas: int = 1
  micro_batches: int = 1
  precision: Literal['float32', 'mixed_bfloat16', 'mixed_float16'] = 'float32'
  deterministic: bool = False
  jit_compile: bool = False
  steps_per_execution: int = 1


@dataclasses.dataclass
class CheckpointConfig(base_config.Config):
  """How often a run can be resumed from, and how many are kept."""
  every_epochs: float = 1.0
  every_minutes: float | None = None
  keep: int = 3


@dataclasses.dataclass
class EvaluationConfig(base_config.Config):
  """`train_examples` are evaluated for the generalisation gap; 0 is off."""
  every_epochs: int = 1
  offset_epochs: int = 0
  batch_size: int = 256
  attacks: _List[str] = dataclasses.field(default_factory=list)
  train_examples: int = 0


@dataclasses.dataclass
class DerivedConfig(base_config.Config):
  """Filled by `resolve`; ignored where a configuration is loaded."""
  num_examples: int = 0
  total_steps: int = 0
  warmup_steps: int = 0
  steps_per_epoch: float = 0.0
  micro_batch_size: int = 0
  replica_batch_size: int = 0
  virtual_replicas: int = 0
  step_size: float = 0.0


def _group(config_type: type) -> Any:
  return dataclasses.field(default_factory=config_type)


@dataclasses.dataclass
class ExperimentConfig(base_config.Config):
  """Everything a run depends on."""
  seed: int = 0
  data: DataConfig = _group(DataConfig)
  model: ModelConfig = _group(ModelConfig)
  objective: ObjectiveConfig = _group(ObjectiveConfig)
  method: MethodConfig = _group(MethodConfig)
  attack: AttackConfig = _group(AttackConfig)
  optimizer: OptimizerConfig = _group(OptimizerConfig)
  schedule: ScheduleConfig = _group(ScheduleConfig)
  runtime: RuntimeConfig = _group(RuntimeConfig)
  checkpoint: CheckpointConfig = _group(CheckpointConfig)
  evaluation: EvaluationConfig = _group(EvaluationConfig)
  derived: DerivedConfig = _group(DerivedConfig)


def load(
    config_files: Sequence[str],
    params_override: None | str | Sequence[str] = None,
) -> ExperimentConfig:
  """Returns the defaults, overridden by each source in turn.

  Args:
    config_files: YAML or JSON files; later ones win.
    params_override: one or several sources that win over all files, each a
      YAML or JSON file or `a.b=1,c.d=[2,3]`.

  Returns:
    A checked configuration, not resolved yet.

  Raises:
    InputError: if any source is unreadable, unknown, ill-typed or illegal.
  """
  if isinstance(config_files, str):
    config_files = [config_files]
  if isinstance(params_override, str):
    params_override = [params_override]
  sources = [(path, _read_file(path)) for path in config_files]
  for text in params_override or ():
    if not text.strip():
      continue
    if os.path.exists(text) or '=' not in text:
      sources.append((text, _read_file(text)))
    else:
      sources.append(('--params_override', _read_pairs(text)))
  merged = {}
  for where, tree in sources:
    tree.pop('derived', None)
    _merge(merged, _typed(tree, ExperimentConfig, '', where))
  config = ExperimentConfig()
  config.override(merged)
  validate(config)
  return config


def save(config: ExperimentConfig, path: str) -> None:
  """Writes YAML that `load` takes again, whole or not at all."""
  text = yaml.dump(config.as_dict(), Dumper=_Dumper, sort_keys=False,
                   allow_unicode=True)
  folder = os.path.dirname(path)
  if folder:
    os.makedirs(folder, exist_ok=True)
  with open(path + '.tmp', 'w', encoding='utf-8') as file:
    file.write(text)
  os.replace(path + '.tmp', path)


def resolve(config: ExperimentConfig, num_examples: int) -> ExperimentConfig:
  """Returns a checked, locked copy with `derived` computed from all the rest.

  Args:
    config: as loaded, or resolved before and then changed by `replace`.
    num_examples: the size of the training set.
  """
  validate(config)
  resolved = ExperimentConfig()
  resolved.override(
      _typed(config.as_dict(), ExperimentConfig, '', 'the configuration'))
  batch, runtime = resolved.data.global_batch_size, resolved.runtime
  schedule, attack = resolved.schedule, resolved.attack
  steps_per_epoch = num_examples / batch
  total_steps = round(schedule.epochs * num_examples / batch)
  if total_steps < 1:
    raise InputError(
        f'schedule.epochs: {_show(schedule.epochs)} epochs of {num_examples} '
        f'examples in batches of {batch} round to 0 updates; raise '
        'schedule.epochs or lower data.global_batch_size')
  _check_boundary_steps(schedule, steps_per_epoch)
  step_size = attack.step_size
  if step_size is None:
    step_size = attack.radius * (1 if attack.steps == 1 else 2.5 / attack.steps)
  virtual_replicas = runtime.num_replicas * runtime.micro_batches
  resolved.derived = DerivedConfig(
      num_examples=int(num_examples),
      total_steps=total_steps,
      warmup_steps=min(
          total_steps, round(schedule.warmup_epochs * steps_per_epoch)),
      steps_per_epoch=steps_per_epoch,
      micro_batch_size=batch // runtime.micro_batches,
      replica_batch_size=batch // virtual_replicas,
      virtual_replicas=virtual_replicas,
      step_size=float(step_size))
  # The base class locks one level only.
  for value in vars(resolved).values():
    if isinstance(value, base_config.Config):
      value.lock()
  resolved.lock()
  return resolved


def differences(old: ExperimentConfig, new: ExperimentConfig) -> list[str]:
  """Lists what makes `new` another experiment, as 'key: old -> new'."""
  before, after = (
      dict(_leaves(config.as_dict())) for config in (old, new))
  return [
      f'{key}: {_plain(before[key])} -> {_plain(after[key])}'
      for key in before
      if key.split('.')[0] not in _NO_PART_OF_THE_EXPERIMENT
      and before[key] != after[key]]


def unused_keys(config: ExperimentConfig) -> list[str]:
  """Lists keys set away from their default that this run will not look at."""
  default = dict(_leaves(ExperimentConfig().as_dict()))
  changed = [key for key, value in _leaves(config.as_dict())
             if key in default and value != default[key]]
  ignored = set()
  for choice, uses in (
      (config.optimizer, _OPTIMIZER_USES), (config.schedule, _SCHEDULE_USES)):
    every = {key for keys in uses.values() for key in keys}
    ignored |= every - set(uses[choice.name])
  method = config.method
  if method.name == 'vanilla':
    ignored |= {key for key in default if key.startswith('attack.')}
    ignored |= {key for key in default if key.startswith('method.')}
    ignored -= {'method.name'}
  elif method.name == 'disadv':
    ignored |= {'method.lag', 'method.execution'}
  elif method.name == 'conadv' and method.lag == 0:
    ignored |= {'method.execution'}
  if config.data.name != 'tfds':
    ignored |= {'data.builder'}
  return [key for key in changed if key in ignored]


_NO_PART_OF_THE_EXPERIMENT = ('runtime', 'checkpoint', 'evaluation', 'derived')
_OPTIMIZER_USES = {
    'lars': ('optimizer.momentum', 'optimizer.nesterov', 'optimizer.eeta',
             'optimizer.epsilon'),
    'sgd': ('optimizer.momentum', 'optimizer.nesterov'),
    'adamw': ('optimizer.beta_1', 'optimizer.beta_2', 'optimizer.epsilon'),
}
_SCHEDULE_USES = {
    'polynomial': ('schedule.warmup_epochs', 'schedule.power',
                   'schedule.end_lr'),
    'piecewise': ('schedule.warmup_epochs', 'schedule.boundaries',
                  'schedule.values'),
    'cosine': ('schedule.warmup_epochs', 'schedule.end_lr'),
    'cyclic': (),
    'constant': ('schedule.warmup_epochs',),
}

_AT_LEAST_1 = ('at least 1', lambda v: v >= 1)
_POSITIVE = ('above 0', lambda v: v > 0)
_NOT_NEGATIVE = ('0 or more', lambda v: v >= 0)
_PROBABILITY = ('from 0 to 1', lambda v: 0 <= v <= 1)
_BELOW_1 = ('at least 0 and below 1', lambda v: 0 <= v < 1)
_RANGES = {
    'seed': ('from 0 to 2147483647', lambda v: 0 <= v < 2**31),
    'data.global_batch_size': _AT_LEAST_1,
    'data.image_size': _AT_LEAST_1,
    'data.num_classes': ('at least 2', lambda v: v >= 2),
    'data.num_examples': _AT_LEAST_1,
    'objective.label_smoothing': _BELOW_1,
    'method.lag': _NOT_NEGATIVE,
    'method.adversarial_fraction':
        ('above 0 and at most 1', lambda v: 0 < v <= 1),
    'method.adversarial_weight': _PROBABILITY,
    'attack.radius': _NOT_NEGATIVE,
    'attack.step_size': _NOT_NEGATIVE,
    'attack.steps': ('at least 1 (attack.radius=0 turns it off)',
                     lambda v: v >= 1),
    'attack.random_start': _PROBABILITY,
    'optimizer.momentum': _BELOW_1,
    'optimizer.weight_decay': _NOT_NEGATIVE,
    'optimizer.eeta': _POSITIVE,
    'optimizer.epsilon': _NOT_NEGATIVE,
    'optimizer.beta_1': _BELOW_1,
    'optimizer.beta_2': _BELOW_1,
    'schedule.epochs': _POSITIVE,
    'schedule.peak_lr': _NOT_NEGATIVE,
    'schedule.warmup_epochs': _NOT_NEGATIVE,
    'schedule.power': _POSITIVE,
    'schedule.end_lr': _NOT_NEGATIVE,
    'schedule.boundaries': _NOT_NEGATIVE,
    'schedule.values': _NOT_NEGATIVE,
    'runtime.num_replicas': _AT_LEAST_1,
    'runtime.micro_batches': _AT_LEAST_1,
    'runtime.steps_per_execution': _AT_LEAST_1,
    'checkpoint.every_epochs': _POSITIVE,
    'checkpoint.every_minutes': _POSITIVE,
    'checkpoint.keep': _AT_LEAST_1,
    'evaluation.every_epochs': _AT_LEAST_1,
    'evaluation.offset_epochs': _NOT_NEGATIVE,
    'evaluation.batch_size': _AT_LEAST_1,
    'evaluation.train_examples': _NOT_NEGATIVE,
}


def validate(config: ExperimentConfig) -> None:
  """Raises InputError unless every type, range and combination is legal."""
  tree = _typed(config.as_dict(), ExperimentConfig, '', 'the configuration')
  leaves = dict(_leaves(tree))
  for key, (text, is_legal) in _RANGES.items():
    value = leaves[key]
    for number in value if isinstance(value, list) else [value]:
      if number is not None and not is_legal(number):
        raise InputError(f'{key}: must be {text}, got {_show(number)}')
  for key, value in (('method.adversary', 'recycled'),
                     ('method.pairing', 'next_batch')):
    if leaves[key] == value:
      raise InputError(f'{key}: {value!r} is not available yet; leave it out')
  _check_batch(config.data.global_batch_size, config.runtime)
  _check_schedule(config.schedule)


def _check_batch(batch: int, runtime: RuntimeConfig) -> None:
  replicas, micro_batches = runtime.num_replicas, runtime.micro_batches
  if runtime.strategy == 'one_device' and replicas != 1:
    raise InputError(
        f'runtime.num_replicas: strategy one_device has 1 replica, got '
        f'{replicas}; set runtime.strategy=mirrored')
  parts = replicas * micro_batches
  if batch % parts:
    nearest = max(1, (2 * batch + parts) // (2 * parts)) * parts
    raise InputError(
        f'data.global_batch_size: {batch} does not divide among '
        f'{replicas} runtime.num_replicas x {micro_batches} '
        f'runtime.micro_batches = {parts}; the nearest batch that does is '
        f'{nearest}')


def _check_schedule(schedule: ScheduleConfig) -> None:
  if schedule.warmup_epochs > schedule.epochs:
    raise InputError(
        f'schedule.warmup_epochs: must be at most schedule.epochs '
        f'({_show(schedule.epochs)}), got {_show(schedule.warmup_epochs)}')
  if ('schedule.end_lr' in _SCHEDULE_USES[schedule.name]
      and schedule.end_lr > schedule.peak_lr):
    raise InputError(
        f'schedule.end_lr: must be at most schedule.peak_lr '
        f'({_show(schedule.peak_lr)}), got {_show(schedule.end_lr)}')
  if schedule.name != 'piecewise':
    return
  boundaries, values = schedule.boundaries, schedule.values
  if any(a >= b for a, b in itertools.pairwise(boundaries)):
    raise InputError(
        f'schedule.boundaries: must increase, got {_show(boundaries)}')
  if boundaries and boundaries[0] < schedule.warmup_epochs:
    raise InputError(
        f'schedule.boundaries: the first must not come before the end of '
        f'schedule.warmup_epochs ({_show(schedule.warmup_epochs)}), got '
        f'{_show(boundaries[0])}')
  if len(values) != len(boundaries) + 1:
    raise InputError(
        f'schedule.values: {len(boundaries)} schedule.boundaries need '
        f'{len(boundaries) + 1} values, got {_show(values)}')


def _check_boundary_steps(
    schedule: ScheduleConfig, steps_per_epoch: float) -> None:
  steps = [round(epoch * steps_per_epoch) for epoch in schedule.boundaries]
  if schedule.name == 'piecewise' and len(set(steps)) < len(steps):
    raise InputError(
        f'schedule.boundaries: {_show(schedule.boundaries)} epochs fall on the '
        f'updates {_show(steps)}; put them further apart')


def _typed(value: Any, hint: Any, key: str, where: str) -> Any:
  """Returns `value` as the type that `hint` asks for, or raises InputError."""
  if typing.get_origin(hint) in (Union, types.UnionType):
    if value is None or value in ('none', 'None'):
      return None
    return _typed(value, typing.get_args(hint)[0], key, where)
  if isinstance(hint, type) and issubclass(hint, base_config.Config):
    return _typed_group(value, hint, key, where)
  if typing.get_origin(hint) is Literal:
    choices = typing.get_args(hint)
    # True == 1, so equality alone would take a bool for a number.
    if any(value == c and type(value) is type(c) for c in choices):
      return value
    near = difflib.get_close_matches(str(value), map(str, choices), 1)
    expected = 'one of ' + ', '.join(map(str, choices))
    if near:
      expected += f' (did you mean {near[0]}?)'
  elif typing.get_origin(hint) is list:
    if isinstance(value, (list, tuple)):
      item = typing.get_args(hint)[0]
      return [_typed(v, item, f'{key}[{i}]', where)
              for i, v in enumerate(value)]
    expected = 'a list, written [a,b]'
  else:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and number:
      return _finite(value, key, where)
    if isinstance(value, hint) and (number or hint is not int):
      return copy.deepcopy(value) if hint is dict else hint(value)
    expected = {bool: 'true or false', int: 'an integer', float: 'a number',
                str: 'a string', dict: 'a mapping'}[hint]
  raise InputError(
      f'{key}: expected {expected}, got {_show(value)}, in {where}')


def _finite(value: int | float, key: str, where: str) -> float:
  try:
    number = float(value)
  except OverflowError:
    number = math.inf
  if not math.isfinite(number):
    raise InputError(
        f'{key}: expected a finite number, got {_show(value)}, in {where}')
  return number


def _typed_group(
    value: Any, hint: type, key: str, where: str) -> dict[str, Any]:
  """Returns the group's mapping with every key known and every value typed."""
  if not isinstance(value, Mapping):
    raise InputError(
        f'{key or "configuration"}: expected a group of keys, got '
        f'{_show(value)}, in {where}')
  hints = _hints(hint)
  typed = {}
  for name, inner in value.items():
    path = f'{key}.{name}' if key else str(name)
    if name not in hints:
      raise InputError(f'{path}: unknown key in {where}; the nearest known key '
                       f'is {_nearest(path, key, hints)}')
    typed[name] = _typed(inner, hints[name], path, where)
  return typed


def _hints(config_type: type) -> dict[str, Any]:
  hints = typing.get_type_hints(config_type)
  return {f.name: hints[f.name] for f in dataclasses.fields(config_type)}


def _nearest(path: str, group: str, siblings: Mapping[str, Any]) -> str:
  """Prefers a sibling, then the same name elsewhere, then any likeness."""
  name = path.rpartition('.')[2]
  near = difflib.get_close_matches(name, siblings, 1)
  if near:
    return f'{group}.{near[0]}' if group else near[0]
  known = [key for key, _ in _leaves(ExperimentConfig().as_dict())
           if not key.startswith('derived.')]
  same = [key for key in known if key.rpartition('.')[2] == name]
  return (same or difflib.get_close_matches(path, known, 1, 0.0))[0]


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """Yields (dotted key, value) for every key of every group."""
  for name, value in tree.items():
    if isinstance(value, Mapping):
      yield from ((f'{name}.{inner}', v) for inner, v in value.items())
    else:
      yield name, value


def _merge(into: dict[str, Any], tree: Mapping[str, Any]) -> None:
  for name, value in tree.items():
    if isinstance(value, Mapping) and isinstance(into.get(name), dict):
      _merge(into[name], value)
    else:
      into[name] = value


def _show(value: Any) -> str:
  return json.dumps(value, default=str, ensure_ascii=False)


def _plain(value: Any) -> str:
  return value if isinstance(value, str) and value else _show(value)


_RESOLVERS = (
    ('bool', r'true|True|TRUE|false|False|FALSE', 'tTfF'),
    ('int', r'[-+]?[0-9]+', '-+0123456789'),
    ('float', r'[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?'
              r'|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)', '-+.0123456789'),
    ('null', r'~|null|Null|NULL|', ['~', 'n', 'N', '']),
    ('merge', r'<<', '<'),
)


class _Loader(yaml.SafeLoader):
  """Reads numbers, booleans and null; all else (no, on, dates) is a string."""
  yaml_implicit_resolvers = {}

  def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
    node = super().compose_mapping_node(anchor)
    seen = set()
    for key, _ in node.value:
      if isinstance(key, yaml.ScalarNode):
        if key.value in seen:
          raise yaml.constructor.ConstructorError(
              None, None, f'duplicate key {key.value!r}', key.start_mark)
        seen.add(key.value)
    return node


class _Dumper(yaml.SafeDumper):
  """Quotes what `_Loader`, or any YAML 1.1 reader, would not take as text."""


for _tag, _pattern, _first in _RESOLVERS:
  for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        f'tag:yaml.org,2002:{_tag}', re.compile(f'^(?:{_pattern})$'),
        list(_first))
# The stock constructor takes 010 for octal.
_Loader.add_constructor(
    'tag:yaml.org,2002:int', lambda loader, node: int(node.value, 10))


def _parse(text: str, where: str) -> Any:
  try:
    tree = yaml.load(text, Loader=_Loader)
    json.dumps(tree)  # Refuses what YAML has and we cannot walk: cycles, sets.
    return tree
  except yaml.MarkedYAMLError as error:
    line = error.problem_mark.line + 1 if error.problem_mark else 1
    raise InputError(
        f'{where}: line {line}: {error.problem}; correct the YAML') from error
  except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
    raise InputError(f'{where}: not YAML: {error}; correct it') from error


def _read_file(path: str) -> dict[str, Any]:
  try:
    with open(path, encoding='utf-8') as file:
      text = file.read()
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, 'strerror', None) or 'not a UTF-8 text file'
    raise InputError(
        f'{path}: cannot read it: {reason}; give a YAML or JSON file (or '
        'key=value pairs to --params_override)') from error
  tree = _parse(text, path)
  if not isinstance(tree, dict):
    raise InputError(
        f'{path}: expected groups of keys such as "method: {{lag: 1}}", got '
        f'{_show(tree)}')
  return tree


def _read_pairs(text: str) -> dict[str, Any]:
  """Reads `a.b=1,c.d=[2,3]` into nested groups."""
  where = '--params_override'
  tree = {}
  for pair in _split(text):
    key, equals, value = (part.strip() for part in pair.partition('='))
    if not equals or not re.fullmatch(r'\w+(\.\w+)*', key):
      raise InputError(f'{where}: expected key=value, got {_show(pair)}; '
                       'write a.b=1,c.d=[2,3]')
    *groups, name = key.split('.')
    if groups[:1] == ['derived'] or key == 'derived':
      raise InputError(f'{key}: is computed from the other keys; leave it out '
                       f'of {where}')
    node = tree
    for group in groups:
      node = node.setdefault(group, {})
      if not isinstance(node, dict):
        raise InputError(f'{key}: {group} is given a value too, in {where}')
    if name in node:
      raise InputError(f'{key}: duplicate key in {where}; give it once')
    node[name] = _parse(value, f'{where}: {key}')
  return tree


def _split(text: str) -> Iterator[str]:
  """Splits at commas outside quotes, [] and {}."""
  depth, quote, start, before = 0, '', 0, '='
  for i, letter in enumerate(text):
    if quote:
      quote = '' if letter == quote else quote
    elif letter in '"\'' and before in '=,:[{':
      quote = letter
    elif letter in '[{':
      depth += 1
    elif letter in ']}':
      depth -= 1
    elif letter == ',' and depth <= 0:
      yield text[start:i]
      start = i + 1
    before = letter if letter != ' ' else before
  yield text[start:]
