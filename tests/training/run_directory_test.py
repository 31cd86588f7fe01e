import pathlib

import pytest

from conadv_tf import config
from conadv_tf.distribute import strategies
from conadv_tf.training import run_directory
from tests import tiny


def _opened(path: pathlib.Path) -> run_directory.RunDirectory:
  directory = run_directory.RunDirectory(str(path))
  directory.open(tiny.load())
  return directory


def test_looking_writes_nothing(tmp_path: pathlib.Path) -> None:
  directory = run_directory.RunDirectory(str(tmp_path / 'new'))
  directory.check(tiny.load())
  directory.cut_records(0)
  assert directory.saved_config() is None
  assert (directory.metrics(), directory.results()) == ([], None)
  assert directory.checkpoints.latest() is None
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('name', ['notes.txt', '.git', 'checkpoints'])
def test_foreign_directories(tmp_path: pathlib.Path, name: str) -> None:
  (tmp_path / name).touch()
  with pytest.raises(config.InputError, match='holds no params.yaml'):
    run_directory.RunDirectory(str(tmp_path))


def test_a_run_killed_in_its_first_moment_is_ours(
    tmp_path: pathlib.Path) -> None:
  (tmp_path / 'params.yaml.tmp').write_text('seed: ')
  directory = _opened(tmp_path)
  assert directory.saved_config() == tiny.load()
  assert [p.name for p in tmp_path.iterdir()] == ['params.yaml']


def test_only_runtime_checkpoint_and_evaluation_may_change(
    tmp_path: pathlib.Path) -> None:
  directory = _opened(tmp_path)
  free = tiny.load('runtime.micro_batches=2,runtime.deterministic=false,'
                   'checkpoint.keep=1,evaluation.attacks=[fgsm]')
  directory.open(free)
  assert directory.saved_config() == free
  directory.append_metrics({'step': 1})
  many = tiny.load('seed=1,method.lag=2,attack.radius=8,optimizer.eeta=0.01,'
                   'schedule.epochs=3,data.global_batch_size=4')
  with pytest.raises(config.InputError) as raised:
    directory.open(many)
  assert str(raised.value) == (
      f'model_dir {tmp_path} holds a different configuration (seed: 0 -> 1, '
      'data.global_batch_size: 8 -> 4, method.lag: 1 -> 2, attack.radius: '
      '16.0 -> 8.0, optimizer.eeta: 0.001 -> 0.01, ...); use another '
      'model_dir, or delete this one')
  assert directory.saved_config() == free


def test_a_run_that_has_done_nothing_yet_may_change(
    tmp_path: pathlib.Path) -> None:
  # As after refused input: the corrected command must work.
  directory = _opened(tmp_path)
  other = tiny.load('seed=1')
  directory.open(other)
  assert directory.saved_config() == other


def test_metrics_are_cut_back_to_the_checkpoint(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
  directory = _opened(tmp_path)
  for step in (2, 4, 6):
    directory.append_metrics({'step': step, 'loss': step / 3})
  with open(tmp_path / 'metrics.jsonl', 'a', encoding='utf-8') as file:
    file.write('{"step": 8, "lo')
  assert [r['step'] for r in directory.metrics()] == [2, 4, 6]
  assert 'dropping a damaged line' in caplog.text
  directory.cut_records(4)
  assert directory.metrics() == [{'step': 2, 'loss': 2 / 3},
                                 {'step': 4, 'loss': 4 / 3}]
  directory.append_metrics({'step': 5})
  assert (tmp_path / 'metrics.jsonl').read_text().splitlines()[-1] == (
      '{"step": 5}')
  directory.cut_records(0)
  assert (tmp_path / 'metrics.jsonl').read_text() == ''


def test_growth_is_cut_back_to_before_the_checkpoint(
    tmp_path: pathlib.Path) -> None:
  directory = _opened(tmp_path)
  for step, ratio in ((0, 1), (2, 1), (4, 2), (6, 2), (7, 4)):
    directory.record_growth({'step': step}, {'ratio': ratio})
  expected = [{'step': 0, 'ratio': 1}, {'step': 4, 'ratio': 2},
              {'step': 7, 'ratio': 4}]
  assert directory.growth() == expected
  # What takes effect at a step is decided after the checkpoint of that step.
  for step, kept in ((7, 2), (4, 1)):
    directory.cut_records(step)
    assert directory.growth() == expected[:kept]
  again = run_directory.RunDirectory(str(tmp_path))
  again.record_growth({'step': 4}, {'ratio': 1})  # as before
  again.record_growth({'step': 5}, {'ratio': 2})
  assert again.growth() == [expected[0], {'step': 5, 'ratio': 2}]
  again.cut_records(0)
  assert again.growth() == []
  again.record_growth({'step': 0}, {'ratio': 2})
  reader = run_directory.RunDirectory(str(tmp_path), writes=False)
  reader.record_growth({'step': 1}, {'ratio': 3})
  assert reader.growth() == [{'step': 0, 'ratio': 2}]


def test_results_are_read_back(tmp_path: pathlib.Path) -> None:
  directory = _opened(tmp_path)
  directory.write_results({'step': 6, 'validation/accuracy': 0.5})
  assert directory.results() == {'step': 6, 'validation/accuracy': 0.5}
  assert sorted(p.name for p in tmp_path.iterdir()) == [
      'params.yaml', 'results.json']


@pytest.mark.parametrize('before, now, expected, warning', [
    ('runtime.micro_batches=4', 'runtime.micro_batches=4', 4, ''),
    ('runtime.micro_batches=4',
     'runtime.strategy=mirrored,runtime.num_replicas=2', 2,
     'runtime.micro_batches is 2, so that the 4 virtual replicas'),
    ('runtime.strategy=mirrored,runtime.num_replicas=4', '', 4,
     'runtime.micro_batches is 4'),
    ('runtime.micro_batches=2',
     'runtime.strategy=mirrored,runtime.num_replicas=4', 1,
     'resuming with 4 x 1 virtual replicas instead of 2: numbers will differ'),
])
def test_virtual_replicas_stay(
    caplog: pytest.LogCaptureFixture, before: str, now: str, expected: int,
    warning: str) -> None:
  saved, resumed = tiny.load(before), tiny.load(now)
  for loaded in (saved, resumed):
    strategies.plan(loaded.runtime, strategies.ALONE)
  run_directory.keep_virtual_replicas(saved, resumed)
  assert resumed.runtime.micro_batches == expected
  assert warning in caplog.text
  assert len(caplog.records) == bool(warning)


def test_a_new_run_keeps_its_micro_batches() -> None:
  new = tiny.load('runtime.micro_batches=2')
  run_directory.keep_virtual_replicas(None, new)
  assert new.runtime.micro_batches == 2
