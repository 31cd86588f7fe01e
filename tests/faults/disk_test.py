"""A full disk: training goes on, what is saved stays, nothing is lost."""

import os
import pathlib
import resource
import shutil
import subprocess
import sys

import pytest

from tests import commands
from tests.faults import groups

pytestmark = pytest.mark.slow

_REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# In a namespace of its own, where everybody may mount. $1 is the mounted
# directory, $2 what is left of it; the job follows.
_ON_A_SMALL_DISK = '''
mount -t tmpfs -o size=1m tmpfs "$1" || exit 99
disk=$1; left=$2; shift 2
"$@" 2> "$left/first.err"; echo $? > "$left/first.code"
cp -r "$disk/run" "$left/full"; rm -f "$disk/filler"
"$@" 2> "$left/second.err"; echo $? > "$left/second.code"
cp -r "$disk/run" "$left/run"
'''


def _may_mount() -> bool:
  return shutil.which('unshare') is not None and subprocess.run(
      ['unshare', '-rm', 'true'], check=False,
      stderr=subprocess.DEVNULL).returncode == 0


@pytest.mark.skipif(not _may_mount(), reason='needs unshare -rm')
@pytest.mark.parametrize('update, last, saved, problem', [
    # There is room in the last block of metrics.jsonl, or it must be made.
    (4, 12, [2, 3], 'checkpoint of update 12 not saved'),
    (1, 3, [], 'run cannot be written'),
])
def test_a_full_disk(unbroken: pathlib.Path, tmp_path: pathlib.Path,
                     update: int, last: int, saved: list[int],
                     problem: str) -> None:
  disk = tmp_path / 'disk'
  disk.mkdir()
  done = subprocess.run(
      ['unshare', '-rm', 'sh', '-c', _ON_A_SMALL_DISK, 'sh', str(disk),
       str(tmp_path), sys.executable, '-m', 'tests.faults.faulty',
       f'0:update:{update}:full', str(disk),
       *groups.flags(disk / 'run', 'runtime.micro_batches=6')],
      cwd=_REPOSITORY, env={**os.environ, **groups.THREADS}, check=False)
  if done.returncode == 99:
    pytest.skip('may not mount a tmpfs')
  first = (tmp_path / 'first.err').read_text('utf-8')
  assert (tmp_path / 'first.code').read_text('utf-8') == '2\n', first
  assert 'Traceback' not in first
  # Training goes on; the checkpoints from before are kept.
  for step in range(update, last):
    assert f'NOT SAVED: checkpoint of update {step} not saved' in first
  assert 'No space left on device; training goes on' in first
  (line,) = [x for x in first.splitlines() if x.startswith('error: ')]
  assert problem in line
  assert 'No space left on device; make room and run the same command' in line
  assert [int(p.name[-2:]) for p in sorted(
      (tmp_path / 'full' / 'checkpoints').glob('*'))] == saved
  second = (tmp_path / 'second.err').read_text('utf-8')
  assert (tmp_path / 'second.code').read_text('utf-8') == '0\n', second
  assert ('resuming at update 3 of 12' in second) == (saved[-1:] == [3])
  groups.assert_same_end(unbroken, tmp_path / 'run')


def _limit() -> None:
  # Python ignores SIGXFSZ: writing more is an OSError, as on a full disk.
  resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))


def test_files_that_may_not_grow(tmp_path: pathlib.Path) -> None:
  """Small files can be written, checkpoints cannot."""
  flags = groups.flags(tmp_path / 'run', 'schedule.epochs=2')
  done = commands.run('conadv_tf.train', *flags, before=_limit)
  line = done.refusal()
  assert 'checkpoint of update 2 not saved' in line
  assert done.err.count('CHECKPOINT NOT SAVED') == 1
  assert list((tmp_path / 'run' / 'checkpoints').iterdir()) == []
  assert commands.run('conadv_tf.train', *flags).code == 0
