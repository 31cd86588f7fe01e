"""Jobs on TPU VMs: their end, attaching to them, and lost machines.

Against a stand-in for `gcloud`; the remote scripts of jobs run here, in a home
directory of their own.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import pathlib
import shlex
import signal

import pytest

from tests.fake_gcloud import Launcher, PLACE, TRAIN, V3_8, WATCH

_NOT_FOUND = [1, '', 'ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: '
              'Resource was not found']
_PREEMPTED = [0, 'PREEMPTED', '']
_LOST = [255, '', '']
# What a recreated machine goes through, with a mount and no disks.
_SETUP = ['mount', 'prepare', 'scp', 'install']
_ATTEMPT = ['start', 'follow']


@pytest.fixture(name='tpu_vm')
def _tpu_vm(tmp_path: pathlib.Path) -> Launcher:
  return Launcher(tmp_path)


@pytest.fixture(name='remote')
def _remote(tpu_vm: Launcher) -> Iterator[Callable[[str], None]]:
  """Makes this machine the TPU VM; the argument runs before each follow."""
  source = tpu_vm.home / 'conadv_source'
  source.mkdir()
  (source / 'installed').touch()

  tpu_vm.add_system_path()

  def run(before_follow: str = ':') -> None:
    tpu_vm.environment['REMOTE'] = before_follow

  yield run
  job = tpu_vm.home / 'conadv_job'
  if (job / 'pid').exists() and not (job / 'code').exists():
    with contextlib.suppress(ProcessLookupError):
      os.killpg(int((job / 'pid').read_text()), signal.SIGKILL)


def test_the_log_and_the_exit_code_come_back(
    tpu_vm: Launcher, remote: Callable) -> None:
  remote()
  code, out, _ = tpu_vm('train', *V3_8, '--', 'bash', '-c',
                        'echo "in $PWD: $TF_PLUGGABLE_DEVICE_LIBRARY_PATH $0";'
                        ' exit 5')
  assert code == 5
  assert f'in {tpu_vm.home}/conadv_source: /lib/libtpu.so --tpu=local' in out


def test_a_job_survives_the_connection_and_is_attached_to(
    tpu_vm: Launcher, remote: Callable) -> None:
  job = ['--', 'bash', '-c', 'echo x >> ~/started; '
         'until [ -e ~/go ]; do sleep 0.02; done; exit 3']
  remote('touch ~/go')
  code, _, err = tpu_vm('train', *V3_8, *job, follow=[_LOST])
  assert code == 255 and 'the same command attaches again' in err
  code, _, err = tpu_vm('train', *V3_8, '--', 'true')
  assert code == 2 and 'error: another job is running there' in err
  assert tpu_vm('train', *V3_8, *job)[0] == 3
  assert (tpu_vm.home / 'started').read_text() == 'x\n'


def test_a_terminated_job_tells_its_code(
    tpu_vm: Launcher, remote: Callable) -> None:
  remote('until [ -e ~/up ]; do sleep 0.02; done; '
         'kill -TERM -- -$(cat ~/conadv_job/pid)')
  code = tpu_vm('train', *V3_8, '--', 'bash', '-c',
                "trap 'exit 143' TERM; touch ~/up; "
                'while true; do sleep 0.02; done')[0]
  assert code == 143


def test_a_killed_job_is_a_crash(tpu_vm: Launcher, remote: Callable) -> None:
  remote('until kill -KILL -- -$(cat ~/conadv_job/pid); do sleep 0.02; done')
  assert tpu_vm('train', *V3_8, '--', 'sleep', '60')[0] == 1


def test_train_before_setup(tpu_vm: Launcher, remote: Callable) -> None:
  remote()
  (tpu_vm.home / 'conadv_source/installed').unlink()
  code, _, err = tpu_vm('train', *V3_8, '--', 'true')
  assert code == 78 and 'error: setup was not run' in err


def test_watch_survives_two_preemptions(tpu_vm: Launcher) -> None:
  code = tpu_vm('train', *V3_8, '--spot', *WATCH, *TRAIN,
                follow=[_LOST, [143, '', ''], [0, '', '']],
                describe=[_PREEMPTED, _NOT_FOUND])[0]
  assert code == 0
  assert tpu_vm.kinds == [
      *_ATTEMPT, 'describe', 'delete', 'create', *_SETUP,
      *_ATTEMPT, 'describe', 'create', *_SETUP, *_ATTEMPT]
  commands = [words for words in tpu_vm.recorded if words[0] == 'create']
  assert commands[0] == commands[1] and commands[0][-1] == '--spot'
  starts = [words for words in tpu_vm.recorded if words[0] == 'start']
  assert starts[0] == starts[1] == starts[2]
  delete = next(w for w in tpu_vm.recorded if w[0] == 'delete')
  assert delete[1:] == ['gcloud', 'compute', 'tpus', 'tpu-vm', 'delete', 't',
                        *PLACE, '--quiet']


def test_watch_asks_again_for_queued_machines(tpu_vm: Launcher) -> None:
  code = tpu_vm('train', *V3_8, '--queued', '--spot', *WATCH, *TRAIN,
                follow=[_LOST], describe=[_NOT_FOUND],
                ask=[[0, 'SUSPENDED', ''],
                     [0, 'WAITING_FOR_RESOURCES', '']])[0]
  assert code == 0
  assert tpu_vm.kinds == [
      *_ATTEMPT, 'describe', 'ask', 'delete', 'create', 'ask', 'ask', *_SETUP,
      *_ATTEMPT]
  assert tpu_vm.recorded[4][4:] == ['queued-resources', 'delete', 't', *PLACE,
                                    '--force', '--quiet']


def test_watch_keeps_its_place_in_the_queue(tpu_vm: Launcher) -> None:
  code = tpu_vm('train', *V3_8, '--queued', '--spot', *WATCH, *TRAIN,
                follow=[_LOST], describe=[_NOT_FOUND],
                ask=[[1, '', 'gcloud has no connection'],
                     [0, 'WAITING_FOR_RESOURCES', '']])[0]
  assert code == 0
  assert tpu_vm.kinds == [
      *_ATTEMPT, 'describe', 'ask', 'ask', 'ask', *_SETUP, *_ATTEMPT]


@pytest.mark.parametrize('flags', [[], ['--queued']], ids=str)
def test_a_dry_watch_prints_what_a_watch_may_run(
    tpu_vm: Launcher, flags: list[str]) -> None:
  """Whatever happens runs nothing else, and everything printed may run."""
  watch = [*V3_8, *flags, *WATCH, *TRAIN]
  code, out, _ = tpu_vm('train', '--dry_run', '--max_restarts=7', *watch)
  assert (code, tpu_vm.recorded) == (0, [])
  lines = out.splitlines()
  assert lines[0] == '# at first'
  assert lines[3].startswith(
      '# after every exit code but 0, 2, 3, 7 times at most')
  printed = {tuple(shlex.split(line)) for line in lines if line[0] != '#'}
  assert tpu_vm('train', *watch, follow=[_LOST] * 4,
                start=[[0, '', ''], [78, '', '']],
                describe=[[0, 'READY', ''], _PREEMPTED, _NOT_FOUND])[0] == 0
  assert {'mount', 'install', 'delete', 'create', 'describe'} <= set(
      tpu_vm.kinds)
  assert {tuple(words[1:]) for words in tpu_vm.recorded} == printed


def test_a_dry_watch_says_when(tpu_vm: Launcher) -> None:
  out = tpu_vm('train', '--dry_run', *V3_8, *WATCH, *TRAIN)[1]
  blocks: dict[str, list[str]] = {}
  for line in out.splitlines():
    if line[0] == '#':
      when = line
      blocks[when] = []
    else:
      blocks[when].append(line)
  counts = {when: len(lines) for when, lines in blocks.items()}
  assert counts == {
      '# at first': 2,
      '# after every exit code but 0, 2, 3, 50 times at most; again while the '
      'machine is being repaired or restarted': 1,
      '# if it is READY': 1,
      '# instead, if it is READY and the exit code was 78: setup was not '
      'complete': 4,
      '# if it is PREEMPTED, TERMINATED or STOPPED': 1,
      '# if it is PREEMPTED, TERMINATED or STOPPED, or missing': 1,
      '# on the new machine': 4, '# if all that succeeded; then as above': 2}
  (deletes, creates) = (blocks[when][0] for when in counts
                        if when.startswith('# if it is PREEMPTED'))
  assert ' delete t ' in deletes and ' create t ' in creates


@pytest.mark.parametrize('final', [0, 2, 3])
def test_watch_stops_at_what_no_restart_mends(
    tpu_vm: Launcher, final: int) -> None:
  code = tpu_vm('train', *V3_8, *WATCH, *TRAIN, follow=[[final, '', '']])[0]
  assert (code, tpu_vm.kinds) == (final, _ATTEMPT)


def test_watch_starts_again_on_a_machine_that_is_well(
    tpu_vm: Launcher) -> None:
  """After a lost peer, a crash and a connection that only broke."""
  code = tpu_vm('train', *V3_8, *WATCH, *TRAIN,
                follow=[[75, '', ''], [1, '', ''], _LOST])[0]
  assert code == 0
  assert tpu_vm.kinds == _ATTEMPT + ['describe', 'mount', *_ATTEMPT] * 3


def test_watch_gives_up(tpu_vm: Launcher) -> None:
  code, _, err = tpu_vm('train', *V3_8, *WATCH, '--max_restarts=2', *TRAIN,
                        follow=[[75, '', '']] * 5)
  assert code == 75 and 'gave up after 2 restarts' in err
  assert tpu_vm.kinds.count('start') == 3


def test_watch_waits_for_repairs_and_sets_up_new_machines(
    tpu_vm: Launcher) -> None:
  code = tpu_vm('train', *V3_8, *WATCH, *TRAIN, follow=[_LOST],
                start=[[0, '', ''], [78, '', '']],
                describe=[[0, 'REPAIRING', ''], [0, 'REPAIRING', '']])[0]
  assert code == 0
  assert tpu_vm.kinds == [
      *_ATTEMPT, 'describe', 'describe', 'describe', 'mount', 'start',
      'describe', *_SETUP, *_ATTEMPT]


def test_watch_deletes_nothing_when_gcloud_cannot_tell(
    tpu_vm: Launcher) -> None:
  code = tpu_vm('train', *V3_8, *WATCH, *TRAIN, follow=[_LOST],
                describe=[[1, '', 'ERROR: no network'], [0, '', '']])[0]
  assert code == 0
  assert tpu_vm.kinds == [*_ATTEMPT, 'describe', 'describe', 'describe',
                          'mount', *_ATTEMPT]


def test_watch_tries_again_where_nothing_can_be_created(
    tpu_vm: Launcher) -> None:
  """Exit code 2 of gcloud is not that of the job."""
  code = tpu_vm('train', *V3_8, *WATCH, *TRAIN, follow=[_LOST],
                describe=[_PREEMPTED, _NOT_FOUND], create=[[2, '', '']])[0]
  assert code == 0
  assert tpu_vm.kinds == [
      *_ATTEMPT, 'describe', 'delete', 'create', 'describe', 'create', *_SETUP,
      *_ATTEMPT]
