"""TCP ports of this machine: listening on one, finding who does, free ones."""

import contextlib
import errno
import os
import pathlib
import random
import socket

# Below the range from which Linux takes the ports of outgoing connections:
# one of those could take a port between its choice and its use.
_CHOICE = range(20000, 30000)


def listen(port: int, name: str) -> socket.socket:
  """Listens on all interfaces, of IPv6 too where there is one.

  Args:
    port: from 1.
    name: whose port it is, for the message.

  Raises:
    InputError: if the port is in use or cannot be opened.
  """
  try:
    return _open(port)
  except OSError as error:
    # Its module imports TensorFlow, so only when needed.
    from conadv_tf.config import InputError
    if error.errno != errno.EADDRINUSE:
      raise InputError(f"port {port} of {name} cannot be opened: "
                       f"{error.strerror}; choose another") from error
    raise InputError(f"port {port} of {name} is in use{_owner(port)}; stop "
                     "that program or choose another port") from error


def choose(count: int) -> list[int]:
  """Ports, all different, that nobody listens on now.

  Raises:
    OSError: if there are too few.
  """
  # No experiment depends on them, and two launchers must not choose alike.
  found = []
  for port in random.SystemRandom().sample(_CHOICE, len(_CHOICE)):
    if len(found) == count:
      return found
    with contextlib.suppress(OSError):
      _open(port).close()
      found.append(port)
  raise OSError(errno.EADDRINUSE, f"fewer than {count} free ports")


def _open(port: int) -> socket.socket:
  both = socket.has_dualstack_ipv6()
  return socket.create_server(  # sets SO_REUSEADDR on POSIX
      ("", port), family=socket.AF_INET6 if both else socket.AF_INET,
      dualstack_ipv6=both)


def _owner(port: int) -> str:
  """Whose port it is, as far as /proc tells this user."""
  sockets = set()
  for table in ("tcp", "tcp6"):
    with contextlib.suppress(OSError):
      lines = pathlib.Path("/proc/net", table).read_text("ascii").splitlines()
      for fields in map(str.split, lines[1:]):
        listens = fields[3] == "0A"
        if listens and int(fields[1].rpartition(":")[2], 16) == port:
          sockets.add(f"socket:[{fields[9]}]")
  for descriptor in pathlib.Path("/proc").glob("[0-9]*/fd/*"):
    with contextlib.suppress(OSError):
      if os.readlink(descriptor) in sockets:
        process = descriptor.parents[1]
        command = (process / "comm").read_text("utf-8").strip()
        return f" by process {process.name} ({command})"
  return ""
