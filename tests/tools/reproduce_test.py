"""Suites: reading, splitting, tuning, tables, pages, and a real small one."""

import dataclasses
import gzip
import json
import pathlib
import subprocess
from typing import Any

import numpy as np
import pytest

from conadv_tf import config
from tests import commands
from tools import reproduce_data, reproduce_report, reproduce_runs
from tools import reproduce_suite as suites

_SUITE = """
title: Two ways
about: Why.
config: configs/digits/vanilla.yaml
seeds: [0, 1]
set: [schedule.epochs=1, schedule.warmup_epochs=0]
tune: {maximise: validation/accuracy, grid: {schedule.peak_lr: [1, 2]}}
budgets: {small: [data.num_examples=256]}
ways:
  vanilla:
    paper: {accuracy: 76.5}
  like:
    like: vanilla
    set: [data.global_batch_size=128]
  fixed:
    tune: false
    seeds: [1]
    set: [wide, seed=3]
sets: {wide: [evaluation.batch_size=8], more: [wide]}
tables:
  - title: All
    columns: {accuracy: test/accuracy, updates: step}
figures:
  - {title: Batch, x: data.global_batch_size, y: {accuracy: test/accuracy},
     lines: {vanilla: [vanilla, like]}}
  - {title: Epochs, x: epoch, y: {loss: validation/loss},
     lines: {vanilla: [vanilla]}}
"""


def _suite(folder: pathlib.Path, text: str = _SUITE,
           budget: str | None = None) -> suites.Suite:
  path = folder / 'two.yaml'
  path.write_text(text, encoding='utf-8')
  return suites.load(str(path), budget)


def test_a_suite_is_read(tmp_path: pathlib.Path) -> None:
  suite = _suite(tmp_path, budget='small')
  assert suite.overrides == (
      'schedule.epochs=1', 'schedule.warmup_epochs=0', 'data.num_examples=256')
  assert suite.ways['vanilla'].tuning.points() == [
      ('schedule.peak_lr=1',), ('schedule.peak_lr=2',)]
  assert suite.ways['fixed'].overrides == ('evaluation.batch_size=8', 'seed=3')
  assert suite.ways['like'].tuning is suite.ways['fixed'].tuning is None


# Those of conadv-imagenet are in reproduce_ways_test.
@pytest.mark.parametrize(
    'name', [name for name in suites.names() if name != 'conadv-imagenet'])
def test_every_way_of_a_shipped_suite_resolves(name: str) -> None:
  suite = suites.load(name)
  size = suite.data.train if suite.data else 1442
  for way in suite.ways.values():
    tuned = way
    while tuned.like:
      tuned = suite.ways[tuned.like]
    points = tuned.tuning.points() if tuned.tuning else [()]
    for point in points:
      overrides = [*suite.overrides, *way.overrides, *point]
      run = config.load([*suite.config, *way.config], overrides)
      config.validate(run)
      # The suite's configuration may hold more than a way looks at.
      named = {text.partition('=')[0] for text in overrides}
      assert not named & set(config.unused_keys(run)), way.name
      config.resolve(run, size)


@pytest.mark.parametrize('name', suites.load('absa-cifar10').ways)
def test_every_way_of_growing_has_the_same_budget(name: str) -> None:
  suite = suites.load('absa-cifar10')
  run = config.load(list(suite.config), list(suite.ways[name].overrides))
  config.validate(run)
  assert config.unused_keys(run) == []
  resolved = config.resolve(run, suite.data.train)
  batch = resolved.data.global_batch_size
  assert resolved.derived.total_steps == round(120000 / batch)
  assert batch // resolved.runtime.micro_batches == 32
  most = resolved.growth.max_batch_size or batch
  assert most == int(name.split('_')[1])


@pytest.mark.parametrize(('old', 'new', 'message'), [
    ('title:', 'titel:', 'unknown key titel'),
    ('seeds: [0, 1]\n', '', 'seeds is missing'),
    ('like: vanilla', 'like: later', 'later is no way before it'),
    ('tune: false', 'tun: false', 'way fixed: unknown key tun'),
    ('figures:', 'pairs: [{title: a, of: b, against: c, ways: []}]\nfigures:',
     'pairs a: c is no way'),
    ('[wide, seed', '[side, seed', 'set: side is neither key=value nor one')])
def test_bad_suites(tmp_path: pathlib.Path, old: str, new: str,
                    message: str) -> None:
  with pytest.raises(config.InputError, match=message):
    _suite(tmp_path, _SUITE.replace(old, new, 1))


def test_bad_names(tmp_path: pathlib.Path) -> None:
  with pytest.raises(config.InputError, match='--budget=x: .* has small'):
    _suite(tmp_path, budget='x')
  for flags, message in (
      (('--suite=abc', '--output=x'), '--suite=abc: no file'),
      (('--suite=absa-cifar10', '--output=x', '--set=seed'),
       '--set=seed: must be key=value'),
      (('--suite=absa-cifar10', '--output=x', '--only=abc'),
       '--only=abc: known are'),
      (('--suite=conadv-digits', f'--output={tmp_path}', '--data=a.npz'),
       '--data: the suite conadv-digits takes no file'),
      (('--suite=conadv-digits', f'--output={tmp_path}', '--examples=1,1,1'),
       '--examples: the suite conadv-digits takes no file')):
    done = commands.run('tools.reproduce', *flags)
    assert done.refusal().startswith(f'error: {message}')


def test_the_test_split_is_read_only_at_the_end(
    tmp_path: pathlib.Path) -> None:
  random = np.random.default_rng(0)
  arrays = {}
  for split, count in (('train', 50), ('test', 9)):
    arrays[f'x_{split}'] = random.integers(
        0, 256, (count, 4, 4, 1)).astype(np.uint8)
    arrays[f'y_{split}'] = np.arange(count)
  np.savez(tmp_path / 'all.npz', **arrays)
  data = suites.Data(train=30, validation=10, test=5, image_size=2)
  reproduce_data.prepare(data, tmp_path / 'all.npz', tmp_path / 'out')
  with np.load(tmp_path / 'out' / 'train.npz') as train, np.load(
      tmp_path / 'out' / 'final.npz') as final:
    assert len(set(train['y_train'])) == 30 and train['y_train'].max() < 40
    assert train['y_test'].tolist() == list(range(40, 50))
    assert final['y_test'].tolist() == list(range(5))
    np.testing.assert_array_equal(final['x_train'], train['x_train'])
    np.testing.assert_array_equal(final['x_test'][3, :, :, 0], np.round(
        arrays['x_test'][3, :, :, 0].reshape(2, 2, 2, 2).mean((1, 3))))
  with pytest.raises(config.InputError, match='50 and 9 images, needed are'):
    reproduce_data.prepare(suites.Data(45, 10, 5), tmp_path / 'all.npz',
                           tmp_path / 'other')
  for train in (30, 29):  # what is there is left alone, or refused
    data = dataclasses.replace(data, train=train)
    if train == 30:
      reproduce_data.prepare(data, None, tmp_path / 'out')
    else:
      with pytest.raises(config.InputError, match=(
          '"train": 30, .*, not .*"train": 29, .*; name another --output')):
        reproduce_data.prepare(data, None, tmp_path / 'out')


def test_sentences_of_the_test_split_are_not_trained_on(
    tmp_path: pathlib.Path) -> None:
  source = tmp_path / 'glue'
  source.mkdir()
  # Every sentence twice, the second time in other letters.
  rows = [f'{word} {number}\t{number % 2}' for number in range(60)
          for word in ('a  Film', 'A film')]
  with gzip.open(source / 'sst2_train.tsv.gz', 'wt') as file:
    file.write('\n'.join(['sentence\tlabel', *rows]) + '\n')
  data = suites.Data(train=40, validation=12, test=10, task='sst2')
  reproduce_data.prepare(data, source, tmp_path / 'out')
  train, final = reproduce_data.places(data, tmp_path / 'out')

  def read(folder: pathlib.Path, split: str) -> list[str]:
    head, *found = (folder / f'sst2_{split}.tsv').read_text().splitlines()
    assert head == 'sentence\tlabel' and set(found) <= set(rows)
    return [' '.join(row.casefold().split()) for row in found]

  parts = [set(read(train, 'train')), set(read(train, 'dev')),
           set(read(final, 'dev'))]
  assert len(set.union(*parts)) == sum(map(len, parts))
  assert [len(read(*where)) for where in (
      (train, 'train'), (train, 'dev'), (final, 'dev'), (final, 'train'))] == [
          40, 12, 10, 40]
  assert read(final, 'train') == read(train, 'train') != sorted(
      read(train, 'train'))
  for other, message in (
      (dataclasses.replace(data, train=99), '120 rows, .* left to train on'),
      (dataclasses.replace(data, task='rte'), 'no rte_train.tsv and no')):
    with pytest.raises(config.InputError, match=message):
      reproduce_data.prepare(other, source, tmp_path / 'more')
  with pytest.raises(config.InputError, match='--data=FOLDER of sst2_train'):
    reproduce_data.prepare(data, None, tmp_path / 'more')


def test_a_task_s_folders_are_trained_on_and_evaluated(
    tmp_path: pathlib.Path) -> None:
  suite = dataclasses.replace(
      suites.load('absa-cifar10', overrides=['model.initial_weights=enc']),
      data=suites.Data(1, 1, 1, task='rte'))
  command = reproduce_runs.Runner(suite, tmp_path, 1).command(
      reproduce_runs.Run(suite.ways['bl_32'], 1, (), tmp_path / 'run'))
  for text in (f'data.path={tmp_path / "train"}', 'text.task=rte',
               'model.initial_weights=enc'):
    assert f'--params_override={text}' in command


def test_pairs_are_of_equal_seeds() -> None:
  lamb = {seed: {'test/accuracy': value}
          for seed, value in enumerate((0.5, 0.52, 0.6))}
  scala = {0: {'test/accuracy': 0.51}, 1: {'test/accuracy': 0.55}, 2: None,
           3: {'test/accuracy': 0.9}}
  text = reproduce_report.pairs(
      {'of': 'test/accuracy', 'against': 'lamb', 'ways': ['scala', 'noise']},
      {'lamb': lamb, 'scala': scala})
  # t of 0.95 with one degree of freedom is 6.314: 2 +- 6.314 * 1.
  assert text.splitlines()[2:] == [
      '| scala | 2 | +2.00 | 1.41 | -4.31 .. +8.31 |']



def test_tuning_takes_the_best_that_did_not_diverge(
    tmp_path: pathlib.Path) -> None:
  suite = _suite(tmp_path)
  runner = reproduce_runs.Runner(suite, tmp_path, 1)
  way = suite.ways['vanilla']
  first, second = runner.tuning_runs(way)
  assert first.seed == 1000 and not first.is_done
  for run, accuracy in ((first, 0.5), (second, 0.7)):
    run.path.mkdir(parents=True)
    (run.path / 'results.json').write_text(
        json.dumps({'validation/accuracy': accuracy}))
  assert runner.chosen(way) == ('schedule.peak_lr=2',)
  assert runner.chosen(suite.ways['like']) == ('schedule.peak_lr=2',)
  assert runner.chosen(suite.ways['fixed']) == ()
  ways = list(suite.ways.values())
  assert [(run.seed, run.way.name) for run in runner.final_runs(ways)] == [
      (0, 'vanilla'), (0, 'like'), (1, 'vanilla'), (1, 'like'), (1, 'fixed')]
  assert [(run.seed, run.way.name) for run in runner.final_runs(
      ways, [0, 2])] == [
          (0, 'vanilla'), (0, 'like'), (2, 'vanilla'), (2, 'like')]
  (second.path / 'diverged').touch()
  assert runner.chosen(way) == ('schedule.peak_lr=1',)
  (first.path / 'diverged').touch()
  with pytest.raises(config.InputError, match='all its tuning runs diverged'):
    runner.chosen(way)


_OF_FIXED = {'schedule.epochs': 1, 'schedule.warmup_epochs': 0,
             'evaluation.batch_size': 8, 'model.name': 'resnet8'}


def _leave_run(folder: pathlib.Path, **pairs: object) -> None:
  """What the shipped configuration with these overrides leaves."""
  folder.mkdir(parents=True)
  (folder / 'results.json').write_text('{}')
  config.save(config.resolve(config.load(
      ['configs/digits/vanilla.yaml'],
      [f'{key}={value}' for key, value in pairs.items()]), 1442),
              str(folder / 'params.yaml'))


def test_a_done_run_of_another_configuration_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(reproduce_runs.Runner, 'call', None)  # nothing is run
  suite = _suite(tmp_path)
  runner = reproduce_runs.Runner(suite, tmp_path, 1, lambda text: None)
  way, path = suite.ways['vanilla'], tmp_path / 'vanilla' / 'seed1'
  _leave_run(path, **{'schedule.epochs': 1, 'schedule.warmup_epochs': 0,
                      'schedule.peak_lr': 1, 'seed': 1})
  runner.run([reproduce_runs.Run(way, 1, ('schedule.peak_lr=1',), path)],
             lambda run: None)
  new = reproduce_runs.Run(way, 2, ('schedule.peak_lr=2',), tmp_path / 'new')
  for seed, rate, old, now in (
      (1, 4, 'schedule.peak_lr=1.0', 'schedule.peak_lr=4.0'),
      (3, 1, 'seed=1', 'seed=3')):
    other = reproduce_runs.Run(way, seed, (f'schedule.peak_lr={rate}',), path)
    with pytest.raises(config.InputError, match=(
        f'{path} was trained with {old}, not with {now} as it would be now; '
        'move it away')):
      runner.run([new, other], lambda run: None)
  # The folder may move, the data in it with it.
  suite = dataclasses.replace(suite, data=suites.Data(1, 1, 1))
  reproduce_runs.Runner(suite, tmp_path, 1).check(
      reproduce_runs.Run(way, 1, ('schedule.peak_lr=1',), path))


def test_several_workers_train_a_way(tmp_path: pathlib.Path) -> None:
  suite = _suite(tmp_path, _SUITE.replace('seeds: [1]', 'workers: 2'))
  command = reproduce_runs.Runner(suite, tmp_path, 1).command(
      reproduce_runs.Run(suite.ways['fixed'], 1, (), tmp_path / 'run'))
  before, after = command[:command.index('--')], command[
      command.index('--') + 1:]
  assert before[1:] == ['-m', 'tools.local_cluster', '--workers=2']
  assert after[1:3] == ['-m', 'conadv_tf.train']
  assert '--params_override=runtime.strategy=multi_worker_mirrored' in after
  with pytest.raises(config.InputError, match='way fixed: workers: must be'):
    _suite(tmp_path, _SUITE.replace('seeds: [1]', 'workers: 0'))


def test_only_what_is_not_done_is_trained(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  commands_, codes = [], [0, 3, 1]

  def run(command: list[str], **options: Any) -> subprocess.CompletedProcess:
    commands_.append(command)
    folder = pathlib.Path(command[-1].partition('=')[2])
    folder.mkdir(parents=True, exist_ok=True)
    options['stdout'].write('error: of this very run\n\n')
    return subprocess.CompletedProcess(command, codes[len(commands_) - 1])

  monkeypatch.setattr(reproduce_runs.subprocess, 'run', run)
  suite, after = _suite(tmp_path), []
  runner = reproduce_runs.Runner(suite, tmp_path, 1, lambda text: None)
  done, other, third, failing = (
      reproduce_runs.Run(suite.ways['fixed'], seed, ('model.name=resnet8',),
                         tmp_path / str(seed)) for seed in range(4))
  _leave_run(done.path, **_OF_FIXED)
  runner.run([done, other, third], after.append)
  assert after == [done, other, third] and len(commands_) == 2
  assert [run.diverged for run in after] == [False, False, True]
  with pytest.raises(
      config.InputError, match=r'3 ended with code 1, see .*3\.log: of this '
      r'very run$'):
    runner.run([failing], after.append)
  command = commands_[0]
  assert command[1:3] == ['-m', 'conadv_tf.train']
  assert f'--model_dir={tmp_path / "1"}' in command
  assert '--params_override=seed=1' in command
  assert '--params_override=schedule.epochs=1' in command
  assert command.index('--params_override=evaluation.batch_size=8'
                       ) < command.index('--params_override=model.name=resnet8')


def test_tables(tmp_path: pathlib.Path) -> None:
  suite = _suite(tmp_path)
  results = {'vanilla': {0: {'test/accuracy': 0.5, 'step': 1500},
                         1: {'test/accuracy': 0.52, 'step': 1500}},
             'like': {0: None, 1: {'test/accuracy': 0.25, 'step': 7}}}
  assert reproduce_report.table(
      suite, suite.tables[0], results).splitlines()[2:] == [
          '| vanilla | 2 | 51.00 ± 1.41 | 1,500 | 76.5 |',
          '| like | 1 (+1 diverged) | 25.00 | 7 |  |',
          '', 'Not run: fixed.']


@pytest.mark.parametrize(('key', 'values', 'shown'), [
    ('step', [703, 703], '703'), ('step', [703, 704], '703.50 ± 0.71'),
    ('seconds', [7.5], '7.50'), ('test/accuracy', [1, 1], '100.00 ± 0.00')])
def test_equal_whole_numbers_have_no_decimals(
    key: str, values: list[float], shown: str) -> None:
  assert reproduce_report.cell(np.array(values, float), key) == shown


def test_the_edge_of_a_grid_is_told(tmp_path: pathlib.Path) -> None:
  suite = _suite(tmp_path)
  tried = {'vanilla': [suites.Tried((f'schedule.peak_lr={rate}',), value)
                       for rate, value in ((1, 0.5), (4, 0.7), (2, None))]}
  text = reproduce_report.write(
      suite, {}, {}, {}, {}, tried, tmp_path)
  assert 'No run has these figures.' in text
  assert [line for line in text.splitlines() if 'peak_lr' in line] == [
      '| vanilla | schedule.peak_lr=1 | 0.5 |  |',
      '| vanilla | schedule.peak_lr=4 | 0.7 | chosen, at the edge of the grid '
      '|',
      '| vanilla | schedule.peak_lr=2 | diverged |  |']


@pytest.mark.slow
def test_a_small_suite_from_start_to_report(tmp_path: pathlib.Path) -> None:
  _suite(tmp_path)
  arguments = (f'--suite={tmp_path / "two.yaml"}', '--budget=small',
               f'--output={tmp_path / "out"}', '--jobs=2', '--seeds=0')
  done = commands.run('tools.reproduce', *arguments)
  assert done.code == 0, done.err
  # The third way has another seed.
  assert '2 runs of tuning' in done.out
  assert '2 runs: 3 ways, seed 0' in done.out and '[2/2] ' in done.out
  report = (tmp_path / 'out' / 'report.md').read_text()
  results = json.loads((tmp_path / 'out' / 'results.json').read_text())
  accuracy = results['results']['vanilla']['0']['test/accuracy']
  assert f'| vanilla | 1 | {100 * accuracy:.2f} |' in report
  assert str(tmp_path) not in report
  assert 'whatever stands above:** `data.num_examples=256`.' in report
  assert 'accuracies and gaps in %' in report
  # As it runs where the files lie.
  assert ('python -m tools.reproduce --suite=two --budget=small --output=out '
          '--jobs=2 --seeds=0') in report
  page = (tmp_path / 'out' / 'report.html').read_text()
  assert page.count('<img ') == 2 and f'{100 * accuracy:.2f}' in page
  before = commands.digest(tmp_path / 'out' / 'vanilla')
  again = commands.run('tools.reproduce', *arguments)
  assert again.code == 0 and '[1/' not in again.out
  assert commands.digest(tmp_path / 'out' / 'vanilla') == before
