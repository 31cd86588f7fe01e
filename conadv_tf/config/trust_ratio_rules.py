"""What layer-wise learning rates ask of a configuration."""

from conadv_tf.config.schema import ExperimentConfig, InputError, show


def check(config: ExperimentConfig) -> None:
  """Raises InputError unless the clip is null or two bounds in order."""
  clip = config.optimizer.trust_clip
  if clip is None:
    return
  if len(clip) != 2:
    raise InputError(
        'optimizer.trust_clip: must be two numbers, written [c_l,c_u], or '
        f'null, got {show(list(clip))}')
  if clip[0] > clip[1]:
    raise InputError(
        f'optimizer.trust_clip: c_l {show(clip[0])} is above c_u '
        f'{show(clip[1])}; swap them')
  if clip[1] == 0:
    raise InputError(
        'optimizer.trust_clip: c_u of 0 stops every layer; set it above 0, or '
        'null for no clip')


def unused(config: ExperimentConfig) -> set[str]:
  """Keys that LAMB without ratios does not look at."""
  optimizer = config.optimizer
  if optimizer.name == 'lamb' and optimizer.scope == 'none':
    return {'optimizer.trust_clip', 'optimizer.scale_vectors'}
  return set()
