"""The same weights on one device, two, and in two and three processes."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from tests.distribute import arrangements, processes

_ARRANGEMENTS = {
    # name: strategy, replicas, workers, cases (a trace costs seconds); how
    "two devices": ("mirrored", 2, 1, arrangements.METHODS),
    "two workers": ("multi_worker_mirrored", 2, 2, arrangements.ALL),
    "three workers": ("multi_worker_mirrored", 3, 3, arrangements.METHODS,
                      "ring"),
}


def results(folder: pathlib.Path, name: str, strategy: str, replicas: int,
            workers: int, cases: list[str], communication: str = "auto"
            ) -> dict[str, Any]:
  """What some cases of `arrangements` come to in an arrangement."""
  processes.run("tests.distribute.arrangements", str(folder), name, strategy,
                str(replicas), communication, *cases, workers=workers,
                timeout=600)
  return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
  return results(tmp_path_factory.mktemp("one"), "one device", "one_device",
                 1, 1, arrangements.ALL)


def _assert_same(found: dict[str, Any], one_device: dict[str, Any]) -> None:
  for case in found:
    weights, reference = (
        np.array(r[case]["weights"]) for r in (found, one_device))
    limit = 0.0 if case == "deterministic" else 1e-5
    assert np.abs(weights - reference).max() <= limit, case
    assert np.abs(reference).max() > 0.1
    for figure, value in one_device[case]["figures"].items():
      assert found[case]["figures"][figure] == pytest.approx(
          value, abs=1e-5), (case, figure)


@pytest.mark.slow
def test_two_workers(tmp_path: pathlib.Path) -> None:
  cases = ["deterministic"]  # ConAdv with a lagged copy
  found = results(tmp_path, "two", "multi_worker_mirrored", 2, 2, cases)
  _assert_same(
      found, results(tmp_path, "one", "one_device", 1, 1, cases))


@pytest.mark.slow
@pytest.mark.parametrize("name", _ARRANGEMENTS)
def test_equal_weights_and_figures(
    name: str, one_device: dict[str, Any], tmp_path: pathlib.Path) -> None:
  found = results(tmp_path, name, *_ARRANGEMENTS[name])
  assert list(found) == _ARRANGEMENTS[name][3]
  _assert_same(found, one_device)
  assert one_device["conadv"]["figures"]["examples"] == found["conadv"][
      "figures"]["examples"] > 0
