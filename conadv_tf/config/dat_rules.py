"""What distributed adversarial training (DAT) asks of a configuration."""

from collections.abc import Iterable

from conadv_tf.config.schema import ExperimentConfig, InputError, show

_TRADES = {'method.trades_weight', 'method.trades_start_std'}
_OWN = _TRADES | {'method.clean_weight', 'method.regularizer'}
_SHARED = {'method.name', 'method.lag', 'method.execution'}


def check(config: ExperimentConfig) -> None:
  """Raises InputError for a regulariser that cannot train."""
  method = config.method
  if method.name != 'dat' or method.regularizer != 'trades':
    return
  if not method.clean_weight:
    raise InputError(
        'method.clean_weight: 0 and method.regularizer=trades exclude each '
        'other (without a clean loss there are no labels, and constant '
        'outputs are best); set method.clean_weight=1')
  if config.attack.target != 'none':
    raise InputError(
        f'attack.target: {config.attack.target} and '
        'method.regularizer=trades exclude each other (its attack knows no '
        'classes); set attack.target=none')


def check_outputs(config: ExperimentConfig, outputs: str) -> None:
  """Raises InputError for a model that does not end in what is needed.

  Args:
    config: checked.
    outputs: what the model ends in, "logits" or "probabilities".
  """
  method = config.method
  if (method.name == 'dat' and method.regularizer == 'trades'
      and outputs != 'logits'):
    raise InputError(
        f'method.regularizer: trades needs a model that ends in logits, '
        f'model.name={show(config.model.name)} ends in {outputs}; leave its '
        'softmax out')


def unused(config: ExperimentConfig, keys: Iterable[str]) -> set[str]:
  """Keys of `keys` that the method does not look at, or that are DAT's."""
  method = config.method
  if method.name != 'dat':
    return set(_OWN)
  ignored = {key for key in keys if key.startswith('method.')} - (
      _SHARED | _OWN)
  ignored.add('attack.branch')
  if method.lag == 0:
    ignored.add('method.execution')
  if method.regularizer != 'trades':
    ignored |= _TRADES
  return ignored
