"""Every shipped configuration: what its head says, and that it runs."""

import json
import math
import pathlib
import re

import pytest

from conadv_tf import components, config, description, runs
from conadv_tf.data import glue
from tests import sentences

_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
_RECIPES_OF = 'configs/absa/'  # A model each: bl.yaml and its overlays.
_OF_ANY_RECIPE = ('configs/imagenet/batch/', 'configs/optimizer/')
_DAT = 'configs/dat/'
_SCALA = 'configs/scala/'
_FILES = sorted(
    path.relative_to(_REPOSITORY).as_posix()
    for path in (_REPOSITORY / 'configs').rglob('*.yaml'))
# An overlay holds a few keys, for a second --config_file.
_OVERLAYS = [
    path for path in _FILES
    if path.startswith((*_OF_ANY_RECIPE, f'{_SCALA}overlays/'))
    or path.startswith(_RECIPES_OF) and not path.endswith('/bl.yaml')]
_PATHS = [path for path in _FILES if path not in _OVERLAYS]
_TWO_UPDATES = (
    'data.name=synthetic,data.path=null,data.global_batch_size=8,'
    'data.num_examples=16,data.num_classes=3,data.train_examples=null,'
    'data.validation_examples=null,data.preprocessing=resize,'
    'data.max_bad_examples=0,data.unlabelled_path=null,'
    'data.unlabelled_fraction=0,model.initial_weights=null,'
    'schedule.epochs=1,schedule.warmup_epochs=0,'
    'schedule.decay_epochs=null,growth.max_batch_size=16,'
    'curvature.examples=4,curvature.every_samples=8,'
    'runtime.strategy=one_device,runtime.num_replicas=1,'
    'runtime.micro_batches=1,bn.group_size=1,'
    'evaluation.every_epochs=1,evaluation.batch_size=4,'
    'evaluation.offset_epochs=0,evaluation.target_accuracy=null,'
    'evaluation.train_examples=0,checkpoint.every_epochs=1,mlperf.log=false')
_TWO_UPDATES_ON_SENTENCES = (
    'data.builder=null,data.global_batch_size=8,data.num_examples=16,'
    'text.sequence_length=8,model.name=bert,model.initial_weights=null,'
    'model.args={hidden_size: 8, num_layers: 1, num_heads: 2, '
    'intermediate_size: 8, vocab_size: 14, max_positions: 8},'
    'perturbation.delay_epochs=0,schedule.epochs=1,schedule.warmup_epochs=0,'
    'runtime.strategy=one_device,runtime.micro_batches=1,'
    'evaluation.batch_size=4')
# The smallest images that the network takes; 8 where it is not listed.
_IMAGE_SIZE = {'ResNet50': 32, 'resnet18': 32, 'resnet50': 32,
               'EfficientNetB0': 32, 'alexnet': 63}
# These rates are for more images than 8, and ImageNet's for a warm-up.
_TAMED = ('configs/imagenet/', _RECIPES_OF, _DAT)
_TAME = ',schedule.peak_lr=0.01,schedule.end_lr=0.0001'
_LARGE_MODELS = ('EfficientNetB0', 'ResNet50', 'alexnet', 'preact_resnet18',
                 'resnet50', 'squeezenext23', 'wrn_16_4')
# What is quick to train and slow to trace.
_SLOW_MODELS = ('resnet18', 'resnet18_cifar', 'resnet20')
# Over 111 batch normalisations in a row the errors of moving statistics of two
# updates multiply to validation losses of 1e20 and more.
_UNSETTLED = ('squeezenext23',)
_SMALL = 'model.name=resnet8,model.args=null,data.image_size=8'


def _files(path: str) -> list[str]:
  """What is loaded: a configuration, an overlay with one that it suits."""
  if path not in _OVERLAYS:
    return [str(_REPOSITORY / path)]
  if path.startswith(_RECIPES_OF):
    base = f'{path.rpartition("/")[0]}/bl.yaml'
  elif path.startswith(_SCALA):
    base = f'{_SCALA}sst2.yaml'
  elif path.startswith('configs/optimizer/'):
    base = 'configs/cifar10/vanilla.yaml'
  else:
    name = 'conadv_aa' if '/aa/' in path else 'conadv'
    base = f'configs/imagenet/{name}.yaml'
  return [str(_REPOSITORY / base), str(_REPOSITORY / path)]


def _is_of_images(path: str) -> bool:
  return not path.startswith(_SCALA)


def _load(path: str) -> config.ExperimentConfig:
  return config.load(_files(path))


def _two_updates() -> list[object]:
  """All paths, and whether a small model stands in for a large one.

  A model runs once as it is, large ones among the slow tests; what comes with
  the same large model again, or is an overlay, runs with a small one. Of the
  overlays of recipes one is not slow.
  """
  # Methods with adversaries first: they are what a model is traced for.
  ordered = sorted(filter(_is_of_images, _FILES), key=lambda path: (
      path in _OVERLAYS, _load(path).method.name != 'conadv'))
  seen, parameters = set(), []
  for path in ordered:
    name = _load(path).model.name
    is_large = name in _LARGE_MODELS
    again = is_large or path in _OVERLAYS or path.startswith(
        (_RECIPES_OF, _DAT))
    slow = (is_large or name in seen or name in _SLOW_MODELS) and (
        path != f'{_RECIPES_OF}c1/absa.yaml')
    parameters.append(pytest.param(
        path, again and name in seen, marks=[pytest.mark.slow] * slow))
    seen.add(name)
  return parameters


def test_there_are_configurations_of_every_kind() -> None:
  assert {path.split('/')[1] for path in _PATHS} == {
      'absa', 'cifar10', 'dat', 'digits', 'image_folder', 'imagenet',
      'imagenette', 'scala', 'synthetic', 'tfds'}


def _head(path: str) -> str:
  """The comment that opens a file, its lines joined."""
  lines = (_REPOSITORY / path).read_text(encoding='utf-8').splitlines()
  assert max(map(len, lines)) <= 80
  head = []
  for line in lines:
    if not line.startswith('#'):
      break
    head.append(line.lstrip('# ').rstrip('\\ '))
  return ' '.join(head)


@pytest.mark.parametrize('path', _PATHS)
def test_the_head_says_command_hardware_time_and_number(path: str) -> None:
  text = _head(path)
  assert (f'python -m conadv_tf.train --config_file={path} ' in text
          and '--model_dir=runs/' in text)
  assert 'Hardware: ' in text
  assert 'Time and accuracy: ' in text
  if path.startswith((*_TAMED, _SCALA)):
    assert 'Source: ' in text


@pytest.mark.parametrize('path', _OVERLAYS)
def test_the_head_of_an_overlay_says_how_it_is_used(path: str) -> None:
  text = _head(path)
  command = text[text.index('python -m conadv_tf.train '):]
  first, *further = [
      word.partition('=')[2] for word in command.split()
      if word.startswith('--config_file=')]
  assert first in _PATHS and path in further
  assert '--model_dir=runs/' in command
  assert 'an overlay' in text and 'Source: ' in text
  # The command as it stands is legal.
  config.resolve(config.load(
      [str(_REPOSITORY / name) for name in (first, *further)]), 1_281_167)


@pytest.mark.parametrize('path', _FILES)
def test_names_are_known_and_every_key_is_used(path: str) -> None:
  loaded = _load(path)
  components.check_names(loaded)
  assert config.unused_keys(loaded) == []
  examples = loaded.data.train_examples or 50_000
  resolved = config.resolve(loaded, examples)
  batch, epochs = loaded.data.global_batch_size, loaded.schedule.epochs
  micro_batches = loaded.runtime.micro_batches
  assert resolved.derived.total_steps == {
      'exact': round(epochs * examples / batch),
      'mlperf': int(epochs * (examples // batch)),
      'whole_passes': int(epochs * math.ceil(
          examples * micro_batches / batch) / micro_batches)}[
              loaded.schedule.convention]
  # Batch normalisation needs some rows for its statistics.
  assert resolved.derived.replica_batch_size >= 32
  if path.startswith('configs/imagenet/'):
    # The paper's floor, and what the released code has.
    assert resolved.derived.replica_batch_size == (
        96 if path.endswith('released_96k.yaml') else 64)


@pytest.mark.parametrize('path', [
    pytest.param(path, marks=[pytest.mark.slow] * (
        not path.endswith(('/conadv.yaml', '/mlperf_32768.yaml'))))
    for path in _PATHS if path.startswith('configs/imagenet/')])
def test_is_described_without_its_data(path: str) -> None:
  loaded = _load(path)
  lines = description.describe_config(loaded).splitlines()
  assert lines[0] == (
      f'data: {loaded.data.name}, {loaded.data.train_examples:,} training and '
      f'{loaded.data.validation_examples:,} validation images '
      f'{loaded.data.image_size}x{loaded.data.image_size}x3, '
      f'{loaded.data.num_classes} classes')
  assert lines[2].startswith(f'method: {loaded.method.name}, lag ')


def _run_two_updates(files: list[str], pairs: str, folder: pathlib.Path,
                     capsys: pytest.CaptureFixture[str]) -> None:
  small = config.load(files, [_TWO_UPDATES, pairs])
  results = runs.run(small, str(folder / 'run'))
  described = capsys.readouterr().out.splitlines()
  size = small.data.image_size
  assert described[0] == (
      f'data: synthetic, 16 training and 4 validation images {size}x{size}x3, '
      '3 classes')
  assert re.match(
      f'method: {small.method.name}(, augmented images beside clean ones)?'
      '(, recycled adversaries)?'
      '(, attacking every [0-9]+ batches)?, lag [0-9]; ', described[2])
  assert (results['step'], results['epoch']) == (2, 1.0)
  assert results['validation/examples'] == 4
  assert 0 < results['train/loss'] < 10
  assert math.isfinite(results['validation/loss'])
  if small.model.name not in _UNSETTLED:
    assert 0 < results['validation/loss'] < 1e4
  with open(folder / 'run' / 'results.json', encoding='utf-8') as file:
    assert json.load(file) == results


@pytest.mark.parametrize('path, is_small', _two_updates())
def test_two_updates(path: str, is_small: bool, tmp_path: pathlib.Path,
                     capsys: pytest.CaptureFixture[str]) -> None:
  size = _IMAGE_SIZE.get(_load(path).model.name, 8)
  pairs = _SMALL if is_small else f'data.image_size={size}'
  if path.startswith(_TAMED):
    pairs += _TAME
  _run_two_updates(_files(path), pairs, tmp_path, capsys)


@pytest.mark.parametrize('path', [
    pytest.param(path, marks=[pytest.mark.slow] * (
        not path.endswith('/scala.yaml')))
    for path in _FILES if not _is_of_images(path)])
def test_two_updates_on_sentences(
    path: str, tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str]) -> None:
  task = _load(path).text.task
  columns, classes = glue.TASKS[task].columns, glue.TASKS[task].num_classes
  for split, count in (('train', 16), ('dev', 4)):
    sentences.write(tmp_path / f'{task}_{split}.tsv', [*columns, 'label'], [
        [*['very good film .'] * len(columns), i % classes]
        for i in range(count)])
  (tmp_path / 'vocab.txt').write_text('\n'.join(sentences.VOCABULARY) + '\n')
  small = config.load(_files(path), [
      _TWO_UPDATES_ON_SENTENCES,
      f'data.path={tmp_path},text.vocabulary={tmp_path}'])
  results = runs.run(small, str(tmp_path / 'run'))
  described = capsys.readouterr().out.splitlines()
  assert described[0] == (
      f'data: glue {task}, 16 training and 4 validation sentences of 8 tokens, '
      f'{classes} classes')
  assert described[2].startswith(f'method: {small.method.name}')
  assert (results['step'], results['validation/examples']) == (2, 4)
  assert 0 < results['train/loss'] < 10


@pytest.mark.parametrize('names', [
    ('mlperf_32768',),
    pytest.param(('conadv', 'batch/released_96k', 'batch/released_units'),
                 marks=pytest.mark.slow)])
def test_two_updates_of_files_together(
    names: tuple[str, ...], tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str]) -> None:
  files = [str(_REPOSITORY / f'configs/imagenet/{name}.yaml')
           for name in names]
  _run_two_updates(files, _SMALL + _TAME, tmp_path, capsys)
