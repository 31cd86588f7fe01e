"""What training for randomised smoothing asks of a configuration."""

from collections.abc import Iterable

from conadv_tf.config.schema import ExperimentConfig, InputError

NAME = 'smooth_at'
_OWN = {'method.sigma', 'method.noise_copies'}


def check(config: ExperimentConfig) -> None:
  """Raises InputError for what goes not with copies one after another."""
  if config.method.name == NAME and config.bn.group_size != 1:
    raise InputError(
        f'bn.group_size: {config.bn.group_size} and method.name={NAME} exclude '
        'each other (each noisy copy has batch statistics of its own); set 1')


def unused(config: ExperimentConfig, keys: Iterable[str]) -> set[str]:
  """Those of the keys that the method, or its absence, does not look at."""
  if config.method.name != NAME:
    return _OWN
  return {key for key in keys if key.startswith('method.')} - _OWN - {
      'method.name'} | {'attack.branch'}
