"""ConAdv: adversarial examples from stale weights, beside the update."""

from typing import Any

from conadv_tf.methods import adversarial, method

SAME_BATCH = "same_batch"
NEXT_BATCH = "next_batch"


class ConAdv(adversarial.AdversarialMethod):
  r"""Concurrent adversarial learning.

  Paper: Liu et al., Concurrent Adversarial Learning for Large-Batch
  Training, ICLR 2022; section 3.3, equations 3 to 5, Algorithm 1.

  | paper                      | here                                       |
  |----------------------------|--------------------------------------------|
  | B_{c,t}, B_{a,t}           | `batch`, `held`                            |
  | theta_t                    | `ctx.network`                              |
  | theta_{t-tau}, tau         | `ctx.attack_network`, `lag`                |
  | x_hat(theta_{t-tau})       | `held.batch` + `held.perturbation`         |
  | main BN, adv BN            | branches "clean" and "adversarial"         |
  | alpha, p                   | `attack.step_size`, `attack.radius`        |

  The adversary of batch B_t is made with theta_max(0, t - lag).

  * `execution="concurrent"`: step t receives B_{t+1}. It trains on the held
    pair of B_t and attacks B_{t+1}; no data flows between the two. For lag 1
    the attack uses the live weights before the update (equation 5); for a
    larger lag a copy that is lag - 1 updates old.
  * `execution="sequential"`: step t receives B_t and attacks it with a copy
    that is `lag` updates old, then trains. Slower, simpler: the reference.
    Both give the same weights.

  `pairing="next_batch"` is not in the paper: step t trains on clean B_t and
  the adversary of B_{t-1}, made with theta_max(0, t - lag); the first update
  has none. There is nothing to look ahead for.

  Work: 8 F a step as DisAdv (attack 2 F, training pass 6 F), but the longest
  chain is the training pass alone: 2 F where processors suffice.
  Memory: concurrent, one batch as it came, its perturbation in one byte a
  value (signed steps from the image) or two (any other), and lag - 1 weight
  sets; sequential, `lag` weight sets.
  Degenerates to DisAdv at lag 0; at learning rate 0 every lag is equal.

  Deviations. Equations 3 and 5 print the raw gradient; the default is the
  sign, on the linf ball of assumption 2 (`attack.direction`). Algorithm 1
  attacks B_{t+lag} with the live weights and queues lag batches: the same
  trajectory with lag batches held instead of lag - 1 weight sets. Equation 2
  and Algorithm 1 print the sum of both losses, equation 4 half of it:
  `adversarial_weight=0.5` is equation 4. LARS nearly cancels the factor in
  the tensors that it scales, but not in gamma, beta and biases; each
  branch's gamma and beta see only their own half, which
  `rebalance_branch_gradients` undoes. The released code targets random
  classes, starts from noise for 80 % of the batches and measures the radius
  in other units (`attack.target`, `attack.random_start`).
  """

  def __init__(self, lag: int = 1, execution: str = method.CONCURRENT,
               pairing: str = SAME_BATCH, **options: Any):
    """Makes the method.

    Args:
      lag: tau, in updates; 0 is DisAdv and ignores `execution`.
      execution: "concurrent" or "sequential".
      pairing: "same_batch", or "next_batch" (which ignores `execution`).
      **options: of `AdversarialMethod`.

    Raises:
      ValueError: if an option is outside its range.
    """
    super().__init__(**options)
    method.check_count("lag", lag)
    method.check_choice(
        "execution", execution, method.CONCURRENT, method.SEQUENTIAL)
    method.check_choice("pairing", pairing, SAME_BATCH, NEXT_BATCH)
    self.lookback = int(pairing == NEXT_BATCH)
    if self.lookback and lag == 0:
      raise ValueError("pairing next_batch needs lag >= 1: an adversary that "
                       "waits for the next batch is one update old")
    self.lag = lag
    self.execution = execution
    self.lookahead = int(
        lag >= 1 and execution == method.CONCURRENT and not self.lookback)
    self.lagged_copies = lag - self.lookahead - self.lookback
    # Both executions of a lag alike: else they would differ by rounding.
    self.training_pass = "joined" if lag else "separate"
    if self.lookahead or self.lookback:
      self.longest_chain = 2.0

  def step(self, ctx: method.Context, batch: method.Batch,
           held: Any) -> method.StepResult:
    """Algorithm 1, one worker k, one iteration t."""
    if not (self.lookahead or self.lookback):
      return self.attack_then_train(ctx, batch, held)

    # Gradient at theta_t on (B_t, x_hat_t), made one step ago.
    clean = batch if self.lookback else held.batch
    result = self.train_on_pair(ctx, clean, held)
    # Meanwhile x_hat_{t+1} from B_{t+1}, with weights that are old by then.
    return result._replace(
        held=method.Held(batch, self.make_perturbation(ctx, batch, held)))
