"""The runs of the convex check; no flags."""

from collections.abc import Sequence
import dataclasses

from conadv_tf.methods import absa, growth
from tools import convex_problem, convex_theorem, convex_training

# Appendix A; eta_0 = 1.2 is the step size at batch 100 and of full gradients.
BATCH, MAX_BATCH, RATE = 100, 3200, 1.2
FULL_RATES = (0.6, 1.2, 2.4, 4.8, 12.0, 38.4)
GAMMA = 0.2
L2 = 0.01  # of the theorem's problem
NAMES = ("SGD", "ABS", "ABSA")


def rule(name: str, batch: int, rows: int, epochs: int) -> growth.Growth:
  """The growth rule of a run; batch and adversarial share of SGD stay.

  Algorithm 1 with alpha = beta = omega = 2 and kappa = 10. The paper states no
  tau: adversaries end after half of the epochs, as in its released code.
  """
  if name == "SGD":
    return growth.Growth()
  return absa.Controller(
      MAX_BATCH // BATCH, gamma=GAMMA if name == "ABSA" else 0.0,
      vanishes=epochs * rows // batch // 2)


def stochastic(problem: convex_problem.Problem, epochs: int,
               seeds: Sequence[int]
               ) -> dict[str, list[convex_training.Trace]]:
  """SGD, ABS and ABSA, one trace a seed."""
  return {name: [
      convex_training.train(
          problem, convex_training.Settings(BATCH, RATE, epochs, seed),
          rule(name, BATCH, problem.rows, epochs)) for seed in seeds]
          for name in NAMES}


def full_gradient(problem: convex_problem.Problem, updates: int
                  ) -> dict[float, convex_training.Trace]:
  """The full gradient by its step size."""
  return {rate: convex_training.train(
      problem, convex_training.Settings(problem.rows, rate, updates))
          for rate in FULL_RATES}


@dataclasses.dataclass(frozen=True)
class Case:
  """A run beside the theorem's bound.

  Attributes:
    label: of its row.
    name: SGD, ABS or ABSA.
    rate: eta_0, the step size of one row.
    is_covered: whether the theorem's conditions hold.
  """

  label: str
  name: str
  rate: float
  is_covered: bool


def cases(found: convex_theorem.Constants) -> list[Case]:
  """What the theorem covers first, what it does not after it."""
  ours, small = (found.largest_rate(batch) for batch in (MAX_BATCH, BATCH))
  return [
      Case(f"ABS, eta_0 for B_max = {MAX_BATCH:,}", "ABS", ours, True),
      Case("constant batch 100, the same eta_0", "SGD", ours, True),
      Case("constant batch 100, eta_0 for B_max = 100", "SGD", small, True),
      Case(f"ABSA, eta_0 for B_max = {MAX_BATCH:,}", "ABSA", ours, False),
      Case("ABS, eta_0 = 1.2 / 100", "ABS", RATE / BATCH, False)]


def beside_the_bound(
    problem: convex_problem.Problem, found: convex_theorem.Constants,
    case: Case, epochs: int, seeds: Sequence[int]
) -> convex_theorem.Comparison:
  """Runs a case; rows are drawn independently, as the theorem has them."""
  traces = [convex_training.train(
      problem, convex_training.Settings(BATCH, BATCH * case.rate, epochs, seed,
                                        replacement=True),
      rule(case.name, BATCH, problem.rows, epochs)) for seed in seeds]
  return convex_theorem.compare(problem, found, case.rate, traces)
