"""The step benchmark: plan, figures, limits, and all of it once."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.config import InputError
from tests import commands
from tools import benchmark_acceptance as acceptance
from tools import (
  benchmark_child,
  benchmark_peers,
  benchmark_plan,
  benchmark_report,
  benchmark_rows,
)


def _run(regime: str, model: str, **seconds: list[float]) -> dict[str, Any]:
  return {'regime': regime, 'model': model,
          'rows': {name: {'seconds': s} for name, s in seconds.items()}}


def _lines(*runs: dict[str, Any],
           schedules: dict[str, Any] | None = None) -> dict[str, Any]:
  found = acceptance.lines({'runs': runs, 'schedules': schedules or {}})
  return {line.what: line for line in found}


# ---- The plan.


def test_everything_by_default() -> None:
  jobs = benchmark_plan.jobs(quick=False)
  titles = [job.title for job in jobs]
  assert len(set(titles)) == len(jobs) == 13
  assert titles[-3:] == ['micro, resnet20_b64', 'micro, resnet20_b256',
                         'settings, resnet20_b64']
  assert [job.title for job in jobs if job.traces] == [
      f'operations, latency, {model}' for model in (
          'resnet20_b8', 'resnet20_b64', 'resnet18_b16')]
  for job in jobs:
    model, regime = job.model, job.regime
    assert model.batch_size % regime.micro_batches == 0
    assert benchmark_plan.REFERENCE in job.rows
    if job.regime_name in ('micro', 'settings'):
      assert set(job.rows) == set(regime.rows)
  rows = {job.title: len(job.rows) for job in jobs}
  assert rows['latency, resnet20_b64'] == 29
  assert rows['operations, latency, resnet20_b64'] == 14
  assert rows['throughput, resnet18_b16'] == 14
  assert rows['throughput, resnet20_b256'] == 23
  assert set(benchmark_plan.ROWS) == (
      set(benchmark_rows.OURS) | set(benchmark_peers.PEERS))
  assert benchmark_plan.OTHERS == set(benchmark_peers.PEERS)


def test_choices() -> None:
  job, traced = benchmark_plan.jobs(
      quick=False, regimes=['latency'], models=['resnet20_b64'],
      rows=['nsl', 'vanilla'], rounds=2)
  assert (job.rounds, traced.rounds) == (2, benchmark_plan.TRACED_STEPS)
  # In the table's order.
  assert job.rows == traced.rows == ('vanilla', 'nsl')
  assert (job.regime.intra_op, job.regime.inter_op) == (1, 2)
  assert (traced.regime.intra_op, traced.regime.inter_op) == (1, 1)
  assert job.regime.training_pass == traced.regime.training_pass
  # What no run has by default can still be asked for.
  assert len(benchmark_plan.jobs(
      quick=False, regimes=['latency'], models=['resnet20_b256'])) == 1


@pytest.mark.parametrize('choice, message', [
    ({'rows': ['conadv']}, '--rows=conadv: unknown; known are keras'),
    ({'rows': ['nsl']}, '--rows=nsl: lacks vanilla'),
    ({'models': ['resnet20']}, '--models=resnet20: unknown; known are'),
    ({'models': ['tiny_b8']}, '--models=tiny_b8: unknown'),
    ({'regimes': ['fast']}, '--regimes=fast: unknown')])
def test_refusals(choice: dict[str, list[str]], message: str) -> None:
  with pytest.raises(InputError, match=message):
    benchmark_plan.jobs(quick=False, **choice)


def test_the_command_refuses_in_one_line(tmp_path: pathlib.Path) -> None:
  refusal = commands.run('tools.benchmark', '--rows=nsl').refusal()
  assert '--rows=nsl: lacks vanilla' in refusal
  refusal = commands.run('tools.benchmark', 'scaling', '--rows=nsl').refusal()
  assert refusal == 'error: --rows is for `python -m tools.benchmark`'
  refusal = commands.run('tools.benchmark', f'--output={tmp_path}').refusal()
  assert 'cannot be written: Is a directory' in refusal
  assert '--rounds' in commands.run('tools.benchmark', '--rounds=0').refusal()


# ---- Figures.


def test_ratios_are_round_by_round() -> None:
  # The machine is at half its speed in the last two of three rounds.
  rows = benchmark_report.summarise({
      'vanilla': {'seconds': [1., 2., 2.], 'flops': 30., 'chain_flops': 20.},
      'conadv_joined': {
          'seconds': [2., 4., 8.], 'flops': 80., 'chain_flops': 40.},
      'weight_copy': {
          'seconds': [.1, .1, .1], 'flops': 0., 'chain_flops': 0.}},
      {'conadv_joined': {'scheduled': {'1': 6., '2': 3.2}}})
  row = rows['conadv_joined']
  assert row['quartiles'] == [3., 4., 6.]
  assert row['ratio'] == [2., 2., 3.]
  assert row['work_ratio'] == pytest.approx(8 / 3)
  assert row['ratio_to_flop_bound'] == pytest.approx(0.75)
  assert (row['bound'], row['bound_ratio']) == (3.2, pytest.approx(1.25))
  assert 'bound' not in rows['vanilla']
  assert rows['weight_copy']['ratio_to_flop_bound'] is None


def test_the_faster_form_is_held_to_the_limit() -> None:
  lines = _lines(_run(
      'throughput', 'resnet20_b8', vanilla=[1.] * 3, disadv_joined=[2.9] * 3,
      disadv_separate=[2.75] * 3, conadv_joined=[2.5, 2.9, 3.0]))
  disadv = lines['throughput, resnet20_b8: DisAdv, separate passes / vanilla']
  assert (disadv.measured, disadv.limit, disadv.met) == (2.75, 2.8, True)
  conadv = lines['throughput, resnet20_b8: ConAdv, concatenated / vanilla']
  assert (conadv.measured, conadv.met) == (2.9, False)
  assert conadv.quartiles == pytest.approx((2.7, 2.95))
  assert len(lines) == 3  # and that of the chains in F


def test_limits_of_latency_and_of_peers() -> None:
  run = _run('latency', 'resnet20_b64', vanilla=[1.] * 3,
             disadv_joined=[6.] * 3, disadv_separate=[4.] * 3,
             conadv_separate=[4.] * 3, conadv_lag2=[4.2] * 3,
             weight_copy=[0.1] * 3, recycled_separate=[3.] * 3,
             nsl_random_start=[5.] * 3)
  for name, ratio in (('vanilla', 1.1), ('conadv_separate', 1.2),
                      ('nsl_random_start', 1.9)):
    run['rows'][name]['bound_ratio'] = ratio
  lines = _lines(run, schedules={'resnet20_b64': {
      'disadv_separate': {'chain': 3.8}, 'conadv_separate': {'chain': 2.0}}})
  found = {what.partition(': ')[2]: (line.measured, line.limit, line.met)
           for what, line in lines.items()}
  assert found == {
      'DisAdv, concatenated / ConAdv, separate passes': (1.5, 1.4, True),
      'DisAdv, concatenated / recycled, separate passes': (2.0, 1.9, True),
      'DisAdv, separate passes / recycled, separate passes': (
          pytest.approx(4 / 3), 1.2, True),
      # NSL's is worse, but not ours to mend.
      'time / 2-processor bound of ConAdv, separate passes, the farthest row':
          (1.2, 1.15, False),
      'ConAdv, separate passes / NSL, random start': (0.8, 1.0, True),
      'ConAdv, lag 2 / (lag 1 + a copy)': (
          pytest.approx(4.2 / 4.1), 1.0, False),
      'DisAdv / ConAdv': (pytest.approx(1.9), 1.95, False)}
  assert lines['longest chains in F: DisAdv / ConAdv'].measured == (
      pytest.approx(2.0))


def test_floors_are_of_one_model() -> None:
  run = _run('throughput', 'resnet20_b256', vanilla=[1.04],
             floor_vanilla=[1.0])
  what = 'throughput, resnet20_b256: vanilla / tf.function vanilla'
  assert not _lines(run)[what].met
  assert len(_lines({**run, 'model': 'resnet20_b64'})) == 1


def test_report_and_tables() -> None:
  job, traced = benchmark_plan.jobs(
      quick=True, regimes=['latency'], rows=['vanilla', 'conadv_joined'])
  rows = {name: {'seconds': [s, s], 'flops': f, 'chain_flops': f / 2,
                 'peak_bytes': 2**20, 'held_bytes': 0, 'lagged_bytes': 0}
          for name, s, f in (('vanilla', 0.01, 3e9),
                             ('conadv_joined', 0.2, 8e9))}
  schedules = {name: {
      'scheduled': dict.fromkeys(('1', '2', '4', '8', '16'), 0.008),
      'chain': 0.008, 'coverage': 0.97, 'operations': 5} for name in rows}
  report = benchmark_report.report([
      (job, {'forward_flops': 1e9, 'rows': rows}),
      (traced, {'rows': schedules})])
  json.dumps(report)
  assert report['runs'][0]['rows']['vanilla']['bound_ratio'] == (
      pytest.approx(1.25))
  text = benchmark_report.tables(report)
  assert ('| ConAdv, concatenated | 200 [200, 200] | 20.000 [20.000, 20.000] | '
          '8.00 | 2.667 | 7.500 | 4.00 | 8.0 | 25.000 | 1.0 | 0.0 | 0.0 |'
          ) in text.splitlines()
  assert '| vanilla | 3.00 | 2.00 | 2.00 |' in text
  assert '97.0% |' in text


# ---- The process.


def test_turns_go_there_and_back() -> None:
  job = dataclasses.replace(
      benchmark_plan.jobs(quick=True)[0], rows=('a', 'b', 'c'), rounds=2)
  child = benchmark_child._Child.__new__(benchmark_child._Child)
  child._job, child._tell = job, lambda _: None
  turns = list(child._turns())
  assert ''.join(row for _, row in turns) == 'abc' 'cba' 'abc'
  assert [counts for counts, _ in turns] == [False] * 3 + [True] * 6


def test_memory_of_a_step() -> None:
  rows = 2**12
  # One product of 64 MiB; all else is small.
  @tf.function(autograph=False)
  def step(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum((x @ tf.transpose(x)) @ x)

  x = tf.ones([rows, 2])
  peaks = [benchmark_child.peak_bytes(lambda: float(step(x)))
           for _ in range(2)]
  if None in peaks:
    pytest.skip('the allocator does not count')
  size = 4 * rows**2
  # The same each time: nothing of the step before counts.
  assert size <= peaks[0] < 1.2 * size
  assert peaks[1] == pytest.approx(peaks[0], rel=0.1)


def test_what_a_trainer_holds() -> None:
  images = np.zeros((8, 8, 8, 3), np.uint8)
  data = tf.data.Dataset.from_tensors(
      (images, np.zeros(8, np.int32))).repeat()
  model = benchmark_child._tiny((8, 8, 3))
  row = benchmark_rows.ours('conadv_lag2', model, data,
                            training_pass='joined')
  weights = sum(v.shape.num_elements() for v in row.trainer.network.variables)
  assert benchmark_child.state_bytes(row.trainer) == {
      # uint8 images, bfloat16 perturbations, int32 labels, float32 weights.
      'held_bytes': images.size * (1 + 2) + 8 * (4 + 4),
      'lagged_bytes': 4 * weights}
  assert benchmark_child.state_bytes(None) == {
      'held_bytes': 0, 'lagged_bytes': 0}


@pytest.mark.slow
def test_quick(tmp_path: pathlib.Path) -> None:
  path = tmp_path / 'benchmark.json'
  finished = commands.run('tools.benchmark', '--quick', f'--output={path}')
  assert finished.code == 0, finished.err
  report = json.loads(path.read_text())
  assert [run['regime'] for run in report['runs']] == [
      'throughput', 'latency', 'micro', 'settings']
  throughput, latency, micro, settings = (
      run['rows'] for run in report['runs'])
  assert set(throughput) | set(settings) == {
      row for row in benchmark_plan.ROWS
      if not row.endswith(('fraction_0.5', 'fraction_0.6'))}
  for row in [*throughput.values(), *latency.values(), *micro.values(),
              *settings.values()]:
    assert len(row['seconds']) == 2 and min(row['seconds']) > 0
  # Twice the rows in the training pass, and an attack beside.
  assert throughput['conadv_joined']['work_ratio'] > 2
  assert (throughput['conadv_joined']['flops']
          == pytest.approx(throughput['disadv_joined']['flops'], rel=1e-3))
  assert (throughput['conadv_separate']['chain_flops']
          < 0.6 * throughput['disadv_separate']['chain_flops'])
  assert (throughput['conadv_lag2']['lagged_bytes']
          > throughput['conadv_joined']['lagged_bytes'] == 0)
  # Four micro batches are the batch, but for small sums.
  assert (micro['vanilla']['flops']
          == pytest.approx(throughput['vanilla']['flops'], rel=0.05))
  scheduled = report['schedules']['tiny_b8']
  assert set(scheduled) == set(latency)
  for row in scheduled.values():
    spans = [*row['scheduled'].values(), row['chain']]
    assert spans[0] >= spans[1] >= spans[-1] > 0
  assert len(report['acceptance']) > 5
  assert '| ConAdv, lag 2 |' in finished.out
