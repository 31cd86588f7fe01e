"""The benchmark of Hessian products: what it measures, its arithmetic."""

import json
import pathlib

import numpy as np
import pytest

from tests import commands
from tools import benchmark_curvature_rows as benchmark


@pytest.mark.slow
def test_both_modes_compute_the_same_product() -> None:
  size, rows = benchmark.make_rows('resnet8', 8, 2)
  vector = np.random.default_rng(0).standard_normal(size)
  product = rows['product'](vector) * 2  # the others are of the summed loss
  forward = rows['forward over reverse'](vector)
  np.testing.assert_allclose(
      product, forward, atol=1e-4 * np.abs(forward).max())
  # The block's own part of a vector that is 0 elsewhere.
  block = len(rows['block of 2'](vector))
  last = np.concatenate([np.zeros(size - block), vector[-block:]])
  np.testing.assert_allclose(
      rows['block of 2'](vector), rows['product'](last)[-block:],
      atol=1e-5 * np.abs(forward).max())
  # The gradient's slope along the vector, by no more than its definition.
  gradient = rows['gradient'](vector)
  assert gradient.shape == (size,) and np.abs(gradient).max() > 0.01


def test_turns_go_there_and_back_and_the_first_does_not_count() -> None:
  called = []
  rows = {name: lambda vector, n=name: called.append(n) for name in 'abc'}
  seconds = benchmark.measure(rows, 5, rounds=2)
  assert ''.join(called) == 'abccbaabc'
  assert [len(times) for times in seconds.values()] == [2, 2, 2]


def test_ratios_are_formed_round_by_round() -> None:
  found = benchmark.summarise({
      'gradient': [1.0, 2.0, 4.0], 'product': [2.0, 5.0, 12.0]})
  assert found['ratios']['product'] == {
      'low': 2.25, 'median': 2.5, 'high': 2.75}
  assert found['median'] == {'gradient': 2.0, 'product': 5.0}
  assert found['met']
  text = benchmark.table({'net': {'weights': 1234, **found}})
  assert ('| net | 1,234 | product | 5,000 | 2.50 [2.25, 2.75] | at most 2.5: '
          'yes |') in text


@pytest.mark.slow
def test_quick(tmp_path: pathlib.Path) -> None:
  output = tmp_path / 'figures.json'
  done = commands.run(
      'tools.benchmark_curvature', '--quick', f'--output={output}')
  assert done.code == 0, done.err
  report = json.loads(output.read_text())
  part = report['models']['resnet8, 4 images of 32x32']
  assert len(part['seconds']['product']) == 2
  assert '| product |' in done.out


def test_unknown_models_are_refused() -> None:
  assert '--models: unknown resnet9; known: resnet8' in commands.run(
      'tools.benchmark_curvature', '--models=resnet9').refusal()
