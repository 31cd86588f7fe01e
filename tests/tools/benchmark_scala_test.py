"""The cost of perturbed embeddings: what is formed of the times, and a run."""

import json
import pathlib

import pytest

from tests import commands
from tools import benchmark_scala_rows as rows_lib
from tools import figures


def test_ratios_are_formed_round_by_round() -> None:
  report = rows_lib.summarise({
      'lamb': [1.0, 2.0, 4.0], 'delayed': [1.0, 2.0, 4.0],
      'scala': [2.0, 4.0, 8.0]})
  assert report['median'] == {'lamb': 2, 'delayed': 2, 'scala': 4}
  assert report['ratios']['scala'] == {'low': 2, 'median': 2, 'high': 2}
  # (5 + 2) / 6 and (3 * 1 + 3 * 2) / 6 of LAMB.
  runs = report['runs']
  assert runs['t_s 5 of 6']['ratio']['median'] == pytest.approx(7 / 6)
  assert runs['t_s 5 of 6']['saved']['median'] == pytest.approx(12 / 7)
  assert runs['t_s 3 of 6']['saved']['median'] == pytest.approx(4 / 3)
  assert report['pga']['median'] == pytest.approx(0.5)
  lines = rows_lib.tables(report).splitlines()
  assert '| scala | 4,000 | 2.00 [2.00, 2.00] |' in lines
  assert '| t_s 5 of 6 | 1.17 [1.17, 1.17] | 1.71 [1.71, 1.71] |' in lines


def test_rounds_go_there_and_back() -> None:
  order = []
  seconds = figures.interleaved(
      {name: lambda name=name: order.append(name) for name in 'ab'}, 2)
  assert order == list('abbaab')
  assert [len(values) for values in seconds.values()] == [2, 2]


def test_unknown_rows_are_refused() -> None:
  done = commands.run('tools.benchmark_scala', '--rows=scala,lars')
  assert done.refusal().startswith('error: --rows: unknown lars; known are ')


@pytest.mark.slow
def test_a_quick_run(tmp_path: pathlib.Path) -> None:
  path = tmp_path / 'figures.json'
  done = commands.run('tools.benchmark_scala', '--quick', f'--output={path}',
                      '--rows=delayed,scala,scala_lag1,freelb')
  assert done.code == 0, done.err
  report = json.loads(path.read_text())
  assert list(report['ratios']) == [
      'lamb', 'delayed', 'scala', 'scala_lag1', 'freelb']
  assert all(len(values) == 2 and min(values) > 0
             for values in report['seconds'].values())
  assert 't_s 5 of 6' in done.out and 'scala_lag1' in done.out
