"""What keeps a run from hanging, and lets it end in good order."""

from typing import Any

from conadv_tf import exits
from conadv_tf.distribute import agreement as agreements
from conadv_tf.distribute import watchdog
from conadv_tf.training import interruption


class Guard:
  """Watchdog, signals, and agreement about them between workers.

  Without arguments it guards nothing.
  """

  def __init__(self, agreement: agreements.Agreement | None = None,
               watch: watchdog.Watchdog | None = None,
               stop: interruption.Interruption | None = None):
    """Keeps what there is."""
    self._agreement = agreement
    self._watch = watch
    self._stop = stop

  @property
  def signalled(self) -> bool:
    """Whether this process was asked to stop."""
    return self._stop is not None and self._stop.signum is not None

  def any(self, *flags: bool) -> tuple[bool, ...]:
    """See `Agreement.any`."""
    return self._agreement.any(*flags) if self._agreement else flags

  def agree(self, found: Any) -> None:
    """Compares what the workers have read, as JSON.

    Raises:
      exits.PeerLost: if it differs. That may pass: a shared file system can
        show late what was written on another machine.
    """
    number = int(agreements.digest(found)[:6], 16)
    if self._agreement and not self._agreement.same(number):
      raise exits.PeerLost(
          "the workers do not find the same data, checkpoint or records; "
          "data.path and model_dir must be on file systems that all of them "
          "share")

  def tick(self, activity: str) -> None:
    """Something has moved; `activity` says what."""
    if self._watch:
      self._watch.tick(activity)

  def between_batches(self) -> None:
    """For the batches of an evaluation.

    Raises:
      exits.Terminated: if this process was asked to stop.
    """
    self.tick("evaluation")
    if self.signalled:
      raise self.terminated("evaluation left")

  def terminated(self, message: str) -> exits.Terminated:
    """See `Interruption.terminated`."""
    return self._stop.terminated(message)
