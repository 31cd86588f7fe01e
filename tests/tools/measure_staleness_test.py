"""The tool that measures stale adversaries in a run."""

import json
import pathlib

import pytest

from conadv_tf import runs
from tests import commands, tiny

_TOOL = 'tools.measure_staleness'


def _arguments(folder: pathlib.Path, *overrides: str) -> list[str]:
  config = folder / 'config.yaml'
  config.write_text('method: {name: conadv}\n')
  return [f'--config_file={config}', f'--params_override={tiny.SETTINGS}',
          *(f'--params_override={text}' for text in overrides),
          f'--output={folder / "out"}']


@pytest.mark.slow
def test_it_measures_a_run_and_leaves_it_alone(tmp_path: pathlib.Path) -> None:
  """12 updates of 8 examples, measured before updates 8 and 11."""
  longer = 'schedule.epochs=4'
  done = commands.run(_TOOL, *_arguments(tmp_path, longer), '--points=2',
                      '--rates=1,0.5', '--seeds=0,1')
  assert done.code == 0, done.err
  found = json.loads((tmp_path / 'out' / 'results.json').read_text())
  first, second = found['runs']
  assert (first['rate'], second['rate']) == (1.0, 0.5)
  assert [(r['updates'], r['points']) for r in found['runs']] == [(12, 4)] * 2
  assert first['seeds'] == [0, 1]
  assert {r['update'] for r in first['records']} == {8, 11}
  assert {r['lag'] for r in first['records']} == {0, 1, 2, 4, 8}
  for record in first['records']:
    if record['kind'] == 'conadv' and record['lag'] == 0:
      assert record['gain'] == record['fresh_gain'] > 0
      assert record['distance'] == 0.0
  assert '| 0.5 | clean | conadv | 8 |' in done.out
  assert (tmp_path / 'out' / 'figure.png').stat().st_size > 10_000
  alone = runs.run(tiny.load('method.name=conadv', longer),
                   str(tmp_path / 'run'), quiet=True)
  other = runs.run(tiny.load('method.name=conadv', longer, 'seed=1'),
                   str(tmp_path / 'other'), quiet=True)
  assert first['accuracy'] == (alone['validation/accuracy']
                               + other['validation/accuracy']) / 2


@pytest.mark.parametrize(('override', 'said'), [
    ('method.name=vanilla', 'makes no adversarial copies'),
    ('runtime.micro_batches=2', 'runtime.micro_batches: only 1'),
    ('schedule.epochs=2', '6 updates are too few to measure a lag of 8')])
def test_what_it_refuses(tmp_path: pathlib.Path, override: str, said: str
                         ) -> None:
  done = commands.run(_TOOL, *_arguments(tmp_path, override))
  assert said in done.refusal()
  assert not list((tmp_path / 'out').glob('*'))
