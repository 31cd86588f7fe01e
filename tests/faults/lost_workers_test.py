"""Workers that die, stop or hang: the others end, and all go on as before."""

import concurrent.futures
import json
import pathlib
import random

import pytest

from conadv_tf.distribute import ports
from tests.faults import groups

pytestmark = pytest.mark.slow

# Until the others have noticed. TensorFlow's heartbeats take 10 s.
_NOTICED = 14.0


def test_sigkill(unbroken: pathlib.Path, tmp_path: pathlib.Path) -> None:
  generator = random.Random(4)
  update, save = generator.randint(2, 5), generator.randint(1, 4)
  print(f'kills after update {update} and in save {save} of what is left')
  faults = f'1:update:{update}:SIGKILL,0:writing:{save}:SIGKILL'
  ended = groups.run(tmp_path / 'run', faults, restarts=3, grace_seconds=2)
  assert ended.expect(0).count('starting all again') == 2
  for worker, fault in enumerate(faults.split(',')):
    killed = ended.when(f'FAULT {fault}')
    stopped = ended.when(f'worker {1 - worker} ended with code 137', killed)
    assert stopped - killed < _NOTICED
    # And not before the last checkpoint.
    assert ended.when('resuming at update', stopped)
  groups.assert_same_end(unbroken, tmp_path / 'run')


def test_stopped_and_stuck(unbroken: pathlib.Path,
                           tmp_path: pathlib.Path) -> None:
  ended = groups.run(
      tmp_path / 'run', '1:update:3:SIGSTOP,0:update:6:stuck',
      'runtime.stall_seconds=20', restarts=2, grace_seconds=2)
  ended.expect(0)
  # A stopped process answers no heartbeat.
  fault = ended.when('FAULT 1:update:3:SIGSTOP')
  line = ended.when('[worker 0] error: lost another worker', fault)
  assert line - fault < _NOTICED
  again = ended.when('worker 0 ended with code 75; starting all again', line)
  assert again - fault < _NOTICED + 5  # the stopped one has been killed
  # One that is alive but stuck is for every worker's own watch; the first one
  # to end takes the other with it.
  fault = ended.when('FAULT 0:update:6:stuck', again)
  line = ended.when('error: nothing has moved for 20 s', fault)
  assert 19 < line - fault < 25
  assert ended.when('distribute/watchdog.py', fault) < line  # tracebacks
  assert ended.when('ended with code 75; starting all again', fault)
  groups.assert_same_end(unbroken, tmp_path / 'run')


def test_a_launcher_on_each_machine(unbroken: pathlib.Path,
                                    tmp_path: pathlib.Path) -> None:
  """They know nothing of each other; the workers find together again."""
  workers = [f'127.0.0.1:{port}' for port in ports.choose(2)]

  def launch(index: int) -> groups.Ended:
    return groups.run(
        tmp_path / 'run', '1:update:4:SIGKILL', workers=1, restarts=2,
        machine=str(index), TF_CONFIG=json.dumps(
            {'cluster': {'worker': workers},
             'task': {'type': 'worker', 'index': index}}))

  with concurrent.futures.ThreadPoolExecutor(2) as threads:
    survivor, killed = threads.map(launch, (0, 1))
  assert killed.expect(0).when('worker 0 ended with code 137')
  line = survivor.expect(0).when('error: lost another worker')
  assert survivor.when('worker 0 ended with code 75; starting all again', line)
  assert survivor.count('starting all again') == 1
  assert killed.count('starting all again') == 1
  groups.assert_same_end(unbroken, tmp_path / 'run')


def test_stopped_before_tensorflow_starts(tmp_path: pathlib.Path) -> None:
  """Where it holds the interpreter's lock, and no thread of Python runs."""
  ended = groups.run(tmp_path / 'run', '1:met:0:SIGSTOP',
                     'runtime.stall_seconds=6', grace_seconds=1)
  fault = ended.expect(1).when('FAULT')
  assert 3 < ended.when('[worker 0] Timeout (0:00:11)!', fault) - fault < 15
  assert ended.when('distribute/strategies.py', fault)
  assert not (tmp_path / 'run' / 'checkpoints').exists()
