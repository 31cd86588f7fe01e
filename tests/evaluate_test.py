"""Curvature and certificates of a run, through the real command."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import experiment, runs, saved_runs
from conadv_tf.evaluation import certified, certified_file
from tests import commands, tiny
from tests import curved_models as curved

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
  built, _ = saved_runs.restore(str(run))
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


def test_other_data(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
  random = np.random.default_rng(0)
  images = random.integers(0, 256, (60, 4, 4, 3)).astype(np.uint8)
  labels = np.arange(60) % 3
  for name, shift in (('own', 0), ('other', 1)):
    np.savez(tmp_path / f'{name}.npz', x_train=images[:24],
             y_train=labels[:24], x_test=images[24:],
             y_test=(labels[24:] + shift) % 3)
  trained = tmp_path / 'run'
  runs.run(tiny.load('data.name=npz,data.image_size=null,data.path='
                     f'{tmp_path / "own.npz"}'), str(trained), quiet=True)
  predicted = saved_runs.restore(str(trained))[0].trainer.predict(
      images[24:].astype(np.float32), verbose=0).argmax(-1)
  output = tmp_path / 'figures.json'
  for name, shift in (('own', 0), ('other', 1)):
    done = commands.run(_EVALUATE, f'--model_dir={trained}',
                        f'--data_path={tmp_path / name}.npz',
                        '--train_examples=0', f'--output={output}')
    assert done.code == 0, done.err
    assert json.loads(output.read_text())['validation/accuracy'] == (
        pytest.approx(np.mean(predicted == (labels[24:] + shift) % 3)))
  done = commands.run(_EVALUATE, f'--model_dir={run}', '--data_path=x.npz')
  assert 'data.name=synthetic of this run has no path' in done.refusal()


_CERTIFY = ('--certify', '--sigma=0.1', '--certify_n0=20', '--certify_n=200',
            '--certify_skip=2', '--certify_batch_size=100',
            '--train_examples=0')


@pytest.mark.slow
def test_certificates(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
  output, images = tmp_path / 'a.json', tmp_path / 'a.certified.tsv'
  done = commands.run(_EVALUATE, f'--model_dir={run}', *_CERTIFY,
                      f'--output={output}')
  assert done.code == 0, done.err
  report = json.loads(output.read_text())
  settings, found = certified_file.read(str(images))
  built, _ = saved_runs.restore(str(run))
  weights = certified_file.digest(
      v.numpy() for v in built.trainer.network.variables)
  assert settings == {
      'step': 6, 'branch': 'clean', 'seed': 0, 'weights': weights,
      'data': None, 'sigma': 0.1, 'n0': 20, 'n': 200, 'alpha': 0.001,
      'skip': 2, 'batch_size': 100}
  smoothing = certified.Smoothing(0.1, 20, 200, 0.001, 2, 100)
  assert list(built.certificates(smoothing, 'clean')) == found
  assert list(built.certificates(smoothing, 'clean', after=2)) == found[2:]
  total = int(report['validation/examples'])
  assert [c.position for c in found] == list(range(0, total, 2))
  assert len(found) >= 3
  expected = certified.figures(found, smoothing)
  assert {key.partition('/')[2]: value for key, value in report.items()
          if key.startswith('certified/')} == expected
  assert certified.table(expected) in done.err

  # The rows that are there are taken as they are; other settings are refused.
  rows = images.read_text().splitlines(keepends=True)
  images.write_text(''.join(rows[:3]).replace('\t200\n', '\t199\n'))
  kept = certified_file.read(str(images))[1]
  done = commands.run(_EVALUATE, f'--model_dir={run}', *_CERTIFY,
                      f'--output={output}')
  assert done.code == 0, done.err
  assert certified_file.read(str(images))[1] == kept + found[1:]
  assert 'was made with n=200, not 300' in commands.run(
      _EVALUATE, f'--model_dir={run}', *_CERTIFY, '--certify_n=300',
      f'--output={output}', before=_never_evaluate).refusal()
  # Nor are those of another run with as many updates taken for this one's.
  other = tmp_path / 'other'
  runs.run(tiny.load('schedule.peak_lr=0.5'), str(other), quiet=True)
  assert f'was made with weights={weights}, not ' in commands.run(
      _EVALUATE, f'--model_dir={other}', *_CERTIFY, f'--output={output}',
      before=_never_evaluate).refusal()

  # The tool's table has the report's figures.
  done = commands.run('tools.plot_certified', f'--images={images}',
                      f'--output={tmp_path}/a.png')
  assert done.code == 0, done.err
  cells = done.out.splitlines()[-1].split(' | ')
  assert cells[:4] == ['| a', '0.1', '200', str(len(found))]
  assert [float(cell.rstrip(' |')) for cell in cells[4:]] == pytest.approx(
      expected['certified_accuracy'], abs=1e-3)


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
    (['--sigma=0.25'], '--sigma needs --certify'),
    (['--certify_n=5', '--output=OUTPUT'], '--certify_n needs --certify'),
    (['--certify', '--output=OUTPUT'], '--certify needs --sigma'),
    (['--certify', '--sigma=0.25'], '--certify needs --output'),
    (['--certify', '--sigma=0', '--output=OUTPUT'],
     'certify: sigma=0.0 must be above 0'),
    (['--certify', '--sigma=64', '--output=OUTPUT'], 'not in 1/255'),
    (['--certify', '--sigma=0.25', '--certify_n0=9', '--certify_n=9',
      '--output=OUTPUT'], 'certify: n=9 must be above n0=9'),
    (['--curvature_last_layers=1'],
     '--curvature_last_layers needs --curvature'),
])
def test_refusals(run: pathlib.Path, tmp_path: pathlib.Path,
                  flags: list[str], part: str) -> None:
  output = tmp_path / 'a.json'
  flags = [flag.replace('OUTPUT', str(output)) for flag in flags]
  assert part in commands.run(
      _EVALUATE, f'--model_dir={run}', *flags, before=_never_evaluate
  ).refusal()
  assert not list(tmp_path.iterdir())


def _never_evaluate() -> None:
  """What is refused after an evaluation has cost one."""
  def evaluate(*args: object) -> None:
    raise AssertionError('evaluated')

  experiment.Experiment.evaluate = evaluate


@pytest.mark.parametrize('model, message', [
    (f'{__name__}:frozen', 'has no trainable layers, so there is no Hessian'),
    (f'{curved.__name__}:normalised_by_response',
     'has an operation without a second derivative')])
def test_a_model_without_a_hessian(
    model: str, message: str, tmp_path: pathlib.Path) -> None:
  folder = tmp_path / 'run'
  runs.run(tiny.load(f'model.name={model}', 'method.name=vanilla'),
           str(folder), quiet=True)
  assert message in commands.run(
      _EVALUATE, f'--model_dir={folder}', '--curvature',
      before=_never_evaluate).refusal()


def test_an_estimate_that_fails_leaves_the_evaluation(
    tmp_path: pathlib.Path) -> None:
  folder, output = tmp_path / 'run', tmp_path / 'figures.json'
  runs.run(tiny.load(f'model.name={curved.__name__}:kinked',
                     'method.name=vanilla'), str(folder), quiet=True)
  done = commands.run(_EVALUATE, f'--model_dir={folder}', '--curvature',
                      f'--output={output}')
  problem = "the Hessian product is not finite, first in layer 'kink'"
  assert done.code == 3
  assert done.err.splitlines()[-1] == f'error: {problem}'
  report = json.loads(output.read_text())
  assert json.loads(done.out) == report
  assert report['curvature/problem'] == problem
  assert 'curvature/top_eigenvalue' not in report
  trained = json.loads((folder / 'results.json').read_text())
  assert report['validation/loss'] == pytest.approx(
      trained['validation/loss'], rel=1e-5)
