"""Which branch and mode the layers of a converted model run in.

A converted layer asks `active()` what to do. The state is thread-local:
`MirroredStrategy` traces every replica in a thread of its own.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import enum
import threading

import tensorflow as tf

from conadv_tf import randomness

# ((branch, rows), ...) covering a batch in order.
Segments = tuple[tuple[str, int], ...]

CLEAN = "clean"
AUGMENTED = "augmented"
ADVERSARIAL = "adversarial"
# Branches of a network by `method.bn_branches`.
BRANCHES = {
    1: (CLEAN,),
    2: (CLEAN, ADVERSARIAL),
    3: (CLEAN, AUGMENTED, ADVERSARIAL),
}
# Without an adversarial one.
NATURAL_BRANCHES = (CLEAN, AUGMENTED)
# Part of the dropout key, so it must not change.
_BRANCH_IDS = {CLEAN: 0, ADVERSARIAL: 1, AUGMENTED: 2}


class Mode(enum.Enum):
  """How a pass treats statistics and noise.

  TRAIN normalises with batch statistics, reports them, draws dropout masks.
  PROBE normalises with batch statistics and leaves no trace.
  EVAL normalises with moving statistics.
  """

  TRAIN = "train"
  PROBE = "probe"
  EVAL = "eval"


@dataclasses.dataclass
class Route:
  """One pass through a converted model.

  Attributes:
    segments: static row ranges and the branch each takes.
    mode: TRAIN, PROBE or EVAL.
    key: int32 [2] key of the dropout masks; None where none are drawn.
    group_size: replicas that share batch statistics in TRAIN; 0 means all.
    fused: whether normalisation may go through kernels and library calls
      that are not made for second derivatives.
    embeddings: float32 [b, L, d], in place of word embeddings; None looks
      them up.
    statistics: filled in TRAIN: (layer index, branch) -> a (mean, variance)
      pair for every call of that layer.
    calls: dropout layer index -> its calls so far in this pass.
  """

  segments: Segments
  mode: Mode
  key: randomness.Key | None = None
  group_size: int = 1
  fused: bool = True
  embeddings: tf.Tensor | None = None
  statistics: dict[tuple[int, str], list[tuple[tf.Tensor, tf.Tensor]]] = (
      dataclasses.field(default_factory=dict))
  calls: dict[int, int] = dataclasses.field(default_factory=dict)

  def next_call(self, layer: int) -> int:
    """Counts the calls of a dropout layer in this pass, from 0."""
    number = self.calls.get(layer, 0)
    self.calls[layer] = number + 1
    return number

  def split(self, inputs: tf.Tensor,
            layer: str) -> list[tuple[str, tf.Tensor]]:
    """Cuts `inputs` [rows, ...] into (branch, rows of that branch).

    Args:
      inputs: the batch, or the batch with other axes folded into its first
        one, example by example (as TimeDistributed does).
      layer: its name, for the error.

    Raises:
      ValueError: if the first axis is not a multiple of the batch.
    """
    if len(self.segments) == 1:
      return [(self.segments[0][0], inputs)]
    sizes = [rows for _, rows in self.segments]
    folded = inputs.shape[0] or sum(sizes)
    if folded % sum(sizes):
      raise ValueError(
          f"layer {layer!r} sees {folded} rows of a batch of {sum(sizes)}: "
          "clean and adversarial ones cannot be told apart")
    sizes = [rows * (folded // sum(sizes)) for rows in sizes]
    pieces = tf.split(inputs, sizes, axis=0)
    return [(branch, x) for (branch, _), x in zip(self.segments, pieces)]

  def mask_key(self, layer: int, call: int, branch: str) -> randomness.Key:
    """The key of one layer's mask for one branch."""
    if self.key is None:
      raise ValueError("a TRAIN pass through dropout needs a key")
    return randomness.fold(self.key, layer, call, _BRANCH_IDS[branch])


_STATE = threading.local()


def active() -> Route | None:
  """The route of the pass being traced in this thread, if any."""
  return getattr(_STATE, "route", None)


@contextlib.contextmanager
def routing(route: Route) -> Iterator[Route]:
  """Makes `route` the active one inside the `with` block."""
  previous = active()
  _STATE.route = route
  try:
    yield route
  finally:
    _STATE.route = previous


def join(pieces: list[tf.Tensor]) -> tf.Tensor:
  """Concatenates rows again; one piece is returned as it is."""
  return pieces[0] if len(pieces) == 1 else tf.concat(pieces, axis=0)
