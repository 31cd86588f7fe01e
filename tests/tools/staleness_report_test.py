"""Figures of measured staleness, from records whose slopes are known."""

from typing import Any

import pytest

from tools import staleness_report


def run(power: float) -> dict[str, Any]:
  """Weights move by the lag, adversaries by 0.1 * lag ** power."""
  records = [{
      "update": update, "kind": "conadv", "branch": branch, "lag": lag,
      "weight_distance": float(lag * update), "sign_agreement": 0.9,
      "distance": 0.1 * (lag * update) ** power, "gain": 3.0 - 0.1 * lag,
      "fresh_gain": 3.0, "gradient_distance": 0.2 * lag * update}
             for update in (8, 9, 10) for branch in ("clean", "adversarial")
             for lag in (0, 1, 2, 4)]
  return {"rate": 0.5, "records": records}


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_slopes_and_strength(power: float) -> None:
  measured = run(power)
  assert staleness_report.slope(
      measured, "clean", "distance") == pytest.approx(power)
  assert staleness_report.slope(
      measured, "clean", "gradient_distance") == pytest.approx(1.0)
  assert staleness_report.strength(
      measured, "conadv", "clean", 4) == pytest.approx([2.6 / 3.0] * 3)
  assert f"| 0.5 | adversarial | 1.00 | {power:.2f} |" in (
      staleness_report.slopes([measured]))


def test_table_has_a_row_for_each_branch_and_lag() -> None:
  lines = staleness_report.table([run(1.0)]).splitlines()
  assert len(lines) == 2 + 2 * 4
  assert lines[5] == (
      "| 0.5 | adversarial | conadv | 4 | 36.000 | 7.200 | 3.600 | 0.900 | "
      "0.867 [0.867, 0.867] |")
