"""What augmented images ask of a configuration."""

from conadv_tf.config.schema import ExperimentConfig, InputError

_POLICIES = ('autoaugment', 'randaugment')


def check(config: ExperimentConfig) -> None:
  """Raises InputError for augmentation, or a stream of it, that cannot be."""
  data, method = config.data, config.method
  if data.preprocessing == 'imagenet' and data.augment == 'crop_flip':
    raise InputError(
        'data.augment: crop_flip is part of data.preprocessing=imagenet; set '
        'data.augment=none')
  stream = method.augmented_stream
  if method.name != 'vanilla' and stream != 'off':
    raise InputError(
        f'method.augmented_stream: {stream} and method.name={method.name} '
        'exclude each other (it is of plain training; conadv and disadv have '
        'method.bn_branches=3); set off')
  cause = ''
  if method.name == 'vanilla':
    cause = '' if stream == 'off' else f'method.augmented_stream={stream}'
  elif method.bn_branches == 3:
    cause = 'method.bn_branches=3'
  if cause and data.augment not in _POLICIES:
    raise InputError(
        f'data.augment: {data.augment} makes no augmented stream, which '
        f'{cause} trains on; set autoaugment or randaugment')
