"""The report for bug reports."""

import pathlib

import pytest

from conadv_tf import components, config, doctor, methods
from tests import commands


def test_what_a_run_depends_on(tmp_path: pathlib.Path,
                               monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setenv("TF_CONFIG", "{}")
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
  file = tmp_path / "some.npz"
  file.write_bytes(b"123")
  facts = dict(doctor._facts([str(file)]))  # pylint: disable=protected-access
  assert facts["tensorflow"] == "2.15.1"
  assert facts["devices"].startswith("/physical_device:CPU:0")
  assert facts["TF_CONFIG"] == "{}"
  assert facts[str(tmp_path / "none")] == "does not exist"
  assert facts[str(file)].startswith("file of 3 bytes, readable and writable")


def test_a_method_that_fails_is_named_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
  def broken(experiment: config.ExperimentConfig) -> methods.Vanilla:
    raise RuntimeError(f"no {experiment.method.name}\nmore")

  monkeypatch.setattr(components, "METHODS", {
      "broken": broken, "vanilla": components.METHODS["vanilla"]})
  assert not doctor._all_train()  # pylint: disable=protected-access
  failed, fine = capsys.readouterr().out.splitlines()
  assert failed.split(maxsplit=1) == ["broken", failed[25:]]
  assert failed[25:].startswith("FAILED: RuntimeError: no broken (")
  assert fine.startswith("vanilla ") and "ok, loss " in fine


@pytest.mark.slow
def test_every_method_trains() -> None:
  done = commands.run("conadv_tf.doctor")
  assert done.code == 0, done.out
  for name in components.METHODS:
    assert f"\n{name:24} ok, loss " in done.out
