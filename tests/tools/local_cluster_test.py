"""The launcher with real processes: output, codes, signals, restarts."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tools import workers

_REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# What the children's programs begin with.
_PREAMBLE = '''
import json, os, signal, sys, time
index = json.loads(os.environ['TF_CONFIG'])['task']['index']
def count():
  """Leaves a mark for each start of this worker."""
  with open(f'started_{index}', 'a') as file:
    file.write('x')
def on_sigterm(work):
  signal.signal(signal.SIGTERM, lambda *_: work())
'''


def _command(flags: list[str], program: str) -> list[str]:
  return [sys.executable, '-m', 'tools.local_cluster', *flags, '--',
          sys.executable, '-c', _PREAMBLE + program]


def _start(tmp_path: pathlib.Path, flags: list[str], program: str,
           **environment: str) -> subprocess.Popen:
  return subprocess.Popen(
      _command(flags, program), cwd=tmp_path, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      env={**os.environ, 'PYTHONPATH': str(_REPOSITORY), **environment})


def _run(*arguments: Any, **environment: str) -> tuple[int, str, str]:
  """Exit code, stdout, stderr."""
  process = _start(*arguments, **environment)
  out, err = process.communicate(timeout=60)
  return process.returncode, out, err


def _wait_for_files(folder: pathlib.Path, *names: str) -> None:
  end = time.monotonic() + 30
  while not all((folder / name).exists() for name in names):
    assert time.monotonic() < end
    time.sleep(0.02)


def _is_running(pid: int) -> bool:
  try:
    status = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except (FileNotFoundError, ProcessLookupError):
    return False
  return status.rpartition(')')[2].split()[0] != 'Z'


def _assert_gone(folder: pathlib.Path, count: int) -> None:
  """None of the processes that wrote pid_* is left after a moment."""
  pids = [int(path.read_text()) for path in folder.glob('pid_*')]
  assert len(pids) == count
  end = time.monotonic() + 5
  while any(map(_is_running, pids)) and time.monotonic() < end:
    time.sleep(0.02)
  assert not any(map(_is_running, pids))


_WRITE_PID = '''
with open(f'writing_{index}', 'w') as file:
  file.write(str(os.getpid()))
os.rename(f'writing_{index}', f'pid_{index}')
'''


def test_every_worker_has_its_place(tmp_path: pathlib.Path) -> None:
  code, out, err = _run(tmp_path, ['--workers=3'], '''
print(os.environ['TF_CONFIG'])
threads = os.environ['TF_NUM_INTRAOP_THREADS']
print(threads, os.environ['MINE'], sys.stdin.read())
print('to stderr', file=sys.stderr)
''', MINE='kept', TF_NUM_INTRAOP_THREADS='7')
  assert code == 0
  lines = sorted(out.splitlines())
  assert len(lines) == 6
  configs = [json.loads(line.removeprefix(f'[worker {i}] '))
             for i, line in enumerate(lines[1::2])]
  for i, config in enumerate(configs):
    assert lines[2 * i] == f'[worker {i}] 7 kept '
    assert config['task'] == {'type': 'worker', 'index': i}
    assert config['cluster'] == configs[0]['cluster']
  addresses = configs[0]['cluster']['worker']
  assert len(set(addresses)) == 3
  assert all(re.fullmatch(r'127\.0\.0\.1:\d{5}', a) for a in addresses)
  assert sorted(err.splitlines()) == [
      f'[worker {i}] to stderr' for i in range(3)]


def test_a_single_worker_keeps_its_cluster(tmp_path: pathlib.Path) -> None:
  given = '{"task": {"index": 4}}'
  assert _run(tmp_path, ['--workers=1'], '''
print(os.environ['TF_CONFIG'], os.environ.get('TF_NUM_INTRAOP_THREADS'))
''', TF_CONFIG=given) == (0, f'[worker 0] {given} None\n', '')


def _written(*texts: tuple[str, bytes]) -> bytes:
  """What comes out when workers write in this order."""
  reading, writing = os.pipe()
  output = workers._Output(writing)
  for prefix, text in texts:
    output.write(prefix, text)
  os.close(writing)
  with open(reading, 'rb') as file:
    return file.read()


@pytest.mark.parametrize('texts, expected', [
    ([('A ', b'one\ntwo\n'), ('B ', b'three\n')], b'A one\nA two\nB three\n'),
    ([('A ', b'on'), ('A ', b'e\n'), ('A ', b'\n')], b'A one\nA \n'),
    ([('A ', b'1%'), ('A ', b'\r2%\r'), ('A ', b'3%\n')],
     b'A 1%\rA 2%\rA 3%\n'),
    ([('A ', b'dos\r\n'), ('B ', b'x\r'), ('B ', b'\n')],
     b'A dos\r\nB x\r\n'),
    # A line that another worker cuts goes on with a prefix of its own.
    ([('A ', b'1'), ('B ', b'x\n'), ('A ', b'2\n')], b'A 1\nB x\nA 2\n'),
    ([('A ', b'1'), ('B ', b'x\n'), ('A ', b'\n'), ('A ', b'2\n')],
     b'A 1\nB x\nA 2\n'),
])
def test_prefixes(texts: list[tuple[str, bytes]], expected: bytes) -> None:
  assert _written(*texts) == expected


def test_output_comes_at_once_and_lines_stay_whole(
    tmp_path: pathlib.Path) -> None:
  process = _start(tmp_path, ['--workers=2'], '''
if index == 0:
  sys.stdout.write('a'); sys.stdout.flush()
  open('wrote', 'w').close()
  while not os.path.exists('seen'):
    time.sleep(0.02)
  sys.stdout.write('b\\n')
else:
  while not os.path.exists('seen'):
    time.sleep(0.02)
  for _ in range(200):  # a line and its end apart
    sys.stdout.write('whole'); sys.stdout.flush()
    sys.stdout.write('\\n'); sys.stdout.flush()
''')
  assert os.read(process.stdout.fileno(), 100) == b'[worker 0] a'
  (tmp_path / 'seen').touch()
  out, _ = process.communicate(timeout=60)
  assert process.returncode == 0
  lines = [line for line in out.splitlines() if not line.endswith('b')]
  assert lines.count('[worker 1] whole') == 200 and len(lines) <= 201


def test_the_first_failure_stops_all(tmp_path: pathlib.Path) -> None:
  """Worker 0 handles SIGTERM with another code; worker 2 ignores it."""
  begin = time.monotonic()
  code, _, err = _run(tmp_path, ['--workers=3', '--grace_seconds=0.5'],
                      _WRITE_PID + '''
if index == 1:
  while not (os.path.exists('set_0') and os.path.exists('set_2')):
    time.sleep(0.02)
  sys.exit(7)
on_sigterm(lambda: sys.exit(9) if index == 0 else None)
open(f'set_{index}', 'w').close()
while True:
  time.sleep(60)
''')
  assert code == 7 and time.monotonic() - begin < 20
  assert err == 'local_cluster: worker 1 ended with code 7\n'
  _assert_gone(tmp_path, 3)


def test_a_killed_worker(tmp_path: pathlib.Path) -> None:
  code, _, _ = _run(tmp_path, ['--workers=2'], _WRITE_PID + '''
if index == 1:
  while not os.path.exists('pid_0'):
    time.sleep(0.02)
  os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
''')
  assert code == 137
  _assert_gone(tmp_path, 2)


def test_children_of_workers_go_too(tmp_path: pathlib.Path) -> None:
  code, _, _ = _run(tmp_path, ['--workers=2'], '''
import subprocess
child = subprocess.Popen(['sleep', '60'])
with open(f'pid_{index}', 'w') as file:
  file.write(str(child.pid))
''')
  assert code == 0
  _assert_gone(tmp_path, 2)


@pytest.mark.parametrize('code, starts', [(1, 3), (75, 3), (143, 3),
                                          (2, 1), (3, 1)])
def test_restarts(tmp_path: pathlib.Path, code: int, starts: int) -> None:
  returned, out, err = _run(tmp_path, ['--workers=2', '--max_restarts=2'], f'''
count()
print(os.environ['TF_CONFIG'])
if index == 1:
  while not os.path.exists('started_0'):
    time.sleep(0.02)
  sys.exit({code})
time.sleep(60)
''')
  assert returned == code
  assert len((tmp_path / 'started_1').read_text()) == starts
  last = f'local_cluster: worker 1 ended with code {code}'
  assert err.splitlines() == [
      f'{last}; starting all again (restart {i} of 2)'
      for i in range(1, starts)] + [last]
  ports = set(re.findall(r'127\.0\.0\.1:\d+', out))
  assert len(ports) > 2 if starts > 1 else len(ports) == 2


def test_a_restart_that_helps(tmp_path: pathlib.Path) -> None:
  code, out, _ = _run(tmp_path, ['--workers=2', '--max_restarts=5'], '''
if index == 1:
  while not os.path.exists('started_0'):
    time.sleep(0.02)
first = not os.path.exists('failed')
if first and index == 1:
  open('failed', 'w').close()
  sys.exit(75)
if first:
  open('started_0', 'w').close()
  time.sleep(60)
print('done')
''')
  assert (code, sorted(out.splitlines())) == (
      0, ['[worker 0] done', '[worker 1] done'])


@pytest.mark.parametrize('signum, program, code', [
    # They save and exit by themselves.
    (signal.SIGTERM, 'on_sigterm(lambda: sys.exit(143))', 143),
    (signal.SIGINT, 'on_sigterm(lambda: sys.exit(143))', 143),
    (signal.SIGINT, 'on_sigterm(lambda: sys.exit(0))', 0),
    # SIGTERM kills them.
    (signal.SIGTERM, '', 143),
    (signal.SIGINT, '', 130),
    # SIGTERM does nothing to worker 1: killed after the grace.
    (signal.SIGINT, 'on_sigterm(lambda: None if index else sys.exit(143))',
     130),
])
def test_signals(tmp_path: pathlib.Path, signum: int, program: str,
                 code: int) -> None:
  process = _start(
      tmp_path, ['--workers=2', '--max_restarts=5', '--grace_seconds=0.5'],
      f'count()\n{program}\n{_WRITE_PID}\nwhile True:\n  time.sleep(60)\n')
  _wait_for_files(tmp_path, 'pid_0', 'pid_1')
  process.send_signal(signum)
  _, error = process.communicate(timeout=30)
  assert process.returncode == code
  assert ('killed what did not end' in error) == ('None if index' in program)
  assert (tmp_path / 'started_0').read_text() == 'x'
  _assert_gone(tmp_path, 2)


def test_a_signal_before_a_restart(tmp_path: pathlib.Path) -> None:
  process = _start(tmp_path, ['--workers=1', '--max_restarts=5'],
                   'count()\nsys.exit(75)',
                   TF_CONFIG='{"task": {"index": 0}}')
  assert 'restart 1 of 5' in process.stderr.readline()
  process.terminate()
  process.communicate(timeout=30)
  assert process.returncode == 143
  assert (tmp_path / 'started_0').read_text() == 'x'


@pytest.mark.skipif(not sys.platform.startswith('linux'),
                    reason='needs PR_SET_PDEATHSIG')
def test_a_killed_launcher_leaves_nobody(tmp_path: pathlib.Path) -> None:
  process = _start(tmp_path, ['--workers=2'],
                   f'{_WRITE_PID}\ntime.sleep(60)')
  _wait_for_files(tmp_path, 'pid_0', 'pid_1')
  process.kill()
  process.communicate(timeout=30)
  _assert_gone(tmp_path, 2)


def test_nobody_reads_the_output(tmp_path: pathlib.Path) -> None:
  process = _start(tmp_path, ['--workers=2'], '''
for _ in range(1000):
  print('x' * 1000)
open(f'ended_{index}', 'w').close()
''')
  process.stdout.close()
  assert process.wait(timeout=60) == 0
  _wait_for_files(tmp_path, 'ended_0', 'ended_1')
  assert process.stderr.read() == ''
  process.stderr.close()


@pytest.mark.parametrize('arguments, part', [
    (['--workers=2'], 'no command; write it after --'),
    (['--workers=2', '--'], 'no command; write it after --'),
    (['--workers=0', '--', 'true'], '--workers=0'),
    (['--worker=2', '--', 'true'], "'worker'"),
    (['--workers=2', 'true'], "unexpected argument 'true'"),
    (['--workers=2', '--', '/no/such'], "cannot start '/no/such': No such"),
])
def test_bad_use(arguments: list[str], part: str) -> None:
  done = subprocess.run(
      [sys.executable, '-m', 'tools.local_cluster', *arguments],
      cwd=_REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
  assert done.returncode == 2 and done.stdout == ''
  assert part in done.stderr and done.stderr.count('\n') == 1
  assert done.stderr.startswith('error: ')


def test_help_warns(tmp_path: pathlib.Path) -> None:
  done = subprocess.run(
      [sys.executable, '-m', 'tools.local_cluster', '--help'],
      cwd=_REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
  assert done.returncode == 0
  assert '--max_restarts' in done.stdout
  assert 'no authentication' in done.stdout


_TENSORFLOW = '''
from conadv_tf.distribute import cluster
import tensorflow as tf
found = cluster.from_environment()
cluster.meet(found, 'token', 60)
resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
    tf.train.ClusterSpec({'worker': found.workers}), task_type='worker',
    task_id=found.index)
strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
@tf.function
def step():
  def replica():
    context = tf.distribute.get_replica_context()
    return context.all_reduce('sum', tf.constant(index + 1.0))
  return strategy.run(replica)
total = step()
if index == 1 and not os.path.exists('killed'):
  open('killed', 'w').close()
  os.kill(os.getpid(), signal.SIGKILL)
print('sum', float(step()))
'''


@pytest.mark.slow
def test_tensorflow_goes_on_after_a_kill(tmp_path: pathlib.Path) -> None:
  code, out, err = _run(
      tmp_path, ['--workers=2', '--max_restarts=1', '--grace_seconds=1'],
      _TENSORFLOW)
  assert code == 0, err
  assert 'worker 1 ended with code 137; starting all again' in err
  assert sorted(out.splitlines()) == ['[worker 0] sum 3.0',
                                      '[worker 1] sum 3.0']
