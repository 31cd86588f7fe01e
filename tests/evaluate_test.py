"""The curvature of a run, through the real command."""

import json
import pathlib

import pytest
import tensorflow as tf

from conadv_tf import runs
from tests import commands, tiny

_EVALUATE = 'conadv_tf.evaluate'


def frozen(input_shape: tuple[int, int, int], num_classes: int
           ) -> tf.keras.Model:
  made = tiny.model(input_shape, num_classes)
  made.trainable = False
  return made


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp('trained') / 'run'
  runs.run(tiny.load(), str(folder), quiet=True)
  return folder


def test_curvature(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
  output = tmp_path / 'figures.json'
  done = commands.run(
      _EVALUATE, f'--model_dir={run}', '--curvature', '--curvature_examples=16',
      '--curvature_last_layers=2', '--curvature_iterations=60',
      '--curvature_tolerance=1e-3', '--curvature_eigenvalues=3',
      f'--output={output}')
  assert done.code == 0, done.err
  report = json.loads(output.read_text())
  assert json.loads(done.out) == report
  built, _ = runs.restore(str(run))
  expected = built.curvature(examples=16, last_layers=2, iterations=60,
                             tolerance=1e-3, eigenvalues=3)
  found = {key.partition('/')[2]: value for key, value in report.items()
           if key.startswith('curvature/')}
  assert found.keys() == expected.keys()
  for key in ('top_eigenvalue', 'eigenvalues', 'ritz_values'):
    assert found[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-6)
  assert found['eigenvalues'][0] == pytest.approx(
      found['top_eigenvalue'], rel=0.01)
  lines = [line for line in done.err.splitlines() if 'curvature' in line]
  assert lines == [
      f'curvature: top Hessian eigenvalue {found["top_eigenvalue"]:.6g} '
      f'(converged in {found["iterations"]} products), 16 training examples, '
      '59 weights of 2 layers']


def test_without_it_nothing_is_estimated(run: pathlib.Path) -> None:
  done = commands.run(_EVALUATE, f'--model_dir={run}')
  assert done.code == 0, done.err
  assert not [key for key in json.loads(done.out) if 'curvature' in key]


@pytest.mark.parametrize('flags, part', [
    (['--curvature', '--curvature_last_layers=4'],
     "curvature: a block of the last 4 layers: model 'model' has 3"),
    (['--curvature', '--curvature_examples=0'], 'curvature_examples'),
    (['--curvature', '--curvature_tolerance=-1'], 'curvature_tolerance'),
    (['--curvature', '--curvature_eigenvalues=101'],
     'curvature: 101 eigenvalues of a matrix of 171 rows by 100 products'),
    (['--curvature_last_layers=1'],
     '--curvature_last_layers needs --curvature'),
])
def test_refusals(run: pathlib.Path, flags: list[str], part: str) -> None:
  assert part in commands.run(
      _EVALUATE, f'--model_dir={run}', *flags).refusal()


def test_a_model_without_trainable_layers(tmp_path: pathlib.Path) -> None:
  folder = tmp_path / 'frozen'
  runs.run(tiny.load(f'model.name={__name__}:frozen', 'method.name=vanilla'),
           str(folder), quiet=True)
  message = commands.run(
      _EVALUATE, f'--model_dir={folder}', '--curvature').refusal()
  assert "has no trainable layers, so there is no Hessian" in message
