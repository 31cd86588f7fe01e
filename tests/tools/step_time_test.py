"""The breakdown of a profile whose times are known."""

import json
import pathlib

from absl import flags
from absl.testing import flagsaver
import pytest
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from conadv_tf.config import InputError
from tests import commands
from tools import step_time

MS = 10**9  # picoseconds


def add(plane: xplane_pb2.XPlane, line: str, name: str, start: float,
        end: float, **stats: str | int) -> None:
  """Adds an event to a plane's line, in milliseconds after a second."""
  def key(metadata: object, of: str) -> int:
    number = next((k for k, v in metadata.items() if v.name == of),
                  len(metadata) + 1)
    metadata[number].name = of
    return number

  found = [entry for entry in plane.lines if entry.name == line]
  to = found[0] if found else plane.lines.add(
      id=len(plane.lines), name=line, timestamp_ns=10**9)
  event = to.events.add(
      metadata_id=key(plane.event_metadata, name), offset_ps=int(start * MS),
      duration_ps=int((end - start) * MS))
  for stat, value in stats.items():
    kind = 'str_value' if isinstance(value, str) else 'int64_value'
    event.stats.add(metadata_id=key(plane.stat_metadata, stat),
                    **{kind: value})


def host() -> xplane_pb2.XSpace:
  """Two executions of 10 ms, on two threads and one of the input pipeline."""
  space = xplane_pb2.XSpace()
  plane = space.planes.add(name='/host:CPU')
  for start in (0, 10):
    add(plane, 'python', 'train', start, start + 10, _r=1, step_num=start)
    for line, name, first, last in [
        ('tf_Compute/1', 'ExecutorState::Process', 0, 9),
        ('tf_Compute/1', 'attack/conv/Conv2D:_MklNativeConv2D', 0, 2),
        ('tf_Compute/1', 'gradient_tape/attack/Conv2D/Back:Back', 2, 4),
        ('tf_Compute/2', 'forward/conv/Conv2D:_MklNativeConv2D', 1, 3),
        ('tf_Compute/1', 'gradient_tape/forward/A:A', 4, 7),
        ('tf_Compute/2', 'gradient_tape/forward/B:B', 5, 8),
        ('tf_Compute/2', 'update/SGD/x:AssignVariableOp', 8, 8.5),
        ('tf_Compute/2', 'Square:Square', 8.5, 9),
        ('tf_data_private_threadpool/3', 'ExecutorState::Process', 4, 5),
        ('tf_data_private_threadpool/3', 'DecodeJpeg:DecodeJpeg', 4.2, 4.8),
        ('tf_data_iterator_resource/4', 'Iterator::Root::Prefetch', 0, 10),
        ('tf_data_iterator_get_next/5', 'IteratorGetNextOp::DoCompute', 0, 1),
    ]:
      add(plane, line, name, start + first, start + last)
  # Before and after the marked steps, and a mark that is none.
  add(plane, 'tf_Compute/1', 'attack/x:Mul', -5, -1)
  add(plane, 'tf_Compute/2', 'forward/x:Mul', 19.5, 25)
  add(plane, 'python', 'train', -30, -20)
  return space


def test_phases_and_overlap() -> None:
  report = step_time.breakdown(step_time.gather(host()), None)
  rows = {phase: (row['busy_ms'], row['covered_ms'], row['share'])
          for phase, row in report['phases'].items()}
  expected = {  # the mul of half a millisecond counts for both steps
      'attack': (4, 4), 'forward': (2.25, 2.25), 'backward': (6, 4),
      'reduction': (0, 0), 'update': (0.5, 0.5), 'input': (1, 1),
      'other': (0.5, 0.5)}
  assert rows == {phase: pytest.approx((*values, values[1] / 10))
                  for phase, values in expected.items()}
  assert report['wall_ms'] == pytest.approx(10)
  # Nothing runs from 9 to 10 ms, but in the second step until 9.5 ms.
  assert report['idle_ms'] == pytest.approx(0.75)
  # The forward pass runs beside it from 1 to 3 ms.
  assert report['attack_beside_update_ms'] == pytest.approx(2)
  assert report['attack_beside_update'] == pytest.approx(0.5)
  assert report['waiting_for_input_ms'] == pytest.approx(1)


def test_an_execution_of_several_updates_is_divided() -> None:
  trace = step_time.gather(host())
  once = step_time.breakdown(trace, [1, 1])
  several = step_time.breakdown(trace, [3, 2])
  assert once == {**step_time.breakdown(trace, None),
                  'updates_are_known': True}
  assert (several['executions'], several['updates']) == (2, 5)
  for name in ('wall_ms', 'idle_ms', 'attack_beside_update_ms'):
    assert several[name] == pytest.approx(once[name] * 2 / 5)
  assert several['phases']['attack']['covered_ms'] == pytest.approx(1.6)
  assert several['phases']['attack']['share'] == pytest.approx(0.4)
  assert several['execution_ms']['median'] == pytest.approx(10)
  # A mark without a record, of an execution that failed, is left out.
  first = step_time.breakdown(trace, [1])
  assert first['wall_ms'] == pytest.approx(10) and first['executions'] == 1


def test_ops_of_a_device_replace_those_of_its_host() -> None:
  space = host()
  for name, line in (('/device:TPU:0', 'XLA Ops'),
                     ('/device:GPU:0', 'Stream #13(Compute)')):
    plane = space.planes.add(name=name)
    add(plane, line, 'fusion.1', 1, 3, tf_op='while/body/attack/conv:Conv2D')
    add(plane, line, 'fusion.2', 3, 4, tf_op='gradient_tape/forward/Relu:')
    add(plane, line, 'copy', 4, 5)
    add(plane, 'Steps', '1', 0, 10)
  rows = step_time.breakdown(step_time.gather(space), [2, 2])['phases']
  assert rows['attack']['busy_ms'] == pytest.approx(2 * 2 / 4)
  assert rows['attack']['covered_ms'] == pytest.approx(2 / 4)
  assert rows['backward']['covered_ms'] == pytest.approx(1 / 4)
  assert rows['forward']['covered_ms'] == 0
  assert rows['other']['covered_ms'] == pytest.approx(1 / 4)
  assert rows['input']['covered_ms'] == pytest.approx(2 / 4)


def test_intervals() -> None:
  joined = step_time.union([(5, 6), (0, 2), (1, 3), (3, 4), (0, 1)])
  assert joined == [(0, 4), (5, 6)]
  shared = step_time.overlap(joined, [(1, 2), (3, 5), (5, 9)])
  assert shared == [(1, 2), (3, 4), (5, 6)]
  assert step_time.length(shared) == 3
  assert step_time.overlap(joined, []) == []


@pytest.fixture(autouse=True)
def parsed_flags() -> None:
  flags.FLAGS.mark_as_parsed()


def write(folder: pathlib.Path, updates: list[int] | None = None) -> None:
  folder.mkdir(parents=True)
  (folder / 'host.xplane.pb').write_bytes(host().SerializeToString())
  if updates:
    (folder / 'updates.json').write_text(json.dumps(
        {'executions': [{'step': 0, 'updates': n} for n in updates]}))


def test_the_table(tmp_path: pathlib.Path,
                   capsys: pytest.CaptureFixture[str]) -> None:
  write(tmp_path / 'plugins/profile/1', [5, 5])
  with flagsaver.flagsaver(profile=str(tmp_path)):
    step_time.run()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == (
        'updates 10 in 2 marked steps; a mark is an execution, all figures '
        'are per update').split()
    assert lines[2].split()[:4] == ['wall', '2.00', 'ms', 'an']
    table = lines[4:13]
    assert len({len(line) for line in table}) == 1 and table[3] == (
        'backward         1.20        0.80   40.0%')
    assert lines[14].startswith('50% of the attack')
    with flagsaver.flagsaver(json=True):
      step_time.run()
  report = json.loads(capsys.readouterr().out)
  assert report['phases']['backward']['busy_ms'] == pytest.approx(1.2)


def test_the_table_says_what_blurs_it() -> None:
  space = xplane_pb2.XSpace()
  plane = space.planes.add(name='/host:CPU')
  for start, end in ((0, 10), (10, 20), (20, 41)):
    add(plane, 'python', 'train', start, end, _r=1)
  add(plane, 'tf_Compute/1', 'xla_run:XlaRun', 0, 10)
  text = step_time.table(
      'x', step_time.breakdown(step_time.gather(space), None))
  assert 'taken as one update a mark' in text
  assert 'slowest step took more than twice' in text
  assert 'no op of a forward pass' in text
  assert 'of the attack' not in text
  text = step_time.table(
      'x', step_time.breakdown(step_time.gather(host()), [1, 1]))
  assert not any(words in text for words in (
      'one update a mark', 'slowest', 'no op of'))


def test_what_is_no_profile_is_refused(tmp_path: pathlib.Path) -> None:
  with pytest.raises(InputError, match='no such file'):
    step_time.newest(str(tmp_path / 'none'))
  with pytest.raises(InputError, match='holds no profile'):
    step_time.newest(str(tmp_path))
  write(tmp_path / 'a')
  path = tmp_path / 'a/host.xplane.pb'
  assert step_time.newest(str(tmp_path)) == str(path)
  assert step_time.updates_of(str(path)) is None
  (tmp_path / 'a/updates.json').write_text('{}')
  with pytest.raises(InputError, match='updates.json is damaged'):
    step_time.updates_of(str(path))
  path.write_bytes(path.read_bytes()[:-5])
  with pytest.raises(InputError, match='is no whole profile'):
    step_time.read(str(path))
  path.write_bytes(b'')  # an empty message is a whole one, without marks
  with flagsaver.flagsaver(profile=str(path)), pytest.raises(
      InputError, match='holds no step'):
    step_time.run()


def test_the_command_refuses_in_one_line(tmp_path: pathlib.Path) -> None:
  refused = commands.run('tools.step_time', f'--profile={tmp_path}')
  assert 'holds no profile' in refused.refusal()
  assert '--profile is missing' in commands.run('tools.step_time').refusal()
