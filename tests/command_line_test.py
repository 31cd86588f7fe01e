"""Bad input through the real commands: one line, exit code 2, no harm."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests import commands, tiny

_TRAIN = 'conadv_tf.train'
_TINY = f'--params_override={tiny.SETTINGS}'


def _train(model_dir: pathlib.Path, *overrides: str) -> commands.Finished:
  return commands.run(
      _TRAIN, _TINY, f'--model_dir={model_dir}',
      *(f'--params_override={pairs}' for pairs in overrides))


def _npz(path: pathlib.Path, **changes: np.ndarray) -> pathlib.Path:
  arrays = {'x_train': np.zeros([24, 4, 4, 3], np.uint8),
            'y_train': np.arange(24) % 3,
            'x_test': np.zeros([6, 4, 4, 3], np.uint8),
            'y_test': np.arange(6) % 3}
  np.savez(path, **{**arrays, **changes})
  return path


@pytest.mark.parametrize('pairs, parts', [
    ('method.lagg=1', ['method.lagg: unknown key', 'is method.lag']),
    ('method.lag=two', ['method.lag: expected an integer, got "two"']),
    ('method.lag=-1', ['method.lag: must be 0 or more, got -1']),
    ('attack.radius=-4', ['attack.radius: must be 0 or more, got -4.0']),
    ('method.name=vanilla,method.augmented_stream=split',
     ['data.augment: none makes no augmented stream', 'set autoaugment']),
    ('data.global_batch_size=10,runtime.micro_batches=4',
     ['data.global_batch_size: 10 does not divide', 'is 12']),
    ('method.name=conad', ['method.name=conad: unknown', 'mean conadv?']),
    ('data.name=digit', ['data.name=digit: unknown', 'mean digits?']),
    ('model.name=resnet21', ['model.name', 'resnet20']),
    ('model.name=ResNet5', ['model.name', 'ResNet50']),
    ('model.name=tests.tiny:modl', ["no function 'modl'", 'model']),
    ('model.name=no_such_module:f', ["importing 'no_such_module' failed"]),
    ('evaluation.attacks=[pdg20]', ['pdg20', 'pgd']),
    ('data.name=npz', ['data.path is null']),
    ('data.name=npz,data.path=no.npz', ['data.path=no.npz: no such file']),
    ('model.name=resnet8,model.args.widht=4',
     ['model.args.widht', 'did you mean width?']),
    ('runtime.strategy=mirrored,runtime.num_replicas=2,'
     'runtime.jit_compile=true',
     ['runtime.jit_compile', 'one CPU replica only']),
])
def test_bad_values(tmp_path: pathlib.Path, pairs: str,
                    parts: list[str]) -> None:
  message = _train(tmp_path / 'run', pairs).refusal()
  for part in parts:
    assert part in message
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('changes, parts', [
    ({'y_train': np.arange(24) % 4}, ['label 3 is 3, outside 0 .. 2']),
    ({'y_test': np.arange(6) - 1}, ['label 0 is -1, outside 0 .. 2']),
    ({'x_train': np.zeros([24, 4, 4, 3], np.float32)}, ['float32', 'uint8']),
    ({'x_train': np.zeros([24, 48], np.uint8)}, ['shape (24, 48)']),
    ({'x_test': np.zeros([6, 5, 5, 3], np.uint8)}, ['(5, 5, 3)']),
    ({'y_train': np.arange(23) % 3}, ['24 images but 23 labels']),
])
def test_bad_arrays(tmp_path: pathlib.Path, changes: dict[str, np.ndarray],
                    parts: list[str]) -> None:
  path = _npz(tmp_path / 'data.npz', **changes)
  message = _train(
      tmp_path / 'run',
      f'data.name=npz,data.path={path},data.image_size=null').refusal()
  for part in parts:
    assert part in message
  assert not (tmp_path / 'run').exists()


def test_a_damaged_npz(tmp_path: pathlib.Path) -> None:
  path = _npz(tmp_path / 'data.npz')
  whole = path.read_bytes()
  for content in (b'', whole[:10], whole[:500], b'text\n' * 100):
    path.write_bytes(content)
    message = _train(
        tmp_path / 'run', f'data.name=npz,data.path={path}').refusal()
    assert f'data.path={path}: ' in message
  assert not (tmp_path / 'run').exists()


def test_a_model_dir_of_something_else_is_left_alone(
    tmp_path: pathlib.Path) -> None:
  file = tmp_path / 'file'
  file.write_text('precious')
  folder = tmp_path / 'folder'
  folder.mkdir()
  (folder / 'thesis.txt').write_text('precious')
  before = commands.digest(tmp_path)
  assert f'model_dir {file} is a file' in _train(file).refusal()
  assert f'model_dir {folder} is not empty' in _train(folder).refusal()
  below = file / 'run'
  assert f'model_dir {below} cannot be written: Not a directory' in _train(
      below).refusal()
  assert commands.digest(tmp_path) == before


def test_a_damaged_params_file(tmp_path: pathlib.Path) -> None:
  (tmp_path / 'params.yaml').write_text('seed: [')
  before = commands.digest(tmp_path)
  assert f'{tmp_path}/params.yaml: line 1' in _train(tmp_path).refusal()
  assert commands.digest(tmp_path) == before


def test_arguments(tmp_path: pathlib.Path) -> None:
  assert '--model_dir is missing' in commands.run(_TRAIN, _TINY).refusal()
  for module in ('evaluate', 'export'):
    message = commands.run(
        f'conadv_tf.{module}', f'--model_dir={tmp_path / "none"}',
        *([f'--output_dir={tmp_path / "out"}'] if module == 'export' else [])
    ).refusal()
    assert f'model_dir {tmp_path / "none"} holds no run' in message
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('flags', [
    ['--tpu_zone=z'], ['--tpu_project=p', '--tpu=local']])
def test_flags_of_a_named_tpu_need_its_name(
    tmp_path: pathlib.Path, flags: list[str]) -> None:
  refusal = commands.run(
      _TRAIN, _TINY, f'--model_dir={tmp_path}/run', *flags).refusal()
  assert 'is of a named TPU; add --tpu=NAME' in refusal
  assert not (tmp_path / 'run').exists()


def test_describe_writes_nothing(tmp_path: pathlib.Path) -> None:
  described = commands.run(
      _TRAIN, _TINY, f'--model_dir={tmp_path / "run"}', '--mode=describe',
      '--params_override=method.lag=2,runtime.micro_batches=2')
  assert described.code == 0
  # Conv 3*3*3*4 + 4, batch normalisation 2*4 in each branch, dense 16*3 + 3.
  assert described.out.splitlines() == [
      'data: synthetic, 24 training and 6 validation images 4x4x3, 3 classes',
      'model: tests.tiny:model, 171 trainable parameters, 1 batch '
      'normalisations in branches clean, adversarial',
      'method: conadv, lag 2; forward passes F a step: 8 in all, 2 in a row '
      '(vanilla: 3 and 2)',
      'attack: radius 16, 1 step(s) of 16, all in 1/255 (linf, sign)',
      'updates: 6 of 8 examples, 3 an epoch, for 2 epochs; the first 2 are '
      'warm-up',
      'batch: 8 = 2 virtual replica(s) of 4 = 1 replica(s) x 2 micro batch(es)',
      'batch statistics: over 4 clean, 4 adversarial images, 1 replica(s) '
      'together',
      'learning rate, polynomial: first (update 0, epoch 0) 0; 1/4 (update 1, '
      'epoch 0.3333) 0.5; warm-up ends (update 2, epoch 0.6667) 1; 1/2 (update '
      '3, epoch 1) 0.56254; 3/4 (update 4, epoch 1.333) 0.25008; last (update '
      '5, epoch 1.667) 0.062594',
      'evaluation: 2 time(s), every 1 epoch(s), after epoch 1, 2',
      'lars: 6 of 8 tensors (rank <= 1: batch normalisation and '
      'biases) take no scaling and no decay',
      'held: images 384 bytes (uint8), perturbations 768 bytes (bfloat16), '
      'labels and weights 64 bytes; 1,216 bytes a replica',
      # 171 and the other branch's 8, and moving mean and variance of both.
      'lagged copies: 1 weight set(s) of 780 bytes on every replica',
  ]
  assert not (tmp_path / 'run').exists()


def _python(*arguments: str) -> commands.Finished:
  done = subprocess.run([sys.executable, *arguments], capture_output=True,
                        text=True, timeout=300, check=False)
  return commands.Finished(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize('pairs, part', [
    ('data.name=npz,data.path=x', 'data.path=x: no such'),
    pytest.param('method.lagg=1', 'method.lagg: unknown key',
                 marks=pytest.mark.slow)])
def test_a_process_of_its_own(tmp_path: pathlib.Path, pairs: str,
                              part: str) -> None:
  """What the other tests do in forked children, in a real process."""
  run = tmp_path / 'run'
  refused = _python('-m', _TRAIN, _TINY, f'--params_override={pairs}',
                    f'--model_dir={run}')
  assert part in refused.refusal()
  assert refused.err.count('\n') == 1 and refused.out == ''
  assert not run.exists()


@pytest.mark.slow
def test_an_evaluation_in_a_process_of_its_own(tmp_path: pathlib.Path) -> None:
  (tmp_path / 'file').write_text('')
  refused = _python('-m', 'conadv_tf.evaluate', f'--model_dir={tmp_path}')
  assert 'is not empty and holds no params.yaml' in refused.refusal()


def test_an_unbroken_run_a_finished_one_and_a_quiet_one(
    tmp_path: pathlib.Path) -> None:
  run = tmp_path / 'run'
  first = _python('-m', _TRAIN, _TINY, f'--model_dir={run}')
  assert first.code == 0, first.err
  lines = first.out.splitlines()
  assert lines[-2].startswith('epoch 2, update 6/6, loss ')
  assert lines[-1].startswith('validation accuracy 0.')
  before = commands.digest(run)
  again = _train(run)
  assert (again.code, again.out.splitlines()[0]) == (
      0, f'finished already: {run}/results.json')
  assert commands.digest(run) == before
  refused = _train(run, 'attack.radius=8').refusal()
  assert ('holds a different configuration (attack.radius: 16.0 -> 8.0)'
          in refused)
  assert commands.digest(run) == before
  quiet = commands.run(_TRAIN, _TINY, '--quiet',
                       '--params_override=growth.factor=3',
                       f'--model_dir={tmp_path / "quiet"}')
  assert (quiet.code, quiet.out) == (0, '')
  assert quiet.err.splitlines() == [
      'warning: growth.factor is set but not used by this configuration']
  assert (tmp_path / 'quiet' / 'results.json').exists()


def test_an_unknown_flag_is_one_line() -> None:
  message = commands.run(_TRAIN, _TINY, '--model_dirr=x').refusal()
  assert 'model_dirr' in message
  assert 'unexpected argument' in commands.run(_TRAIN, 'stray').refusal()


def test_flags_that_are_missing_are_named_together() -> None:
  done = commands.run('tools.measure_staleness')
  assert done.refusal() == (
      'error: --config_file and --output must be given; --help lists the flags')
  # And no library says before it what Python it wants.
  assert 'FutureWarning' not in done.err


def test_help_succeeds() -> None:
  for flag in ('--help', '--helpfull'):
    done = commands.run(_TRAIN, flag)
    assert done.code == 0 and '--config_file' in done.out
