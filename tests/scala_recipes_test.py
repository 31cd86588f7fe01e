"""The recipes of the ScaLA paper against its tables and appendices B and C."""

from collections.abc import Iterator
import itertools
import math
import pathlib
import re
import shlex

import pytest

from conadv_tf import config, description

_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
_FOLDER = _REPOSITORY / 'configs' / 'scala'
_PAGE = (_REPOSITORY / 'docs' / 'scala_recipes.md').read_text('utf-8')
# Training examples, printed updates at batch 32 and 1,024 (Tables 1 and 2).
_TASKS = {
    'mnli': (392_702, 73_632, 2_301), 'qnli': (104_743, 19_644, 615),
    'qqp': (363_846, 68_226, 2_133), 'sst2': (67_349, 12_630, 396)}
_BATCHES = {'1k': 1024, '2k': 2048, '4k': 4096, '8k': 8192}
# Appendix B.
_SMALL_GRID = (1e-5, 3e-5, 5e-5, 7e-5, 9e-5, 1e-4, 3e-4)
_LARGE_GRID = (5.6e-5, 8e-5, 1e-4, 1.7e-4, 2.4e-4, 2.8e-4, 4e-4, 5.6e-4, 1e-3)
_FIGURE_4B = (1e-4, 3e-4, 5e-4, 7e-4, 9e-4, 1e-3, 3e-3)


def _load(names: str, overrides: str = '') -> config.ExperimentConfig:
  """A task's file and overlays, resolved for the whole training set."""
  task, *overlays = names.split()
  loaded = config.load(
      [str(_FOLDER / f'{task}.yaml'),
       *(str(_FOLDER / 'overlays' / f'{name}.yaml') for name in overlays)],
      overrides)
  return config.resolve(loaded, _TASKS[task][0])


def _cells(line: str) -> list[str]:
  return [cell.strip() for cell in line.strip().strip('|').split('|')]


def _rows() -> Iterator[list[str]]:
  """The rows of the page's tables."""
  for line in _PAGE.splitlines():
    if line.startswith('|') and not set(line) <= set('|- '):
      yield _cells(line)


def _commands() -> list[tuple[str, str]]:
  """(files, overrides) of every run that the tables name."""
  found = []
  for row in _rows():
    files = re.fullmatch('`([a-z0-9_ ]+)`', row[1])
    if files and files[1].split()[0] in _TASKS:
      overrides = re.findall('`([^`]+)`', row[2]) or ['']
      found += [(files[1], text) for text in overrides]
  return found


_COMMANDS = _commands()


def test_every_file_is_in_the_page_s_tables() -> None:
  named = {name for files, _ in _COMMANDS for name in files.split()}
  assert named | {'2k', '4k'} == {
      path.stem for path in _FOLDER.rglob('*.yaml')}
  assert len(_COMMANDS) > 40


@pytest.mark.parametrize('files, overrides', _COMMANDS)
def test_every_run_of_the_page_is_legal(files: str, overrides: str) -> None:
  unused = set(config.unused_keys(_load(files, overrides)))
  # Noise has no gradient whose weights could be of any age.
  assert unused <= ({'method.lag'} if overrides.endswith('.steps=0') else set())


def test_the_page_s_command_is_scala_on_sst2() -> None:
  block = _PAGE.partition('```\n')[2].partition('```')[0]
  words = shlex.split(block.replace('\\\n', ' '))
  assert words[:3] == ['python', '-m', 'conadv_tf.train']
  flags = [word.partition('=')[::2] for word in words[3:]]
  files = [str(_REPOSITORY / value) for name, value in flags
           if name == '--config_file']
  overrides = [value for name, value in flags if name == '--params_override']
  loaded = config.resolve(config.load(files, overrides), 67_349)
  assert loaded.as_dict() == _load('sst2 1k lamb scala').as_dict()


@pytest.mark.parametrize('task', _TASKS)
def test_updates_are_those_of_the_tables(task: str) -> None:
  examples, small, large = _TASKS[task]
  assert _load(task).derived.total_steps == small
  row = next(row for row in _rows() if row[0] == f'`{task}`')
  assert row[1:4] == [f'{n:,}' for n in (examples, small, large)]
  passes = -(-examples // 512)
  for (name, batch), shown in zip(_BATCHES.items(), row[3:]):
    derived = _load(f'{task} {name}').derived
    assert derived.total_steps == 6 * passes * 512 // batch
    assert derived.micro_batch_size == 512
    assert shown == f'{derived.total_steps:,}'
  assert _load(f'{task} 1k lamb scala').derived.total_steps == large


@pytest.mark.parametrize('files', ['sst2', 'mnli 1k lamb', 'qqp 8k'])
def test_the_rate_rises_for_a_tenth_and_falls_to_0(files: str) -> None:
  resolved = _load(files)
  rate, derived = description.schedule(resolved), resolved.derived
  peak, total = resolved.schedule.peak_lr, derived.total_steps
  warmup = derived.warmup_steps
  assert abs(warmup - 0.1 * total) <= 0.5 + 0.1
  assert float(rate(warmup)) == pytest.approx(peak, rel=1e-5)
  assert float(rate(warmup / 2)) == pytest.approx(peak / 2, rel=0.2)
  middle = (warmup + total) // 2
  assert float(rate(middle)) == pytest.approx(
      peak * (total - middle) / (total - warmup), rel=1e-4)
  assert float(rate(total)) == pytest.approx(0, abs=1e-9)


def test_rates_scale_by_the_square_root() -> None:
  for task in _TASKS:
    small = _load(task).schedule.peak_lr
    assert small in _SMALL_GRID
    for name, batch in _BATCHES.items():
      assert _load(f'{task} {name}').schedule.peak_lr == pytest.approx(
          small * math.sqrt(batch / 32), rel=1e-3)
  # The paper's grid is of such rates, rounded down or to the nearest.
  for times, rates, printed in (
      (32, (1, 3, 5, 7, 10), (5.6e-5, 1.7e-4, 2.8e-4, 4e-4, 5.6e-4)),
      (64, (1, 3), (8e-5, 2.4e-4))):
    assert set(printed) <= set(_LARGE_GRID)
    assert printed == pytest.approx(
        [math.sqrt(times) * rate * 1e-5 for rate in rates], rel=0.0125)


def test_the_grids_are_the_paper_s() -> None:
  found = {}
  for files, runs in itertools.groupby(
      (c for c in _COMMANDS if c[1].startswith('schedule.peak_lr')),
      key=lambda command: command[0]):
    found[files] = tuple(_load(*run).schedule.peak_lr for run in runs)
  assert found == {'sst2': _SMALL_GRID, 'sst2 1k lamb scala': _LARGE_GRID,
                   'mnli 1k': _FIGURE_4B}


@pytest.mark.parametrize('task', _TASKS)
def test_methods_and_their_optimizers(task: str) -> None:
  small, large, lamb, scala, adam, freelb = (
      _load(f'{task} {names}') for names in (
          '', '1k', '1k lamb', '1k lamb scala', '1k scala', 'freelb'))
  for c in (small, large, adam, freelb):
    assert (c.optimizer.name, c.optimizer.epsilon) == ('adamw', 1e-8)
  for c in (lamb, scala):
    assert (c.optimizer.name, c.optimizer.trust_clip) == ('lamb', [0, 10])
  for c in (small, large, lamb, scala, adam, freelb):
    assert (c.optimizer.weight_decay, c.optimizer.global_clipnorm) == (0, 1)
    assert (c.data.name, c.text.task) == ('glue', task)
    assert (c.text.sequence_length, c.schedule.epochs) == (128, 6)
  assert [c.method.name for c in (small, lamb, scala, adam, freelb)] == [
      'vanilla', 'vanilla', 'scala', 'scala', 'freelb']
  assert scala.perturbation == adam.perturbation
  p = scala.perturbation
  assert (p.weight, p.radius, p.step_size, p.steps, p.delay_epochs) == (
      1, 1e-5, 1e-4, 1, 5)
  assert scala.method.lag == 0


def test_freelb_s_published_settings() -> None:
  runs = {files.split()[0]: _load(files, overrides).perturbation
          for files, overrides in _COMMANDS if files.endswith('freelb')}
  # Step, steps, start, radius.
  assert {task: (p.step_size, p.steps, p.start_size, p.radius)
          for task, p in runs.items()} == {
              'mnli': (0.1, 2, 0.1, 0.3), 'qnli': (0.075, 2, 0.15, 0.15),
              'qqp': (0.2, 2, 0.32, 0.7), 'sst2': (0.1, 2, 1, 0.6)}
  assert {p.start for p in runs.values()} == {'sentence'}
