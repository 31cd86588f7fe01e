"""The pictures of runs, by their pixels, and the table."""

from collections.abc import Mapping, Sequence
import json
import pathlib

from matplotlib import colors, image
import numpy as np
import pytest

from conadv_tf import config
from conadv_tf.training import run_directory
from tests import commands, tiny

_TOOL = 'tools.report'


def _run(path: pathlib.Path, eigenvalues: Sequence[float | None] = (),
         overrides: str = '',
         growth: Mapping[int, tuple[int, float]] | None = None,
         evaluated: tuple[int, ...] = (12, 24),
         accuracy: float = 0.5) -> pathlib.Path:
  """What a run of 24 initial batches of 4 in 4 epochs leaves.

  `growth`: step -> (batch size, rate factor).
  """
  path.mkdir(parents=True)
  resolved = config.resolve(tiny.load(
      'data.global_batch_size=4,schedule.epochs=4,schedule.name=constant,'
      'schedule.warmup_epochs=0', overrides), 24)
  config.save(resolved, str(path / 'params.yaml'))
  every = resolved.derived.steps_per_epoch
  for name, lines in (
      ('metrics.jsonl', [
          {'step': step, 'epoch': step / every, 'updates': step,
           'batch_size': 16, 'learning_rate': 0.5, 'train/loss': 1 / step,
           'train/accuracy': 0.5, 'validation/loss': 2 / step,
           'validation/accuracy': accuracy, 'seconds': 1.5 * step}
          for step in evaluated]),
      ('growth.jsonl', [
          {'step': step, 'epoch': step / every, 'batch_size': batch,
           'rate_factor': factor}
          for step, (batch, factor) in (growth or {}).items()]),
      ('curvature.jsonl', [
          {'step': i, 'epoch': i / every, 'value': value}
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


def _jump(line: np.ndarray) -> float:
  """Where a line reaches its last height, as a part of its width."""
  rows, columns = line.T
  left, right = columns.min(), columns.max()
  last = np.median(rows[columns > right - 5])
  return (columns[abs(rows - last) < 2].min() - left) / (right - left)


def test_pictures_and_table(tmp_path: pathlib.Path) -> None:
  # Evaluated at epochs 2 and 4, and grown at 2.5; one decays at 3.
  grown = _run(
      tmp_path / 'a' / 'run', [9.0, 3.0, None, 0.5],
      'method.name=vanilla,growth.name=scheduled,growth.epochs=[2.5],'
      'growth.max_batch_size=16', growth={0: (4, 1.0), 15: (16, 4.0)},
      accuracy=0.25)
  decayed = _run(
      tmp_path / 'b' / 'run', evaluated=(24, 48), overrides=
      'data.global_batch_size=2,schedule.peak_lr=0.5,schedule.name=piecewise,'
      'schedule.boundaries=[3],schedule.values=[1,0.1]')
  output = tmp_path / 'report'
  done = commands.run(_TOOL, str(grown), str(decayed), f'--output={output}')
  assert done.code == 0, done.err
  assert sorted(p.name for p in output.iterdir()) == [
      'batch_and_rate.png', 'eigenvalues.png', 'loss_and_accuracy.png',
      'report.md']

  picture = output / 'batch_and_rate.png'
  batch, rate = slice(0, 0.42), slice(0.45, 0.88)
  for part in (batch, rate):
    line = _coloured(picture, 'C0', part)
    assert _jump(line) == pytest.approx(2.5 / 4, abs=0.01)
    ends = [line[line[:, 1] == column][:, 0].mean()
            for column in (line[:, 1].min(), line[:, 1].max())]
    assert ends[1] < ends[0]  # more is further up
  constant = _coloured(picture, 'C1', batch)
  assert np.ptp(constant[:, 0]) < 12
  assert _jump(_coloured(picture, 'C1', rate)) == pytest.approx(3 / 4, abs=0.01)

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
  assert cells[0][5:7] == ['24', '16']


def test_robust_accuracies_and_times(tmp_path: pathlib.Path) -> None:
  one = _run(tmp_path / 'one')
  two = _run(tmp_path / 'two', overrides='runtime.strategy=mirrored,'
             'runtime.num_replicas=2')
  lines = (two / 'metrics.jsonl').read_text().splitlines()
  (two / 'metrics.jsonl').write_text(''.join(
      json.dumps({**json.loads(line),
                  'validation/robust_accuracy_pgd20': 0.3125}) + '\n'
      for line in lines))
  # Of the last update: what it adds stands beside what training recorded.
  (two / 'evaluation.json').write_text(json.dumps({
      'step': 24, 'validation/robust_accuracy_autoattack': 0.25}))
  # Of other weights: it stands alone.
  (one / 'evaluation.json').write_text(json.dumps({
      'step': 12, 'validation/accuracy': 0.75,
      'validation/robust_accuracy_pgd20': 0.125}))
  run_directory.RunDirectory(str(two)).checkpoints.save(
      24, {'network/0': np.zeros(1000, np.float32), 'step/0': np.zeros(5)}, {})
  # A ring of 2: two latencies of 1 ms and 4,000 bytes at 1 MB/s are 6 ms an
  # update; 6 updates an epoch.
  network = '--latency_us=1000', '--bandwidth_gbps=1e-3'
  for flags, predicted in (((), '-'), (network, '0.036 (model)')):
    done = commands.run(_TOOL, str(one), str(two), *flags,
                        f'--output={tmp_path / "report"}')
    assert done.code == 0, done.err
    text = (tmp_path / 'report' / 'report.md').read_text().split('\n\n')[-1]
    assert text.splitlines() == [
        '| run | batch | devices | TA | RA (pgd20) | AA (autoattack) | '
        'bits | MiB/update | communication s/epoch | total s/epoch |',
        '| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |',
        '| one | 4 | 1 | 75.00 | 12.50 | - | 32 | 0 | 0 (1 device) | 9 |',
        '| two | 4 | 2 | 50.00 | 31.25 | 25.00 | 32 | 0.007629 | '
        f'{predicted} | 9 |']


def test_codes_and_the_best_evaluation(tmp_path: pathlib.Path) -> None:
  run = _run(tmp_path / 'run', overrides='runtime.strategy=mirrored,'
             'runtime.num_replicas=2,runtime.deterministic=false,'
             'compression.bits=8,compression.bucket=100,evaluation.patience=3,'
             'evaluation.attacks=[pgd20],'
             'evaluation.monitor=robust_accuracy_pgd20')
  lines = (run / 'metrics.jsonl').read_text().splitlines()
  robust = [0.5, *([0.25] * (len(lines) - 1))]
  assert len(robust) > 1
  (run / 'metrics.jsonl').write_text(''.join(json.dumps(
      {**json.loads(line), 'validation/robust_accuracy_pgd20': value}) + '\n'
      for line, value in zip(lines, robust)))
  run_directory.RunDirectory(str(run)).checkpoints.save(
      24, {'network/0': np.zeros(1000, np.float32)}, {})
  done = commands.run(_TOOL, str(run), '--latency_us=1000',
                      '--bandwidth_gbps=1e-3', f'--output={tmp_path / "out"}')
  assert done.code == 0, done.err
  row = (tmp_path / 'out' / 'report.md').read_text().splitlines()[-1]
  cells = [cell.strip() for cell in row.strip('|').split('|')]
  assert cells[4] == '50.00'  # of the weights that are the result
  # A message of 1,000 bytes and 10 norms at 1 MB/s after 1 ms: 2.04 ms an
  # update; 6 updates an epoch.
  assert cells[5:8] == ['8', '0.001984', '0.01224 (model)']


def test_agreement_of_estimates(tmp_path: pathlib.Path) -> None:
  # Logarithms 0, 1, 2, 3 beside 0, 2, 1, 6; a negative one counts nowhere.
  full, block = (
      _run(tmp_path / name, [2.0**v if v is not None else -1.0 for v in values])
      for name, values in (('full', [0, 1, 5, 2, 3]),
                           ('block', [0, 2, None, 1, 6, 4])))
  other = _run(tmp_path / 'other', [1.0, 2.0])
  output = tmp_path / 'report'
  done = commands.run(_TOOL, *map(str, (full, block, other)),
                      f'--output={output}')
  assert done.code == 0, done.err
  table = (output / 'report.md').read_text().split('\n\n')[1]
  assert table.splitlines()[2:] == ['| full, block | 4 | 0.800 | 0.834 |']


def test_runs_whose_estimates_failed_are_in_no_legend(
    tmp_path: pathlib.Path) -> None:
  good, failed = _run(tmp_path / 'good', [1.0, 2.0]), _run(
      tmp_path / 'failed', [None, None])
  for runs, expected in (((good, failed), True), ((failed,), False)):
    output = tmp_path / f'report{len(runs)}'
    done = commands.run(_TOOL, *map(str, runs), f'--output={output}')
    assert done.code == 0, done.err
    picture = output / 'eigenvalues.png'
    assert picture.exists() == expected
    if expected:
      assert len(_coloured(picture, 'C0', slice(0.85, 1)))
      assert not len(_coloured(picture, 'C1', slice(0, 1)))


def test_without_estimates_there_is_no_picture_of_them(
    tmp_path: pathlib.Path) -> None:
  run, output = _run(tmp_path / 'run'), tmp_path / 'report'
  done = commands.run(_TOOL, str(run), f'--output={output}')
  assert done.code == 0, done.err
  assert sorted(p.name for p in output.iterdir()) == [
      'batch_and_rate.png', 'loss_and_accuracy.png', 'report.md']


def test_bad_input_is_one_line(tmp_path: pathlib.Path) -> None:
  good = _run(tmp_path / 'run')
  empty = tmp_path / 'empty'
  empty.mkdir()
  begun = _run(tmp_path / 'begun', evaluated=())
  evaluated = _run(tmp_path / 'evaluated')
  (evaluated / 'evaluation.json').write_text('[')
  taken = tmp_path / 'file'
  taken.touch()
  output = f'--output={tmp_path / "out"}'
  for arguments, part in (
      ((output,), 'name one run or more'),
      ((str(empty), output), 'holds no run'),
      ((str(tmp_path / 'none'), output), 'holds no run'),
      ((str(begun), output), 'no evaluation yet'),
      ((str(good), f'--output={taken}'), 'cannot be written'),
      ((str(good), '--latency_us=1', output), 'give both or none'),
      ((str(evaluated), output), 'no file of conadv-evaluate'),
      ((str(good),), '--output')):
    assert part in commands.run(_TOOL, *arguments).refusal()
  assert not (tmp_path / 'out').exists()
