"""Which configurations may perturb word embeddings, and what they build."""

import pytest

from conadv_tf import components, config, method_lines

_ON = 'method.name=scala,method.lag=0,schedule.epochs=6'


@pytest.mark.parametrize('pairs, parts', [
    ('perturbation.delay_epochs=6',
     ['perturbation.delay_epochs: 6', 'schedule.epochs=6', 'lower it']),
    ('perturbation.weight=-1',
     ['perturbation.weight: must be 0 or more, got -1']),
    ('method.name=freelb,perturbation.steps=0',
     ['perturbation.steps: must be at least 1 with method.name=freelb']),
    ('growth.name=scheduled,growth.max_batch_size=1024,growth.epochs=[1]',
     ['growth.name: "scheduled" and method.name=scala exclude each other']),
    ('bn.group_size=0', ['bn.group_size: 0 and method.name=scala']),
    ('data.mixup=0.2', ['data.mixup: 0.2', 'token ids cannot be mixed']),
    ('evaluation.attacks=[pgd20]', ['evaluation.attacks', 'change images']),
    ('runtime.precision=mixed_float16', ['vanish in float16']),
    ('runtime.placement=split,runtime.strategy=mirrored',
     ['method.name: "scala" and runtime.placement=split exclude each other']),
])
def test_refuses(pairs: str, parts: list[str]) -> None:
  with pytest.raises(config.InputError) as raised:
    config.validate(config.load([], [_ON, pairs]))
  message = str(raised.value)
  assert '\n' not in message
  for part in parts:
    assert part in message


@pytest.mark.parametrize('pairs, ignored', [
    ('perturbation.radius=1', []),
    ('method.name=vanilla,perturbation.radius=1', ['perturbation.radius']),
    ('method.name=conadv,perturbation.steps=2', ['perturbation.steps']),
    ('method.execution=sequential', ['method.execution']),
    ('method.execution=sequential,method.lag=2', []),
    ('attack.radius=2,method.adversarial_fraction=0.5',
     ['method.adversarial_fraction', 'attack.radius']),
    ('perturbation.steps=0,perturbation.step_size=1',
     ['perturbation.step_size']),
    ('perturbation.weight=0,perturbation.steps=3', ['perturbation.steps']),
    ('method.name=freelb,perturbation.norm=l2,perturbation.weight=2',
     ['perturbation.norm', 'perturbation.weight'])])
def test_keys_that_are_not_used(pairs: str, ignored: list[str]) -> None:
  found = set(config.unused_keys(config.load([], [_ON, pairs])))
  # Lag differs from its default.
  assert found - {'method.lag'} == set(ignored)


def test_the_method_that_a_configuration_builds() -> None:
  # 66.5 updates an epoch: 5 of them end with update 332 (332.5, to even).
  resolved = config.resolve(config.load([], [
      _ON, 'perturbation.delay_epochs=5,perturbation.steps=2,method.lag=1',
      'data.global_batch_size=100,perturbation.weight=0.5']), 6650)
  method = components.METHODS['scala'](resolved)
  assert (method.delay, method.lag, method.weight) == (332, 1, 0.5)
  assert method.perturbation.steps == 2
  # 2 training passes, 2 steps, and the attack's own clean pass.
  assert (method.passes_per_step, method.longest_chain) == (11, 5)
  assert method_lines.perturbation(method) == (
      'perturbation: radius 1e-05 (linf), 2 step(s) of 0.0001 (linf), start '
      'normal 1e-05, of word embeddings in their own units; from update 332 '
      'on, before it 3 passes F and 2 in a row, as plain training')
  freelb = components.METHODS['freelb'](resolved)
  assert (freelb.delay, freelb.passes_per_step) == (332, 6)


@pytest.mark.parametrize('delay, fits', [(0.86, True), (0.9, False)])
def test_a_delay_that_leaves_no_update(delay: float, fits: bool) -> None:
  loaded = config.load([], [
      'method.name=scala,method.lag=0,schedule.epochs=1,'
      f'data.global_batch_size=5,perturbation.delay_epochs={delay}'])
  if fits:  # updates 3 of 0 to 3
    assert components.METHODS['scala'](config.resolve(loaded, 20)).delay == 3
    return
  with pytest.raises(config.InputError, match='0.9 epochs are 4 updates, and '
                                              'the run has 4; lower it'):
    config.resolve(loaded, 20)


def test_models_that_end_in_probabilities_are_refused() -> None:
  loaded = config.load([], [_ON])
  config.check_outputs(loaded, 'logits')
  with pytest.raises(config.InputError, match='ends in probabilities'):
    config.check_outputs(loaded, 'probabilities')
