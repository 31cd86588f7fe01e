import pytest

from conadv_tf import config


def _message(raised: pytest.ExceptionInfo) -> str:
  message = str(raised.value)
  assert len(message.splitlines()) == 1
  return message


def test_defaults_are_legal_and_no_sources_give_them() -> None:
  assert config.load([]) == config.ExperimentConfig()
  config.validate(config.ExperimentConfig())


@pytest.mark.parametrize('override, parts', [
    # Unknown keys.
    ('method.lagg=1', ['method.lagg', 'unknown', 'method.lag']),
    ('lag=1', ['lag: unknown', 'is method.lag']),
    ('methd.lag=1', ['methd: unknown', 'is method']),
    ('optimizer.lr=1', ['optimizer.lr: unknown', 'is optimizer.']),
    ('derived.total_steps=5', ['derived.total_steps', 'leave it out']),
    # Types.
    ('method=conadv', ['method: expected a group of keys, got "conadv"']),
    ('method.lag=abc', ['method.lag: expected an integer, got "abc"']),
    ('method.lag=1.0', ['method.lag: expected an integer, got 1.0']),
    ('method.lag=true', ['method.lag: expected an integer, got true']),
    ('method.lag=[1]', ['method.lag: expected an integer, got [1]']),
    ('method.lag.x=1', ['method.lag: expected an integer, got {"x": 1}']),
    ('attack.radius=', ['attack.radius: expected a number, got null']),
    ('attack.radius=true', ['attack.radius: expected a number, got true']),
    ('attack.radius=4px', ['attack.radius: expected a number, got "4px"']),
    ('attack.radius=.nan', ['attack.radius: expected a finite number']),
    ('attack.radius=-.inf', ['attack.radius: expected a finite number']),
    ('attack.radius=1e999', ['attack.radius: expected a finite number']),
    ('attack.radius=nan', ['attack.radius: expected a number, got "nan"']),
    (f'attack.radius=1{"0" * 400}', ['attack.radius: expected a finite']),
    ('data.cache=no', ['data.cache: expected true or false, got "no"']),
    ('data.cache=1', ['data.cache: expected true or false, got 1']),
    ('data.name=5', ['data.name: expected a string, got 5']),
    ('data.name=null', ['data.name: expected a string, got null']),
    ('data.path=[a]', ['data.path: expected a string, got ["a"]']),
    ('evaluation.attacks=pgd', ['evaluation.attacks: expected a list']),
    ('evaluation.attacks=[1]', ['evaluation.attacks[0]: expected a string']),
    ('schedule.values=[1,x]', ['schedule.values[1]: expected a number']),
    ('model.args=5', ['model.args: expected a mapping, got 5']),
    # Choices.
    ('attack.norm=l1', ['attack.norm: expected one of linf, l2']),
    ('attack.direction=sgn', ['attack.direction', 'did you mean sign?']),
    ('attack.target=all', ['attack.target: expected one of none, random']),
    ('attack.branch=x', ['attack.branch: expected one of adversarial, clean']),
    ('attack.mode=train', ['attack.mode: expected one of batch, moving']),
    ('method.execution=parallel', ['method.execution: expected one of']),
    ('method.adversary=old', ['method.adversary: expected one of']),
    ('method.pairing=same_batc', ['mean same_batch?']),
    ('method.bn_branches=4', ['method.bn_branches: expected one of 1, 2, 3']),
    ('method.bn_branches=true', ['method.bn_branches', 'got true']),
    ('runtime.strategy=horovod', ['runtime.strategy: expected one of']),
    ('runtime.precision=float16', ['runtime.precision', 'mixed_float16']),
    ('data.augment=flip', ['data.augment: expected one of']),
    ('optimizer.name=adam', ['optimizer.name', 'did you mean adamw?']),
    ('schedule.name=linear', ['schedule.name: expected one of']),
    # Ranges.
    ('seed=-1', ['seed: must be from 0 to 2147483647, got -1']),
    ('seed=2147483648', ['seed: must be']),
    ('data.global_batch_size=0', ['data.global_batch_size: must be at least']),
    ('data.image_size=0', ['data.image_size: must be at least 1']),
    ('data.num_classes=1', ['data.num_classes: must be at least 2']),
    ('data.num_examples=0', ['data.num_examples: must be at least 1']),
    ('objective.label_smoothing=1', ['objective.label_smoothing: must be']),
    ('method.attack_every=0', ['method.attack_every: must be at least 1']),
    ('runtime.training_pass=both', ['runtime.training_pass']),
    ('method.adversary=recycled,bn.group_size=0',
     ['bn.group_size: 0 and method.adversary=recycled exclude']),
    ('runtime.training_pass=separate,bn.group_size=0',
     ['bn.group_size: 0 and runtime.training_pass=separate exclude']),
    ('method.sigma=-0.1', ['method.sigma: must be from 0 to 1, a share of']),
    ('method.sigma=64', ['method.sigma: must', 'not in 1/255, got 64']),
    ('method.noise_copies=0', ['method.noise_copies: must be at least 1']),
    ('method.name=smooth_at,bn.group_size=2',
     ['bn.group_size: 2 and method.name=smooth_at exclude']),
    ('method.lag=-1', ['method.lag: must be 0 or more, got -1']),
    ('method.adversarial_fraction=0', ['method.adversarial_fraction: must']),
    ('method.adversarial_fraction=1.5', ['method.adversarial_fraction: must']),
    ('method.adversarial_weight=1.1', ['method.adversarial_weight: must be']),
    ('method.clean_weight=-1', ['method.clean_weight: must be 0 or more']),
    ('method.trades_weight=-1', ['method.trades_weight: must be 0 or more']),
    ('method.trades_start_std=-1', ['method.trades_start_std: must be']),
    ('method.regularizer=kl', ['method.regularizer: expected one of']),
    ('method.name=dat,method.regularizer=trades',
     ['method.clean_weight: 0 and method.regularizer=trades exclude']),
    ('method.name=dat,method.regularizer=trades,method.clean_weight=1,'
     'attack.target=random', ['attack.target: random and', 'trades exclude']),
    ('method.name=dat,growth.name=scheduled,growth.epochs=[1]',
     ['method.execution: concurrent holds a batch', 'set sequential']),
    ('method.bn_branches=3', ['data.augment: none', 'method.bn_branches=3']),
    ('method.augmented_stream=on', ['method.augmented_stream: expected one of',
                                    'off, shared, split']),
    ('method.name=vanilla,method.augmented_stream=shared,data.augment=crop_flip',
     ['data.augment: crop_flip', 'method.augmented_stream=shared', 'randaug']),
    ('method.augmented_stream=split,data.augment=autoaugment',
     ['method.augmented_stream: split and method.name=conadv exclude',
      'bn_branches=3', 'set off']),
    ('data.name=glue,method.name=vanilla,method.augmented_stream=split',
     ['method.augmented_stream: "split" and data.name=glue exclude']),
    ('data.preprocessing=imagenet,data.augment=crop_flip',
     ['data.augment: crop_flip', 'data.preprocessing=imagenet']),
    ('runtime.reduce_dtype=float16,runtime.deterministic=true',
     ['runtime.reduce_dtype: float16', 'runtime.deterministic']),
    ('attack.radius=-1', ['attack.radius: must be 0 or more, got -1.0']),
    ('attack.step_size=-1', ['attack.step_size: must be 0 or more']),
    ('attack.radius=255.5', ['attack.radius: must be from 0 to 255', '255.5']),
    ('attack.steps=0', ['attack.steps: must be at least 1', 'attack.radius=0']),
    ('attack.random_start=2', ['attack.random_start: must be from 0 to 1']),
    ('optimizer.momentum=1', ['optimizer.momentum: must be at least 0 and']),
    ('optimizer.weight_decay=-1', ['optimizer.weight_decay: must be']),
    ('optimizer.eeta=0', ['optimizer.eeta: must be above 0, got 0.0']),
    ('optimizer.epsilon=-1', ['optimizer.epsilon: must be 0 or more']),
    ('optimizer.beta_1=1', ['optimizer.beta_1: must be']),
    ('optimizer.beta_2=1', ['optimizer.beta_2: must be']),
    ('optimizer.clipnorm=0', ['optimizer.clipnorm: must be above 0']),
    ('optimizer.trust_clip=[-1,10]',
     ['optimizer.trust_clip: must be 0 or more, got -1.0']),
    ('optimizer.trust_clip=10', ['optimizer.trust_clip: expected a list']),
    ('optimizer.scope=block', ['optimizer.scope: expected one of tensor, lay']),
    ('optimizer.ema_momentum=1', ['optimizer.ema_momentum: must be at least']),
    ('evaluation.patience=0', ['evaluation.patience: must be at least 1']),
    ('evaluation.target_accuracy=75.9', ['evaluation.target_accuracy: must']),
    ('schedule.epochs=0', ['schedule.epochs: must be above 0']),
    ('schedule.peak_lr=-1', ['schedule.peak_lr: must be 0 or more']),
    ('schedule.warmup_epochs=-1', ['schedule.warmup_epochs: must be 0']),
    ('schedule.power=0', ['schedule.power: must be above 0']),
    ('schedule.end_lr=-1', ['schedule.end_lr: must be 0 or more']),
    ('schedule.values=[1,-1]', ['schedule.values: must be 0 or more']),
    ('schedule.boundaries=[-1]', ['schedule.boundaries: must be 0 or more']),
    ('runtime.num_replicas=0', ['runtime.num_replicas: must be at least 1']),
    ('runtime.micro_batches=0', ['runtime.micro_batches: must be at least 1']),
    ('runtime.steps_per_execution=0', ['runtime.steps_per_execution: must']),
    ('checkpoint.every_epochs=0', ['checkpoint.every_epochs: must be above']),
    ('checkpoint.every_minutes=0', ['checkpoint.every_minutes: must be above']),
    ('checkpoint.keep=0', ['checkpoint.keep: must be at least 1']),
    ('evaluation.every_epochs=0', ['evaluation.every_epochs: must be']),
    ('evaluation.offset_epochs=-1', ['evaluation.offset_epochs: must be']),
    ('evaluation.batch_size=0', ['evaluation.batch_size: must be']),
    ('evaluation.train_examples=-1', ['evaluation.train_examples: must be']),
    # Combinations.
    ('optimizer.trust_clip=[10]',
     ['optimizer.trust_clip: must be two numbers, written [c_l,c_u], or null, '
      'got [10.0]']),
    ('optimizer.trust_clip=[2,1]',
     ['optimizer.trust_clip: c_l 2.0 is above c_u 1.0; swap them']),
    ('optimizer.trust_clip=[0,0]', ['optimizer.trust_clip: c_u of 0 stops']),
    ('optimizer.clipnorm=1,optimizer.clipvalue=2',
     ['optimizer.clipvalue: optimizer.clipnorm is set as well; set one']),
    ('data.global_batch_size=100,runtime.num_replicas=4,'
     'runtime.micro_batches=8,runtime.strategy=mirrored',
     ['data.global_batch_size: 100 ', '4 runtime.num_replicas',
      '8 runtime.micro_batches', '= 32', 'is 96']),
    ('data.global_batch_size=1,runtime.micro_batches=4', ['is 4']),
    ('runtime.num_replicas=2', ['runtime.num_replicas', 'strategy=mirrored']),
    ('schedule.warmup_epochs=21',
     ['schedule.warmup_epochs', 'at most schedule.epochs (20.0), got 21.0']),
    ('schedule.end_lr=3', ['schedule.end_lr', 'schedule.peak_lr (2.0)']),
    ('schedule.decay_epochs=0', ['schedule.decay_epochs: must be above 0']),
    ('schedule.decay_epochs=21',
     ['schedule.decay_epochs: must be from', '(0.0) to', '(20.0), got 21.0']),
    ('schedule.decay_epochs=2,schedule.warmup_epochs=3',
     ['schedule.decay_epochs: must be from', '(3.0) to']),
    ('schedule.name=piecewise', ['schedule.values: 0 schedule.boundaries']),
    ('schedule.name=piecewise,schedule.boundaries=[3,3],'
     'schedule.values=[1,1,1]', ['schedule.boundaries: must increase']),
    ('schedule.name=piecewise,schedule.boundaries=[3],'
     'schedule.values=[1]', ['schedule.values', 'need 2 values, got [1.0]']),
    ('schedule.name=piecewise,schedule.boundaries=[3],schedule.values=[1,1],'
     'schedule.warmup_epochs=5', ['schedule.boundaries', 'warmup_epochs']),
    # Syntax.
    ('method.lag=1,method.lag=2', ['method.lag: duplicate key']),
    ('method=x,method.lag=2', ['method.lag', 'method is given a value too']),
    ('method.lag=1,oops', ['expected key=value, got "oops"']),
    ('method.lag=1,', ['expected key=value, got ""']),
    ('=3', ['expected key=value, got "=3"']),
    ('method.lag=[1', ['method.lag', 'correct the YAML']),
    ('model.args={a: 1, a: 2}', ['model.args', "duplicate key 'a'"]),
    ('no/such/file.yaml', ['no/such/file.yaml: cannot read it']),
])
def test_illegal_overrides(override: str, parts: list[str]) -> None:
  with pytest.raises(config.InputError) as raised:
    # Whether the batch divides is checked when the run is resolved.
    config.resolve(config.load([], override), 1000)
  message = _message(raised)
  for part in parts:
    assert part in message


def test_a_config_made_in_python_is_checked_too() -> None:
  made = config.ExperimentConfig(
      method=config.MethodConfig(lag=2), attack=config.AttackConfig(radius=8))
  resolved = config.resolve(made, 1000)
  assert resolved.method.lag == 2
  assert type(resolved.attack.radius) is float
  made.method.lag = '3'
  with pytest.raises(config.InputError, match='method.lag: expected an int'):
    config.resolve(made, 1000)


def test_input_error_is_one_line() -> None:
  assert str(config.InputError('a\n  b\r\nc')) == 'a b c'


def test_trades_needs_logits() -> None:
  trades = config.load([], (
      'method.name=dat,method.regularizer=trades,method.clean_weight=1'))
  config.check_outputs(trades, 'logits')
  config.check_outputs(config.load([], 'method.name=dat'), 'probabilities')
  with pytest.raises(config.InputError, match='ends in probabilities'):
    config.check_outputs(trades, 'probabilities')
