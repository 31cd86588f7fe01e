"""What attacks in training ask of a configuration."""

from conadv_tf.config import text_rules
from conadv_tf.config.schema import (
  AttackConfig,
  ExperimentConfig,
  InputError,
  show,
)

_PIXEL_RANGE = 255.0  # in 1/255 of itself


def attacks_images(config: ExperimentConfig) -> bool:
  """Whether training makes adversarial images."""
  return config.method.name != 'vanilla' and not text_rules.is_text(config)


def check(attack: AttackConfig) -> None:
  """Raises InputError for a ball beyond every image."""
  if attack.norm == 'linf' and attack.radius > _PIXEL_RANGE:
    raise InputError(
        f'attack.radius: must be from 0 to {show(_PIXEL_RANGE)}, the whole '
        f'pixel range, under attack.norm=linf, got {show(attack.radius)}')
