"""Which workers train together, and whether they are all there.

TensorFlow believes whatever it is told: without a `cluster` in TF_CONFIG it
trains alone, with an address that occurs twice or a worker that never comes it
waits for an hour or for ever and ignores SIGTERM meanwhile. So the cluster is
checked here, and the workers meet over plain TCP before TensorFlow starts.
Neither needs TensorFlow's import.

Beware: TensorFlow's gRPC port has no authentication and no encryption, listens
on all interfaces whatever address it is given, and whoever reaches it can run
any graph in the worker (TensorFlow's SECURITY.md). The meeting's port is no
better. Run several workers on isolated networks only.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
import re
from typing import Any

from conadv_tf.distribute import meeting

_ADDRESS = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\]):([0-9]{1,5})")
_EXAMPLE = ('TF_CONFIG={"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
            '"task": {"type": "worker", "index": 0}}')


@dataclasses.dataclass(frozen=True)
class Cluster:
  """The workers of a job, as seen by one of them.

  Attributes:
    workers: host:port of each; the first is the chief.
    index: of this worker.
  """

  workers: tuple[str, ...]
  index: int

  @property
  def is_chief(self) -> bool:
    """Whether this worker writes what all of them share."""
    return self.index == 0

  @property
  def own_address(self) -> str:
    """host:port of this worker."""
    return self.workers[self.index]


def from_flags(worker_hosts: Sequence[str],
               task_index: int | None) -> Cluster:
  """The cluster of `--worker_hosts=a:1,b:2 --task_index=0`.

  Args:
    worker_hosts: host:port of every worker, the same list on all of them.
    task_index: this worker's place in the list.

  Raises:
    InputError: if they make no cluster.
  """
  if task_index is None:
    raise _refusal("--task_index is missing: give each worker its place in "
                   "--worker_hosts, from 0")
  return _checked(worker_hosts, task_index, "--worker_hosts", "--task_index")


def from_environment(
    environ: Mapping[str, str] = os.environ) -> Cluster | None:
  """The cluster of TF_CONFIG, or None where it is unset or empty.

  A `chief` is worker 0 and comes before the workers, as TensorFlow numbers
  them.

  Raises:
    InputError: if TF_CONFIG makes no cluster of workers.
  """
  text = environ.get("TF_CONFIG", "").strip()
  if not text:
    return None
  try:
    parsed = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise _refusal(f"TF_CONFIG is not JSON ({error}); an example: "
                   f"{_EXAMPLE}") from error
  parsed = _mapping(parsed, "TF_CONFIG")
  for key in ("cluster", "task"):
    if key not in parsed:
      raise _refusal(f'TF_CONFIG has no "{key}"; an example: {_EXAMPLE}')
  cluster = _mapping(parsed["cluster"], "TF_CONFIG's cluster")
  task = _mapping(parsed["task"], "TF_CONFIG's task")
  for job in cluster:
    _check_job(job, "cluster")
  jobs = {job: cluster.get(job, []) for job in ("chief", "worker")}
  for job, hosts in jobs.items():
    if not isinstance(hosts, list):
      raise _refusal(f"TF_CONFIG's {job} must be a list of host:port, got "
                     f"{hosts!r}")
  if len(jobs["chief"]) > 1:
    raise _refusal(f"TF_CONFIG has {len(jobs['chief'])} chiefs; there is one")
  for key in ("type", "index"):
    if key not in task:
      raise _refusal(f'TF_CONFIG\'s task has no "{key}"; an example: '
                     f"{_EXAMPLE}")
  _check_job(task["type"], "task")
  hosts = jobs[task["type"]]
  index = _integer(task["index"], "TF_CONFIG's task index")
  _check_index(index, len(hosts), f"TF_CONFIG's {task['type']} index",
               "the cluster lists")
  if task["type"] == "worker":
    index += len(jobs["chief"])
  return _checked(jobs["chief"] + jobs["worker"], index, "TF_CONFIG",
                  "TF_CONFIG's task index")


def meet(cluster: Cluster, token: str, timeout_seconds: float) -> None:
  """Returns when all workers are there and agree; before TensorFlow starts.

  Every worker must call it. It uses the ports that TensorFlow will use, and
  leaves them free. A worker that is alone must reach itself: else TensorFlow
  waits for it, and ignores SIGTERM meanwhile.

  Args:
    cluster: the workers.
    token: a digest of whatever they must agree on, such as the configuration.
    timeout_seconds: how long to wait for the others; alone, it is a few
      seconds.

  Raises:
    InputError: if this worker's port is taken, a worker has another token or
      another list of workers, or the address of a worker that is alone is not
      this machine's.
    exits.PeerLost: if a worker is missing at the end of the time, or went
      away while the others gathered.
  """
  meeting.Meeting(
      cluster.workers, cluster.index, token, timeout_seconds).hold()


def _checked(workers: Sequence[Any], index: int, where: str,
             index_where: str) -> Cluster:
  """The cluster, or an error that begins with the place of the fault."""
  if not workers:
    raise _refusal(f"{where} lists no workers; write host:port for each")
  seen = {}
  for i, address in enumerate(workers):
    match = isinstance(address, str) and _ADDRESS.fullmatch(address)
    if not match:
      raise _refusal(f"{where}: worker {i} is {address!r}; write host:port, "
                     "for instance 10.0.0.1:2222")
    if not 1 <= int(match[2]) <= 65535:
      raise _refusal(f"{where}: worker {i} is {address!r}; ports go from 1 to "
                     "65535")
    # A host's name has no case, and TensorFlow waits for ever for the second.
    same = (match[1].lower(), int(match[2]))
    if same in seen:
      raise _refusal(f"{where}: workers {seen[same]} and {i} have the same "
                     f"address {address}; give each a port of its own")
    seen[same] = i
  index = _integer(index, index_where)
  _check_index(index, len(workers), index_where, f"{where} lists")
  return Cluster(tuple(workers), index)


def _check_index(index: int, count: int, what: str, who_lists: str) -> None:
  if not 0 <= index < count:
    raise _refusal(f"{what} is {index}, but {who_lists} {count}; the first "
                   "is 0")


def _check_job(job: Any, where: str) -> None:
  if job not in ("chief", "worker"):
    raise _refusal(f"TF_CONFIG's {where} has the type {job!r}; only chief and "
                   "worker are known here")


def _mapping(value: Any, what: str) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise _refusal(f"{what} must be an object, got {value!r}; an example: "
                   f"{_EXAMPLE}")
  return value


def _integer(value: Any, what: str) -> int:
  """An int; digits in a string count, as for TensorFlow."""
  if isinstance(value, str) and re.fullmatch("-?[0-9]{1,9}", value):
    return int(value)
  if not isinstance(value, int) or isinstance(value, bool):
    raise _refusal(f"{what} must be an integer, got {value!r}")
  return value


def _refusal(message: str) -> ValueError:
  """An InputError; its module imports TensorFlow, so only when needed."""
  from conadv_tf.config import InputError
  return InputError(message)
