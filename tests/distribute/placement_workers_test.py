"""One worker of two or three that only attacks: the weights of one device."""

import pathlib
from typing import Any

import numpy as np
import pytest

from tests.distribute import arrangements, workers_test

_CASES = list(arrangements.SPLIT)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
  return workers_test.results(
      tmp_path_factory.mktemp("one"), "one", "one_device", 1, 1, _CASES)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_equal_weights_and_figures(
    workers: int, one_device: dict[str, Any], tmp_path: pathlib.Path) -> None:
  found = workers_test.results(
      tmp_path, "split", "multi_worker_mirrored", workers, workers, _CASES)
  assert list(found) == _CASES
  for case, limit in zip(_CASES, (1e-5, 0.0)):
    ours, reference = (
        np.array(r[case]["weights"]) for r in (found, one_device))
    assert np.abs(ours - reference).max() <= limit, case
    assert np.abs(reference).max() > 0.1
    assert found[case]["figures"] == pytest.approx(
        one_device[case]["figures"], abs=1e-5)
