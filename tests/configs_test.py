"""Every shipped configuration: what its head says, and that it runs."""

import json
import pathlib

import pytest

from conadv_tf import config, experiment, runs

_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
_PATHS = sorted(
    path.relative_to(_REPOSITORY).as_posix()
    for path in (_REPOSITORY / 'configs').rglob('*.yaml'))
_TWO_UPDATES = (
    'data.name=synthetic,data.path=null,data.global_batch_size=8,'
    'data.num_examples=16,data.num_classes=3,'
    'schedule.epochs=1,schedule.warmup_epochs=0,'
    'runtime.strategy=one_device,runtime.num_replicas=1,'
    'runtime.micro_batches=1,'
    'evaluation.every_epochs=1,evaluation.batch_size=4,'
    'evaluation.train_examples=0,checkpoint.every_epochs=1')
# The smallest images that the network takes; 8 where it is not listed.
_IMAGE_SIZE = {'ResNet50': 32}


def _load(path: str) -> config.ExperimentConfig:
  return config.load([str(_REPOSITORY / path)])


def _each_model_once() -> list[object]:
  """All paths; those whose model came before are slow."""
  seen, parameters = set(), []
  for path in _PATHS:
    name = _load(path).model.name
    parameters.append(pytest.param(
        path, marks=[pytest.mark.slow] if name in seen else []))
    seen.add(name)
  return parameters


def test_there_are_configurations_of_every_kind() -> None:
  assert {path.split('/')[1] for path in _PATHS} == {
      'cifar10', 'digits', 'image_folder', 'synthetic', 'tfds'}


@pytest.mark.parametrize('path', _PATHS)
def test_the_head_says_command_hardware_time_and_number(path: str) -> None:
  lines = (_REPOSITORY / path).read_text(encoding='utf-8').splitlines()
  head = []
  for line in lines:
    if not line.startswith('#'):
      break
    head.append(line.lstrip('# ').rstrip('\\ '))
  text = ' '.join(head)
  assert (f'python -m conadv_tf.train --config_file={path} ' in text
          and '--model_dir=runs/' in text)
  assert 'Hardware: ' in text
  assert 'Time and accuracy: ' in text
  assert max(map(len, lines)) <= 80


@pytest.mark.parametrize('path', _PATHS)
def test_names_are_known_and_every_key_is_used(path: str) -> None:
  loaded = _load(path)
  experiment.check_names(loaded)
  assert config.unused_keys(loaded) == []
  resolved = config.resolve(loaded, 50_000)
  assert resolved.derived.total_steps == round(
      loaded.schedule.epochs * 50_000 / loaded.data.global_batch_size)
  # Batch normalisation needs some rows for its statistics.
  assert resolved.derived.replica_batch_size >= 32


@pytest.mark.parametrize('path', _each_model_once())
def test_two_updates(path: str, tmp_path: pathlib.Path,
                     capsys: pytest.CaptureFixture[str]) -> None:
  size = _IMAGE_SIZE.get(_load(path).model.name, 8)
  small = config.load(
      [str(_REPOSITORY / path)], [_TWO_UPDATES, f'data.image_size={size}'])
  results = runs.run(small, str(tmp_path / 'run'))
  described = capsys.readouterr().out.splitlines()
  assert described[0] == (
      f'data: synthetic, 16 training and 4 validation images {size}x{size}x3, '
      '3 classes')
  assert described[2].startswith(f'method: {small.method.name}, lag ')
  assert (results['step'], results['epoch']) == (2, 1.0)
  assert results['validation/examples'] == 4
  assert 0 < results['validation/loss'] < 1e4
  with open(tmp_path / 'run' / 'results.json', encoding='utf-8') as file:
    assert json.load(file) == results
