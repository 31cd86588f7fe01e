"""Suites: equivalence, any images, adversarial images, speed."""

import dataclasses
import json
import pathlib
import subprocess
from typing import Any

import numpy as np
import pytest

from conadv_tf import config
from tests import commands
from tools import (
  adversarial_images,
  reproduce_data,
  reproduce_report,
  reproduce_runs,
  reproduce_speed,
)
from tools import reproduce_suite as suites

_SUITE = """
title: One way
config: configs/cifar10/dat_study.yaml
data: {train: 24, validation: 8, test: 8, image_size: 16}
seeds: [0]
set: [schedule.epochs=1, schedule.warmup_epochs=0, data.global_batch_size=8,
      'schedule.boundaries=[]', 'schedule.values=[1]', evaluation.batch_size=8]
evaluate: {test: [--train_examples=0]}
ways: {at: }
tables: [{title: All, columns: {accuracy: test/accuracy}}]
pictures: [{title: Looks, ways: [at]}]
benchmark: {flags: [--quick], ways: {at: disadv_joined}, paper: {keras: 2}}
"""


def _suite(folder: pathlib.Path, text: str = _SUITE) -> suites.Suite:
  path = folder / 'one.yaml'
  path.write_text(text, encoding='utf-8')
  return suites.load(str(path))


# ---- Equivalence.


@pytest.mark.parametrize(('interval', 'count', 'said'), [
    ((-0.29, 0.29), 5, 'equivalent'), ((0.01, 0.29), 5, 'equivalent'),
    ((-0.3, 0.1), 5, 'not resolved'), ((-0.1, 0.31), 9, 'not resolved'),
    ((0.1, 0.31), 5, 'differs'), ((-2.0, -0.1), 5, 'differs'),
    ((-0.01, 0.01), 4, 'not resolved (n < 5)'),
    ((5.0, 6.0), 4, 'not resolved (n < 5)'),
    (None, 1, 'not resolved (n < 5)')])
def test_verdicts(interval: tuple[float, float] | None, count: int,
                  said: str) -> None:
  assert reproduce_report.verdict(interval, count, 0.3) == said


def test_a_margin_is_in_points() -> None:
  noise = (-0.002, -0.001, 0, 0.001, 0.002)
  results = {way: {seed: {'test/accuracy': 0.5 + shift + factor * noise[seed]}
                   for seed in range(5)}
             for way, shift, factor in (
                 ('a', 0, 0), ('b', 0, 1), ('c', 0.004, 0.1))}
  spec = {'of': 'test/accuracy', 'against': 'a', 'ways': ['b', 'c'],
          'margin': 0.3}
  # Deviation 0.158 points, t of 0.95 with four degrees of freedom 2.132.
  assert reproduce_report.pairs(spec, results).splitlines()[2:] == [
      '| b | 5 | +0.00 | 0.16 | -0.15 .. +0.15 | equivalent |',
      '| c | 5 | +0.40 | 0.02 | +0.38 .. +0.42 | differs |']
  head = reproduce_report.pairs(spec, {'b': {}}).splitlines()
  assert head[0].endswith('| 90 % interval | margin 0.3 |')
  assert head[2] == '| b | 0 | - | - | - | not resolved (n < 5) |'


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
  """Figures that are drawn, in place of closing them."""
  from matplotlib import pyplot
  drawn = []
  monkeypatch.setattr(pyplot, 'close', drawn.append)
  return drawn


def test_a_legend_names_only_lines_with_points(
    tmp_path: pathlib.Path, pictures: list[Any]) -> None:
  from matplotlib import colors
  spec = {'x': 'attack.radius', 'y': {'accuracy': 'test/accuracy'},
          'lines': {'not run': ['a'], 'run': ['b']}}
  assert reproduce_report.draw(
      spec, {'b': {0: {'test/accuracy': 0.5}}}, {},
      {'attack.radius': {'b': 4.0}}, tmp_path / 'figure.png')
  (axis,) = pictures[0].axes
  (text,) = axis.get_legend().get_texts()
  assert text.get_text() == 'run'
  drawn = [line for line in axis.lines if len(line.get_xdata())]
  # Each line keeps the colour it has where all have points.
  assert {line.get_color() for line in drawn} == {colors.to_hex('C1')}


def test_axes_without_points_are_left_out(
    tmp_path: pathlib.Path, pictures: list[Any]) -> None:
  spec = {'x': 'data.global_batch_size',
          'y': {'loss': 'loss', 'accuracy': 'test/accuracy'},
          'lines': {'vanilla': ['a', 'b']}}
  results = {'a': {0: {'test/accuracy': 0.5}}, 'b': {0: {'test/accuracy': 0.4}}}
  positions = {'data.global_batch_size': {'a': 32, 'b': 2048}}
  assert reproduce_report.draw(
      spec, results, {}, positions, tmp_path / 'figure.png')
  (axis,) = pictures[0].axes
  assert axis.get_ylabel() == 'accuracy, %'
  assert axis.lines[0].get_ydata().tolist() == [50, 40]
  pictures[0].canvas.draw()
  assert [text.get_text() for text in axis.get_xticklabels()] == ['32', '2,048']
  spec['y'] = {'loss': 'loss'}
  assert not reproduce_report.draw(
      spec, results, {}, positions, tmp_path / 'figure.png')


def test_a_hash_is_of_settings_and_not_of_places() -> None:
  hashes = [reproduce_runs.config_hash(
      {'seed': seed, 'data': {'path': path, 'augment': 'none'}})
            for seed, path in ((0, 'a'), (0, 'b'), (1, 'a'))]
  assert hashes[0] == hashes[1] != hashes[2]
  assert len(hashes[0]) == 12


def test_figures_of_each_seed_can_be_shown() -> None:
  assert reproduce_report.each(
      np.array([64.74, -219.1]), 'x') == '64.74, -219.1'
  assert reproduce_report.each(np.array([0.5]), 'test/accuracy') == '50'
  assert reproduce_report.each(np.array([]), 'x') == '-'


def test_a_gap_is_in_points() -> None:
  assert reproduce_report.cell(
      np.array([0.05, 0.07]), 'test/generalization_gap') == '6.00 ± 1.41'


@pytest.mark.parametrize(('old', 'new', 'message'), [
    ('pictures: [{title: Looks, ways: [at]', 'pictures: [{title: Looks, ways: '
     '[x]', 'pictures Looks: x is no way'),
    ('tables:', 'pairs: [{title: a, of: b, against: at, ways: [], margin: 0}]\n'
     'tables:', 'pairs a: margin: must be a number above 0, got 0'),
    ('ways: {at: disadv_joined', 'ways: {x: disadv_joined', 'x is no way'),
    ('at: disadv_joined', 'at: disadv', 'disadv is no row of the benchmark'),
    ('flags: [--quick], ', '', 'benchmark: flags is missing')])
def test_bad_suites(tmp_path: pathlib.Path, old: str, new: str,
                    message: str) -> None:
  assert old in _SUITE
  with pytest.raises(config.InputError, match=message):
    _suite(tmp_path, _SUITE.replace(old, new, 1))


# ---- Any images.


def _npz(folder: pathlib.Path, train: int = 40, test: int = 12,
         shape: tuple[int, ...] = (9, 7), classes: int = 3,
         **arrays: np.ndarray) -> pathlib.Path:
  """Images around grey level 40, labels in blocks."""
  random = np.random.default_rng(0)
  made: dict[str, Any] = {}
  for split, count in (('train', train), ('test', test)):
    made[f'x_{split}'] = random.integers(
        20, 61, (count, *shape)).astype(np.uint8)
    made[f'y_{split}'] = np.sort(np.arange(count) % classes)
  path = folder / 'odd.npz'
  np.savez(path, **{**made, **arrays})
  return path


def test_images_of_any_shape_and_number_of_classes(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
  suite = _suite(tmp_path)
  reproduce_data.prepare(suite.data, _npz(tmp_path), tmp_path)
  assert capsys.readouterr().out == (
      'image_size: 16 is no divisor of 9 x 7: the images stay as they are\n')
  with np.load(tmp_path / 'train.npz') as train, np.load(
      tmp_path / 'final.npz') as final:
    assert train['x_train'].shape == (24, 9, 7, 1)
    assert final['x_test'].shape == (8, 9, 7, 1)
    # Nothing is left of the order by class.
    assert set(final['y_test']) == set(train['y_test']) == {0, 1, 2}
    mean, std = (round(float(f(train['x_train'])), 1) for f in (
        np.mean, np.std))
  assert 38 < mean < 42 and 11 < std < 13
  way = suite.ways['at']
  run = reproduce_runs.Run(way, 0, (), tmp_path / 'at')
  command = reproduce_runs.Runner(suite, tmp_path, 1).command(run)
  assert command[-3:-1] == [
      '--params_override=data.num_classes=3',
      f'--params_override=model.args={{pixel_mean: [{mean}], '
      f'pixel_std: [{std}]}}']


def test_what_fits_the_configuration_is_kept(tmp_path: pathlib.Path) -> None:
  whole = config.load(['configs/cifar10/dat_study.yaml'])
  facts = {'num_classes': 10, 'pixel_mean': [120, 120, 120],
           'pixel_std': [60, 60, 60]}

  def overrides(**changed: Any) -> list[str]:
    (tmp_path / reproduce_data.FACTS).write_text(json.dumps(
        {**facts, **changed}))
    return reproduce_data.overrides(whole, tmp_path)

  assert overrides() == []
  assert overrides(num_classes=2) == ['data.num_classes=2']
  assert overrides(pixel_std=[60, 60, 40]) == [
      'model.args={pixel_mean: [120, 120, 120], pixel_std: [60, 60, 40]}']
  whole.model.args = None  # the network's own are numbers of any data
  assert overrides(pixel_mean=[0, 0, 0]) == []


def test_blocks_of_labels_are_mixed_and_other_orders_kept() -> None:
  images = np.arange(100)
  for labels, mixed in ((images // 10, True), (images // 50, True),
                        (images % 10, False), (np.zeros(100, int), False)):
    found = reproduce_data._mixed((images, labels))  # pylint: disable=protected-access
    np.testing.assert_array_equal(labels[found[0]], found[1])
    assert (found[0] is not images) == mixed
    assert sorted(found[0]) == list(images)


@pytest.mark.parametrize(('arrays', 'message'), [
    (dict(train=20), '20 and 12 images, needed are 32 and 8; --examples='),
    (dict(x_test=np.zeros((12, 9, 8), np.uint8)), 'make them equal'),
    (dict(y_test=np.zeros(5, int)), '12 images but 5 labels'),
    (dict(x_train=np.zeros((40, 9, 7))), 'images are float64; store them as')])
def test_images_that_cannot_be(tmp_path: pathlib.Path, arrays: dict[str, Any],
                               message: str) -> None:
  data = suites.Data(24, 8, 8)
  with pytest.raises(config.InputError, match=message):
    reproduce_data.prepare(data, _npz(tmp_path, **arrays), tmp_path)
  assert not (tmp_path / 'data.json').exists()
  with pytest.raises(config.InputError, match='--data=.*no such file'):
    reproduce_data.prepare(data, tmp_path / 'none.npz', tmp_path)


@pytest.mark.slow
def test_a_suite_on_grey_images_of_three_classes(
    tmp_path: pathlib.Path) -> None:
  _suite(tmp_path)
  arguments = (f'--suite={tmp_path / "one.yaml"}', f'--output={tmp_path / "o"}',
               f'--data={_npz(tmp_path, 30)}', '--nobenchmark')
  refused = commands.run('tools.reproduce', *arguments, '--examples=1,2')
  assert 'three whole numbers' in refused.refusal()
  assert 'needed are 32 and 8' in commands.run(
      'tools.reproduce', *arguments).refusal()
  done = commands.run('tools.reproduce', *arguments, '--examples=20,5,6')
  assert done.code == 0, done.err
  assert 'the images stay as they are' in done.out
  report = (tmp_path / 'o' / 'report.md').read_text()
  assert '![at](images_at_0.png)' in report and 'Not measured.' in report
  assert (tmp_path / 'o' / 'report.html').read_text().count('<img ') == 1
  saved = config.load([str(tmp_path / 'o' / 'at' / 'seed0' / 'params.yaml')])
  assert saved.data.num_classes == 3 and len(saved.model.args) == 2
  again = commands.run('tools.reproduce', *arguments, '--examples=20,5,6')
  assert again.code == 0, again.err


# ---- Adversarial images and speed.


def test_pictures_are_drawn_once(tmp_path: pathlib.Path,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
  calls = []

  def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
    calls.append(command)
    (tmp_path / 'images.png').touch()
    return subprocess.CompletedProcess(command, 0)

  monkeypatch.setattr(reproduce_runs.subprocess, 'run', run)
  suite = _suite(tmp_path)
  assert suite.pictures == [{'title': 'Looks', 'ways': ['at'], 'seed': 0}]
  runner = reproduce_runs.Runner(suite, tmp_path, 1)
  one = reproduce_runs.Run(suite.ways['at'], 0, (), tmp_path)
  runner.picture(one)
  runner.picture(one)
  assert len(calls) == 1 and calls[0][2] == 'tools.picture'
  assert f'--data_path={tmp_path / "train.npz"}' in calls[0]
  runner.check_pictures(one)
  with pytest.raises(config.InputError, match='way at makes no adversarial'):
    runner.check_pictures(dataclasses.replace(
        one, overrides=('method.name=vanilla', 'schedule.peak_lr=1')))


def test_a_perturbation_is_amplified() -> None:
  clean = np.full((1, 1, 3, 1), 51, np.float32)
  moved = clean + np.array([-8, 0, 4], np.float32).reshape(1, 1, 3, 1)
  found = adversarial_images.rows(adversarial_images.Images(clean, moved))
  assert [title for title, _ in found] == [
      'clean', 'perturbation\n(up to 8.0/255)', 'adversarial']
  np.testing.assert_allclose([values.ravel() for _, values in found], [
      [0.2] * 3, [0, 0.5, 0.75], np.array([43, 51, 55]) / 255], rtol=1e-6)


_REPORT = {'cores': 2, 'machine': 'x', 'runs': [{
    'regime': 'throughput', 'model': 'tiny_b8', 'batch_size': 8, 'rounds': 3,
    'rows': {
        'vanilla': {'quartiles': [0.008, 0.01, 0.016], 'ratio': [1, 1, 1]},
        'disadv_joined': {'quartiles': [0.01, 0.02, 0.04],
                          'ratio': [1.9, 2, 2.1]}}}]}


def test_the_benchmark_is_run_once(tmp_path: pathlib.Path) -> None:
  calls = []

  def call(command: list[str], log: pathlib.Path) -> int:
    calls.append((command[1:], log.name))
    path = pathlib.Path(command[3].partition('=')[2])
    path.write_text(json.dumps(_REPORT))
    return len(calls) - 1

  spec = {'flags': ['--quick']}
  assert reproduce_speed.read(tmp_path) is None
  reproduce_speed.measure(spec, tmp_path, call)
  reproduce_speed.measure(spec, tmp_path, call)
  assert calls == [(['-m', 'tools.benchmark', f'--output={tmp_path}/'
                     'benchmark_raw.json', '--quick'], 'benchmark.log')]
  assert reproduce_speed.read(tmp_path) == {'flags': ['--quick'], **_REPORT}
  with pytest.raises(config.InputError, match=(
      'was measured with --quick, not with --rounds=2; move it away')):
    reproduce_speed.measure({'flags': ['--rounds=2']}, tmp_path, call)
  (tmp_path / reproduce_speed.FILE).unlink()
  with pytest.raises(config.InputError, match='benchmark ended with code 1'):
    reproduce_speed.measure(spec, tmp_path, call)
  assert reproduce_speed.read(tmp_path) is None


def test_throughput_and_training_times() -> None:
  spec = {'flags': [], 'paper': {'disadv_joined': 1.39},
          'ways': {'a': 'vanilla', 'b': 'disadv_joined', 'c': 'vanilla'}}
  lines = reproduce_speed.section(
      spec, _REPORT, {'a': [8000], 'b': [8000, 16000]}).splitlines()
  assert [line for line in lines if line.startswith('|')] == [
      '| step | ms | images/s | time over vanilla\'s | paper: the same |',
      '| --- | --- | --- | --- | --- |',
      '| vanilla | 10.0 | 800 [500, 1,000] | 1.00 [1.00, 1.00] |  |',
      '| DisAdv, concatenated | 20.0 | 400 [200, 800] | 2.00 [1.90, 2.10] | '
      '1.39 |',
      '| way | step | images | seconds |', '| --- | --- | --- | --- |',
      '| a | vanilla | 8,000 | 10.0 |',
      '| b | DisAdv, concatenated | 12,000 | 30.0 |']
