"""TPU VMs: builds and runs the `gcloud` commands.

    python -m tools.tpu_vm create  --name=N --zone=Z --accelerator_type=v3-8
    python -m tools.tpu_vm setup   (the same flags)
    python -m tools.tpu_vm train   (the same flags) -- conadv-train ...
    python -m tools.tpu_vm profile (the same flags) --output=DIR
    python -m tools.tpu_vm fetch   (the same flags) --path=DIR --output=DIR
    python -m tools.tpu_vm delete  (the same flags)

create waits for the machine. setup mounts disks and installs this package.
train runs what follows `--` on worker 0, with the TPU's flags added to it, in a
way that survives the connection, shows its log and ends with its exit code; the
same command again attaches to it. With --watch it also brings back machines
that were taken away, until the job has ended for good. profile captures a
profile of the running job. --dry_run prints the commands, one on a line, and
runs nothing; with --watch those that it may run, and when. --flagfile=FILE
reads flags from a file. See docs/tpu.md.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time

from absl import flags

from conadv_tf import command_line, exits
from tools import tpu_vm_commands as commands
from tools.tpu_machine import BadUse, Machine

_NAME = flags.DEFINE_string("name", None, "Name of the TPU VM.")
_ZONE = flags.DEFINE_string("zone", None, "Its zone.")
_PROJECT = flags.DEFINE_string(
    "project", None, "Its project; by default the one of gcloud.")
_ACCELERATOR_TYPE = flags.DEFINE_string(
    "accelerator_type", None, "For instance v3-8, or v3-256 for a pod slice.")
_RUNTIME_VERSION = flags.DEFINE_string(
    "runtime_version", None, "Image; by default TensorFlow 2.15.1 with PJRT, "
    "for one host or for a pod.")
_QUEUED = flags.DEFINE_bool(
    "queued", False, "Ask through a queued resource of the same name.")
_SPOT = flags.DEFINE_bool("spot", False, "May be taken away at any time.")
_RESERVED = flags.DEFINE_bool("reserved", False, "From a reservation.")
_DATA_DISK = flags.DEFINE_multi_string(
    "data_disk", [], "Disk with data, attached read-only and mounted at "
    f"{commands.DISKS}/NAME; may be repeated.")
_MOUNT = flags.DEFINE_string(
    "mount", "", "Shell commands for worker 0 that mount what outlives the "
    "machine, for --model_dir; run again at every restart.")
_CREATE_FLAG = flags.DEFINE_multi_string(
    "create_flag", [], "Flag for gcloud's create, as it is; may be repeated.")
_WATCH = flags.DEFINE_bool(
    "watch", False, "Recreate a lost machine and resume, until the end.")
_MAX_RESTARTS = flags.DEFINE_integer(
    "max_restarts", 50, "With --watch: attempts after the first.",
    lower_bound=0)
_POLL_SECONDS = flags.DEFINE_float(
    "poll_seconds", 60, "Between two looks at a state, and before a restart.",
    lower_bound=0)
_PATH = flags.DEFINE_multi_string(
    "path", [], "What fetch copies; may be repeated.")
_OUTPUT = flags.DEFINE_string(
    "output", ".", "Local directory for fetch and profile.")
_PROFILE_MS = flags.DEFINE_integer(
    "profile_ms", 5000, "Length of the profile.", lower_bound=1)
_PROFILER_PORT = flags.DEFINE_integer(
    "profiler_port", 6009, "Profiler port of a job on a single host.",
    lower_bound=1, upper_bound=65535)
_PROFILE_DIR = flags.DEFINE_string(
    "profile_dir", "", "Where the profile is written; pods need gs://...")
_QUIET = flags.DEFINE_bool("quiet", False, "Delete without asking.")
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print the commands and run nothing.")

_VERBS = ("create", "setup", "train", "profile", "fetch", "delete")
_CONNECTION_LOST = 255  # exit code of ssh, and of gcloud ssh
_PASSING = ("CREATING", "STARTING", "RESTARTING", "REIMAGING", "REPAIRING",
            "STOPPING", "DELETING", "HIDING", "UNHIDING")
_REQUEST_ENDED = ("FAILED", "SUSPENDING", "SUSPENDED", "DELETING")
_MISSING, _UNKNOWN = "missing", "unknown"


def split(arguments: list[str]) -> tuple[str, list[str], list[str]]:
  """Takes the verb and the training command off a command line.

  Args:
    arguments: without the name of the program.

  Returns:
    The verb, or "" where there is none; the flags; what follows `--`.
  """
  end = arguments.index("--") if "--" in arguments else len(arguments)
  own, command = arguments[:end], arguments[end + 1:]
  verb = own[0] if own and not own[0].startswith("-") else ""
  return verb, own[bool(verb):], command


def _check(verb: str, command: list[str]) -> Machine:
  """The machine that the flags describe.

  Raises:
    BadUse: if they make no sense for the verb.
  """
  if verb not in _VERBS:
    raise BadUse(
        f"{verb!r} is no verb; known are {', '.join(_VERBS)}" if verb else
        f"the verb is missing; it comes first: {', '.join(_VERBS)}")
  needs_type = verb not in ("fetch", "delete")
  for name in ["name", "zone", *["accelerator_type"] * needs_type,
               *["path"] * (verb == "fetch")]:
    if not flags.FLAGS[name].value:
      raise BadUse(f"--{name} is missing; --help explains the flags")
  if _SPOT.value and _RESERVED.value:
    raise BadUse("--spot and --reserved exclude each other")
  machine = Machine(
      name=_NAME.value, zone=_ZONE.value, project=_PROJECT.value,
      accelerator_type=_ACCELERATOR_TYPE.value or "",
      runtime_version=_RUNTIME_VERSION.value, queued=_QUEUED.value,
      spot=_SPOT.value, reserved=_RESERVED.value,
      data_disks=tuple(_DATA_DISK.value), mount=_MOUNT.value,
      create_flags=tuple(_CREATE_FLAG.value))
  if needs_type:
    _ = machine.pod  # raises for unknown types
    commands.create(machine)  # raises for disks without a project
  _check_command(verb, command)
  if not _DRY_RUN.value and not shutil.which("gcloud"):
    raise BadUse("gcloud is not on PATH; install the Google Cloud "
                          "CLI, or look at the commands with --dry_run")
  return machine


def _check_command(verb: str, command: list[str]) -> None:
  if verb != "train":
    if command or _WATCH.value:
      raise BadUse(
          f"{'a command after --' if command else '--watch'} is for train")
    return
  if not command:
    raise BadUse("the training command is missing; it follows `--`: "
                          "train ... -- conadv-train --config_file=...")
  own = [word for word in command if word.split("=")[0] in (
      "--tpu", "--tpu_zone", "--tpu_project")]
  if own:
    raise BadUse(f"{own[0]} is set by train itself; leave it out")
  if _WATCH.value:
    directories = [word.partition("=")[2] for word in command
                   if word.startswith("--model_dir=")]
    if not directories or not directories[-1].startswith("/"):
      raise BadUse(
          "--watch needs --model_dir=/... in the training command: an absolute "
          "path on what outlives the machine; a restart resumes from it")
    if not _MOUNT.value:
      raise BadUse(
          "--watch needs --mount='...' that mounts what holds --model_dir: "
          "the machine's own disk goes with the machine")


def _run(command: list[str]) -> int:
  """Runs or, in a dry run, prints a command; returns its exit code."""
  if _DRY_RUN.value:
    print(shlex.join(command))
    return 0
  print("$", shlex.join(command), file=sys.stderr, flush=True)
  return subprocess.call(command)


def _run_all(several: list[list[str]]) -> int:
  """Runs commands up to the first that fails; returns its exit code or 0."""
  for command in several:
    code = _run(command)
    if code:
      return code
  return 0


def _state(command: list[str]) -> str:
  """What a describe command prints; `missing` or `unknown` where it fails."""
  if _DRY_RUN.value:
    print(shlex.join(command))
    return "ACTIVE"  # only `create` asks in a dry run
  result = subprocess.run(command, capture_output=True, text=True, check=False)
  if result.returncode == 0 and result.stdout.strip():
    return result.stdout.strip()
  if "NOT_FOUND" in result.stderr:
    return _MISSING
  print(result.stderr.strip(), file=sys.stderr)
  return _UNKNOWN


def _create(machine: Machine) -> int:
  """Creates the machine and, if it was queued, waits for it."""
  code = _run(commands.create(machine))
  if code or not machine.queued:
    return code
  return _await_request(machine)


def _await_request(machine: Machine) -> int:
  """Waits for a queued machine; returns 0 once it is there, 1 if in vain.

  Where gcloud cannot tell, the place in the queue may be well: it looks again.
  """
  while True:
    state = _state(commands.describe_request(machine))
    if state == "ACTIVE":
      return 0
    if state in (*_REQUEST_ENDED, _MISSING):
      print(f"the queued resource is {state}", file=sys.stderr)
      return 1
    time.sleep(_POLL_SECONDS.value)


def _recover(machine: Machine, code: int) -> bool:
  """Brings the machine back to where the job can be started again.

  Args:
    machine: what to look at, and to create again if it is gone.
    code: how the job, or the connection to it, ended.

  Returns:
    Whether it can be started.
  """
  while True:
    state = _state(commands.describe(machine))
    if state not in _PASSING:
      break
    time.sleep(_POLL_SECONDS.value)
  print(f"exit code {code}; the machine is {state}", file=sys.stderr)
  if state == _UNKNOWN:  # the machine may be well, and gcloud not
    return False
  if state == "READY":
    # Where only the connection was lost, the job may still be running.
    return not _run_all(
        commands.setup(machine) if code == commands.NOT_SET_UP
        else commands.mounts(machine))
  if machine.queued and state == _MISSING and not _await_request(machine):
    return not _run_all(commands.setup(machine))  # it was still in the queue
  if machine.queued or state != _MISSING:
    _run(commands.delete(machine, quiet=True))
  return not _create(machine) and not _run_all(commands.setup(machine))


def _train(machine: Machine, command: list[str]) -> int:
  """Runs the job; with --watch again and again until it ends for good."""
  if _WATCH.value and _DRY_RUN.value:
    for when, several in commands.watch(machine, command, _MAX_RESTARTS.value):
      print(f"# {when}")
      _run_all(several)
    return 0
  attempt = [commands.start(machine, command), commands.follow(machine)]
  code = _run_all(attempt)
  if not _WATCH.value:
    if code == _CONNECTION_LOST:
      print("connection lost; the same command attaches again",
            file=sys.stderr)
    return code
  for _ in range(_MAX_RESTARTS.value):
    if code in exits.FINAL:
      break
    time.sleep(_POLL_SECONDS.value)
    if _recover(machine, code):
      code = _run_all(attempt)
  if code not in exits.FINAL:
    print(f"gave up after {_MAX_RESTARTS.value} restarts", file=sys.stderr)
  return code


def main(verb: str, command: list[str]) -> int:
  """Does what the verb says; returns the exit code of what failed, or 0.

  Raises:
    BadUse: if the command line makes no sense.
  """
  machine = _check(verb, command)
  if verb == "create":
    return _create(machine)
  if verb == "setup":
    return _run_all(commands.setup(machine))
  if verb == "train":
    return _train(machine, command)
  if verb == "delete":
    return _run(commands.delete(machine, _QUIET.value))
  if verb == "fetch":
    several = [commands.fetch(machine, _PATH.value, _OUTPUT.value)]
  else:
    several = commands.profile(
        machine, _PROFILE_MS.value, _PROFILER_PORT.value, _PROFILE_DIR.value,
        _OUTPUT.value)
  if not _DRY_RUN.value:
    try:
      os.makedirs(_OUTPUT.value, exist_ok=True)
    except OSError as error:
      raise BadUse(f"--output={_OUTPUT.value} cannot be made: "
                   f"{error.strerror}") from error
  return _run_all(several)


def run() -> None:
  """Command line; bad use is one line on stderr and exit code 2."""
  verb, own, command = split(sys.argv[1:])
  sys.argv[1:] = own

  def start() -> None:
    # Not InputError, whose module needs TensorFlow: the machine at which one
    # sits needs none.
    try:
      sys.exit(main(verb, command))
    except BadUse as error:
      print(f"error: {error}", file=sys.stderr)
      sys.exit(2)
    except KeyboardInterrupt:
      print("interrupted; a job that was started goes on", file=sys.stderr)
      sys.exit(130)

  command_line.start(start)


if __name__ == "__main__":
  run()
