"""Measures a trained run under many attacks and doubts what it finds."""

from collections.abc import Callable, Sequence
import dataclasses
import sys
import time
from typing import Any

from conadv_tf import config as config_lib
from conadv_tf.data import pipeline
from conadv_tf.data import source as sources
from conadv_tf.evaluation import attack_names, library_attacks, robust, sanity
from conadv_tf.experiment import (
  Experiment,
  naming_unreadable_images,
  PIXEL_RANGE,
)

BOTH = "both"
_LINE_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Plan:
  """What to measure.

  Attributes:
    attacks: by their name in the report.
    branches: whose batch normalisation attacks and predicts.
    source: the examples, of the validation set.
    doubts: whether to add the attacks of `sanity.battery`.
  """

  attacks: dict[str, attack_names.Attack]
  branches: tuple[str, ...]
  source: sources.Source
  doubts: bool


def plan(experiment: Experiment, names: Sequence[str], *, branch: str,
         radii: Sequence[float] = (), steps: Sequence[int] = (),
         subset: int | None = None, doubts: bool = False) -> Plan:
  """Checks everything that can be refused, before anything is computed.

  Args:
    experiment: a restored run.
    names: of attacks, see `attack_names.KNOWN`.
    branch: of the network, or "both" for clean and adversarial.
    radii: in 1/255; every attack gets each.
    steps: of `pgd`, in place of the name's.
    subset: how many validation examples, a fixed random choice; None is all.
    doubts: whether to look for masked gradients with more attacks.

  Raises:
    InputError: for names, numbers, a missing library, a branch that this
      network does not have, a subset that cannot be made.
  """
  if (names or doubts) and config_lib.is_text(experiment.config):
    raise config_lib.InputError(
        "--attacks change pixels, and the data of this run are sentences; "
        "leave them out")
  if (radii or steps) and not names:
    raise config_lib.InputError("--radii and --steps need --attacks")
  radius = attack_names.run_radius(experiment.config.attack)
  attacks = attack_names.sweep(names, radius, radii, steps)
  if doubts:
    at = next(iter(attacks.values())).radius if attacks else radius
    if not 0 < at <= attack_names.MAX_RADIUS:
      raise config_lib.InputError(
          f"--sanity: a radius of {at:g} cannot be doubted; name an attack "
          "with a larger one, such as --attacks=pgd20@8")
    battery = sanity.battery(at, library_attacks.is_installed())
    known = set(attacks.values())
    for name in battery:
      attack = attack_names.parse(name, at)
      if attack not in known:
        attacks[name] = attack
  network = experiment.trainer.network
  for attack in attacks.values():
    if attack.from_library:
      library_attacks.check(attack, experiment.splits.validation.image_shape,
                            network.output_shape[-1])
  branches = ("clean", "adversarial") if branch == BOTH else (branch,)
  for name in branches:
    experiment.evaluator(name)  # refuses one that is not there
  source = experiment.splits.validation
  if subset is not None:
    if not 1 <= subset <= source.num_examples:
      raise config_lib.InputError(
          f"--subset: must be from 1 to {source.num_examples}, the number of "
          f"validation examples, got {subset}")
    source = sources.truncate(source, subset)
  return Plan(attacks, branches, source, doubts)


def prefix(what: Plan, branch: str) -> str:
  """Before the figures of a branch in a report."""
  first = branch == what.branches[0]
  return "validation" if first else f"validation_{branch}"


class Progress:
  """Which attack runs and the time left, on stderr."""

  def __init__(self, work: float) -> None:
    """Starts the clock; `work` is the whole, in any unit."""
    self._work, self._done = work, 0.0
    self._start = self._shown = time.monotonic()
    self._terminal = sys.stderr.isatty()

  def advance(self, label: str, work: float) -> None:
    """Adds work done; shows it at most every 10 s, more on a terminal."""
    self._done += work
    now = time.monotonic()
    if now - self._shown < (0.2 if self._terminal else _LINE_SECONDS):
      return
    self._shown = now
    text = f"attacks: {label}, {self._done / self._work:.0%} done"
    if self._done:  # the first batch has only begun, and may take long
      left = (now - self._start) * (self._work / self._done - 1.0)
      text += f", {int(left) // 60}:{int(left) % 60:02d} left"
    print(f"\r\033[K{text}" if self._terminal else text,
          end="" if self._terminal else "\n", file=sys.stderr, flush=True)

  def close(self) -> None:
    """Clears the line."""
    if self._terminal:
      print("\r\033[K", end="", file=sys.stderr, flush=True)


def measure(experiment: Experiment, what: Plan) -> dict[str, Any]:
  """Attacks, one after the other.

  Returns:
    `attacks`: a list of one dictionary for every branch and attack, whose
    first of each branch is the clean accuracy on the same examples, `none`;
    `sanity/checks` and, where there are any, `sanity/passed`; and
    `<prefix>/robust_accuracy_<name>` with prefix `validation`, or
    `validation_adversarial` for the second of two branches.
  """
  work = sum(attack.passes for attack in what.attacks.values()) + 1
  progress = Progress(work * len(what.branches))
  report: dict[str, Any] = {"attacks": [], "sanity/checks": []}
  try:
    with naming_unreadable_images(experiment.splits):
      for branch in what.branches:
        rows = _rows(experiment, what, branch, progress)
        report["attacks"] += [_record(branch, row) for row in rows]
        report["sanity/checks"] += [
            {"branch": branch, **dataclasses.asdict(check)}
            for check in sanity.checks(rows[1:])]
        report.update({
            f"{prefix(what, branch)}/robust_accuracy_{row.key}": row.accuracy
            for row in rows[1:]})
  finally:
    progress.close()
  if report["sanity/checks"]:
    report["sanity/passed"] = all(
        check["passed"] for check in report["sanity/checks"])
  return report


def _rows(experiment: Experiment, what: Plan, branch: str, progress: Progress
          ) -> list[sanity.Row]:
  """The clean accuracy, then that under every attack."""
  nothing = attack_names.Attack("none", 0.0, 0, 0)
  rows = []
  for key, attack in {"none": nothing, **what.attacks}.items():
    start = time.monotonic()
    found = _one(experiment, what, branch, attack,
                 lambda share, key=key, attack=attack: progress.advance(
                     key, share * max(1, attack.passes)))
    rows.append(sanity.Row(key, attack, found["accuracy"],
                           int(found["examples"]), time.monotonic() - start))
  return rows


def _one(experiment: Experiment, what: Plan, branch: str,
         attack: attack_names.Attack, advance: Callable[[float], None]
         ) -> dict[str, float]:
  seed, size = experiment.config.seed, experiment.config.evaluation.batch_size
  network = experiment.trainer.network
  batches = -(-what.source.num_examples // size)
  if attack.from_library:
    return library_attacks.LibraryEvaluator(
        network, attack, branch, seed, PIXEL_RANGE, experiment.outputs)(
            pipeline.evaluation_dataset(what.source, size),
            lambda share: advance(share / batches))
  if attack.family == "none":
    evaluator = experiment.evaluator(branch)
  else:
    evaluator = robust.RobustEvaluator(
        network, experiment.loss, robust.from_name(attack),
        experiment.strategy, branch, seed, PIXEL_RANGE)
  begun = iter([0.0])  # what is called before a batch says that one is done
  found = experiment.figures(
      evaluator, what.source, f"attacked {what.source.num_examples}",
      lambda: advance(next(begun, 1.0 / batches)))
  advance(1.0 / batches)
  return found


def _record(branch: str, row: sanity.Row) -> dict[str, Any]:
  attack = row.attack
  return {"branch": branch, "attack": row.key, "family": attack.family,
          "radius": attack.radius, "steps": attack.steps,
          "restarts": attack.restarts, "step_size": attack.step_size,
          "accuracy": row.accuracy, "standard_error": row.standard_error,
          "examples": row.examples, "seconds": round(row.seconds, 3)}


def table(report: dict[str, Any]) -> str:
  """The attacks as a table to read, with a line for every failed check."""
  lines = [f"{'branch':12} {'attack':20} {'accuracy':>8}  +- error  examples "
           f"{'seconds':>8}"]
  lines += [f"{row['branch']:12} {row['attack']:20} {row['accuracy']:8.4f}  "
            f"{row['standard_error']:8.4f}  {row['examples']:8d} "
            f"{row['seconds']:8.1f}" for row in report["attacks"]]
  lines += [f"warning: gradients may be masked ({check['branch']}, "
            f"{check['name']}): {check['text']}"
            for check in report["sanity/checks"] if not check["passed"]]
  return "\n".join(lines)
