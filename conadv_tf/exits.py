"""How a process ends when neither its work nor its input is at fault.

| code | meaning | run the same command again? |
|---|---|---|
| 0 | finished | it says so and does nothing |
| 1 | crashed | yes, once |
| 2 | unusable input, one line says which | after mending it |
| 3 | diverged: weights or loss are not finite | with other settings |
| 75 | a peer was lost, or nothing moved for too long (1 where TensorFlow held the interpreter meanwhile) | yes |
| 128 + n | signal n; after SIGTERM (143) and Ctrl-C (130) a checkpoint is saved | yes |

A supervisor restarts whatever has no code in `FINAL`.
"""  # noqa: E501

FINAL = (0, 2, 3)


class Stop(Exception):
  """Ends the process with one line on stderr and this exit code."""

  exit_code = 1


class Diverged(Stop):
  """Weights, gradients or losses are not finite."""

  exit_code = 3


class PeerLost(Stop):
  """Another worker of the job is missing, gone or stuck."""

  exit_code = 75


class Terminated(Stop):
  """A signal asked the process to end, and what it had to save is saved."""

  def __init__(self, message: str, signum: int) -> None:
    super().__init__(message)
    self.exit_code = 128 + signum
