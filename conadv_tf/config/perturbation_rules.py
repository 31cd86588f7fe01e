"""What methods that perturb word embeddings ask of a configuration."""

from collections.abc import Iterable

from conadv_tf.config.schema import ExperimentConfig, InputError, show

NAMES = ('scala', 'freelb')
_FREELB_IGNORES = {'perturbation.norm', 'perturbation.direction',
                   'perturbation.target', 'perturbation.weight'}
_ASCENT = {'perturbation.step_size', 'perturbation.direction',
           'perturbation.norm'}


def check(config: ExperimentConfig) -> None:
  """Raises InputError for what perturbed embeddings exclude."""
  name, p = config.method.name, config.perturbation
  if name not in NAMES:
    return
  if p.delay_epochs and p.delay_epochs >= config.schedule.epochs:
    raise InputError(
        f'perturbation.delay_epochs: {show(p.delay_epochs)} is not before the '
        f'end of the run at schedule.epochs={show(config.schedule.epochs)}; '
        'lower it, or set method.name=vanilla for a run without perturbations')
  if name == 'freelb' and p.steps < 1:
    raise InputError(
        'perturbation.steps: must be at least 1 with method.name=freelb, whose '
        'steps are its training passes, got 0')
  runtime = config.runtime
  for key, value, legal, reason in (
      ('growth.name', config.growth.name, config.growth.name == 'none',
       'the delay counts updates of one size; set none'),
      ('bn.group_size', config.bn.group_size, config.bn.group_size == 1,
       'an attack is local; set 1'),
      ('data.mixup', config.data.mixup or config.data.cutmix,
       not (config.data.mixup or config.data.cutmix),
       'token ids cannot be mixed; set it and data.cutmix to 0'),
      ('evaluation.attacks', config.evaluation.attacks,
       not config.evaluation.attacks, 'they change images; set []'),
      ('runtime.precision', runtime.precision,
       runtime.precision != 'mixed_float16',
       'its gradients to a perturbation of 1e-5 vanish in float16; set '
       'mixed_bfloat16 or float32')):
    if not legal:
      raise InputError(f'{key}: {show(value)} and method.name={name} exclude '
                       f'each other ({reason})')


def delay(config: ExperimentConfig, steps_per_epoch: float) -> int:
  """t_s, the first update with perturbations."""
  return round(config.perturbation.delay_epochs * steps_per_epoch)


def check_delay(config: ExperimentConfig, steps_per_epoch: float,
                total_steps: int) -> None:
  """Raises InputError where the delay, rounded, leaves no update."""
  epochs, first = config.perturbation.delay_epochs, delay(
      config, steps_per_epoch)
  if config.method.name in NAMES and first and first >= total_steps:
    raise InputError(
        f'perturbation.delay_epochs: {show(epochs)} epochs are '
        f'{first} updates, and the run has {total_steps}; lower it, or set '
        'method.name=vanilla for a run without perturbations')


def check_outputs(config: ExperimentConfig, outputs: str) -> None:
  """As `checks.check_outputs`, where r is a distance between logits."""
  if (config.method.name == 'scala' and outputs != 'logits'
      and config.perturbation.target == 'outputs'):
    raise InputError(
        'perturbation.target: outputs needs a model that ends in logits, '
        f'model.name={show(config.model.name)} ends in {outputs}; leave its '
        'softmax out')


def unused(config: ExperimentConfig, keys: Iterable[str]) -> set[str]:
  """Keys of `keys` that the method does not look at, or that are its own."""
  method, p = config.method, config.perturbation
  own = {key for key in keys if key.startswith('perturbation.')}
  if method.name not in NAMES:
    return own
  ignored = {key for key in keys
             if key.startswith(('method.', 'attack.'))} - {'method.name'}
  if method.name == 'freelb':
    return ignored | _FREELB_IGNORES
  if not (p.weight and p.radius):
    return ignored | own - {'perturbation.weight', 'perturbation.radius'}
  if not p.steps:
    return ignored | _ASCENT
  ignored -= {'method.lag'} | ({'method.execution'} if method.lag else set())
  return ignored
