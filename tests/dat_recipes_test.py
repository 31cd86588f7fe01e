"""The recipes of the DAT paper against its section 6.1 and its supplement."""

import pathlib

import pytest

from conadv_tf import config, description

_FOLDER = pathlib.Path(__file__).resolve().parents[1] / 'configs' / 'dat'
# Batch, epochs, optimizer, first learning rate, steps of the attack.
_RECIPES = {
    'cifar10/dat_pgd': (2048, 100, 'lamb', 0.01, 10),
    'cifar10/dat_fgsm': (2048, 100, 'lamb', 0.01, 1),
    'imagenet/dat_pgd': (3072, 30, 'lamb', 0.01, 4),
    'imagenet/dat_fgsm': (3072, 30, 'lamb', 0.01, 1),
    'cifar10/dat_pgd_no_layerwise': (2048, 100, 'sgd', 0.1, 10),
    'cifar10/dat_fgsm_no_layerwise': (2048, 100, 'sgd', 0.1, 1),
    'cifar10/at': (128, 100, 'sgd', 0.1, 10),
    'cifar10/fast_at': (128, 15, 'sgd', 0.0, 1),
    'imagenet/dat_pgd_no_layerwise': (3072, 30, 'sgd', 0.1, 4),
    'imagenet/dat_fgsm_no_layerwise': (3072, 30, 'sgd', 0.1, 1),
    'imagenet/at': (512, 30, 'sgd', 0.1, 4),
    'imagenet/fast_at': (512, 30, 'sgd', 0.1, 1),
    'imagenet/lsgd': (3072, 110, 'sgd', 0.0, 30),
}
_DECAYS = {100: (75, 90, 95), 30: (20, 25, 28), 110: (35, 70, 95)}


def _load(name: str) -> config.ExperimentConfig:
  loaded = config.load([str(_FOLDER / f'{name}.yaml')])
  return config.resolve(loaded, loaded.data.train_examples)


def _rate(resolved: config.ExperimentConfig, epoch: float) -> float:
  step = round(epoch * resolved.derived.steps_per_epoch)
  return float(description.schedule(resolved)(step))


def test_every_recipe_is_compared() -> None:
  found = [p.relative_to(_FOLDER).with_suffix('').as_posix()
           for folder in ('cifar10', 'imagenet')
           for p in (_FOLDER / folder).glob('*.yaml')]
  assert sorted(name for name in found if 'smooth_at' not in name
                ) == sorted(_RECIPES)


@pytest.mark.parametrize('name', _RECIPES)
def test_the_paper_s_setting(name: str) -> None:
  batch, epochs, optimizer, rate, steps = _RECIPES[name]
  c = _load(name)
  assert c.data.global_batch_size == batch
  assert (c.method.name, c.method.lag, c.method.clean_weight) == ('dat', 0, 0)
  assert (c.optimizer.name, c.attack.steps) == (optimizer, steps)
  assert c.schedule.epochs == epochs
  assert _rate(c, 0) == pytest.approx(rate)
  peak = c.schedule.peak_lr
  for decays, epoch in enumerate(_DECAYS.get(epochs, ()), start=1):
    assert _rate(c, epoch + 0.3) == pytest.approx(peak * 0.1**decays)
    assert _rate(c, epoch - 0.6) == pytest.approx(peak * 0.1**(decays - 1))
  if not name.endswith('lsgd'):
    radius = 8 if name.startswith('cifar10') else 2
    assert c.attack.radius == radius and c.attack.target == 'none'
    assert c.attack.step_size == (1.25 * radius if steps == 1 else 2)
  assert c.evaluation.monitor == 'robust_accuracy_pgd10'


@pytest.mark.parametrize('folder', ['cifar10', 'imagenet'])
@pytest.mark.parametrize('name', ['dat_pgd', 'dat_fgsm'])
def test_layer_wise_rates_are_those_of_the_paper_s_preset(
    folder: str, name: str) -> None:
  preset = str(_FOLDER.parent / 'optimizer' / 'lamb_dat_paper.yaml')
  recipe = str(_FOLDER / folder / f'{name}.yaml')
  assert (config.load([recipe]).optimizer.as_dict()
          == config.load([recipe, preset]).optimizer.as_dict())


def test_fast_at_rises_to_its_peak_and_falls_to_0() -> None:
  c = _load('cifar10/fast_at')
  assert [_rate(c, e) for e in (3, 6, 10.5, 15)] == pytest.approx(
      [0.1, 0.2, 0.1, 0.0], abs=1e-3)


def test_lsgd_s_attack_and_rate() -> None:
  c = _load('imagenet/lsgd')
  assert (c.attack.radius, c.attack.step_size, c.attack.random_start,
          c.attack.target) == (16, 1, 0.8, 'random')
  assert c.schedule.peak_lr == pytest.approx(0.1 * 3072 / 256)
  assert (c.schedule.warmup_epochs, c.objective.label_smoothing) == (5, 0.1)
