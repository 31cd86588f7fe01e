"""The pictures of runs, by their pixels, and the table."""

import json
import pathlib

from matplotlib import colors, image
import numpy as np
import pytest

from conadv_tf import config
from tests import commands, tiny

_TOOL = 'tools.report'


def _run(path: pathlib.Path, batches: list[int], eigenvalues: list[float],
         accuracy: float = 0.5) -> pathlib.Path:
  """What a run of one evaluation an epoch leaves."""
  path.mkdir(parents=True)
  config.save(tiny.load(), str(path / 'params.yaml'))
  for name, lines in (
      ('metrics.jsonl', [
          {'step': i, 'epoch': float(i), 'updates': i, 'batch_size': batch,
           'learning_rate': batch / 100, 'train/loss': 1 / i,
           'train/accuracy': 0.5, 'validation/loss': 2 / i,
           'validation/accuracy': accuracy, 'seconds': 1.5 * i}
          for i, batch in enumerate(batches, 1)]),
      ('curvature.jsonl', [
          {'step': i, 'epoch': float(i), 'value': value}
          for i, value in enumerate(eigenvalues, 1)])):
    (path / name).write_text(''.join(json.dumps(r) + '\n' for r in lines))
  return path


def _coloured(path: pathlib.Path, colour: str, part: slice) -> np.ndarray:
  """(row, column) of a colour's pixels in a part of the rows, int [n, 2]."""
  pixels = image.imread(path)
  rows = len(pixels)
  pixels = pixels[round(part.start * rows):round(part.stop * rows)]
  return np.argwhere(
      np.abs(pixels[..., :3] - colors.to_rgb(colour)).max(-1) < 0.02)


def test_pictures_and_table(tmp_path: pathlib.Path) -> None:
  grown = _run(tmp_path / 'a' / 'run', [4, 4, 8, 16], [9.0, 3.0, 0.5], 0.25)
  constant = _run(tmp_path / 'b' / 'run', [2, 2, 2, 2], [])
  output = tmp_path / 'report'
  done = commands.run(_TOOL, str(grown), str(constant), f'--output={output}')
  assert done.code == 0, done.err
  assert sorted(p.name for p in output.iterdir()) == [
      'batch_and_rate.png', 'eigenvalues.png', 'loss_and_accuracy.png',
      'report.md']

  # The batch doubles after epochs 2 and 3 of 1 to 4: equal steps of a log.
  picture = output / 'batch_and_rate.png'
  line = _coloured(picture, 'C0', slice(0, 0.42))
  left, right = line[:, 1].min(), line[:, 1].max()
  levels = [np.median(line[np.abs(
      line[:, 1] - (left + (right - left) * (epoch - 1) / 3)) < 3][:, 0])
            for epoch in (2.5, 3.5)]
  bottom, top = line[:, 0].max(), line[:, 0].min()
  assert levels[1] < levels[0]  # larger batches are further up
  assert levels[1] == pytest.approx(top, abs=6)
  assert levels[0] == pytest.approx((top + bottom) / 2, abs=6)
  rate = _coloured(picture, 'C1', slice(0.45, 0.88))
  assert np.ptp(rate[:, 0]) < 12  # a constant one is level

  falling = _coloured(output / 'eigenvalues.png', 'C0', slice(0, 0.85))
  first, last = (falling[falling[:, 1] == column][:, 0].mean()
                 for column in (falling[:, 1].min(), falling[:, 1].max()))
  assert first < last
  assert not len(_coloured(output / 'eigenvalues.png', 'C1', slice(0, 0.85)))

  head, _, *rows = (output / 'report.md').read_text().splitlines()
  cells = [[c.strip() for c in row.strip('|').split('|')] for row in rows]
  assert 'validation accuracy' in head and 'updates' in head
  assert [c[0] for c in cells] == ['a/run', 'b/run']  # told apart
  assert cells[0][1:3] == ['4', '0.25'] and cells[1][2] == '0.5'
  assert cells[0][5:7] == ['4', '16']


def test_without_estimates_there_is_no_picture_of_them(
    tmp_path: pathlib.Path) -> None:
  run, output = _run(tmp_path / 'run', [4, 4], []), tmp_path / 'report'
  done = commands.run(_TOOL, str(run), f'--output={output}')
  assert done.code == 0, done.err
  assert sorted(p.name for p in output.iterdir()) == [
      'batch_and_rate.png', 'loss_and_accuracy.png', 'report.md']


def test_bad_input_is_one_line(tmp_path: pathlib.Path) -> None:
  good = _run(tmp_path / 'run', [4], [])
  empty = tmp_path / 'empty'
  empty.mkdir()
  begun = _run(tmp_path / 'begun', [], [])
  taken = tmp_path / 'file'
  taken.touch()
  output = f'--output={tmp_path / "out"}'
  for arguments, part in (
      ((output,), 'name one run or more'),
      ((str(empty), output), 'holds no run'),
      ((str(tmp_path / 'none'), output), 'holds no run'),
      ((str(begun), output), 'no evaluation yet'),
      ((str(good), f'--output={taken}'), 'cannot be written'),
      ((str(good),), '--output')):
    assert part in commands.run(_TOOL, *arguments).refusal()
  assert not (tmp_path / 'out').exists()
