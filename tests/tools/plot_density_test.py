"""The picture of a spectral density, by its pixels."""

import json
import pathlib

from matplotlib import colors, image
import numpy as np
import pytest

from conadv_tf import runs
from tests import commands, tiny

_TOOL = 'tools.plot_density'


def _coloured(path: pathlib.Path, colour: str) -> np.ndarray:
  """(row, column) of a colour's pixels above the legend, int [n, 2]."""
  pixels = image.imread(path)
  pixels = pixels[:round(0.85 * len(pixels))]
  return np.argwhere(
      np.abs(pixels[..., :3] - colors.to_rgb(colour)).max(-1) < 0.02)


def _evaluation(path: pathlib.Path, values: list[float],
                weights: list[float]) -> pathlib.Path:
  path.write_text(json.dumps({'curvature/ritz_values': values,
                              'curvature/ritz_weights': weights}))
  return path


def test_peaks_stand_at_the_eigenvalues(tmp_path: pathlib.Path) -> None:
  """0, 3 and 10 with weights 0.9, 0.09 and 0.01, sigma 0.1."""
  file = _evaluation(tmp_path / 'a.json', [0, 3, 10], [0.9, 0.09, 0.01])
  output = tmp_path / 'density.png'
  done = commands.run(_TOOL, f'--evaluation={file}', f'--output={output}')
  assert done.code == 0, done.err
  line = _coloured(output, 'C0')
  left, right = line[:, 1].min(), line[:, 1].max()
  scale = (right - left) / 10.8  # from -0.4 to 10.4
  heights = []
  for value in (0, 3, 10):
    column = left + (value + 0.4) * scale
    near = line[np.abs(line[:, 1] - column) < 0.5 * scale]
    top = near[near[:, 0] == near[:, 0].min()]
    assert top[:, 1].mean() == pytest.approx(column, abs=0.05 * scale)
    heights.append(near[:, 0].min())
  # Each is a tenth of the one before, on a logarithmic axis.
  assert heights[0] < heights[1] < heights[2]
  assert (heights[2] - heights[1]) / (
      heights[1] - heights[0]) == pytest.approx(np.log(9) / np.log(10),
                                               abs=0.1)


def test_a_run_and_a_file(tmp_path: pathlib.Path) -> None:
  folder, output = tmp_path / 'run', tmp_path / 'density.png'
  runs.run(tiny.load(), str(folder), quiet=True)
  file = _evaluation(tmp_path / 'a.json', [0, 1], [0.5, 0.5])
  done = commands.run(
      _TOOL, f'--model_dir={folder}', f'--evaluation={file}', '--starts=2',
      '--steps=20', '--examples=8', '--last_layers=1', f'--output={output}')
  assert done.code == 0, done.err
  assert len(_coloured(output, 'C0')) > 100
  assert len(_coloured(output, 'C1')) > 100


def test_bad_input_is_one_line(tmp_path: pathlib.Path) -> None:
  output = tmp_path / 'density.png'
  empty = tmp_path / 'empty.json'
  empty.write_text('{}')
  for flags, part in (
      ([], 'name a run by --model_dir'),
      ([f'--evaluation={empty}'],
       "has no 'curvature/ritz_values'; evaluate with --curvature"),
      ([f'--evaluation={tmp_path}/no.json'], 'No such file'),
      ([f'--evaluation={empty}', '--sigma=0'], '--sigma=0.0: must be above 0'),
      ([f'--model_dir={tmp_path}/none'], 'holds no run')):
    assert part in commands.run(
        _TOOL, *flags, f'--output={output}').refusal()
    assert not output.exists()
