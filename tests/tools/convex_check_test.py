"""The command, on a tiny data set."""

import pathlib

from matplotlib import image
import numpy as np
import pytest

from tests import commands
from tests.tools import convex_data
from tools import convex_report, convex_training

_TOOL = 'tools.convex_check'
_SMALL = ('--epochs=3', '--updates=4', '--seeds=2', '--bound_epochs=3',
          '--bound_seeds=3')


@pytest.fixture
def data(tmp_path: pathlib.Path) -> pathlib.Path:
  convex_data.write(tmp_path / 'agaricus.txt.train.gz', rows=200)
  return tmp_path


def test_it_prints_and_draws(data: pathlib.Path) -> None:
  output = data / 'figure.png'
  done = commands.run(_TOOL, f'--data={data}', f'--output={output}', *_SMALL)
  assert done.code == 0, done.err
  lines = [line for line in done.out.splitlines() if line.startswith('| ')]
  first = [line.split(' | ')[0].strip('| ') for line in lines]
  assert first == ['', '---', 'SGD', 'ABS', 'ABSA', *['full gradient'] * 6,
                   'beside the bound', '---', 'ABS, eta_0 for B_max = 3,200',
                   'constant batch 100, the same eta_0',
                   'constant batch 100, eta_0 for B_max = 100',
                   'ABSA, eta_0 for B_max = 3,200', 'ABS, eta_0 = 1.2 / 100']
  sgd = lines[2].split(' | ')
  assert sgd[1:4] == ['2', '6', '100']
  assert done.out.startswith('200 rows, 126 features, 119 null directions')
  assert image.imread(output).shape[:2] == (600, 880)
  assert 10_000 < output.stat().st_size < 100_000


def test_the_bound_is_in_its_picture() -> None:
  result = convex_report.run(convex_data.problem(200), 3, 4, 1, 3, 2)
  axis = convex_report.draw(result).axes[3]
  low, high = axis.get_ylim()
  means = result.compared[0][2]
  assert 0 < low < means.gaps.min() and means.bounds.max() < high
  drawn = [line.get_ydata() for line in axis.get_lines()]
  np.testing.assert_array_equal(drawn[0], means.gaps)
  np.testing.assert_array_equal(drawn[1], means.bounds)
  assert len(drawn) == 6  # three cases that the theorem covers


def test_the_first_update_below_a_loss_for_good() -> None:
  trace = convex_training.Trace(
      np.array([0, 5, 10, 15]), np.array([3.0, 1.0, 2.0, 1.0]),
      np.array([5, 5, 5]), np.ones(3), [], np.zeros(1))
  assert [convex_report.first_update(trace, loss) for loss in (3, 2, 1.5)] == [
      0, 1, 3]
  assert np.isnan(convex_report.first_update(trace, 0.5))
  assert [convex_report.at_epoch(trace, 10, epoch) for epoch in (
      0, 0.5, 0.6, 1.5)] == [3.0, 1.0, 2.0, 1.0]
  assert np.isnan(convex_report.at_epoch(trace, 10, 1.6))


def test_bad_input_is_one_line(data: pathlib.Path) -> None:
  (data / 'bad').mkdir()
  (data / 'bad' / 'agaricus.txt.train.gz').write_bytes(b'no gzip')
  output = data / 'figure.png'
  for arguments, part in (
      ((f'--data={data}/none', f'--output={output}'), 'none'),
      ((f'--data={data}/bad', f'--output={output}'), 'bad'),
      ((f'--data={data}', f'--output={data}/bad'), '--output='),
      ((f'--data={data}', f'--output={output}', '--seeds=0'), 'seeds'),
      ((f'--output={output}',), '--data')):
    assert part in commands.run(_TOOL, *arguments).refusal()
  assert not output.exists()
