"""Clusters from flags and TF_CONFIG, and the meeting of their workers."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from conadv_tf import exits
from conadv_tf.config import InputError
from conadv_tf.distribute import cluster, meeting, ports
from conadv_tf.distribute.cluster import Cluster

_REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def _environment(workers: Any, task: Any, **jobs: Any) -> dict[str, str]:
  return {'TF_CONFIG': json.dumps(
      {'cluster': {**jobs, 'worker': workers}, 'task': task})}


def _task(index: Any, kind: str = 'worker') -> dict[str, Any]:
  return {'type': kind, 'index': index}


def test_flags() -> None:
  found = cluster.from_flags(['a:1', '[::1]:2'], 1)
  assert found == Cluster(('a:1', '[::1]:2'), 1)
  assert not found.is_chief and found.own_address == '[::1]:2'
  assert cluster.from_flags(['a:1'], 0).is_chief


@pytest.mark.parametrize('environment, expected', [
    ({}, None),
    ({'TF_CONFIG': ' '}, None),
    (_environment(['a:1', 'b:2'], _task(1)), Cluster(('a:1', 'b:2'), 1)),
    (_environment(['a:1', 'b:2'], _task('1')), Cluster(('a:1', 'b:2'), 1)),
    (_environment(['a:1', 'b:2'], _task(0), chief=['c:3']),
     Cluster(('c:3', 'a:1', 'b:2'), 1)),
    (_environment(['a:1'], _task(0, 'chief'), chief=['c:3']),
     Cluster(('c:3', 'a:1'), 0)),
])
def test_environment(environment: dict[str, str],
                     expected: Cluster | None) -> None:
  assert cluster.from_environment(environment) == expected


@pytest.mark.parametrize('hosts, index, parts', [
    (['a:1'], None, ['--task_index is missing']),
    ([], 0, ['--worker_hosts lists no workers']),
    (['a:1', 'b:2'], 2, ['--task_index is 2, but --worker_hosts lists 2']),
    (['a:1', 'b:2'], -1, ['--task_index is -1']),
    (['a', 'b:2'], 0, ["worker 0 is 'a'; write host:port"]),
    (['a:1', 'http://b:2'], 0, ["worker 1 is 'http://b:2'; write host:port"]),
    (['a:1', 'b:0'], 0, ["worker 1 is 'b:0'", '1 to 65535']),
    (['a:65536'], 0, ['1 to 65535']),
    (['a:1', 'b:2', 'A:01'], 0, ['workers 0 and 2 have the same address']),
])
def test_bad_flags(hosts: list[str], index: int | None,
                   parts: list[str]) -> None:
  with pytest.raises(InputError) as caught:
    cluster.from_flags(hosts, index)
  assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize('environment, parts', [
    ({'TF_CONFIG': '{"cluster": '}, ['TF_CONFIG is not JSON', 'an example']),
    ({'TF_CONFIG': '[]'}, ['TF_CONFIG must be an object, got []']),
    ({'TF_CONFIG': '{"task": {"type": "worker", "index": 0}}'},
     ['TF_CONFIG has no "cluster"']),
    ({'TF_CONFIG': '{"cluster": {"worker": ["a:1"]}}'}, ['has no "task"']),
    (_environment(['a:1'], {'index': 0}), ['task has no "type"']),
    (_environment(['a:1'], {'type': 'worker'}), ['task has no "index"']),
    (_environment(['a:1'], _task(0, 'evaluator')), ["type 'evaluator'"]),
    (_environment(['a:1'], _task(0, 'wroker')), ["type 'wroker'"]),
    (_environment(['a:1'], _task(0), ps=['b:2']), ["cluster has the type 'p"]),
    (_environment(['a:1'], _task(0), chief=['b:2', 'c:3']), ['2 chiefs']),
    (_environment('a:1', _task(0)), ["must be a list of host:port, got 'a:1'"]),
    (_environment([['a:1']], _task(0)), ["worker 0 is ['a:1']"]),
    (_environment([], _task(0)), ['index is 0, but the cluster lists 0']),
    (_environment(['a:1', 'b:2'], _task(2)), ['is 2, but the cluster lists 2']),
    (_environment(['a:1', 'b:2'], _task(1.0)), ['an integer, got 1.0']),
    (_environment(['a:1', 'b:2'], _task(True)), ['an integer, got True']),
    (_environment(['a:1', 'b:2'], _task('one')), ["an integer, got 'one'"]),
    (_environment(['a:1'], _task(0, 'chief')), ['chief index is 0, but']),
    (_environment(['a:1', 'a:1'], _task(0)), ['same address a:1']),
])
def test_bad_environment(environment: dict[str, str],
                         parts: list[str]) -> None:
  with pytest.raises(InputError) as caught:
    cluster.from_environment(environment)
  assert all(part in str(caught.value) for part in parts), caught.value
  assert '\n' not in str(caught.value)


def test_nothing_imports_tensorflow() -> None:
  done = subprocess.run(
      [sys.executable, '-c', 'import sys\n'
       'from conadv_tf.distribute import cluster\n'
       'sys.exit("tensorflow" in sys.modules)'],
      cwd=_REPOSITORY, check=False)
  assert done.returncode == 0


class _Workers:
  """Workers in threads of this process, on ports of this machine."""

  def __init__(self, count: int):
    self.addresses = tuple(f'127.0.0.1:{p}' for p in ports.choose(count))
    self._threads: list[threading.Thread] = []
    self._ends: dict[int, tuple[Exception | None, float]] = {}

  def port(self, index: int) -> int:
    return int(self.addresses[index].rpartition(':')[2])

  def start(self, index: int, token: str = 'same', timeout: float = 10,
            addresses: tuple[str, ...] | None = None) -> None:
    def work() -> None:
      begin = time.monotonic()
      error = None
      try:
        cluster.meet(
            Cluster(addresses or self.addresses, index), token, timeout)
      except Exception as caught:
        error = caught
      self._ends[index] = error, time.monotonic() - begin

    self._threads.append(threading.Thread(target=work))
    self._threads[-1].start()

  def ends(self) -> dict[int, tuple[Exception | None, float]]:
    for thread in self._threads:
      thread.join()
    return self._ends


def _fake(workers: _Workers, real: int, verb: str) -> socket.socket:
  """A connection of another worker's making, after the real one's answer."""
  line = _line(workers, real, verb)
  connection = socket.create_connection(('127.0.0.1', workers.port(real)), 5)
  connection.sendall(line)
  assert b' hello ' in connection.makefile('rb').readline()
  return connection


def _line(workers: _Workers, real: int, verb: str) -> bytes:
  """What worker 1 would say, made from what the real worker says."""
  with socket.create_server(('127.0.0.1', workers.port(1))) as listener:
    connection, _ = listener.accept()
    with connection:
      words = connection.makefile('rb').readline().split()
      assert words[1:3] == [b'hello', str(real).encode()]
      words[1:3] = verb.encode(), b'1'
      line = b' '.join(words) + b'\n'
      connection.sendall(line.replace(b' ready ', b' hello '))
  return line


def test_all_come_one_of_them_late_and_the_ports_are_free_after() -> None:
  workers = _Workers(3)
  workers.start(1)
  workers.start(0)
  time.sleep(0.5)
  workers.start(2)
  for error, seconds in workers.ends().values():
    assert error is None and seconds < 5
  for index in range(3):
    # As TensorFlow's server binds.
    with socket.create_server(('', workers.port(index))):
      pass


def test_every_worker_names_who_is_missing(
    monkeypatch: pytest.MonkeyPatch) -> None:
  logged = []
  monkeypatch.setattr(meeting, '_LOG_EVERY', 1.0)
  monkeypatch.setattr(
      meeting.logging, 'warning', lambda *words: logged.append(words))
  workers = _Workers(4)
  for index in (0, 1):
    workers.start(index, timeout=1.5)
  for error, seconds in workers.ends().values():
    assert isinstance(error, exits.PeerLost)
    message = str(error)
    assert message.startswith('waited 1.5 s in vain for worker 2 ')
    for missing in (2, 3):
      assert f'worker {missing} ({workers.addresses[missing]})' in message
    for there in (0, 1):
      assert f'worker {there} ' not in message
    assert 1.4 < seconds < 3 and '\n' not in message
  for line, *values in logged:
    assert re.fullmatch(
        r'waiting for worker 2 \(.*\): .*, worker 3 \(.*\): .*; \d s left',
        line % tuple(values))
  assert len(logged) == 2  # once a second, from each of the two


def test_a_name_without_address_is_missing() -> None:
  own = f'127.0.0.1:{ports.choose(1)[0]}'
  with pytest.raises(exits.PeerLost, match=r'worker 1 \(no\.\.such:1\): '):
    cluster.meet(Cluster((own, 'no..such:1'), 0), '', 0.5)


@pytest.mark.parametrize('odd', [0, 2])
def test_another_configuration(odd: int) -> None:
  workers = _Workers(3)
  for index in range(3):
    workers.start(index, token='odd' if index == odd else 'same', timeout=3)
  ends = workers.ends()
  refused = {i for i, (e, _) in ends.items() if isinstance(e, InputError)}
  assert odd in refused and len(refused) >= 2
  for index in refused - {odd}:
    message = str(ends[index][0])
    assert message.startswith(
        f'worker {odd} ({workers.addresses[odd]}) runs another configuration')


def test_another_list_of_workers() -> None:
  workers = _Workers(2)
  workers.start(0)
  workers.start(1, addresses=(workers.addresses[0], workers.addresses[1],
                              'localhost:1'))
  for error, _ in workers.ends().values():
    assert isinstance(error, InputError)
    assert 'has another list of workers' in str(error)


def test_two_workers_with_one_index() -> None:
  """Both machines' worker 0: its own answer comes from worker 1's address."""
  port = ports.choose(1)[0]
  # Two names of this machine, as if worker 1's were another's.
  addresses = (f'127.0.0.1:{port}', f'localhost:{port}')
  with pytest.raises(InputError, match='answers as worker 0'):
    cluster.meet(Cluster(addresses, 0), '', 5)


def test_port_in_use() -> None:
  workers = _Workers(2)
  with socket.create_server(('127.0.0.1', workers.port(1))):
    with pytest.raises(InputError) as caught:
      cluster.meet(Cluster(workers.addresses, 1), '', 5)
  assert str(caught.value).startswith(
      f'port {workers.port(1)} of worker 1 ({workers.addresses[1]}) is in use '
      f'by process {os.getpid()} (')


def test_strangers_disturb_nobody() -> None:
  workers = _Workers(2)
  workers.start(0)
  talk = [b'', b'\x00\xff' * 50, b'GET / HTTP/1.1\r\n\r\n', b'half a line',
          b'conadv_tf-meeting-1\n', b'conadv_tf-meeting-1 hello x y z\n',
          b'conadv_tf-meeting-1 ready 1 y z w v\n', b'\xff' * (1 << 17)]
  connections = []
  for text in talk:
    for _ in range(100):
      try:
        connections.append(
            socket.create_connection(('127.0.0.1', workers.port(0)), 5))
        break
      except ConnectionRefusedError:
        time.sleep(0.02)
    try:
      connections[-1].sendall(text)
    except ConnectionError:
      pass  # it had enough
  assert len(connections) == len(talk)
  workers.start(1)
  ends = workers.ends()
  assert [ends[i][0] for i in (0, 1)] == [None, None]
  with socket.create_server(('', workers.port(0))):
    pass
  for connection in connections:
    connection.close()


def test_something_else_answers() -> None:
  workers = _Workers(2)
  with socket.create_server(('127.0.0.1', workers.port(1))) as listener:
    def answer() -> None:
      while True:
        try:
          connection, _ = listener.accept()
        except OSError:
          return
        with connection:
          connection.sendall(b'\x00\x00\x12\x04\x00\n')  # as gRPC does

    threading.Thread(target=answer, daemon=True).start()
    workers.start(0, timeout=1)
    error, seconds = workers.ends()[0]
    listener.shutdown(socket.SHUT_RDWR)
  assert isinstance(error, exits.PeerLost) and seconds < 2.5
  assert 'something else answers there' in str(error)


def test_a_worker_that_goes_while_others_gather() -> None:
  """Worker 1 of 3 is ready and dies before worker 2 has come."""
  workers = _Workers(3)
  workers.start(0, timeout=30)
  connection = _fake(workers, 0, 'ready')
  with connection, connection.makefile('rb') as lines:
    # At first perhaps `wait 1 2`: worker 0's own greeting is still under way.
    assert any(line.endswith(b' wait 2\n') for line in lines)
  error, seconds = workers.ends()[0]
  assert isinstance(error, exits.PeerLost) and seconds < 5
  assert str(error).startswith(
      f'worker 1 ({workers.addresses[1]}) went away while the workers '
      'gathered; still missing: worker 2 ')


def _answer_as_worker_2(workers: _Workers) -> None:
  """Greets workers 0 and 1, and never gets ready."""
  with socket.create_server(('127.0.0.1', workers.port(2))) as listener:
    for _ in range(2):
      connection, _ = listener.accept()
      with connection:
        words = connection.makefile('rb').readline().split()
        connection.sendall(b' '.join([*words[:2], b'2', *words[3:]]) + b'\n')


def test_worker_0_tells_the_others_who_is_missing() -> None:
  workers = _Workers(3)
  workers.start(0, timeout=1.5)
  workers.start(1, timeout=60)
  _answer_as_worker_2(workers)
  (chief, _), (told, seconds) = (workers.ends()[i] for i in (0, 1))
  assert isinstance(chief, exits.PeerLost)
  assert isinstance(told, exits.PeerLost) and seconds < 5
  assert str(chief).startswith(
      f'waited 1.5 s in vain for worker 2 ({workers.addresses[2]}): it still '
      'waits')
  assert str(told) == (
      f'{chief} (so says worker 0 ({workers.addresses[0]}))')


def test_worker_0_goes_while_others_gather() -> None:
  """A real process, killed when worker 1 is ready."""
  workers = _Workers(3)
  program = (
      'from conadv_tf.distribute import cluster\n'
      f'cluster.meet(cluster.Cluster({workers.addresses!r}, 0), "same", 60)\n')
  chief = subprocess.Popen([sys.executable, '-c', program], cwd=_REPOSITORY)
  workers.start(1, timeout=60)
  _answer_as_worker_2(workers)
  time.sleep(0.5)
  chief.kill()
  chief.wait()
  error, _ = workers.ends()[1]
  assert isinstance(error, exits.PeerLost)
  assert re.fullmatch(r'worker 0 \(.*\) went away while the workers gathered',
                      str(error))


_TENSORFLOW = '''
import sys, time
from conadv_tf.distribute import cluster
import tensorflow as tf
workers, index = tuple(sys.argv[1].split(',')), int(sys.argv[2])
cluster.meet(cluster.Cluster(workers, index), 'token', 60)
resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
    tf.train.ClusterSpec({'worker': workers}), task_type='worker',
    task_id=index)
strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
@tf.function
def step():
  def replica():
    context = tf.distribute.get_replica_context()
    return context.all_reduce('sum', tf.constant(index + 1.0))
  return strategy.run(replica)
print('sum', float(step()), strategy.num_replicas_in_sync)
'''


@pytest.mark.slow
@pytest.mark.parametrize('count, outputs', [
    (1, ['sum 1.0 1\n']), (2, ['sum 3.0 2\n'] * 2)])
def test_tensorflow_takes_the_ports_at_once(
    count: int, outputs: list[str]) -> None:
  addresses = [f'127.0.0.1:{port}' for port in ports.choose(count)]
  processes = [
      subprocess.Popen(
          [sys.executable, '-c', _TENSORFLOW, ','.join(addresses), str(i)],
          cwd=_REPOSITORY, stdout=subprocess.PIPE, text=True)
      for i in range(count)]
  try:
    found = [p.communicate(timeout=120)[0] for p in processes]
  finally:
    for process in processes:
      process.kill()
  assert found == outputs
