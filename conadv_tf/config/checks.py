"""Types, ranges and combinations: what makes a configuration legal."""

from collections.abc import Mapping
import copy
import dataclasses
import difflib
import itertools
import math
import types
import typing
from typing import Any, Literal, Union

from official.modeling.hyperparams import base_config

from conadv_tf.config import (
  attack_rules,
  augmentation_rules,
  compression_rules,
  dat_rules,
  growth_rules,
  perturbation_rules,
  smoothing_rules,
  text_rules,
  trust_ratio_rules,
  unlabelled_rules,
)
from conadv_tf.config.ranges import RANGES
from conadv_tf.config.schema import (
  ExperimentConfig,
  flatten,
  InputError,
  RuntimeConfig,
  ScheduleConfig,
  show,
  training_replicas,
)
from conadv_tf.config.uses import SCHEDULE_USES


def validate(config: ExperimentConfig) -> None:
  """Raises InputError unless every type, range and combination is legal.

  Whether the batch divides is left to `check_batch`: a resumed run recomputes
  its micro batches first.
  """
  tree = as_typed(config.as_dict(), ExperimentConfig, '', 'the configuration')
  leaves = dict(flatten(tree))
  for key, (text, is_legal) in RANGES.items():
    value = leaves[key]
    for number in value if isinstance(value, list) else [value]:
      if number is not None and not is_legal(number):
        raise InputError(f'{key}: must be {text}, got {show(number)}')
  text_rules.check(config)
  augmentation_rules.check(config)
  _check_replicas(config.runtime)
  _check_placement(config)
  _check_training_pass(config)
  _check_recycled(config)
  _check_reduction(config.runtime)
  _check_schedule(config.schedule)
  growth_rules.check(config)
  trust_ratio_rules.check(config)
  dat_rules.check(config)
  compression_rules.check(config)
  unlabelled_rules.check(config)
  smoothing_rules.check(config)
  perturbation_rules.check(config)
  attack_rules.check(config.attack)
  clipping = [key for key in ('clipnorm', 'clipvalue', 'global_clipnorm')
              if leaves[f'optimizer.{key}'] is not None]
  if len(clipping) > 1:
    raise InputError(
        f'optimizer.{clipping[1]}: optimizer.{clipping[0]} is set as well; '
        'set one of them')


def check_outputs(config: ExperimentConfig, outputs: str) -> None:
  """Raises InputError for a model that does not end in what is needed.

  Args:
    config: checked.
    outputs: what the model ends in, "logits" or "probabilities".
  """
  dat_rules.check_outputs(config, outputs)
  perturbation_rules.check_outputs(config, outputs)


def _check_replicas(runtime: RuntimeConfig) -> None:
  if (runtime.strategy == 'one_device'
      and runtime.num_replicas not in (None, 1)):
    raise InputError(
        f'runtime.num_replicas: strategy one_device has 1 replica, got '
        f'{runtime.num_replicas}; set runtime.strategy=mirrored')
  if runtime.strategy != 'tpu':
    return
  for key, value, reason in (
      ('precision', 'mixed_float16', 'TPUs compute in mixed_bfloat16'),
      ('deterministic', True, 'TPUs do not sum in float64'),
      ('jit_compile', True, 'a TPU compiles everything anyway')):
    if getattr(runtime, key) == value:
      raise InputError(f'runtime.{key}: {show(value)} and runtime.strategy=tpu '
                       f'exclude each other ({reason}); leave it out')


def _check_placement(config: ExperimentConfig) -> None:
  if config.runtime.placement == 'together':
    return
  method = config.method
  for key, value, legal, reason in (
      ('method.name', method.name, method.name == 'conadv',
       'only conadv gives its attack away; set conadv'),
      ('method.adversary', method.adversary, method.adversary == 'fresh',
       'there is no attack to give away; set fresh'),
      ('method.lag', method.lag, method.lag >= 1,
       'the update waits for its own adversaries; set 1 or more'),
      ('method.execution', method.execution, method.execution == 'concurrent',
       'the update waits for its own adversaries; set concurrent'),
      ('method.pairing', method.pairing, method.pairing == 'same_batch',
       'the attack looks no batch ahead; set same_batch'),
      ('method.attack_every', method.attack_every, method.attack_every == 1,
       'attackers have nothing else to do between attacks; set 1'),
      ('bn.group_size', config.bn.group_size, config.bn.group_size == 1,
       'replicas that attack have no batch statistics to share; set 1'),
      ('runtime.strategy', config.runtime.strategy,
       config.runtime.strategy != 'one_device',
       'it needs at least 2 replicas; set another')):
    if not legal:
      raise InputError(
          f'{key}: {show(value)} and runtime.placement=split exclude each '
          f'other ({reason}, or runtime.placement=together)')


def _check_training_pass(config: ExperimentConfig) -> None:
  if (config.runtime.training_pass == 'separate'
      and config.bn.group_size != 1):
    raise InputError(
        f'bn.group_size: {config.bn.group_size} and '
        'runtime.training_pass=separate exclude each other: passes side by '
        'side have no order in which to exchange statistics; set one of them '
        'back')


def _check_recycled(config: ExperimentConfig) -> None:
  if (config.method.name == 'conadv' and config.method.adversary == 'recycled'
      and config.bn.group_size != 1):
    raise InputError(
        f'bn.group_size: {config.bn.group_size} and method.adversary=recycled '
        'exclude each other: an attack is local, and theirs is the gradient of '
        'the training pass; set one of them back')


def _check_reduction(runtime: RuntimeConfig) -> None:
  if runtime.deterministic and runtime.reduce_dtype != 'float32':
    raise InputError(
        f'runtime.reduce_dtype: {runtime.reduce_dtype} and '
        'runtime.deterministic, which sums in float64, exclude each other; '
        'turn one of them off')


def check_batch(config: ExperimentConfig) -> None:
  """Raises InputError unless the batch divides among virtual replicas."""
  batch, runtime = config.data.global_batch_size, config.runtime
  replicas, micro_batches = training_replicas(runtime), runtime.micro_batches
  if runtime.placement == 'split':
    _check_roles(runtime)
  parts = replicas * micro_batches
  if batch % parts:
    nearest = max(1, (2 * batch + parts) // (2 * parts)) * parts
    without = (f' (without {runtime.attack_replicas} that attack)'
               if runtime.placement == 'split' else '')
    raise InputError(
        f'data.global_batch_size: {batch} does not divide among '
        f'{replicas} runtime.num_replicas{without} x {micro_batches} '
        f'runtime.micro_batches = {parts}; the nearest batch that does is '
        f'{nearest}')
  group = config.bn.group_size or replicas
  if replicas % group:
    raise InputError(
        f'bn.group_size: groups of {group} do not divide the {replicas} '
        'runtime.num_replicas; 1 is no groups, 0 one of all replicas')
  unlabelled_rules.check_rows(config, batch // parts)


def _check_roles(runtime: RuntimeConfig) -> None:
  """Raises InputError unless trainers divide among attackers."""
  trainers, attackers = training_replicas(runtime), runtime.attack_replicas
  if trainers < 1 or trainers % attackers:
    raise InputError(
        f'runtime.attack_replicas: {attackers} of {runtime.num_replicas or 1} '
        f'runtime.num_replicas leave {max(0, trainers)} that train, which do '
        'not divide among those that attack; change one of them')


def _check_schedule(schedule: ScheduleConfig) -> None:
  if schedule.warmup_epochs > schedule.epochs:
    raise InputError(
        f'schedule.warmup_epochs: must be at most schedule.epochs '
        f'({show(schedule.epochs)}), got {show(schedule.warmup_epochs)}')
  decay = schedule.decay_epochs
  if ('schedule.decay_epochs' in SCHEDULE_USES[schedule.name]
      and decay is not None
      and not schedule.warmup_epochs <= decay <= schedule.epochs):
    raise InputError(
        'schedule.decay_epochs: must be from schedule.warmup_epochs '
        f'({show(schedule.warmup_epochs)}) to schedule.epochs '
        f'({show(schedule.epochs)}), got {show(decay)}')
  if ('schedule.end_lr' in SCHEDULE_USES[schedule.name]
      and schedule.end_lr > schedule.peak_lr):
    raise InputError(
        f'schedule.end_lr: must be at most schedule.peak_lr '
        f'({show(schedule.peak_lr)}), got {show(schedule.end_lr)}')
  if schedule.name != 'piecewise':
    return
  boundaries, values = schedule.boundaries, schedule.values
  if any(a >= b for a, b in itertools.pairwise(boundaries)):
    raise InputError(
        f'schedule.boundaries: must increase, got {show(boundaries)}')
  if boundaries and boundaries[0] < schedule.warmup_epochs:
    raise InputError(
        f'schedule.boundaries: the first must not come before the end of '
        f'schedule.warmup_epochs ({show(schedule.warmup_epochs)}), got '
        f'{show(boundaries[0])}')
  if len(values) != len(boundaries) + 1:
    raise InputError(
        f'schedule.values: {len(boundaries)} schedule.boundaries need '
        f'{len(boundaries) + 1} values, got {show(values)}')


def as_typed(value: Any, hint: Any, key: str, where: str) -> Any:
  """Returns `value` as the type that `hint` asks for, or raises InputError."""
  if typing.get_origin(hint) in (Union, types.UnionType):
    if value is None or value in ('none', 'None'):
      return None
    return as_typed(value, typing.get_args(hint)[0], key, where)
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
      return [as_typed(v, item, f'{key}[{i}]', where)
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
      f'{key}: expected {expected}, got {show(value)}, in {where}')


def _finite(value: int | float, key: str, where: str) -> float:
  try:
    number = float(value)
  except OverflowError:
    number = math.inf
  if not math.isfinite(number):
    raise InputError(
        f'{key}: expected a finite number, got {show(value)}, in {where}')
  return number


def _typed_group(
    value: Any, hint: type, key: str, where: str) -> dict[str, Any]:
  """Returns the group's mapping with every key known and every value typed."""
  if not isinstance(value, Mapping):
    raise InputError(
        f'{key or "configuration"}: expected a group of keys, got '
        f'{show(value)}, in {where}')
  hints = _hints(hint)
  typed = {}
  for name, inner in value.items():
    path = f'{key}.{name}' if key else str(name)
    if name not in hints:
      raise InputError(f'{path}: unknown key in {where}; the nearest known key '
                       f'is {_nearest(path, key, hints)}')
    typed[name] = as_typed(inner, hints[name], path, where)
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
  known = [key for key, _ in flatten(ExperimentConfig().as_dict())
           if not key.startswith('derived.')]
  same = [key for key in known if key.rpartition('.')[2] == name]
  return (same or difflib.get_close_matches(path, known, 1, 0.0))[0]
