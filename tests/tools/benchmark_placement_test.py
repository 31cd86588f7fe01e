"""The benchmark of extra processors: its turns, its arithmetic, its refusals.

What it measures is not run here: `--quick` takes minutes.
"""

import pathlib

import pytest

from tests import commands
from tools import placement_times as benchmark
from tools import slow_link
from tools.scaling_worker import Work


def test_columns_run_in_turns_on_every_link() -> None:
  told, chosen = [], []

  def seconds(cluster: str, work: Work, executions: int) -> float:
    told.append((cluster, work, executions))
    return float(len(told))

  times = benchmark.measure(
      seconds, batch_size=8, rounds=1, steps=2, links=['loopback', '100mbit'],
      choose=chosen.append)
  assert chosen == ['loopback', '100mbit', '100mbit', 'loopback']
  # The warm-up is not counted, and the round after it goes backwards.
  count = len(benchmark.COLUMNS)
  assert times['100mbit']['together, 2 alone'] == [2.0 * count + 1]
  assert times['loopback']['vanilla 1'] == [4.0 * count]
  assert told[0] == ('single', Work('vanilla', 8), 2)
  assert ('trio', Work('split', 8), 2) in told


def test_ratios_and_what_the_attack_hides() -> None:
  times = {column.name: [1.0, 1.0, 1.0] for column in benchmark.COLUMNS}
  times['vanilla 1'] = [0.5, 1.0, 0.5]
  times['vanilla 2'], times['vanilla, 2 alone'] = [1.4] * 3, [1.0] * 3
  times['together 2'], times['together, 2 alone'] = [3.1] * 3, [3.0] * 3
  figures = benchmark.summarise(times)
  assert figures['ratios']['together 1 / vanilla 1'] == {
      'low': 1.5, 'median': 2.0, 'high': 2.0}
  assert figures['all_reduce_adds']['vanilla']['median'] == pytest.approx(0.4)
  assert figures['hidden_share'] == pytest.approx(0.75)
  report = {'model': 'm', 'batch_size': 8, 'rounds': 3, 'steps': 1,
            'gradient_bytes': 1000, 'cores': {'pair': [0, 1],
                                              'trio': [0, 1, 0]},
            'links': {'loopback': figures}}
  text = benchmark.tables(report)
  assert '| together 1 / vanilla 1 | 2.000 [1.500, 2.000] |' in text
  assert 'of 3 [0, 1, 0]' in text and 'ConAdv hides 75% of it' in text
  times['vanilla 2'] = [1.0] * 3
  report['links'] = {'loopback': benchmark.summarise(times)}
  assert 'not to be seen' in benchmark.tables(report)


def test_refusals(tmp_path: pathlib.Path) -> None:
  refusal = commands.run(
      'tools.benchmark_placement', '--rate=fast').refusal()
  assert refusal == ('error: --rate=fast: write it as tc does, for instance '
                     '100mbit')
  refusal = commands.run(
      'tools.benchmark_placement', f'--output={tmp_path}').refusal()
  assert 'cannot be written: Is a directory' in refusal


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch,
                                    tmp_path: pathlib.Path) -> None:
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(slow_link.InputError,
                     match='missing: unshare, ip, tc; leave it out'):
    slow_link.check('100mbit')
