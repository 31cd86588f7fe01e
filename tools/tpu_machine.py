"""What tools.tpu_vm knows of a TPU VM or a pod slice.

Source: Google's pages of TPU versions and TPU software versions, and its own
tests of TensorFlow on TPU VMs, which set the environment below.
"""

import dataclasses
import re

# Numbers (of cores; of chips for v5litepod and v6e) that one host holds. Larger
# ones are pod slices.
SINGLE_HOST = {"v2": (8,), "v3": (8,), "v4": (8,), "v5litepod": (1, 4, 8),
               "v5p": (8,), "v6e": (1, 4, 8)}

# Resources of Google Cloud are labels of RFC 1035.
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_PROJECT = re.compile(r"[a-z0-9][-a-z0-9.:]*")  # an id, domain:id or a number


class BadUse(ValueError):
  """The command line makes no sense; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Machine:
  """A TPU VM, or the TPU VMs of a pod slice.

  Attributes:
    name: of the TPU VM, and of its queued resource.
    zone: for instance europe-west4-a.
    project: None for the one gcloud is configured with.
    accelerator_type: for instance v3-8; may be empty where `pod` is not asked.
    runtime_version: the image; None chooses it.
    queued: whether it comes from a queued resource.
    spot: whether it may be taken away at any time.
    reserved: whether it comes from a reservation.
    data_disks: names, or full paths projects/.../disks/NAME.
    mount: shell snippet that mounts what outlives the machine; "" for none.
    create_flags: passed on to gcloud create.

  Raises:
    BadUse: if one of the names, or the image, cannot be one.
  """

  name: str
  zone: str
  project: str | None = None
  accelerator_type: str = ""
  runtime_version: str | None = None
  queued: bool = False
  spot: bool = False
  reserved: bool = False
  data_disks: tuple[str, ...] = ()
  mount: str = ""
  create_flags: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    disks = [disk.rpartition("/")[2] for disk in self.data_disks]
    for flag, name in (("name", self.name), ("zone", self.zone),
                       *[("data_disk", disk) for disk in disks]):
      if not _NAME.fullmatch(name):
        raise BadUse(f"--{flag}: {name!r} is no name of Google Cloud's: up to "
                     "63 of a-z, 0-9 and -, from a letter on, without - at the "
                     "end")
    if self.project and not _PROJECT.fullmatch(self.project):
      raise BadUse(f"--project: {self.project!r} is no project: a-z, 0-9, -, . "
                   "and : only")
    # Other images say nothing of their TensorFlow; setup asks it.
    if re.match(r"tpu-vm-tf-(?!2\.15\.\d)", self.runtime_version or ""):
      raise BadUse(
          f"--runtime_version: {self.runtime_version!r} has another TensorFlow "
          "than 2.15; leave it out, or take tpu-vm-tf-2.15.1-...")

  @property
  def pod(self) -> bool:
    """Whether there are several hosts.

    Raises:
      BadUse: if the accelerator type is unknown.
    """
    match = re.fullmatch(r"(v\w+)-([1-9]\d*)", self.accelerator_type)
    sizes = SINGLE_HOST.get(match[1], ()) if match else ()
    size = int(match[2]) if match else 0
    if size in sizes:
      return False
    if sizes and size > max(sizes) and size % 8 == 0:
      return True
    known = ", ".join(f"{kind}-{n}" for kind, numbers in SINGLE_HOST.items()
                      for n in numbers)
    raise BadUse(
        f"--accelerator_type: {self.accelerator_type!r} is unknown; known are "
        f"{known}, and larger multiples of 8, which are pod slices")

  @property
  def version(self) -> str:
    """The image; 2.15.1 is the TensorFlow that constraints.txt names."""
    return self.runtime_version or (
        "tpu-vm-tf-2.15.1-pod-pjrt" if self.pod else "tpu-vm-tf-2.15.1-pjrt")

  @property
  def place(self) -> list[str]:
    """Flags that every command takes."""
    project = [f"--project={self.project}"] if self.project else []
    return [f"--zone={self.zone}", *project]

  def disk_path(self, disk: str) -> str:
    """The full path of a disk, which `gcloud create` asks for.

    Raises:
      BadUse: if it cannot be made for want of a project.
    """
    if "/" in disk:
      return disk
    if not self.project:
      raise BadUse(f"--data_disk={disk} needs --project, or the full path "
                   f"projects/PROJECT/zones/{self.zone}/disks/{disk}")
    return f"projects/{self.project}/zones/{self.zone}/disks/{disk}"


def environment(machine: Machine) -> dict[str, str]:
  """Variables that the training process needs to find its TPUs."""
  if machine.pod:
    # The tpu-runtime container of this host has the TPU; the controller, in
    # the same host, must not take it.
    return {"TPU_LOAD_LIBRARY": "0"}
  if machine.version.endswith("pjrt"):
    return {"NEXT_PLUGGABLE_DEVICE_USE_C_API": "true",
            "TF_PLUGGABLE_DEVICE_LIBRARY_PATH": "/lib/libtpu.so"}
  return {}


def tpu_flags(machine: Machine) -> list[str]:
  """Flags of conadv-train that say which TPU."""
  if not machine.pod:
    return ["--tpu=local"]
  project = [f"--tpu_project={machine.project}"] if machine.project else []
  return [f"--tpu={machine.name}", f"--tpu_zone={machine.zone}", *project]
