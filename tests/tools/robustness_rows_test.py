from typing import Any

from tools import robustness_rows


def row(radius: float, steps: int, accuracy: float, **other: Any
        ) -> dict[str, Any]:
  return {"file": "a", "branch": "clean", "family": "pgd", "radius": radius,
          "steps": steps, "restarts": 1, "step_size": None,
          "accuracy": accuracy, "standard_error": 0.1, **other}


def test_curves() -> None:
  rows = [row(0, 0, 1.0, family="none"), row(8, 10, 0.3), row(2, 10, 0.7),
          row(8, 20, 0.25), row(8, 20, 0.4, step_size=2.0),
          row(4, 20, 0.5, step_size=2.0), row(4, 10, 0.1, branch="other")]
  assert robustness_rows.curves(rows, "radius") == {
      "a, clean, pgd, steps 10, restarts 1": [(2, 0.7, 0.1), (8, 0.3, 0.1)],
      "a, clean, pgd, steps 20, restarts 1, step 2": [
          (4, 0.5, 0.1), (8, 0.4, 0.1)]}
  assert robustness_rows.curves(rows, "steps") == {
      "a, clean, pgd, radius 8, restarts 1": [(10, 0.3, 0.1), (20, 0.25, 0.1)]}
