"""What follows from a configuration, and how two of them differ."""

from collections.abc import Iterable
from typing import Any

from official.modeling.hyperparams import base_config

from conadv_tf.config import (
  checks,
  compression_rules,
  dat_rules,
  growth_rules,
  perturbation_rules,
  smoothing_rules,
  text_rules,
  trust_ratio_rules,
  unlabelled_rules,
)
from conadv_tf.config.schema import (
    DataConfig,
  DerivedConfig,
  ExperimentConfig,
  flatten,
  InputError,
  ScheduleConfig,
  show,
  training_replicas,
)
from conadv_tf.config.uses import GROWTH_USES, OPTIMIZER_USES, SCHEDULE_USES

_NO_PART_OF_THE_EXPERIMENT = (
    'runtime', 'checkpoint', 'evaluation', 'mlperf', 'derived')
_GAMMA = {'method.gamma', 'method.gamma_decay', 'method.gamma_epochs',
          'method.gamma_rule'}


def resolve(config: ExperimentConfig, num_examples: int) -> ExperimentConfig:
  """Returns a checked, locked copy with `derived` computed from all the rest.

  Args:
    config: as loaded, or resolved before and then changed by `replace`.
    num_examples: the size of the training set.
  """
  checks.validate(config)
  checks.check_batch(config)
  resolved = ExperimentConfig()
  resolved.override(checks.as_typed(
      config.as_dict(), ExperimentConfig, '', 'the configuration'))
  batch, runtime = resolved.data.global_batch_size, resolved.runtime
  schedule, attack = resolved.schedule, resolved.attack
  steps_per_epoch, total_steps, warmup_steps = _count_steps(
      schedule, num_examples, batch, runtime.micro_batches)
  if total_steps < 1:
    raise InputError(
        f'schedule.epochs: {show(schedule.epochs)} epochs of {num_examples} '
        f'examples in batches of {batch} round to 0 updates; raise '
        'schedule.epochs or lower data.global_batch_size')
  _check_boundary_steps(schedule, steps_per_epoch)
  growth_rules.check_data(resolved, num_examples, total_steps)
  perturbation_rules.check_delay(resolved, steps_per_epoch, total_steps)
  step_size = attack.step_size
  if step_size is None:
    step_size = attack.radius * (1 if attack.steps == 1 else 2.5 / attack.steps)
  runtime.num_replicas = runtime.num_replicas or 1
  virtual_replicas = training_replicas(runtime) * runtime.micro_batches
  resolved.derived = DerivedConfig(
      num_examples=int(num_examples),
      total_steps=total_steps,
      warmup_steps=min(total_steps, warmup_steps),
      decay_steps=total_steps if schedule.decay_epochs is None else max(
          1, warmup_steps, min(total_steps, round(
              schedule.decay_epochs * steps_per_epoch))),
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


def _count_steps(schedule: ScheduleConfig, num_examples: int, batch: int,
                 micro_batches: int) -> tuple[float, int, int]:
  """Returns (steps of an epoch, of the run, of the warm-up).

  The MLPerf reference (mlcommons/training, resnet-tf2, resnet_runnable.py)
  counts whole updates an epoch and leaves the rest of the examples to the
  next one, so at 65,536 its "epoch" is 2.8 % shorter than a pass.
  """
  if schedule.convention == 'mlperf':
    whole = num_examples // batch
    return (float(whole), int(schedule.epochs * whole),
            int(schedule.warmup_epochs * whole))
  if schedule.convention == 'whole_passes':
    passes = -(-num_examples * micro_batches // batch)
    steps_per_epoch = passes / micro_batches
    return (steps_per_epoch, int(schedule.epochs * steps_per_epoch),
            round(schedule.warmup_epochs * steps_per_epoch))
  steps_per_epoch = num_examples / batch
  return (steps_per_epoch, round(schedule.epochs * num_examples / batch),
          round(schedule.warmup_epochs * steps_per_epoch))


def differences(old: ExperimentConfig, new: ExperimentConfig) -> list[str]:
  """Lists what makes `new` another experiment, as 'key: old -> new'."""
  before, after = (
      dict(flatten(config.as_dict())) for config in (old, new))
  return [
      f'{key}: {_plain(before[key])} -> {_plain(after[key])}'
      for key in before
      if key.split('.')[0] not in _NO_PART_OF_THE_EXPERIMENT
      and before[key] != after[key]]


def unused_keys(config: ExperimentConfig) -> list[str]:
  """Lists keys set away from their default that this run will not look at."""
  default = dict(flatten(ExperimentConfig().as_dict()))
  changed = [key for key, value in flatten(config.as_dict())
             if key in default and value != default[key]]
  ignored = set()
  for choice, uses in (
      (config.optimizer, OPTIMIZER_USES), (config.schedule, SCHEDULE_USES),
      (config.growth, GROWTH_USES)):
    every = {key for keys in uses.values() for key in keys}
    ignored |= every - set(uses[choice.name])
  ignored |= trust_ratio_rules.unused(config)
  method = config.method
  if config.growth.name != 'curvature':
    if not config.curvature.monitor:
      ignored |= {key for key in default if key.startswith('curvature.')}
    ignored |= {'method.gamma_decay', 'method.gamma_rule'}
  if method.name == 'absa':
    ignored |= _method_keys(default) - {'method.lag', 'method.execution'}
    ignored |= {'attack.branch'}
  else:
    ignored |= _GAMMA
  ignored |= dat_rules.unused(config, default)
  ignored |= smoothing_rules.unused(config, default)
  ignored |= perturbation_rules.unused(config, default)
  ignored |= text_rules.unused(config, default)
  if method.name == 'vanilla':
    ignored |= {key for key in default if key.startswith('attack.')}
    ignored |= _method_keys(default) | _GAMMA
    ignored -= {'method.augmented_stream'}
    if config.evaluation.attacks:
      ignored -= {'attack.radius'}  # the default radius of robust accuracy
  elif method.name == 'disadv':
    ignored |= {'method.lag', 'method.execution', 'method.adversary',
                'method.pairing'}
  elif method.name == 'conadv' and method.adversary == 'recycled':
    ignored |= {'method.execution', 'method.pairing'}
  elif method.name == 'conadv' and (
      method.lag == 0 or method.pairing == 'next_batch'):
    ignored |= {'method.execution'}
  ignored |= compression_rules.unused(config)
  ignored |= _unused_of_data(config.data) | unlabelled_rules.unused(config)
  if config.runtime.strategy != 'multi_worker_mirrored':
    ignored |= {'runtime.communication'}
  if config.runtime.placement == 'together':
    ignored |= {'runtime.attack_replicas'}
  if config.evaluation.patience is None:
    ignored |= {'evaluation.monitor'}
  if not config.mlperf.log:
    ignored |= {key for key in default if key.startswith('mlperf.')}
  return [key for key in changed if key in ignored]


def _unused_of_data(data: DataConfig) -> set[str]:
  """Keys that this kind of data does not look at."""
  ignored = set()
  if data.name not in ('tfds', 'glue'):
    ignored |= {'data.builder'}
  if data.name != 'tfds':
    ignored |= {'data.train_split'}
  if data.name in ('digits', 'synthetic'):
    ignored |= {'data.path'}
  if data.name != 'tfrecord':
    ignored |= {'data.label_offset'}
  if data.name in ('digits', 'npz', 'synthetic'):
    ignored |= {'data.train_examples', 'data.validation_examples'}
  if data.name not in ('tfrecord', 'tfds') or data.cache:
    ignored |= {'data.shuffle_buffer', 'data.input_shards'}
  if data.name in ('digits', 'npz', 'synthetic'):
    ignored |= {'data.deterministic', 'data.preprocessing',
                'data.max_bad_examples'}
  return ignored


def _method_keys(keys: Iterable[str]) -> set[str]:
  """Those of the group but for what is ABSA's own."""
  return {key for key in keys if key.startswith('method.')} - _GAMMA - {
      'method.name'}


def _check_boundary_steps(
    schedule: ScheduleConfig, steps_per_epoch: float) -> None:
  steps = [round(epoch * steps_per_epoch) for epoch in schedule.boundaries]
  if schedule.name == 'piecewise' and len(set(steps)) < len(steps):
    raise InputError(
        f'schedule.boundaries: {show(schedule.boundaries)} epochs fall on the '
        f'updates {show(steps)}; put them further apart')


def _plain(value: Any) -> str:
  return value if isinstance(value, str) and value else show(value)
