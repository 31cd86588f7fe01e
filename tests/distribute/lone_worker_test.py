"""A cluster of one worker: its port is free and its address its own."""

import os
import re
import socket
import time

import pytest

from conadv_tf.config import InputError
from conadv_tf.distribute import cluster, meeting, ports
from conadv_tf.distribute.cluster import Cluster


@pytest.mark.parametrize('host', ['127.0.0.1', 'localhost', '127.9.9.9'])
def test_a_worker_alone_waits_for_nobody(host: str) -> None:
  port = ports.choose(1)[0]
  begin = time.monotonic()
  cluster.meet(Cluster((f'{host}:{port}',), 0), 'token', 0.0)
  assert time.monotonic() - begin < 2
  with socket.create_server(('', port)):  # as TensorFlow's server binds
    pass


def test_a_worker_alone_with_a_port_that_is_taken() -> None:
  port = ports.choose(1)[0]
  with socket.create_server(('127.0.0.1', port)):
    with pytest.raises(InputError) as caught:
      cluster.meet(Cluster((f'127.0.0.1:{port}',), 0), 'token', 300)
  assert str(caught.value).startswith(
      f'port {port} of worker 0 (127.0.0.1:{port}) is in use by process '
      f'{os.getpid()} (')


@pytest.mark.parametrize('host', [
    '192.0.2.1',  # of nobody (RFC 5737)
    'no..such'])
def test_a_worker_alone_at_an_address_of_another(
    host: str, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(meeting, '_PATIENCE', 0.5)
  address = f'{host}:{ports.choose(1)[0]}'
  begin = time.monotonic()
  with pytest.raises(InputError) as caught:
    cluster.meet(Cluster((address,), 0), 'token', 300)
  assert time.monotonic() - begin < 3
  assert re.fullmatch(
      rf'worker 0 \({address}\): .+; alone it must reach itself there: write '
      'an address of this machine', str(caught.value))
