"""What a batch that grows during a run, and ABSA, ask of a configuration."""

import itertools

from conadv_tf.config.schema import ExperimentConfig, InputError, show


def changes(config: ExperimentConfig) -> bool:
  """Whether batch size, learning rate's factor or gamma may change."""
  return config.growth.name != 'none' or config.method.name == 'absa'


def measures(config: ExperimentConfig) -> bool:
  """Whether eigenvalues of the Hessian are estimated during training."""
  return config.growth.name == 'curvature' or config.curvature.monitor


def check(config: ExperimentConfig) -> None:
  """Raises InputError for what cannot grow."""
  if measures(config) and config.curvature.every_samples:
    _check_frequency(config)
  if config.method.name == 'absa':
    _check_absa(config)
  if changes(config):
    _check_runtime(config)
  if config.growth.name == 'none':
    return
  _check_method(config)
  _check_sizes(config)
  if config.growth.name == 'scheduled':
    _check_epochs(config)


def check_data(config: ExperimentConfig, num_examples: int,
               total_steps: int) -> None:
  """Raises InputError for what the data or the run are too small for.

  Args:
    config: checked.
    num_examples: the size of the training set.
    total_steps: initial batches of the run.
  """
  growth, curvature = config.growth, config.curvature
  batch = config.data.global_batch_size
  seen = total_steps * batch
  if measures(config) and curvature.examples > num_examples:
    raise InputError(
        f'curvature.examples: {curvature.examples} of {num_examples} training '
        f'examples; set at most {num_examples}')
  if growth.name == 'curvature' and curvature.every_samples >= seen:
    raise InputError(
        f'curvature.every_samples: {curvature.every_samples} is not below the '
        f'{seen} examples of the run, so that there would be no estimate and '
        f'no growth; set less')
  if growth.name != 'none' and growth.max_batch_size > seen:
    raise InputError(
        f'growth.max_batch_size: {growth.max_batch_size} exceeds the {seen} '
        'examples of the run, so that no such batch can ever be trained on; '
        f'set at most {seen}')


def _check_absa(config: ExperimentConfig) -> None:
  method = config.method
  if method.lag and method.execution != 'sequential':
    raise InputError(
        f'method.execution: {method.execution} with method.lag={method.lag} '
        'holds a batch for the next update, which may have another size; set '
        'method.execution=sequential, or method.lag=0 as the paper has it')


def _check_runtime(config: ExperimentConfig) -> None:
  steps = config.runtime.steps_per_execution
  if steps != 1:
    cause = ('method.name=absa' if config.growth.name == 'none'
             else f'growth.name={config.growth.name}')
    raise InputError(
        f'runtime.steps_per_execution: {steps} and {cause} exclude each other '
        '(it is between executions that batch and gamma change); set 1')


def _check_method(config: ExperimentConfig) -> None:
  """Refuses methods that hold something from one update to the next."""
  method, name = config.method, config.growth.name
  found = []
  if method.name == 'conadv':
    if method.adversary == 'recycled':
      found = ([('adversary', 'recycled', 'fresh')] if method.lag else [])
    elif method.lag and method.pairing == 'next_batch':
      found = [('pairing', 'next_batch', 'same_batch')]
    elif method.lag and method.execution == 'concurrent':
      found = [('execution', 'concurrent', 'sequential')]
  if (method.name == 'dat' and method.lag
      and method.execution == 'concurrent'):
    found = [('execution', 'concurrent', 'sequential')]
  if method.name in ('conadv', 'disadv') and method.attack_every > 1:
    found.append(('attack_every', method.attack_every, 1))
  for key, value, legal in found:
    raise InputError(
        f'method.{key}: {value} holds a batch for the next update, which under '
        f'growth.name={name} may have another size; set {legal}')


def _check_sizes(config: ExperimentConfig) -> None:
  growth, batch = config.growth, config.data.global_batch_size
  largest = growth.max_batch_size
  if largest is None:
    raise InputError(
        f'growth.max_batch_size: growth.name={growth.name} needs it; set a '
        f'multiple of data.global_batch_size={batch}')
  if largest < batch:
    raise InputError(
        f'growth.max_batch_size: {largest} is below data.global_batch_size='
        f'{batch}, from which the batch grows; set a multiple of it')
  if largest % batch:
    raise InputError(
        f'growth.max_batch_size: {largest} is no multiple of '
        f'data.global_batch_size={batch}; the nearest below is '
        f'{largest // batch * batch}')


def _check_epochs(config: ExperimentConfig) -> None:
  epochs = config.growth.epochs
  if not epochs:
    raise InputError('growth.epochs: growth.name=scheduled needs the epochs at '
                     'which the batch grows, written [a,b]')
  if any(a >= b for a, b in itertools.pairwise(epochs)):
    raise InputError(f'growth.epochs: must increase, got {show(epochs)}')


def _check_frequency(config: ExperimentConfig) -> None:
  every, batch = config.curvature.every_samples, config.data.global_batch_size
  if every < batch:
    raise InputError(
        f'curvature.every_samples: {every} is below data.global_batch_size='
        f'{batch}, so that every update would cost an estimate; set at least '
        f'{batch}, or 0 for an epoch')
