"""Groups that never begin: one clear line and a documented code."""

import fcntl
import functools
import os
import pathlib
import socket
import time

import pytest

from conadv_tf.distribute import ports
from tests import commands
from tests.faults import groups


def _flags(model_dir: pathlib.Path) -> list[str]:
  return groups.flags(model_dir, 'runtime.strategy=multi_worker_mirrored')


def _set_cluster(text: str) -> None:
  os.environ['TF_CONFIG'] = text


def test_a_worker_that_never_comes(tmp_path: pathlib.Path) -> None:
  own, other = ports.choose(2)
  begin = time.monotonic()
  done = commands.run(
      'conadv_tf.train', *_flags(tmp_path / 'run'),
      f'--worker_hosts=127.0.0.1:{own},127.0.0.1:{other}', '--task_index=0',
      '--peer_timeout=1.5')
  assert done.code == 75, done.err
  assert 1.5 < time.monotonic() - begin < 30
  (line,) = [x for x in done.err.splitlines() if x.startswith('error: ')]
  assert f'waited 1.5 s in vain for worker 1 (127.0.0.1:{other})' in line
  assert 'Traceback' not in done.err and not (tmp_path / 'run').exists()


def test_a_port_that_is_taken(tmp_path: pathlib.Path) -> None:
  with socket.create_server(('127.0.0.1', 0)) as taken:
    port = taken.getsockname()[1]
    line = commands.run(
        'conadv_tf.train', *_flags(tmp_path / 'run'),
        f'--worker_hosts=127.0.0.1:{port},127.0.0.1:1',
        '--task_index=0').refusal()
  assert f'port {port} of worker 0' in line and 'is in use by process' in line
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_worker_alone_at_an_address_of_another(
    tmp_path: pathlib.Path) -> None:
  address = f'192.0.2.1:{ports.choose(1)[0]}'  # of nobody (RFC 5737)
  begin = time.monotonic()
  line = commands.run(
      'conadv_tf.train', *_flags(tmp_path / 'run'), before=functools.partial(
          _set_cluster, '{"cluster": {"worker": ["%s"]}, "task": '
          '{"type": "worker", "index": 0}}' % address)).refusal()
  assert time.monotonic() - begin < 40
  assert f'worker 0 ({address}): ' in line
  assert 'write an address of this machine' in line
  assert not (tmp_path / 'run').exists()


def test_a_port_that_is_taken_from_a_worker_alone(
    tmp_path: pathlib.Path) -> None:
  with socket.create_server(('127.0.0.1', 0)) as taken:
    port = taken.getsockname()[1]
    line = commands.run(
        'conadv_tf.train', *_flags(tmp_path / 'run'),
        f'--worker_hosts=127.0.0.1:{port}', '--task_index=0').refusal()
  assert f'port {port} of worker 0' in line and 'is in use by process' in line
  assert not (tmp_path / 'run').exists()


def test_a_cluster_without_workers(tmp_path: pathlib.Path) -> None:
  line = commands.run(
      'conadv_tf.train', *_flags(tmp_path / 'run'), before=functools.partial(
          _set_cluster, '{"task": {"type": "worker", "index": 0}}')).refusal()
  assert 'TF_CONFIG has no "cluster"' in line
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_second_group_in_the_same_directory(tmp_path: pathlib.Path) -> None:
  """Worker 1 does not look at the lock, and would wait for worker 0."""
  descriptor = os.open(tmp_path, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    (tmp_path / 'params.yaml').write_text('seed: 0\n')
    before = commands.digest(tmp_path)
    ended = groups.run(tmp_path, grace_seconds=2)
  finally:
    os.close(descriptor)
  refused = ended.expect(2).when('[worker 0] error: model_dir')
  assert ended.count('is in use by another process') == 1
  assert ended.seconds - refused < 8
  assert commands.digest(tmp_path) == before
