"""What gradients that are quantised between replicas ask of the rest."""

from conadv_tf.config.schema import ExperimentConfig, InputError, show


def is_on(config: ExperimentConfig) -> bool:
  """Whether gradients are quantised."""
  return config.compression.bits != 32


def travels(config: ExperimentConfig) -> bool:
  """Whether codes are what replicas exchange."""
  return is_on(config) and config.compression.per == 'replica'


def unused(config: ExperimentConfig) -> set[str]:
  """Keys that this run does not look at."""
  if is_on(config):
    return set()
  return {f'compression.{key}' for key in config.compression.as_dict()}


def check(config: ExperimentConfig) -> None:
  """Raises InputError for what cannot be quantised."""
  if not is_on(config):
    return
  _check_runtime(config)
  compression = config.compression
  if compression.exchange == 'scatter':
    _check_scatter(config)
  if not compression.error_feedback:
    return
  if config.growth.name != 'none':
    raise InputError(
        'compression.error_feedback: true and growth.name='
        f'{config.growth.name} exclude each other: what is carried over '
        'belongs to a batch of one size; set false')
  largest = (2**(compression.bits - 1) - 1)**2 - 1
  if not 1 <= compression.bucket <= largest:
    raise InputError(
        f'compression.bucket: {compression.bucket} and compression.'
        'error_feedback exclude each other: what is carried over stays bounded '
        f'only where fewer than (2^(bits - 1) - 1)^2 numbers share a norm; '
        + (f'set 1 to {largest}' if largest else 'set compression.bits=3 or '
           'more'))


def _check_runtime(config: ExperimentConfig) -> None:
  runtime, bits = config.runtime, config.compression.bits
  if runtime.reduce_dtype != 'float32':
    raise InputError(
        f'runtime.reduce_dtype: {runtime.reduce_dtype} and compression.bits='
        f'{bits} exclude each other: both say how gradients travel; set '
        'float32, or compression.bits=32')
  if runtime.strategy == 'tpu' and travels(config):
    raise InputError(
        'compression.per: replica and runtime.strategy=tpu exclude each other '
        '(TensorFlow gathers on a TPU by summing rows of zeros, which sends '
        'more than float32); set virtual_replica, or compression.bits=32')
  if runtime.deterministic and travels(config):
    raise InputError(
        'compression.per: replica and runtime.deterministic exclude each other '
        '(what a replica quantises depends on how many there are); set '
        'virtual_replica, which sends no less, or runtime.deterministic=false')


def _check_scatter(config: ExperimentConfig) -> None:
  compression = config.compression
  for key, legal, reason in (
      ('sides', 2, 'the sum of a part travels in codes too'),
      ('per', 'replica', 'nothing else travels in codes')):
    value = getattr(compression, key)
    if value != legal:
      raise InputError(
          f'compression.{key}: {show(value)} and compression.exchange=scatter '
          f'exclude each other ({reason}); set {legal}')
  if not compression.bucket:
    raise InputError(
        'compression.bucket: 0 and compression.exchange=scatter exclude each '
        'other (tensors do not divide among replicas); set for instance 512')
