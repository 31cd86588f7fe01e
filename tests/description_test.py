"""What `--mode=describe` says, against numbers worked out by hand."""

import pathlib
import re

import pytest

from conadv_tf import config, counts, description, experiment
from tests import tiny

_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
_IMAGENET = _REPOSITORY / 'configs/imagenet'
_RECIPES = sorted(path.stem for path in _IMAGENET.glob('*.yaml'))
_OVERLAYS = sorted(
    path.relative_to(_IMAGENET / 'batch').with_suffix('').as_posix()
    for path in (_IMAGENET / 'batch').rglob('*.yaml'))


def _describe(recipe: str, *overlays: str, pairs: str = '') -> dict[str, str]:
  """Lines by their first words; nothing of the data is there."""
  files = [_IMAGENET / f'{recipe}.yaml',
           *(_IMAGENET / 'batch' / f'{name}.yaml' for name in overlays)]
  text = description.describe_config(
      config.load([str(path) for path in files], pairs))
  return dict(line.split(': ', 1) for line in text.splitlines())


def _numbers(text: str) -> list[float]:
  return [float(number.replace(',', ''))
          for number in re.findall(r'\d[\d,]*(?:\.\d+)?', text)]


# N = 1,281,167 examples. Updates: round(epochs * N / B), by the MLPerf
# convention epochs * (N // B); warm-up the same way. Rates: first and peak as
# configured, last end + (peak - end) * left ** power, where `left` is one
# update of the decay (two of a decay longer by one, by MLPerf's convention).
@pytest.mark.parametrize(
    'files, batch, updates, warmup, radius, peak, last, cores', [
        # 42 * 312, 5 * 312; 1e-4 + 10 * (2 / 11545)**2.
        (['mlperf_4096'], 4096, 13104, 1560, None, 10, 1.003e-4, 64),
        (['mlperf_8192'], 8192, 6864, 780, None, 17, 1.018e-4, 128),
        (['mlperf_16384'], 16384, 5616, 390, None, 25, 1.037e-4, 256),
        # 58 * 39, 16 * 39; 1e-4 + 21.2 * (2 / 1639)**2.
        (['mlperf_32768'], 32768, 2262, 624, None, 21.2, 1.316e-4, 512),
        (['mlperf_65536'], 65536, 1689, 589, None, 24.699, 1.815e-4, 1024),
        # 90 * N / 32768 = 3518.8, 40 * N / 32768 = 1563.9;
        # 1e-4 + 35 / 1955**2.
        (['vanilla'], 32768, 3519, 1564, None, 35, 1.092e-4, 512),
        (['autoaugment'], 32768, 3519, 1564, None, 35, 1.092e-4, 512),
        (['disadv'], 32768, 3519, 1564, 3, 35, 1.092e-4, 512),
        (['conadv'], 32768, 3519, 1564, 3, 35, 1.092e-4, 512),
        (['conadv_aa'], 32768, 3519, 1564, 5, 35, 1.092e-4, 512),
        (['conadv_aa_3_streams'], 32768, 3519, 1564, 5, 35, 1.092e-4, 512),
        (['efficientnet_b0_conadv'], 16384, 7038, 391, 8, 25, 1.006e-4, 256),
        (['conadv', '512'], 512, 225205, 12511, 3, 10, 1e-4, 8),
        (['conadv', '1k'], 1024, 112603, 6256, 3, 10, 1e-4, 16),
        (['conadv_aa', '16k'], 16384, 7038, 391, 3, 25, 1.006e-4, 256),
        (['conadv', '32k'], 32768, 3519, 1564, 3, 35, 1.092e-4, 512),
        (['conadv_aa', 'aa/32k'], 32768, 3519, 1564, 5, 35, 1.092e-4, 512),
        # 1759.4, 801.5; 1e-4 + 41 / 957**2.
        (['conadv', '64k'], 65536, 1759, 802, 5, 41, 1.448e-4, 1024),
        (['conadv_aa', 'aa/64k'], 65536, 1759, 802, 7, 41, 1.448e-4, 1024),
        # 1172.9, 534.3; 1e-4 + 43 / 639**2.
        (['conadv', '96k'], 98304, 1173, 534, 8, 43, 2.053e-4, 1536),
        (['conadv_aa', 'aa/96k'], 98304, 1173, 534, 8, 43, 2.053e-4, 1536),
        (['vanilla', '128k'], 131072, 880, 401, None, 43, 2.874e-4, 2048),
        (['vanilla', '256k'], 262144, 440, 200, None, 43, 8.465e-4, 4096),
        # 99.8 * 13.0327 = 1300.7; 1e-4 + 43 * (1 / 767)**1.6.
        (['conadv_aa_3_streams', 'released_96k', 'released_units'],
         98304, 1301, 534, 4.05, 43, 1.142e-3, 1536),
    ])
def test_key_figures(
    files: list[str], batch: int, updates: int, warmup: int,
    radius: float | None, peak: float, last: float, cores: int) -> None:
  lines = _describe(*files)
  said = _numbers(lines['updates'])
  assert (said[0], said[1], said[-1]) == (updates, batch, warmup)
  assert lines['batch'].endswith(f'{cores:,} TPU core(s)')
  assert (_numbers(lines['attack'])[0] == radius if radius
          else 'attack' not in lines)
  rates = lines['learning rate, polynomial']
  assert rates.startswith('first (update 0, epoch 0) 0; ')
  points = {name: float(rate) for name, rate in re.findall(
      r'([\w/-]+(?: ends)?) \(update [\d,]+, epoch [\d.]+\) ([\d.e-]+)',
      rates)}
  assert points['warm-up ends'] == peak
  assert points['last'] == pytest.approx(last, rel=1e-3)
  assert lines['data'] == (
      'tfrecord, 1,281,167 training and 50,000 validation images 224x224x3, '
      '1000 classes')


def test_every_recipe_and_overlay_is_listed_somewhere() -> None:
  assert len(_RECIPES) == 12 and len(_OVERLAYS) == 16
  for recipe in _RECIPES:
    assert _describe(recipe)['model'].startswith(
        'EfficientNetB0, 5,288,548 ' if 'efficient' in recipe
        else 'resnet50, 25,557,032 trainable parameters, 53 batch ')


@pytest.mark.slow
@pytest.mark.parametrize('recipe', _RECIPES)
def test_every_recipe_with_every_overlay(recipe: str) -> None:
  for overlay in _OVERLAYS:
    batch = config.load([str(_IMAGENET / f'{recipe}.yaml'), str(
        _IMAGENET / 'batch' / f'{overlay}.yaml')]).data.global_batch_size
    lines = _describe(recipe, overlay)
    assert _numbers(lines['updates'])[1] == batch
    assert lines['batch'].endswith(f'{-(-batch // 64):,} TPU core(s)')


def test_work_and_batch_statistics_and_exclusions() -> None:
  vanilla, two, three = (
      _describe(recipe) for recipe in (
          'vanilla', 'conadv', 'conadv_aa_3_streams'))
  for lines, work in ((vanilla, '3 in all, 2'), (_describe('disadv'),
                                                 '8 in all, 4'),
                      (two, '8 in all, 2'), (three, '11 in all, 2')):
    assert f'step: {work} in a row (vanilla: 3 and 2)' in lines['method']
  assert vanilla['batch statistics'].startswith('over 64 clean images, 1 ')
  assert three['batch statistics'].startswith(
      'over 64 clean, 64 augmented, 64 adversarial images, 1 replica(s)')
  # Two replicas of 64 in a group, as the point's bn_span of 128.
  assert _describe('mlperf_32768')['batch statistics'] == (
      'over 128 clean images, 2 replica(s) together')
  assert _describe('conadv', pairs='bn.group_size=0')[
      'batch statistics'].startswith('over 512 clean, 512 adversarial')
  # 53 convolutions and the last kernel are scaled; 53 gammas and betas a
  # branch and the last bias are not.
  for lines, branches in ((vanilla, 1), (two, 2), (three, 3)):
    assert lines['lars'].startswith(
        f'{106 * branches + 1} of {106 * branches + 55} tensors')


@pytest.mark.parametrize('stream, images, branches', [
    ('shared', '128 mixed', 1), ('split', '64 clean, 64 augmented', 2)])
def test_a_stream_of_augmented_images(
    stream: str, images: str, branches: int) -> None:
  lines = _describe('autoaugment', pairs=f'method.augmented_stream={stream}')
  assert lines['method'] == (
      'vanilla, augmented images beside clean ones, lag 0; forward passes F a '
      'step: 6 in all, 2 in a row (vanilla: 3 and 2)')
  assert lines['batch statistics'] == (
      f'over {images} images, 1 replica(s) together')
  assert lines['lars'].startswith(
      f'{106 * branches + 1} of {106 * branches + 55} tensors')
  assert lines['updates'] == _describe('autoaugment')['updates']
  assert 'held' not in lines


def test_memory() -> None:
  lines = _describe('conadv')
  pixels = 32768 * 224 * 224 * 3
  # Smoothed labels are float32 [1000]; a weight is float32.
  labels = 32768 * 4 * 1001
  assert lines['held'] == (
      f'images {pixels / 1e9:.2f} GB (uint8), perturbations '
      f'{2 * pixels / 1e9:.2f} GB (bfloat16), labels and weights '
      f'{labels / 1e6:.1f} MB; {(3 * pixels + labels) / 8e9:.2f} GB a replica')
  # A signed step from the image itself takes a byte.
  assert f'{pixels / 1e9:.2f} GB (int8)' in _describe(
      'conadv', pairs='attack.random_start=0')['held']
  # 14.8 GB of uint8 at 96k; the augmented view doubles it.
  assert '14.80 GB (uint8)' in _describe('conadv', '96k')['held']
  assert '29.60 GB (uint8)' in _describe(
      'conadv_aa_3_streams', 'aa/96k')['held']
  assert 'held' not in _describe('disadv')
  # 26,560 channels are normalised: gamma and beta are parameters, the moving
  # statistics are not, and the other branch has all four.
  copies = _describe('conadv', pairs='method.lag=3')['lagged copies']
  assert copies == (
      f'2 weight set(s) of {4 * (25_557_032 + 6 * 26_560) / 1e6:.1f} MB on '
      'every replica')


def test_evaluations() -> None:
  assert _describe('mlperf_4096')['evaluation'] == (
      '11 time(s), every 4 epoch(s), after epoch 2, 6, ..., 42; stops at '
      'accuracy 0.759')
  # Updates are whole: epoch 5 is 195.5 updates.
  assert _describe('conadv')['evaluation'] == (
      '18 time(s), every 5 epoch(s), after epoch 5.013, 10, ..., 90')


@pytest.mark.parametrize('pairs, updates', [
    ('schedule.epochs=2', [3, 6]),
    ('schedule.epochs=2.5', [3, 6, 8]),  # round(7.5) is 8
    ('schedule.epochs=4,evaluation.every_epochs=2,evaluation.offset_epochs=1',
     [3, 9, 12]),
    ('schedule.epochs=2,evaluation.every_epochs=5', [6]),
    # 24 examples in batches of 5: 4.8 updates an epoch.
    ('schedule.epochs=3,data.global_batch_size=5', [5, 10, 14]),
])
def test_evaluation_updates(pairs: str, updates: list[int]) -> None:
  resolved = config.resolve(tiny.load(pairs), 24)
  assert description.evaluation_updates(resolved) == updates


def test_mlperf_s_rules() -> None:
  for batch in (4096, 8192, 16384, 32768, 65536):
    assert _describe(f'mlperf_{batch}')['mlperf'].startswith('legal ')
  assert 'mlperf' not in _describe('vanilla')
  assert _describe('vanilla', pairs='mlperf.log=true')['mlperf'] == (
      'not legal in the closed division: optimizer.weight_decay 0.0005: must '
      'be 1e-4 * 2^N')
  said = _describe('mlperf_4096', pairs=(
      'method.name=disadv,data.augment=autoaugment,optimizer.momentum=0.95,'
      'optimizer.epsilon=1e-7,optimizer.eeta=0.01,schedule.power=1.6,'
      'schedule.end_lr=0,objective.label_smoothing=0.2,'
      'evaluation.target_accuracy=0.5'))['mlperf']
  keys = [part.split()[0] for part in said.partition(': ')[2].split('; ')]
  assert keys == [
      'method.name', 'data.augment', 'optimizer.epsilon', 'optimizer.eeta',
      'optimizer.momentum', 'schedule.power', 'schedule.end_lr',
      'objective.label_smoothing', 'evaluation.target_accuracy']
  said = _describe('mlperf_4096', pairs=(
      'data.mixup=0.2,optimizer.nesterov=true,optimizer.clipnorm=1,'
      'optimizer.ema_momentum=0.9,optimizer.trust_clip=[0,10],'
      'model.name=resnet18,data.cache=true'))['mlperf']
  keys = [part.split()[0] for part in said.partition(': ')[2].split('; ')]
  assert keys == ['model.name', 'data.mixup', 'optimizer.clipnorm',
                  'optimizer.ema_momentum', 'optimizer.trust_clip',
                  'optimizer.nesterov', 'data.cache']
  # Momentum is free from 32,768 on.
  assert _describe('mlperf_32768', pairs='optimizer.momentum=0.95')[
      'mlperf'].startswith('legal ')


def test_keys_that_are_not_used_are_named() -> None:
  assert _describe('vanilla', '64k')['set but not used'] == 'attack.radius'
  assert 'set but not used' not in _describe('conadv', '64k')


def test_a_run_and_its_configuration_are_described_alike() -> None:
  pairs = 'method.lag=2,runtime.micro_batches=2,objective.label_smoothing=0.1'
  built = experiment.build(tiny.load(pairs))
  assert description.describe(built) == description.describe_config(
      tiny.load(pairs))


def test_data_are_loaded_where_their_numbers_are_not_stated() -> None:
  found = counts.of_config(tiny.load())
  assert found == counts.Counts(24, 6, (4, 4, 3), 3)
  with pytest.raises(config.InputError, match='data.path'):
    _describe('conadv', pairs='data.train_examples=null')


@pytest.mark.parametrize('pairs, part', [
    ('data.num_examples=2000000', 'must lie in 1 .. 1281167'),
    ('data.global_batch_size=100', 'does not divide among'),
    ('model.name=resnet51', 'did you mean'),
    ('model.args={depth: 50}', 'model.args.depth'),
    ('schedule.epochs=1e-3,schedule.warmup_epochs=0', 'round to 0 updates'),
])
def test_bad_input(pairs: str, part: str) -> None:
  with pytest.raises(config.InputError) as raised:
    _describe('conadv', pairs=pairs)
  assert part in str(raised.value)
