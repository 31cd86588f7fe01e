"""What sentences in place of images ask of a configuration."""

from collections.abc import Iterable

from conadv_tf.config.schema import ExperimentConfig, InputError, show

# The others perturb pixels.
_METHODS = ('vanilla', 'scala', 'freelb')
_ONE_OF = ' or '.join((', '.join(_METHODS[:-1]), _METHODS[-1]))


def is_text(config: ExperimentConfig) -> bool:
  """Whether the data are sentences."""
  return config.data.name == 'glue'


def check(config: ExperimentConfig) -> None:
  """Raises InputError for what only images have."""
  if not is_text(config):
    return
  data, evaluation = config.data, config.evaluation
  for key, value, off, reason in (
      ('data.augment', data.augment, 'none', 'changes pixels'),
      ('method.augmented_stream', config.method.augmented_stream, 'off',
       'is a second view of pixels'),
      ('data.mixup', data.mixup, 0.0, 'mixes pixels'),
      ('data.cutmix', data.cutmix, 0.0, 'mixes pixels'),
      ('data.image_size', data.image_size, None,
       'is in pixels; text.sequence_length is the length of sentences'),
      ('data.num_classes', data.num_classes, None,
       'is that of text.task already'),
      ('evaluation.attacks', evaluation.attacks, [], 'change pixels'),
      ('mlperf.log', config.mlperf.log, False,
       'is of the image classification benchmark')):
    if value != off:
      raise InputError(
          f'{key}: {show(value)} and data.name=glue exclude each other (it '
          f'{reason}); leave it out')
  if config.method.name not in _METHODS:
    raise InputError(
        f'method.name: {config.method.name} perturbs pixels, and data.name='
        f'glue has none; set {_ONE_OF}')
  _check_buckets(config)


def _check_buckets(config: ExperimentConfig) -> None:
  buckets, length = config.text.length_buckets, config.text.sequence_length
  if not buckets:
    return
  if buckets != sorted(set(buckets)) or buckets[-1] >= length:
    raise InputError(
        f'text.length_buckets: {show(buckets)} must rise and stay below '
        f'text.sequence_length={length}')
  for key, is_set in (('strategy=tpu', config.runtime.strategy == 'tpu'),
                      ('jit_compile=true', config.runtime.jit_compile)):
    if is_set:
      raise InputError(
          f'text.length_buckets: {show(buckets)} and runtime.{key} exclude '
          'each other (XLA compiles for one length); leave it out')


def unused(config: ExperimentConfig, keys: Iterable[str]) -> set[str]:
  """Keys of `keys` that these data do not look at."""
  if not is_text(config):
    return {key for key in keys if key.startswith('text.')}
  return {'data.preprocessing', 'data.cache', 'data.train_examples',
          'data.validation_examples', 'data.max_bad_examples',
          'data.deterministic'}
