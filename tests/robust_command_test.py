"""The attacks of the real command."""

import json
import pathlib

import pytest

from conadv_tf import runs
from tests import commands, tiny

_EVALUATE = "conadv_tf.evaluate"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("trained") / "run"
  runs.run(tiny.load(), str(folder), quiet=True)
  return folder


def test_a_sweep(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
  output = tmp_path / "figures.json"
  done = commands.run(
      _EVALUATE, f"--model_dir={run}", "--attacks=fgsm", "--radii=0,255",
      "--train_examples=0", f"--output={output}")
  assert done.code == 0, done.err
  report = json.loads(output.read_text())
  assert json.loads(done.out) == report
  none, off, whole = report["attacks"]
  assert report["validation/robust_accuracy_fgsm@0"] == off["accuracy"] == (
      none["accuracy"]) == report["validation/accuracy"]
  assert report["validation/robust_accuracy_fgsm@255"] == whole["accuracy"]
  lines = done.err.splitlines()
  assert [line.split()[1] for line in lines[-3:]] == [
      "none", "fgsm@0", "fgsm@255"]


@pytest.mark.parametrize("flags, part", [
    (["--attacks=fab"], "unknown attack 'fab'; known: fgsm, pgd<steps>"),
    (["--attacks=fgsm@256"], "must be a number from 0 to 255"),
    (["--attacks=fgsm", "--radii=2,x"], "--radii: must be numbers")])
def test_refusals(run: pathlib.Path, flags: list[str], part: str) -> None:
  before = commands.digest(run)
  assert part in commands.run(
      _EVALUATE, f"--model_dir={run}", *flags).refusal()
  assert commands.digest(run) == before
