"""The picture of a schedule, by its pixels."""

import pathlib

from matplotlib import colors, image
import numpy as np
import pytest

from tests import commands, tiny

_TOOL = 'tools.plot_schedule'


def _config(path: pathlib.Path) -> pathlib.Path:
  """The tiny run: warm-up to update 2 of 6, 3 an epoch."""
  groups = {}
  for pair in tiny.SETTINGS.split(','):
    key, value = pair.split('=')
    group, name = key.split('.')
    groups.setdefault(group, []).append(f'  {name}: {value}\n')
  path.write_text(''.join(
      f'{group}:\n{"".join(lines)}' for group, lines in groups.items()))
  return path


def _coloured(path: pathlib.Path, colour: str) -> np.ndarray:
  """(row, column) of a colour's pixels above the legend, int [n, 2]."""
  pixels = image.imread(path)
  pixels = pixels[:round(0.85 * len(pixels))]
  return np.argwhere(
      np.abs(pixels[..., :3] - colors.to_rgb(colour)).max(-1) < 0.02)


def test_the_peak_is_where_the_warm_up_ends(tmp_path: pathlib.Path) -> None:
  config, output = _config(tmp_path / 'tiny.yaml'), tmp_path / 'rates.png'
  done = commands.run(_TOOL, f'--config_file={config}', f'--output={output}')
  assert done.code == 0, done.err
  curve = _coloured(output, 'C0')
  left, right = curve[:, 1].min(), curve[:, 1].max()
  peak = curve[curve[:, 0] == curve[:, 0].min()][:, 1].mean()
  # 2 of the 6 updates; the last evaluation is drawn at the end.
  assert (peak - left) / (right - left) == pytest.approx(1 / 3, abs=0.02)


def test_two_experiments_and_a_logarithm(tmp_path: pathlib.Path) -> None:
  config, output = _config(tmp_path / 'tiny.yaml'), tmp_path / 'rates.png'
  other = tmp_path / 'other.yaml'
  other.write_text('schedule: {peak_lr: 0.5}\n')
  done = commands.run(
      _TOOL, f'--config_file={config}', f'--compare={config}+{other}',
      '--log', f'--output={output}')
  assert done.code == 0, done.err
  tops = [_coloured(output, colour)[:, 0].min() for colour in ('C0', 'C1')]
  assert len(_coloured(output, 'C1')) > 300
  assert tops[0] < tops[1]  # which has half the rate


def test_bad_input_is_one_line(tmp_path: pathlib.Path) -> None:
  config = _config(tmp_path / 'tiny.yaml')
  output = tmp_path / 'none' / 'rates.png'
  for arguments, part in (
      (('--params_override=schedule.peek_lr=1',), 'is schedule.peak_lr'),
      ((f'--compare={tmp_path}/no.yaml',), 'no.yaml: cannot read it'),
      ((), '--output=')):
    message = commands.run(
        _TOOL, f'--config_file={config}', f'--output={output}', *arguments
    ).refusal()
    assert part in message
