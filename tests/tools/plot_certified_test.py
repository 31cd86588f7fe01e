"""The picture of certified accuracy, by its pixels."""

import dataclasses
import pathlib

from matplotlib import colors, image
import numpy as np
import pytest

from conadv_tf.evaluation import certified, certified_file
from tests import commands

_TOOL = 'tools.plot_certified'


def test_the_curve_steps_down_at_the_radii(tmp_path: pathlib.Path) -> None:
  smoothing = certified.Smoothing(0.25, n=1000)
  path, output = tmp_path / 'x.certified.tsv', tmp_path / 'x.png'
  # 4 images: right up to 0.2 and 0.5, one wrong, one abstained.
  certified_file.write(
      str(path), dataclasses.asdict(smoothing), [],
      [certified.Certificate(*row) for row in (
          (0, 1, 1, 0.2, 900), (1, 1, 1, 0.5, 990), (2, 1, 2, 0.4, 980),
          (3, 1, -1, 0.0, 500))], 4)
  done = commands.run(_TOOL, f'--images={path}', f'--output={output}')
  assert done.code == 0, done.err
  assert done.out.splitlines()[-1] == (
      '| x | 0.25 | 1,000 | 4 | 0.500 | 0.500 | 0.500 | 0.500 | 0.500 | 0.250 '
      '| 0.250 | 0.250 |')
  pixels = image.imread(output)
  pixels = pixels[:round(0.85 * len(pixels))]
  line = np.argwhere(np.abs(
      pixels[..., :3] - colors.to_rgb('C0')).max(-1) < 0.02)
  wide = [row for row in np.unique(line[:, 0])
          if (line[:, 0] == row).sum() > 60]
  # 1/2 and 1/4; the axis covers 0.
  levels = np.split(wide, np.where(np.diff(wide) > 1)[0] + 1)
  assert len(levels) == 2
  widths = [np.ptp(line[line[:, 0] == rows[0], 1]) for rows in levels]
  assert widths[1] / widths[0] == pytest.approx(0.3 / 0.2, abs=0.05)


def test_bad_input_is_one_line(tmp_path: pathlib.Path) -> None:
  output, empty = tmp_path / 'x.png', tmp_path / 'empty.tsv'
  certified_file.write(str(empty), dataclasses.asdict(
      certified.Smoothing(0.25)), [], [], 1)
  for flags, part in (
      ([], 'name a file of certificates by --images'),
      ([f'--images={tmp_path}/no.tsv'], 'No such file'),
      ([f'--images={empty}'], 'has no certificate yet')):
    assert part in commands.run(
        _TOOL, *flags, f'--output={output}').refusal()
    assert not output.exists()
