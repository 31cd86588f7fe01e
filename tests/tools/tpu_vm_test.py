"""The verbs of the TPU VM launcher, against a stand-in for `gcloud`.

No machine is made and nothing leaves this one. Where a script is meant for a
TPU VM, some tests run it here, in a home directory of their own.
"""

import dataclasses
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from tests.fake_gcloud import (
    HERE,
    Launcher,
    PLACE,
    POD,
    REPOSITORY,
    script,
    TRAIN,
    V3_8,
    WATCH,
)
from tools import tpu_machine, tpu_vm_commands


@pytest.fixture(name='tpu_vm')
def _tpu_vm(tmp_path: pathlib.Path) -> Launcher:
  return Launcher(tmp_path)


def test_create_of_a_single_host(tpu_vm: Launcher) -> None:
  assert tpu_vm('create', *V3_8)[0] == 0
  assert tpu_vm.recorded == [[
      'create', 'gcloud', 'compute', 'tpus', 'tpu-vm', 'create', 't', *PLACE,
      '--accelerator-type=v3-8', '--version=tpu-vm-tf-2.15.1-pjrt']]


def test_create_of_a_pod_with_data(tpu_vm: Launcher) -> None:
  assert tpu_vm(
      'create', *POD, '--data_disk=imagenet', '--create_flag=--network=n',
      '--data_disk=projects/q/zones/z/disks/d')[0] == 0
  disk = '--data-disk=source=projects/'
  assert tpu_vm.recorded == [[
      'create', 'gcloud', 'compute', 'tpus', 'tpu-vm', 'create', 't', *PLACE,
      '--accelerator-type=v3-256', '--version=tpu-vm-tf-2.15.1-pod-pjrt',
      f'{disk}p/zones/europe-west4-a/disks/imagenet,mode=read-only',
      f'{disk}q/zones/z/disks/d,mode=read-only', '--network=n']]


def test_queued_spot_machines_are_waited_for(tpu_vm: Launcher) -> None:
  code = tpu_vm('create', *V3_8, '--queued', '--spot', '--poll_seconds=0',
                ask=[[0, 'WAITING_FOR_RESOURCES', ''], [0, 'PROVISIONING', ''],
                     [0, 'ACTIVE', '']])[0]
  assert (code, tpu_vm.kinds) == (0, ['create', 'ask', 'ask', 'ask'])
  assert tpu_vm.recorded[0] == [
      'create', 'gcloud', 'compute', 'tpus', 'queued-resources', 'create', 't',
      *PLACE, '--node-id=t', '--accelerator-type=v3-8',
      '--runtime-version=tpu-vm-tf-2.15.1-pjrt', '--spot']
  assert tpu_vm.recorded[1][4:] == [
      'queued-resources', 'describe', 't', *PLACE,
      '--format=value(state.state)']


def test_a_refused_request_fails(tpu_vm: Launcher) -> None:
  code, _, err = tpu_vm('create', *V3_8, '--queued', '--reserved',
                        ask=[[0, 'FAILED', '']])
  assert code == 1 and 'the queued resource is FAILED' in err
  assert tpu_vm.recorded[0][-1] == '--reserved'


@pytest.mark.parametrize(('accelerator', 'pod'), [
    ('v2-8', False), ('v3-8', False), ('v4-8', False), ('v5p-8', False),
    ('v5litepod-1', False), ('v5litepod-4', False), ('v5litepod-8', False),
    ('v2-32', True), ('v3-256', True), ('v3-2048', True), ('v4-16', True),
    ('v5litepod-16', True), ('v5p-128', True), ('v5p-12288', True),
    ('v6e-1', False), ('v6e-4', False), ('v6e-8', False), ('v6e-256', True)])
def test_single_hosts_and_pods(accelerator: str, pod: bool) -> None:
  machine = tpu_machine.Machine('t', 'z', accelerator_type=accelerator)
  assert machine.pod is pod
  assert ('-pod-' in machine.version) is pod
  chosen = dataclasses.replace(machine, runtime_version='x')
  assert chosen.version == 'x'


@pytest.mark.parametrize('accelerator', ['', 'v3', 'v3-9', 'v3-4', 'v3-0',
                                         'v1-8', 'v4-12', 'v5litepod-2', '3-8',
                                         'v9-256', 'v6e-2', 'V3-8', 'v3-8 '])
def test_unknown_accelerators(accelerator: str) -> None:
  with pytest.raises(tpu_machine.BadUse, match='v2-8, v3-8, v4-8'):
    _ = tpu_machine.Machine('t', 'z', accelerator_type=accelerator).pod


@pytest.mark.parametrize('name', [
    '', 'a;b', 'A', '1a', 'a-', '-a', 'a_b', 'a.b', 'a b', 'a\n', 'a' * 64])
def test_names_that_are_none(name: str) -> None:
  with pytest.raises(tpu_machine.BadUse,
                     match=r'--name: .* is no name of [^\n]*$'):
    tpu_machine.Machine(name, 'z')
  with pytest.raises(tpu_machine.BadUse, match='--zone: .* is no name of'):
    tpu_machine.Machine('t', name)
  with pytest.raises(tpu_machine.BadUse, match='--data_disk: .* is no name'):
    tpu_machine.Machine('t', 'z', 'p', data_disks=('d', name))


def test_names_that_exist() -> None:
  for name in ('a', 'a1', 'conadv-256', 'a' * 63):
    tpu_machine.Machine(name, 'us-south1-ai1b', data_disks=(
        name, f'projects/example.com:q/zones/z/disks/{name}'))
  for project in ('p', 'my-project-1', 'example.com:my-project', '1234'):
    tpu_machine.Machine('t', 'z', project)
  with pytest.raises(tpu_machine.BadUse, match="--project: 'a b' is no proj"):
    tpu_machine.Machine('t', 'z', 'a b')


@pytest.mark.parametrize(('version', 'fits'), [
    ('tpu-vm-tf-2.15.0-pjrt', True), ('tpu-vm-tf-2.15.1-pod-pjrt', True),
    ('tpu-vm-tf-2.15.1-se', True), ('v2-alpha-tpuv5-lite', True),
    ('v2-alpha-tpuv6e', True), ('tpu-ubuntu2204-base', True),
    ('tpu-vm-tf-2.16.1', False), ('tpu-vm-tf-2.16.1-pod-pjrt', False),
    ('tpu-vm-tf-2.5.0', False), ('tpu-vm-tf-2.150.0', False),
    ('tpu-vm-tf-nightly', False)])
def test_images_with_another_tensorflow(version: str, fits: bool) -> None:
  if fits:
    tpu_machine.Machine('t', 'z', runtime_version=version)
    return
  with pytest.raises(tpu_machine.BadUse, match=(
      f"^--runtime_version: '{version}' has another TensorFlow than 2.15")):
    tpu_machine.Machine('t', 'z', runtime_version=version)


def test_setup_of_a_single_host(tpu_vm: Launcher) -> None:
  code = tpu_vm('setup', *V3_8, '--data_disk=imagenet', '--data_disk=more',
                '--mount=sudo mount /mnt/run')[0]
  assert code == 0
  assert tpu_vm.kinds == ['mount', 'mount', 'prepare', 'scp', 'install']
  disks, run, _, copy, _ = tpu_vm.recorded
  for words in tpu_vm.recorded:
    assert '--worker=0' in words and words[-1] != '--worker=all'
  assert ('sudo mount -o ro,noload /dev/sdb /mnt/disks/imagenet'
          in script(disks))
  assert 'mount -o ro,noload /dev/sdc /mnt/disks/more' in script(disks)
  assert 'tpu-runtime' not in script(disks)
  assert script(run) == 'sudo mount /mnt/run'
  assert copy[-4:] == ['t:conadv_source/', *PLACE, '--worker=0']
  sources = [pathlib.Path(word) for word in copy[7:-4]]
  assert all(path.exists() for path in sources)
  assert {'conadv_tf', 'configs', 'constraints.txt', 'pyproject.toml'} <= {
      path.name for path in sources}


def test_setup_of_a_pod_mounts_everywhere_and_installs_once(
    tpu_vm: Launcher) -> None:
  assert tpu_vm('setup', *POD, '--data_disk=imagenet')[0] == 0
  assert tpu_vm.kinds == ['mount', 'prepare', 'scp', 'install']
  workers = [[w for w in words if w.startswith('--worker=')]
             for words in tpu_vm.recorded]
  assert workers == [['--worker=all']] + [['--worker=0']] * 3
  assert '-v /mnt/disks:/mnt/disks:ro' in script(tpu_vm.recorded[0])


def test_setup_ends_where_a_step_fails(tpu_vm: Launcher) -> None:
  assert tpu_vm('setup', *V3_8, scp=[[9, '', '']])[0] == 9
  assert tpu_vm.kinds == ['prepare', 'scp']


def test_the_container_gets_the_disks_once(tmp_path: pathlib.Path) -> None:
  """Runs the script of a pod's hosts on a unit file of ours."""
  unit = tmp_path / 'tpu-runtime.service'
  unit.write_text('ExecStart=docker run --name=tpu-runtime -v /tmp:/tmp x\n')
  for name, body in {
      'sudo': 'if [ $1 = sed ]; then exec "$@"; fi; echo "$@" >> calls',
      'mountpoint': 'grep -q "mount.* $2$" calls'}.items():
    (tmp_path / name).write_text(f'#!/bin/bash\n{body}\n')
    (tmp_path / name).chmod(0o755)
  (tmp_path / 'calls').write_text('')
  machine = tpu_machine.Machine('t', 'z', 'p', 'v3-32', data_disks=('d',))
  program = script(tpu_vm_commands.mounts(machine)[0]).replace(
      '/etc/systemd/system/', f'{tmp_path}/')
  for _ in range(2):
    subprocess.run(['bash', '-c', program], cwd=tmp_path, check=True,
                   env={'PATH': f'{tmp_path}:/usr/bin:/bin'})
  assert unit.read_text() == (
      'ExecStart=docker run --name=tpu-runtime -v /mnt/disks:/mnt/disks:ro '
      '-v /tmp:/tmp x\n')
  assert (tmp_path / 'calls').read_text().splitlines() == [
      'mkdir -p /mnt/disks/d', 'mount -o ro,noload /dev/sdb /mnt/disks/d',
      'systemctl daemon-reload', 'systemctl restart tpu-runtime']


def test_the_image_keeps_its_tensorflow(tmp_path: pathlib.Path) -> None:
  """Runs the script of worker 0 with a python3 that records."""
  source = tmp_path / 'conadv_source'
  source.mkdir()
  constraints = (REPOSITORY / 'constraints.txt').read_text()
  (source / 'constraints.txt').write_text(
      constraints + 'tensorflow-intel==2.15.1\n')
  (tmp_path / 'python3').write_text('#!/bin/bash\necho "$@" >> ~/calls\n')
  (tmp_path / 'python3').chmod(0o755)
  machine = tpu_machine.Machine('t', 'z', accelerator_type='v3-8')
  subprocess.run(
      ['bash', '-c', script(tpu_vm_commands.setup(machine)[-1])], check=True,
      env={'PATH': f'{tmp_path}:/usr/bin:/bin', 'HOME': str(tmp_path)})
  assert (source / 'pins.txt').read_text() == re.sub(
      r'tensorflow(-io-gcs-filesystem)?==.*\n', '', constraints)
  tools, pins, package, version = (
      (tmp_path / 'calls').read_text().splitlines())
  for line in (tools, pins, package):
    assert line.startswith('-m pip install --user -q --no-deps ')
  assert {word.split('==')[0] for word in tools.split()[6:]} == {
      'pip', 'setuptools', 'wheel', 'packaging', 'typing-extensions',
      'setuptools-scm', 'vcs-versioning', 'tomli'}
  assert pins.endswith('-r pins.txt') and package.endswith(' .')
  assert 'version("tensorflow")' in version
  assert (source / 'installed').exists()


def test_train_on_a_single_host(tpu_vm: Launcher) -> None:
  code = tpu_vm('train', *V3_8, *TRAIN, follow=[[7, '', '']])[0]
  assert (code, tpu_vm.kinds) == (7, ['start', 'follow'])
  assert ('env NEXT_PLUGGABLE_DEVICE_USE_C_API=true '
          'TF_PLUGGABLE_DEVICE_LIBRARY_PATH=/lib/libtpu.so conadv-train '
          '--config_file=c.yaml --model_dir=/mnt/run/a --tpu=local;'
          ) in script(tpu_vm.recorded[0])
  assert all('--worker=0' in words for words in tpu_vm.recorded)


def test_train_on_a_pod_has_one_controller(tpu_vm: Launcher) -> None:
  assert tpu_vm('train', *POD, *TRAIN)[0] == 0
  assert tpu_vm.kinds == ['start', 'follow']
  assert ('env TPU_LOAD_LIBRARY=0 conadv-train --config_file=c.yaml '
          '--model_dir=/mnt/run/a --tpu=t --tpu_zone=europe-west4-a '
          '--tpu_project=p;') in script(tpu_vm.recorded[0])
  assert all('--worker=0' in words for words in tpu_vm.recorded)


def test_no_pjrt_variables_without_pjrt() -> None:
  machine = tpu_machine.Machine('t', 'z', accelerator_type='v3-8',
                                runtime_version='tpu-vm-tf-2.15.1-se')
  assert tpu_machine.environment(machine) == {}


def test_profile_of_a_single_host(tpu_vm: Launcher) -> None:
  assert tpu_vm('profile', *V3_8, '--output=out/p')[0] == 0
  capture, fetch = tpu_vm.recorded
  assert '--worker=0' in capture
  program = shlex.split(script(capture))
  assert program[:3] == ['TPU_LOAD_LIBRARY=0', 'python3', '-c']
  compile(program[3], 'program', 'exec')
  assert "grpc://localhost:6009" in program[3]
  assert fetch[4:] == ['tpu-vm', 'scp', '--recurse', 't:conadv_job/profile',
                       'out/p', *PLACE, '--worker=0']
  assert (tpu_vm.folder / 'out/p').is_dir()


def test_profile_of_a_pod_asks_every_host(tpu_vm: Launcher) -> None:
  assert tpu_vm('profile', *POD, '--profile_dir=gs://b/p')[0] == 0
  capture, fetch = tpu_vm.recorded
  program = shlex.split(script(capture))[3]
  traced = []

  class _Resolver:
    def __init__(self, tpu: str, zone: str, project: str | None) -> None:
      assert (tpu, zone, project) == ('t', 'europe-west4-a', 'p')

    def cluster_spec(self) -> '_Resolver':
      return self

    def as_dict(self) -> dict:
      return {'worker': ['10.0.0.2:8470', '10.0.0.3:8470']}

  exec(program.replace('import os, tensorflow as tf', 'import os').replace(
      'tf.distribute.cluster_resolver.TPUClusterResolver', 'resolver').replace(
          'tf.profiler.experimental.client.trace', 'trace'),
       {'resolver': _Resolver, 'trace': lambda *a: traced.append(a)})
  assert traced == [
      ('grpc://10.0.0.2:8466,grpc://10.0.0.3:8466', 'gs://b/p', 5000)]
  assert fetch[1:] == ['gcloud', 'storage', 'cp', '--recursive', 'gs://b/p',
                       '.']


def test_fetch(tpu_vm: Launcher) -> None:
  assert tpu_vm('fetch', *HERE, '--path=/mnt/run/a', '--path=conadv_job/log',
                '--output=here')[0] == 0
  assert tpu_vm.recorded == [[
      'scp', 'gcloud', 'compute', 'tpus', 'tpu-vm', 'scp', '--recurse',
      't:/mnt/run/a', 't:conadv_job/log', 'here', *PLACE, '--worker=0']]


def test_delete(tpu_vm: Launcher) -> None:
  assert tpu_vm('delete', *HERE)[0] == 0
  assert tpu_vm.recorded == [[
      'delete', 'gcloud', 'compute', 'tpus', 'tpu-vm', 'delete', 't', *PLACE]]
  tpu_vm('delete', *HERE, '--queued', '--quiet')
  assert tpu_vm.recorded[0][4:] == ['queued-resources', 'delete', 't', *PLACE,
                                    '--force', '--quiet']


@pytest.mark.parametrize('arguments', [
    ['create', *POD, '--queued', '--spot', '--data_disk=d'],
    ['setup', *POD, '--data_disk=d', "--mount=sudo mount '/mnt/run'"],
    ['train', *POD, '--', 'conadv-train', '--model_dir=/mnt/run/a',
     "--params_override=data.path='a b'"],
    ['profile', *V3_8], ['fetch', *HERE, '--path=/mnt/run/a'],
    ['delete', *HERE, '--queued']], ids=lambda a: a[0])
def test_a_dry_run_prints_what_a_run_runs(
    tpu_vm: Launcher, arguments: list[str]) -> None:
  code, out, _ = tpu_vm(arguments[0], '--dry_run', *arguments[1:])
  assert (code, tpu_vm.recorded) == (0, [])
  assert tpu_vm(*arguments)[0] == 0
  assert [shlex.split(line) for line in out.splitlines()] == [
      words[1:] for words in tpu_vm.recorded]


@pytest.mark.parametrize(('arguments', 'message'), [
    ([], 'the verb is missing'),
    (['--name=t', 'create'], 'unexpected argument'),
    (['start', *V3_8], "'start' is no verb; known are create, setup, train"),
    (['create', '--zone=z', '--accelerator_type=v3-8'], '--name is missing'),
    (['create', '--name=t', '--accelerator_type=v3-8'], '--zone is missing'),
    (['create', *HERE], '--accelerator_type is missing'),
    (['setup', *HERE, '--accelerator_type=v9-8'], "'v9-8' is unknown; known"),
    (['create', '--name=a;b', '--zone=z', '--accelerator_type=v3-8',
      '--dry_run'], "--name: 'a;b' is no name of Google Cloud"),
    (['create', *HERE, '--accelerator_type=v9-256', '--dry_run',
      '--runtime_version=v2-alpha-tpuv6e'], "'v9-256' is unknown; known are"),
    (['create', *V3_8, '--runtime_version=tpu-vm-tf-2.16.1', '--dry_run'],
     "--runtime_version: 'tpu-vm-tf-2.16.1' has another TensorFlow than"),
    (['create', *V3_8, '--spot', '--reserved'], 'exclude each other'),
    (['create', '--name=t', '--zone=z', '--accelerator_type=v3-8',
      '--data_disk=d'], '--data_disk=d needs --project, or the full path'),
    (['create', *V3_8, '--colour=red'], 'colour'),
    (['create', *V3_8, '--poll_seconds=-1'], 'poll_seconds'),
    (['create', *V3_8, '--watch'], '--watch is for train'),
    (['setup', *V3_8, *TRAIN], 'a command after -- is for train'),
    (['train', *V3_8], 'the training command is missing'),
    (['train', *V3_8, *TRAIN, '--tpu=x'], '--tpu=x is set by train itself'),
    (['train', *V3_8, *WATCH, '--', 'conadv-train'], '--watch needs --model'),
    (['train', *V3_8, *WATCH, '--', 'conadv-train', '--model_dir=runs/a'],
     'an absolute path on what outlives the machine'),
    (['train', *V3_8, '--watch', *TRAIN], '--watch needs --mount'),
    (['profile', *POD], '--profile_dir=gs://... is missing'),
    (['fetch', *HERE], '--path is missing')])
def test_bad_use_is_one_line(
    tpu_vm: Launcher, arguments: list[str], message: str) -> None:
  code, out, err = tpu_vm(*arguments)
  assert (code, out, tpu_vm.recorded) == (2, '', [])
  assert err.startswith('error: ') and err.count('\n') == 1
  assert message in err


def test_gcloud_is_needed_except_for_a_dry_run(tpu_vm: Launcher) -> None:
  # Not PATH without the stand-in: that could find a real gcloud.
  tpu_vm.environment['PATH'] = str(tpu_vm.home)
  code, _, err = tpu_vm('create', *V3_8)
  assert code == 2 and err.startswith('error: gcloud is not on PATH')
  assert tpu_vm('create', *V3_8, '--dry_run')[0] == 0


def test_the_commands_of_the_docs_run(tpu_vm: Launcher) -> None:
  """Every block of docs/tpu.md, with the stand-in."""
  shim = tpu_vm.folder / 'bin/python'
  shim.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
  shim.chmod(0o755)
  tpu_vm.add_system_path()
  for name, content in {'answers': '{}', 'recorded': ''}.items():
    (tpu_vm.folder / name).write_text(content)
  text = (REPOSITORY / 'docs/tpu.md').read_text(encoding='utf-8')
  blocks = re.findall(r'^```sh\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
  assert len(blocks) >= 5
  done = subprocess.run(
      ['bash', '-e', '-c', '\n'.join(blocks)], cwd=tpu_vm.folder,
      env=tpu_vm.environment, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert {'create', 'install', 'start', 'follow', 'scp', 'delete'} <= set(
      tpu_vm.kinds)
