"""The scaling tables are in the docs as printed; the picture has its points."""

import pathlib

from matplotlib import colors, image
import numpy as np

from tests import commands

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_page_has_what_the_tool_prints(tmp_path: pathlib.Path) -> None:
  page = (_ROOT / 'docs/scaling.md').read_text('utf-8')
  flat = ' '.join(page.split())
  # Run, not imported: tools share the names of their flags.
  done = commands.run('tools.plot_scaling', f'--output={tmp_path}/scaling.png')
  parts = done.out.strip().split('\n\n')
  assert len(parts) > 3
  for part in parts:
    if part.startswith('|'):
      assert part in page, 'print the tables again: tools.plot_scaling'
    else:
      assert ' '.join(part.split()) in flat
  assert (_ROOT / 'docs/scaling.png').stat().st_size < 150_000


def test_tables_and_picture(tmp_path: pathlib.Path) -> None:
  output = tmp_path / 'scaling.png'
  done = commands.run('tools.plot_scaling', f'--output={output}')
  assert done.code == 0, done.err
  assert 'no measurement of the machines' in done.out
  rows = [line for line in done.out.splitlines() if line.startswith('| Table')]
  assert len(rows) == 8 and '| 227 s \N{DAGGER} | 129.0 |' in rows[-1]
  assert rows[-1].count(' *') == 3  # an outlier of all three fits
  pixels = image.imread(output)
  red = np.abs(pixels[..., :3] - colors.to_rgb('C3')).max(-1) < 0.02
  # DisAdv's line runs through most of the left panel, upwards.
  where = np.argwhere(red[:, :pixels.shape[1] // 2])
  assert np.ptp(where[:, 1]) > 0.8 * pixels.shape[1] / 2
  # In the picture's rows, which grow downwards.
  assert np.corrcoef(where[:, 0], where[:, 1])[0, 1] < -0.5


def test_a_bad_path_is_one_line(tmp_path: pathlib.Path) -> None:
  message = commands.run('tools.plot_scaling',
                         f'--output={tmp_path}/none/a.png').refusal()
  assert '--output=' in message
