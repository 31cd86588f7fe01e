"""Codes between real processes: the same sums everywhere, and few bytes."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.distribute import compressed_arrangements as arrangements
from tests.distribute import processes

_Weights = list[dict[str, np.ndarray]]  # of each worker, by case


def _run(folder: pathlib.Path, strategy: str, workers: int,
         micro_batches: int, cases: list[str]) -> _Weights:
  name = f"{strategy}-{workers}"
  processes.run("tests.distribute.compressed_arrangements", str(folder), name,
                strategy, str(micro_batches), *cases, workers=workers,
                timeout=300)
  return [{case: np.array(weights) for case, weights in json.loads(
      (folder / f"{name}-{i}.json").read_text()).items()}
      for i in range(workers)]


@pytest.mark.slow
@pytest.mark.parametrize("workers, cases", [
    (2, [*(case for case in arrangements.CASES if case != "virtual"),
         arrangements.RESUMED]),
    (3, ["8 bits", "2 sides", "scatter"])])
def test_the_same_weights_on_all_workers(
    workers: int, cases: list[str], tmp_path: pathlib.Path) -> None:
  found = _run(tmp_path, "multi_worker_mirrored", workers, 1, cases)
  for case in cases:
    for other in found[1:]:
      np.testing.assert_array_equal(found[0][case], other[case], case)
  chief = found[0]
  # What travels in parts is what travels whole.
  np.testing.assert_array_equal(chief["scatter"], chief["2 sides"])
  assert np.abs(chief["8 bits"] - chief["2 sides"]).max() > 1e-4
  if workers == 3:
    return
  np.testing.assert_array_equal(
      chief[arrangements.RESUMED], chief["feedback"])
  # One process computes what as many workers do.
  alone = _run(tmp_path, "one_device", 1, workers,
               ["virtual", "virtual, deterministic"])[0]
  np.testing.assert_array_equal(
      chief["virtual, deterministic"], alone["virtual, deterministic"])
  assert np.abs(chief["8 bits"] - alone["virtual"]).max() < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(
    subprocess.run(["unshare", "-n", "true"], capture_output=True,
                   check=False).returncode != 0,
    reason="needs a network namespace of its own, that is root")
@pytest.mark.parametrize("workers, limits", [
    (2, {"8_bits": 0.27}),
    (3, {"8_bits": 0.39, "8_bits_scatter": 0.27})])
def test_bytes_on_the_loopback(workers: int, limits: dict[str, float],
                               tmp_path: pathlib.Path) -> None:
  output = tmp_path / "traffic.json"
  done = subprocess.run(
      [sys.executable, "-m", "tools.measure_traffic", f"--workers={workers}",
       f"--rows=float32,{','.join(limits)}", f"--output={output}"],
      cwd=processes.REPOSITORY, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr[-3000:]
  rows = {row["name"]: row for row in json.loads(output.read_text())["rows"]}
  for name, row in rows.items():
    # The formula counts gradients alone.
    assert 1 <= row["bytes"] / row["formula"] < 1.05, name
  for name, limit in limits.items():
    assert rows[name]["bytes"] / rows["float32"]["bytes"] <= limit
