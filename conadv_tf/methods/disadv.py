"""DisAdv: distributed adversarial learning, without staleness."""

from typing import Any

from conadv_tf.methods import adversarial, method


class DisAdv(adversarial.AdversarialMethod):
  """Attacks the batch with the current weights, then trains on both.

  Paper: Concurrent Adversarial Learning for Large-Batch Training, section
  3.2 and Figure 1(a). The update waits for the attack: two gradient
  computations in a row.

  Work: 8 F a step (attack 2 F, training pass on twice the rows 6 F), longest
  chain 4 F. Holds nothing. With radius 0 and `bn_branches=1` it is plain
  training on the doubled batch.
  """

  training_pass = "separate"

  def step(self, ctx: method.Context, batch: method.Batch,
           held: Any) -> method.StepResult:
    """x_hat(theta_t), then the gradient of equation 4 at theta_t."""
    return self.attack_then_train(ctx, batch, held)
