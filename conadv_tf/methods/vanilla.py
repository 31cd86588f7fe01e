"""Plain training, the baseline of every comparison."""

from typing import Any

from conadv_tf.methods import method, passes


class Vanilla(method.Method):
  """Minimises the mean loss of the clean batch.

  Work: 3 F a step (one forward pass F, backward to weights and to
  activations). Holds nothing.
  """

  def step(self, ctx: method.Context, batch: method.Batch,
           held: Any) -> method.StepResult:
    """One gradient on the clean batch."""
    del held
    run = passes.train(ctx, passes.natural_streams(batch),
                       self.segments(batch.image.shape[0]))
    return method.StepResult(run.gradients, run.statistics, (), run.terms,
                             run.outputs, batch)
