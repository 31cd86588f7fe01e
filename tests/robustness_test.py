"""Attacks on a run: plan, sweep, table, and warnings where gradients hide."""

from collections.abc import Sequence
import re
from typing import Any

import pytest

from conadv_tf import config, experiment, robustness
from conadv_tf.evaluation import library_attacks
from tests import linear_models as linear


@pytest.fixture(scope="module")
def plain() -> experiment.Experiment:
  return linear.build("plain")


def measured(built: experiment.Experiment, names: Sequence[str],
             branch: str = "clean", **options: Any) -> dict[str, Any]:
  return robustness.measure(built, robustness.plan(
      built, names, branch=branch, **options))


def test_a_sweep_on_both_branches(plain: experiment.Experiment,
                                  capsys: pytest.CaptureFixture) -> None:
  report = measured(plain, ["pgd20"], "both", radii=[6.0, 14.0], steps=[4])
  keys = ["none", "pgd4@6", "pgd4@14"]
  rows = report["attacks"]
  assert [(row["branch"], row["attack"]) for row in rows] == [
      (branch, key) for branch in ("clean", "adversarial") for key in keys]
  for row, radius in zip(rows, [0, 6, 14] * 2, strict=True):
    expected = linear.exact(radius).mean()
    assert row["accuracy"] == expected and row["examples"] == 60
    assert row["standard_error"] == pytest.approx(
        (expected * (1 - expected) / 60)**0.5)
  assert report["validation_adversarial/robust_accuracy_pgd4@6"] == (
      report["validation/robust_accuracy_pgd4@6"]) == rows[1]["accuracy"]
  assert report["sanity/passed"]
  text = robustness.table(report).splitlines()
  assert len(text) == 7 and re.match(
      rf"clean +pgd4@6 +{rows[1]['accuracy']:.4f} +\d\.\d{{4}} +60 ", text[2])
  assert capsys.readouterr().err == ""  # took no 10 s and no terminal


def test_a_subset_is_the_same_for_all(plain: experiment.Experiment) -> None:
  report = measured(plain, ["pgd4@6", "apgd10@6"], subset=31)
  first, *others = report["attacks"]
  assert first["accuracy"] == 1.0
  assert {row["examples"] for row in report["attacks"]} == {31}
  assert others[0]["accuracy"] == others[1]["accuracy"] < 1.0
  alone = measured(plain, ["pgd4@6"], subset=31)
  assert [row["accuracy"] for row in alone["attacks"]] == [
      1.0, others[0]["accuracy"]]
  # One attack has nothing to be compared with.
  assert not alone["sanity/checks"] and "sanity/passed" not in alone


@pytest.mark.parametrize("model, library", [
    ("masked", True), pytest.param("plain", True, marks=pytest.mark.slow),
    pytest.param("plain", False, marks=pytest.mark.slow),
    pytest.param("masked", False, marks=pytest.mark.slow)])
def test_masked_gradients_are_noticed(
    model: str, library: bool, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(library_attacks, "is_installed", lambda: library)
  report = measured(linear.build(model), ["pgd10@12"], doubts=True)
  names = {check["name"] for check in report["sanity/checks"]}
  assert names == {"unbounded", "radius", "steps", "one_step", "black_box"}
  failed = {check["name"] for check in report["sanity/checks"]
            if not check["passed"]}
  warnings = [line for line in robustness.table(report).splitlines()
              if line.startswith("warning: gradients may be masked (clean, ")]
  assert len(warnings) == sum(
      not check["passed"] for check in report["sanity/checks"])
  if model == "plain":
    assert not failed and report["sanity/passed"]
  else:
    assert not report["sanity/passed"]
    assert failed == {"unbounded", "black_box"} if library else (
        "unbounded" in failed)
    assert report["validation/robust_accuracy_pgd20-0@255"] == 1.0


@pytest.mark.parametrize("names, options, message", [
    ([], dict(radii=[2.0]), "--radii and --steps need --attacks"),
    (["pgd9"], dict(subset=61), "--subset: must be from 1 to 60, the number "
     "of validation examples, got 61"),
    (["pgd9"], dict(branch="augmented"), "no branch 'augmented'"),
    (["pgd9@0"], dict(doubts=True), "--sanity: a radius of 0 cannot be"),
    (["pgd9", "pgd"], {}, "--attacks: unknown attack 'pgd'")])
def test_refusals(plain: experiment.Experiment, names: list[str],
                  options: dict[str, Any], message: str) -> None:
  with pytest.raises(config.InputError, match=message):
    robustness.plan(plain, names, **{"branch": "clean", **options})


def test_time_left(monkeypatch: pytest.MonkeyPatch,
                   capsys: pytest.CaptureFixture) -> None:
  clock = iter([0.0, 9.0, 11.0, 12.0, 0.0, 14.0])
  monkeypatch.setattr(robustness.time, "monotonic", lambda: next(clock))
  progress = robustness.Progress(100.0)
  for _ in range(3):
    progress.advance("pgd20", 5.0)
  progress.close()
  # 10 of 100 in 11 s: 99 s are left.
  assert capsys.readouterr().err == "attacks: pgd20, 10% done, 1:39 left\n"
  robustness.Progress(100.0).advance("none", 0.0)  # no rate to go by yet
  assert capsys.readouterr().err == "attacks: none, 0% done\n"
