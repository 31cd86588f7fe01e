"""The `gcloud` commands of tools.tpu_vm, and what they run on the machines.

Nothing here runs anything: functions give argument lists. Source: the
reference of `gcloud compute tpus`.
"""

import pathlib
import shlex

from conadv_tf import exits
from tools.tpu_machine import BadUse, environment, Machine, tpu_flags

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

# On the machine, in the home directory.
SOURCE = "conadv_source"
JOB = "conadv_job"
DISKS = "/mnt/disks"

# Exit code of a start without setup: no code of a job, and not final.
NOT_SET_UP = 78
_INSTALLED = "installed"  # made when setup is complete

_COPIED = ("conadv_tf", "configs", "constraints.txt", "requirements.txt",
           "requirements-extra.txt", "pyproject.toml", "README.md", "LICENSE")
# The image has a TensorFlow for TPUs; the one of PyPI has no TPU support.
_OF_THE_IMAGE = ("tensorflow", "tensorflow-intel",
                 "tensorflow-io-gcs-filesystem")
_RUNTIME_UNIT = "/etc/systemd/system/tpu-runtime.service"
_POD_PROFILER_PORT = 8466  # of the tpu-runtime containers


def _tpus(machine: Machine, *words: str) -> list[str]:
  return ["gcloud", "compute", "tpus", *words, machine.name, *machine.place]


def create(machine: Machine) -> list[str]:
  """Creates the machine, or asks for it."""
  if machine.queued:
    command = _tpus(machine, "queued-resources", "create") + [
        f"--node-id={machine.name}",
        f"--accelerator-type={machine.accelerator_type}",
        f"--runtime-version={machine.version}"]
  else:
    command = _tpus(machine, "tpu-vm", "create") + [
        f"--accelerator-type={machine.accelerator_type}",
        f"--version={machine.version}"]
  command += ["--spot"] * machine.spot + ["--reserved"] * machine.reserved
  # Read-only, since only so can several hosts and machines share a disk.
  command += [f"--data-disk=source={machine.disk_path(disk)},mode=read-only"
              for disk in machine.data_disks]
  return command + list(machine.create_flags)


def describe(machine: Machine) -> list[str]:
  """Prints the state of the machine: READY, PREEMPTED, ..."""
  return _tpus(machine, "tpu-vm", "describe") + ["--format=value(state)"]


def describe_request(machine: Machine) -> list[str]:
  """Prints the state of the queued resource: ACTIVE, ..."""
  return _tpus(machine, "queued-resources", "describe") + [
      "--format=value(state.state)"]


def delete(machine: Machine, quiet: bool) -> list[str]:
  """Deletes the machine, and the queued resource that it came from."""
  if machine.queued:  # --force: with the machine
    command = _tpus(machine, "queued-resources", "delete") + ["--force"]
  else:
    command = _tpus(machine, "tpu-vm", "delete")
  return command + ["--quiet"] * quiet


def ssh(machine: Machine, script: str, worker: str = "0") -> list[str]:
  """Runs a shell script on one worker or on all."""
  return _tpus(machine, "tpu-vm", "ssh") + [
      f"--worker={worker}",
      # Notices within two minutes that the machine is gone.
      "--ssh-flag=-oServerAliveInterval=30",
      "--ssh-flag=-oServerAliveCountMax=4", f"--command={script}"]


def fetch(machine: Machine, paths: list[str], output: str) -> list[str]:
  """Copies files and directories from worker 0 to here."""
  return ["gcloud", "compute", "tpus", "tpu-vm", "scp", "--recurse",
          *[f"{machine.name}:{path}" for path in paths], output,
          *machine.place, "--worker=0"]


def mounts(machine: Machine) -> list[list[str]]:
  """Mounts the data disks on all hosts, the run's directory on worker 0.

  May be repeated while a job runs.
  """
  commands = []
  if machine.data_disks:
    # Disks get their letters in the order in which they are attached. noload:
    # the journal of a disk that is read-only cannot be replayed.
    steps = ["new="]
    for letter, disk in zip("bcdefghijklmnop", machine.data_disks):
      path = f"{DISKS}/{disk.rpartition('/')[2]}"
      steps.append(
          f"mountpoint -q {path} || {{ sudo mkdir -p {path} && "
          f"sudo mount -o ro,noload /dev/sd{letter} {path} && new=1; }}")
    if machine.pod:
      # TensorFlow reads the data in the tpu-runtime container of every host.
      volume = f"-v {DISKS}:{DISKS}:ro"
      steps.append(
          f'if [ "$new" ]; then grep -q -e "{volume}" {_RUNTIME_UNIT} || '
          f'sudo sed -i "s|--name=tpu-runtime|& {volume}|" {_RUNTIME_UNIT}; '
          f'grep -q -e "{volume}" {_RUNTIME_UNIT}; '
          "sudo systemctl daemon-reload; sudo systemctl restart tpu-runtime; "
          "fi")
    commands.append(ssh(machine, "set -e; " + "; ".join(steps),
                        "all" if machine.pod else "0"))
  if machine.mount:
    commands.append(ssh(machine, machine.mount))
  return commands


def setup(machine: Machine) -> list[list[str]]:
  """Mounts, and installs this package and its pins beside the image's TF.

  The package is needed on worker 0 only: the other hosts of a pod run the
  tpu-runtime container.
  """
  copied = [str(REPOSITORY / name) for name in _COPIED]
  pip = "python3 -m pip install --user -q --no-deps"
  install = " && ".join((
      f"cd ~/{SOURCE}",
      f"grep -vE '^({'|'.join(_OF_THE_IMAGE)})==' constraints.txt > pins.txt",
      # What builds the packages that come as source only, first.
      f"{pip} $(grep -E '^(pip|setuptools|wheel|packaging|typing-extensions|"
      "setuptools-scm|vcs-versioning|tomli)==' pins.txt)",
      f"{pip} --no-build-isolation -r pins.txt",
      f"{pip} --no-build-isolation --force-reinstall .",
      "python3 -c 'import importlib.metadata, sys; "
      'v = importlib.metadata.version("tensorflow"); '
      'sys.exit(None if v.startswith("2.15.") else '
      '"TensorFlow " + v + " is not 2.15: another --runtime_version")\'',
      f"touch {_INSTALLED}"))
  return [
      *mounts(machine),
      ssh(machine, f"rm -rf ~/{SOURCE} && mkdir ~/{SOURCE}"),
      ["gcloud", "compute", "tpus", "tpu-vm", "scp", "--recurse", *copied,
       f"{machine.name}:{SOURCE}/", *machine.place, "--worker=0"],
      ssh(machine, install)]


def start(machine: Machine, command: list[str]) -> list[str]:
  """Starts a job that outlives the connection; nothing if it runs already.

  The script ends with 2 where another job runs, with NOT_SET_UP where setup
  is missing.
  """
  variables = [f"{k}={v}" for k, v in environment(machine).items()]
  job = "; ".join((
      # A SIGTERM for the whole group lets the job save and tell its code.
      "trap : TERM", f"cd ~/{SOURCE}", 'PATH="$HOME/.local/bin:$PATH"',
      shlex.join(["env", *variables, *command, *tpu_flags(machine)]),
      f"echo $? > ~/{JOB}/code.new", f"mv ~/{JOB}/code.new ~/{JOB}/code"))
  return ssh(machine, "; ".join((
      f"mkdir -p ~/{JOB}", f"cd ~/{JOB}",
      f"printf %s {shlex.quote(job)} > next",
      "if kill -0 $(cat pid) 2> /dev/null", "then cmp -s next job && exit 0",
      "echo 'error: another job is running there' >&2", "exit 2", "fi",
      f"[ -e ~/{SOURCE}/{_INSTALLED} ] || "
      f"{{ echo 'error: setup was not run' >&2; exit {NOT_SET_UP}; }}",
      "rm -f code", "mv next job",
      "setsid bash job > log 2>&1 < /dev/null & echo $! > pid")))


def follow(machine: Machine) -> list[str]:
  """Shows the job's log until the job ends; ends with its exit code.

  1 where it left none, since it was killed or the machine started anew.
  """
  return ssh(machine, (
      f"cd ~/{JOB} && tail -n 1000 --pid=$(cat pid) -f log; "
      "exit $(cat code 2> /dev/null || echo 1)"))


def watch(machine: Machine, command: list[str], restarts: int
          ) -> list[tuple[str, list[list[str]]]]:
  """All that `train --watch` may run: when, and the commands.

  Args:
    machine: where it runs; may be lost and made again.
    command: trains.
    restarts: attempts after the first.
  """
  attempt = [start(machine, command), follow(machine)]
  final = ", ".join(map(str, exits.FINAL))
  lost = "if it is PREEMPTED, TERMINATED or STOPPED"
  gone = f"{lost}, or missing"
  request = [describe_request(machine)] * machine.queued
  return [
      ("at first", attempt),
      (f"after every exit code but {final}, {restarts} times at most; again "
       "while the machine is being repaired or restarted",
       [describe(machine)]),
      ("if it is READY", mounts(machine)),
      (f"instead, if it is READY and the exit code was {NOT_SET_UP}: setup was "
       "not complete", setup(machine)),
      (gone if machine.queued else lost, [delete(machine, quiet=True)]),
      (gone, [create(machine)]),
      *[("until the request is ACTIVE", request)] * machine.queued,
      ("on the new machine", setup(machine)),
      ("if all that succeeded; then as above", attempt)]


def profile(machine: Machine, milliseconds: int, port: int, directory: str,
            output: str) -> list[list[str]]:
  """Captures a profile of the running job and brings it here.

  Args:
    machine: where it runs.
    milliseconds: length of the capture.
    port: of the job's profiler server; pods have their own.
    directory: where the profile is written; "" for the machine's disk.
    output: local directory.

  Raises:
    BadUse: if a pod's hosts would write to their own disks.
  """
  bucket = directory.startswith("gs://")
  if machine.pod and not bucket:
    raise BadUse("--profile_dir=gs://... is missing: every host of a pod "
                 "writes its own part, which only a bucket brings together")
  code = "import os, tensorflow as tf; "
  if machine.pod:
    project = repr(machine.project) if machine.project else "None"
    code += (
        "r = tf.distribute.cluster_resolver.TPUClusterResolver("
        f"{machine.name!r}, zone={machine.zone!r}, project={project}); "
        "a = ','.join('grpc://%s:%d' % (h.rpartition(':')[0], "
        f"{_POD_PROFILER_PORT}) for h in r.cluster_spec().as_dict()['worker'])"
        "; ")
  else:
    code += f"a = 'grpc://localhost:{port}'; "
  where = directory or f"~/{JOB}/profile"
  code += ("tf.profiler.experimental.client.trace("
           f"a, os.path.expanduser({where!r}), {milliseconds})")
  # TPU_LOAD_LIBRARY: this process must not take the TPU from the job.
  capture = ssh(machine, f"TPU_LOAD_LIBRARY=0 python3 -c {shlex.quote(code)}")
  if bucket:
    return [capture, ["gcloud", "storage", "cp", "--recursive", directory,
                      output]]
  return [capture, fetch(machine, [directory or f"{JOB}/profile"], output)]
