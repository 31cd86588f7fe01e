"""The command that prints simulated training times."""

import pathlib

import pytest

from conadv_tf import config
from tests import commands

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_TOOL = 'tools.training_time'
_OWN = ('--parameters=1000', '--compute_seconds=0.01')


def _rows(text: str) -> dict[str, list[str]]:
  """The cells of each row by its name."""
  lines = [line.strip('| ').split(' | ') for line in text.splitlines()]
  return {cells[0]: cells[1:] for cells in lines[2:] if len(cells) > 1}


def test_without_recipes_it_is_table_3() -> None:
  done = commands.run(_TOOL)
  assert done.code == 0, done.err
  rows = _rows(done.out)
  assert [rows[name][6] for name in rows] == [
      '16,666.65', '6,149.99', '2,560.04', '3,489.54']
  assert [rows[name][-2:] for name in rows] == [
      ['16,666', '1.00'], ['6,150', '2.71'], ['2,666', '6.25'],
      ['3,467', '4.80']]
  assert rows['BL'][0] == '450,450 (printed 450,045)'
  assert rows['ABS'][7] == '6.51'  # 6.25 printed
  assert done.out.strip() in (_ROOT / 'docs/scaling.md').read_text('utf-8')


def test_recipes_devices_and_network() -> None:
  done = commands.run(
      _TOOL, *_OWN, '--recipe=BL:1000', '--recipe=ABSA:100:10:50',
      '--devices=4', '--latency_us=1000', '--bandwidth=0.001',
      '--hessian_seconds=0.2', '--adversarial_compute_seconds=0.03')
  assert done.code == 0, done.err
  # 2 * (1e-3 * 2 + 3/4 * 4000 / 1e6) = 0.01 s
  rows = _rows(done.out)
  assert rows['BL'][3] == '0.01' and rows['BL'][6:] == ['20.00', '1.00']
  # 100 * 0.02 + 50 * 0.02 + 10 * 0.2
  assert rows['ABSA'][6:] == ['5.00', '4.00']
  assert rows['ABSA'][2] == '0.01, 0.03'


def _of_run(path: pathlib.Path) -> list[str]:
  """Updates, adversarial ones, evaluations of the curvature."""
  done = commands.run(
      _TOOL, *_OWN, '--hessian_seconds=1', f'--model_dir={path}',
      '--adversarial_compute_seconds=1')
  assert done.code == 0, done.err
  row = _rows(done.out)[str(path)]
  return [row[0], row[1], row[5]]


def test_a_run_directory(tmp_path: pathlib.Path) -> None:
  settings = config.load([], ['method.name=vanilla', 'method.lag=0'])
  config.save(settings, str(tmp_path / 'params.yaml'))
  metrics = tmp_path / 'metrics.jsonl'
  metrics.write_text('{"step": 10}\n{"step": 40}\n')
  assert _of_run(tmp_path) == ['40', '0', '0']
  # The batch grew: 40 initial batches in 20 updates.
  metrics.write_text('{"step": 10, "updates": 8}\n'
                     '{"step": 40, "updates": 20}\n')
  (tmp_path / 'curvature.jsonl').write_text('{}\n{}\n{}\n')
  for name, gamma, attacked in (('disadv', 0.0, '20'), ('absa', 0.2, '20'),
                                ('absa', 0.0, '0')):
    settings.method.name, settings.method.gamma = name, gamma
    config.save(settings, str(tmp_path / 'params.yaml'))
    assert _of_run(tmp_path) == ['20', attacked, '3']
  metrics.write_text('{"step": 10, "updates": 8, "gamma": 0.1}\n'
                     '{"step": 40, "updates": 20, "gamma": 0.0}\n')
  assert _of_run(tmp_path) == ['20', '8', '3']
  # 0.25 of 64 / (2 * 16) rows is none, of 4 rows is one.
  settings.data.global_batch_size = 64
  settings.runtime.strategy, settings.runtime.num_replicas = 'mirrored', 2
  metrics.write_text('{"step": 10, "updates": 8, "gamma": 0.5}\n'
                     '{"step": 40, "updates": 20, "gamma": 0.25}\n')
  for micro_batches, attacked in ((16, '8'), (8, '20')):
    settings.runtime.micro_batches = micro_batches
    config.save(settings, str(tmp_path / 'params.yaml'))
    assert _of_run(tmp_path) == ['20', attacked, '3']


@pytest.mark.parametrize('arguments, part', [
    (('--recipe=BL:1000',), '--parameters: these recipes need it'),
    (('--recipe=BL:1', '--parameters=9'), '--compute_seconds'),
    ((*_OWN, '--recipe=ABS:100:3'), '--hessian_seconds'),
    ((*_OWN, '--recipe=ABSA:100:0:3'), '--adversarial_compute_seconds'),
    ((*_OWN, '--recipe=BL'), 'NAME:UPDATES'),
    ((*_OWN, '--recipe=BL:ten'), '--recipe=BL:ten'),
    ((*_OWN, '--recipe=BL:1:0:2'), 'cannot be adversarial'),
    ((*_OWN, '--recipe=BL:1', '--compute_seconds=-1'), 'compute is a time'),
    (('--devices=0',), 'needs devices'),
    (('--parameters=0',), 'needs parameters'),
    (('--bandwidth=0',), '--bandwidth'),
    (('--latency_us=-1',), '--latency_us'),
    ((*_OWN, '--model_dir=/nowhere/at/all'), 'holds no run'),
])
def test_bad_input_is_one_line(arguments: tuple[str, ...], part: str) -> None:
  assert part in commands.run(_TOOL, *arguments).refusal()
