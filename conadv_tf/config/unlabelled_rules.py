"""What unlabelled images, and a new last layer, ask of a configuration."""

from conadv_tf.config.schema import ExperimentConfig, InputError, show

_DECODED = ('digits', 'npz', 'synthetic')
_SOURCES = (*_DECODED, 'image_folder')
# Of the methods, those that give rows of label -1 no cross entropy.
_METHODS = ('dat',)


def mixes(config: ExperimentConfig) -> bool:
  """Whether unlabelled images are trained on."""
  return config.data.unlabelled_fraction != 0


def rows(fraction: float, total: int) -> int:
  """Returns how many of a virtual replica's rows are unlabelled."""
  return round(fraction * total)


def check(config: ExperimentConfig) -> None:
  """Raises InputError for what unlabelled images do not go with."""
  if not mixes(config):
    return
  data = config.data
  fraction = show(data.unlabelled_fraction)
  if data.unlabelled_path is None:
    raise InputError(
        f'data.unlabelled_fraction: {fraction} needs data.unlabelled_path, an '
        '.npz file with x_train; 0 is off')
  known = _DECODED if data.unlabelled_fraction is None else _SOURCES
  if data.name not in known:
    raise InputError(
        f'data.unlabelled_fraction: {fraction} and data.name={data.name} '
        f'exclude each other; it mixes {", ".join(known)}')
  if data.preprocessing == 'imagenet' and data.name == 'image_folder':
    raise InputError(
        'data.preprocessing: imagenet crops encoded images, which those of '
        'data.unlabelled_path are not; set resize')
  if not data.pseudo_labels:
    _check_without_labels(config)


def _check_without_labels(config: ExperimentConfig) -> None:
  if config.method.name not in _METHODS:
    raise InputError(
        f'method.name: {config.method.name} needs a label for every row; set '
        f'{" or ".join(_METHODS)}, or data.pseudo_labels=true')
  for key, value in (
      ('data.mixup', config.data.mixup), ('data.cutmix', config.data.cutmix),
      ('objective.label_smoothing', config.objective.label_smoothing)):
    if value:
      raise InputError(
          f'{key}: {show(value)} makes soft labels, which unlabelled images '
          'have none of; set 0, or data.pseudo_labels=true')


def check_rows(config: ExperimentConfig, total: int) -> None:
  """Raises InputError unless both kinds have a row in every virtual replica.

  Args:
    config: checked.
    total: rows of a virtual replica.
  """
  fraction = config.data.unlabelled_fraction
  if not fraction:
    return
  count = rows(fraction, total)
  if not 0 < count < total:
    raise InputError(
        f'data.unlabelled_fraction: {fraction:g} of the {total} rows of a '
        f'virtual replica are {count}, which leaves one kind out; change it, '
        'or make fewer virtual replicas')


def unused(config: ExperimentConfig) -> set[str]:
  """Returns keys that nothing looks at."""
  ignored = set()
  if not mixes(config):
    ignored |= {'data.unlabelled_path', 'data.pseudo_labels'}
  if config.model.initial_weights is None:
    ignored |= {'model.replace_head'}
  return ignored


def describe(config: ExperimentConfig) -> list[str]:
  """Returns one line for a resolved configuration that mixes, else none."""
  if not mixes(config):
    return []
  data, total = config.data, config.derived.replica_batch_size
  labels = 'pseudo-labels' if data.pseudo_labels else 'label -1'
  if data.unlabelled_fraction is None:
    where = 'are part of the training set, drawn like all others'
  else:
    where = (f'fill {rows(data.unlabelled_fraction, total)} of the {total} '
             'rows of every virtual replica')
  return [f'unlabelled: images of {data.unlabelled_path} {where} ({labels})']
