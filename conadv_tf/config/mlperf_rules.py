"""What the closed division of MLPerf lets ResNet-50 choose.

From the compliance checker's rules for ruleset 4.0.0 (mlcommons/logging) and
the hyper-parameter table of the training policies (mlcommons/training_policies,
training_rules.adoc).
"""

import math

from conadv_tf.config.schema import ExperimentConfig


def conflicts(config: ExperimentConfig) -> list[str]:
  """Lists what makes a run illegal there, as 'key value: must be ...'."""
  optimizer, rates = config.optimizer, config.schedule
  found = []

  def require(legal: bool, key: str, value: object, rule: str) -> None:
    if not legal:
      found.append(f'{key} {value}: must be {rule}')

  require(config.model.name == 'resnet50', 'model.name', config.model.name,
          'resnet50')
  require(config.model.initial_weights is None, 'model.initial_weights',
          config.model.initial_weights, 'null')
  require(config.method.name == 'vanilla', 'method.name',
          config.method.name, 'vanilla')
  require(config.growth.name == 'none', 'growth.name', config.growth.name,
          'none')
  for key in ('mixup', 'cutmix'):
    value = getattr(config.data, key)
    require(not value, f'data.{key}', value, '0')
  for key in ('clipnorm', 'clipvalue', 'global_clipnorm', 'ema_momentum',
              'trust_clip'):
    value = getattr(optimizer, key)
    require(value is None, f'optimizer.{key}', value, 'null')
  require(not optimizer.nesterov, 'optimizer.nesterov', optimizer.nesterov,
          'false')
  require(config.data.name == 'synthetic' or not config.data.cache,
          'data.cache', config.data.cache,
          'false, since images are read after run_start')
  require(config.data.augment in ('none', 'crop_flip'), 'data.augment',
          config.data.augment, 'none')
  require(optimizer.name in ('lars', 'sgd'), 'optimizer.name', optimizer.name,
          'lars or sgd')
  decay = optimizer.weight_decay / 1e-4
  require(decay > 0 and abs(math.log2(decay) - round(math.log2(decay))) < 1e-9,
          'optimizer.weight_decay', f'{optimizer.weight_decay:g}',
          '1e-4 * 2^N')
  if optimizer.name == 'lars':
    require(not optimizer.epsilon, 'optimizer.epsilon', optimizer.epsilon, '0')
    require(optimizer.eeta == 1e-3, 'optimizer.eeta', optimizer.eeta, '0.001')
    require(optimizer.momentum == 0.9
            or config.data.global_batch_size >= 32768,
            'optimizer.momentum', optimizer.momentum,
            '0.9 at batches below 32768')
  require(rates.name == 'polynomial', 'schedule.name', rates.name,
          'polynomial')
  if rates.name == 'polynomial':
    require(rates.power == 2, 'schedule.power', f'{rates.power:g}', '2')
    require(rates.end_lr == 1e-4, 'schedule.end_lr', f'{rates.end_lr:g}',
            '0.0001')
  smoothing = config.objective.label_smoothing
  require(smoothing in (0, 0.1), 'objective.label_smoothing', smoothing,
          '0 or 0.1')
  target = config.evaluation.target_accuracy
  require(target is None or target >= 0.759, 'evaluation.target_accuracy',
          target, '0.759 or more')
  return found
