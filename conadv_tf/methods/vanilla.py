"""Plain training, the baseline of every comparison."""

from typing import Any

from conadv_tf.layers import routing
from conadv_tf.methods import method, passes

OFF = "off"
SHARED = "shared"
SPLIT = "split"


class Vanilla(method.Method):
  """Minimises the mean loss of the clean batch.

  Work: 3 F a step (one forward pass F, backward to weights and to
  activations). Holds nothing.

  With `augmented_stream` a step trains on two views of the same b examples,
  clean and augmented (`Batch.augmented`), whose mean losses weigh 1/2 each.
  Paper: Liu et al., Concurrent Adversarial Learning for Large-Batch Training,
  ICLR 2022; section 3.1 finds that joining them hurts at large batches, and
  refers to Berman et al., 2019. It says neither how the joined rows were
  normalised nor whether the batch size counts both. Here b counts examples,
  and

  * "shared" normalises the 2 b rows of a virtual replica together;
  * "split" gives augmented rows batch statistics, gamma and beta of their
    own, as `bn_branches=3` does; predictions use the clean ones.

  Work: 6 F a step, 2 in a row. Degenerates, where both views are equal and
  nothing is dropped, to plain training: "shared" up to rounding (and Bessel's
  correction of the moving variance), "split" but for gamma and beta, each of
  which sees half of the loss.
  """

  def __init__(self, augmented_stream: str = OFF):
    """Makes the method.

    Args:
      augmented_stream: "off", "shared" or "split".

    Raises:
      ValueError: if it is another word.
    """
    method.check_choice(
        "augmented_stream", augmented_stream, OFF, SHARED, SPLIT)
    self.augments = augmented_stream != OFF
    if self.augments:
      self.passes_per_step = 6.0
      self.terms += ("augmented_loss",)
    if augmented_stream == SPLIT:
      self.branches = routing.NATURAL_BRANCHES

  def segments(self, rows: int) -> routing.Segments:
    """Clean rows, then augmented ones, in as many segments as branches."""
    streams = 1 + self.augments
    return tuple((branch, rows * streams // len(self.branches))
                 for branch in self.branches)

  def step(self, ctx: method.Context, batch: method.Batch,
           held: Any) -> method.StepResult:
    """One gradient on the clean batch, and on its augmented view."""
    del held
    run = passes.train(ctx, passes.natural_streams(batch),
                       self.segments(batch.image.shape[0]))
    return method.StepResult(run.gradients, run.statistics, (), run.terms,
                             run.outputs, batch)
