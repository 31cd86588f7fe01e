"""The scaling benchmark: its arithmetic, its turns, and all of it once."""

import json
import multiprocessing
import os
import pathlib
import types

import numpy as np
import pytest

from conadv_tf import exits
from conadv_tf.config import InputError
from tests import commands
from tools import benchmark_scaling as scaling
from tools import scaling_clusters, scaling_worker


def _times(**rows: tuple[float, ...]) -> scaling.Times:
  """Two alike rounds of one, half, beside, weak, strong."""
  return {row: {column: [value] * 2
                for column, value in zip(scaling.COLUMNS, values, strict=True)}
          for row, values in rows.items()}


# Two all-reduces of 2 latencies of 1 ms each and as many bytes as the message.
_REDUCTIONS = {4000: [0.003, 0.003], 8000: [0.004, 0.004]}


def test_ratios_and_predictions() -> None:
  report = scaling.summarise(_times(
      Keras=(0.100, 0.060, 0.110, 0.125, 0.080),
      vanilla=(0.100, 0.050, 0.100, 0.100, 0.050)), _REDUCTIONS, 8000)
  assert report['network']['latency'] == pytest.approx(0.001)
  assert report['network']['seconds_per_byte'] == pytest.approx(1 / 4e6)
  keras, vanilla = report['rows']
  assert keras['seconds']['weak'] == 0.125
  assert keras['weak_efficiency']['median'] == pytest.approx(0.8)
  assert keras['strong_speedup']['median'] == pytest.approx(1.25)
  assert vanilla['weak_efficiency_of_keras']['median'] == pytest.approx(1.25)
  assert vanilla['seconds_of_keras']['weak']['median'] == pytest.approx(0.8)
  # Half the batch takes 60 of 100 ms: 20 are fixed. Beside another it takes
  # 1.1 times as long, and the all-reduce 4 ms.
  assert keras['predicted'] == pytest.approx({
      'weak': 0.114, 'strong': 0.070, 'slowdown': 1.1, 'fixed_seconds': 0.02,
      'all_reduce_seconds': 0.004})
  assert vanilla['predicted']['strong'] == pytest.approx(0.054)


def test_ratios_are_round_by_round() -> None:
  times = _times(Keras=(1., 1., 1., 1., 1.), vanilla=(1., 1., 1., 1., 1.))
  # The machine is at half its speed in the last two of three rounds.
  for columns in times.values():
    for column in columns:
      columns[column] = [1., 2., 2.]
  times['vanilla']['weak'] = [2., 4., 2.]
  row = scaling.summarise(times, _REDUCTIONS, 8000)['rows'][1]
  assert row['weak_efficiency'] == {'low': 0.5, 'median': 0.5, 'high': 0.75}
  assert row['weak_efficiency_of_keras']['median'] == 0.5
  assert row['seconds_of_keras']['weak']['median'] == 2.0


def test_tables_hold_every_row() -> None:
  times = _times(Keras=(0.1, 0.06, 0.11, 0.125, 0.08),
                 vanilla=(1.5, 0.8, 1.5, 1.6, 0.9))
  text = scaling.tables({
      'model': 'resnet8', 'batch_size': 8, 'rounds': 2, 'steps': 1,
      'gradient_bytes': 8000, **scaling.summarise(times, _REDUCTIONS, 8000),
      'packed': scaling.summarise_packs(
          {0: [0.5, 0.6, 0.8], 16: [0.3, 0.3, 0.2]})})
  lines = text.splitlines()
  tables = [line.count('|') for line in lines if line.startswith('|')]
  assert tables == [10] * 8 + [4] * 4
  # 0.6, 0.5, 0.25 of one message.
  assert '| 16 MiB | 300 ms | 0.500 [0.375, 0.550] |' in text
  assert '| one message | 600 ms | 1.000 [1.000, 1.000] |' in text
  assert ('| Keras | 100 ms | 125 ms | 80.0 ms | 0.800 [0.800, 0.800] '
          '| 1.250 [1.250, 1.250] ') in text
  assert '| vanilla | 1,500 ms | 1,600 ms | 900 ms | 0.938 ' in text
  assert 'latency 1000 us, 4 MB/s' in text
  assert '| Keras | 1.100 | 20.0 ms | 114 ms | 125 ms | 0.912 ' in text


class _Recorder:
  """Stands for the clusters; takes one second more every time."""

  def __init__(self) -> None:
    self.calls = []
    self.single, self.pair = (
        types.SimpleNamespace(seconds=self._of(name)) for name in ('1', '2'))
    self.beside = self._of('1+1')

  def _of(self, name: str) -> object:
    def seconds(work: scaling_worker.Work, executions: int) -> float:
      self.calls.append((name, work.name, work.size, executions))
      return float(len(self.calls))
    return seconds


def test_a_round_measures_everything_there_and_back() -> None:
  recorder = _Recorder()
  small, large = (scaling_worker.Work('all-reduce', size)
                  for size in (40, 10 * 2**22))
  times, reductions = scaling.measure(
      recorder, scaling.Settings('resnet8', 8, rounds=1, steps=3),
      (small, large))
  warm_up, measured = recorder.calls[:22], recorder.calls[22:]
  assert warm_up[:4] == [('1', row, 8, 3) for row in scaling.ROWS]
  assert [call[0::2] for call in warm_up[::4]] == [
      ('1', 8), ('1', 4), ('1+1', 8), ('2', 8), ('2', 4), ('2', 40)]
  assert measured[:20] == warm_up[:20][::-1]
  assert measured[20:] == [('2', 'all-reduce', 10 * 2**22, 3),
                           ('2', 'all-reduce', 40, 3)]
  assert times['DisAdv'] == {'strong': [23.], 'weak': [27.], 'beside': [31.],
                             'half': [35.], 'one': [39.]}
  # 20 small ones an execution, or as many as move 80 MiB.
  assert reductions == {large: [43 / 2], small: [44 / 20]}


@pytest.mark.parametrize('settings, message', [
    (('resnet8', 9, 1, 1), '--batch_size=9: must be even'),
    (('resnet', 8, 1, 1), '--model=resnet: unknown; known are resnet8')])
def test_refusals(settings: tuple, message: str) -> None:
  with pytest.raises(InputError, match=message):
    scaling.run(scaling.Settings(*settings))


def test_flags_are_checked_before_a_measurement(tmp_path: pathlib.Path
                                                ) -> None:
  refusal = commands.run('tools.benchmark', '--steps=1').refusal()
  assert refusal == (
      'error: --steps is for `python -m tools.benchmark scaling`')
  refusal = commands.run('tools.benchmark', 'scaling',
                         f'--output={tmp_path}').refusal()
  assert 'cannot be written: Is a directory' in refusal
  refusal = commands.run('tools.benchmark', 'weak').refusal()
  assert "unexpected argument 'weak'" in refusal


def test_a_worker_that_ends_is_noticed_and_the_others_are_killed() -> None:
  addresses = ('127.0.0.1:1', '127.0.0.1:2')
  core = min(os.sched_getaffinity(0))
  group = scaling_clusters.Group(  # the second's core does not exist
      [scaling_worker.Place(addresses, 0, core),
       scaling_worker.Place(addresses, 1, 99999)], 'resnet8')
  try:
    with pytest.raises(exits.PeerLost, match='a worker has ended'):
      group.gradient_bytes()
  finally:
    group.close()
  assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason='needs 2 cores')
def test_quick(tmp_path: pathlib.Path) -> None:
  path = tmp_path / 'scaling.json'
  finished = commands.run(
      'tools.benchmark', 'scaling', '--quick', f'--output={path}')
  assert finished.code == 0, finished.err
  report = json.loads(path.read_text())
  settings = ('model', 'batch_size', 'rounds', 'steps')
  assert [report[name] for name in settings] == ['resnet8', 8, 2, 1]
  # 75,290 float32 weights.
  assert report['gradient_bytes'] == 301160
  assert [row['row'] for row in report['rows']] == list(scaling.ROWS)
  times = np.array([[report['seconds'][row][column] for column in
                     scaling.COLUMNS] for row in scaling.ROWS])
  assert times.shape == (4, 5, 2) and (times > 0).all()
  assert list(report['network']['all_reduce_seconds']) == [
      '4096', '301160', '1204640']
  assert [row['mib'] for row in report['packed']] == [0, 4, 8, 16, 32]
  for row in scaling.ROWS:
    assert finished.out.count(f'| {row} |') == 2
