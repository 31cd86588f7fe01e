"""The BUILD files say what the imports say, here and in small repositories."""

import pathlib
import re

import pytest

from tools import build_files

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
FILES = {
    "conadv_tf/__init__.py": '__all__ = ["Trainer", "attacks"]\n',
    "conadv_tf/config.py": "import os\nimport yaml\n",
    "conadv_tf/attacks/__init__.py": "from conadv_tf.attacks.ball import f\n",
    "conadv_tf/attacks/ball.py": """
        from conadv_tf import config
        def f():
          import tensorflow as tf
          from .noise import g
        """,
    "conadv_tf/attacks/noise.py": "import numpy as np\n",
    "conadv_tf/train.py": """
        import importlib
        from absl import app, flags
        importlib.import_module("conadv_tf.config")
        if __name__ == "__main__":
          app.run(print)
        """,
    "tests/conftest.py": "import pytest\n",
    "tests/run_pytest.py": "import pytest\n",
    "tests/attacks/ball_test.py": """
        import sys
        import conadv_tf as ca
        from conadv_tf.attacks import f
        COMMAND = [sys.executable, "-m", "conadv_tf.train"]
        CONFIG = "configs/a.yaml"
        """,
    "tools/__init__.py": "",
}


@pytest.fixture(name="root")
def fixture_root(tmp_path: pathlib.Path) -> pathlib.Path:
  """A small repository with up-to-date BUILD files."""
  for name, text in FILES.items():
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(re.sub("^ {8}", "", text, flags=re.MULTILINE))
  assert run(tmp_path) == 0
  return tmp_path


def run(root: pathlib.Path, *flags: str) -> int:
  return build_files.main([*flags, f"--root={root}"])


def rule(root: pathlib.Path, package: str, target: str) -> str:
  """One target's text, without line breaks and repeated spaces."""
  text = (root / package / "BUILD").read_text()
  rules = re.findall(r"^py_\w+\(\n.*?^\)", text, re.MULTILINE | re.DOTALL)
  found = [r for r in rules if f'    name = "{target}",\n' in r]
  assert len(found) == 1
  return re.sub(r"\s+", " ", found[0])


def test_this_repository(capsys: pytest.CaptureFixture[str]) -> None:
  assert run(REPOSITORY, "--check") == 0, capsys.readouterr().err


@pytest.mark.parametrize("package, target, expected", [
    ("conadv_tf", "config",
     'py_library( name = "config", srcs = ["config.py"], '
     'deps = [requirement("pyyaml")], )'),
    # Inside a function and relative imports count.
    ("conadv_tf/attacks", "ball",
     'py_library( name = "ball", srcs = ["ball.py"], deps = [ ":noise", '
     '"//conadv_tf:config", requirement("tensorflow"), ], )'),
    ("conadv_tf/attacks", "attacks",
     'py_library( name = "attacks", srcs = ["__init__.py"], '
     'deps = [":ball"], )'),
    # What __all__ names is imported when first used.
    ("conadv_tf", "conadv_tf",
     'py_library( name = "conadv_tf", srcs = ["__init__.py"], '
     'deps = ["//conadv_tf/attacks"], )'),
    ("conadv_tf", "train",
     'py_binary( name = "train", srcs = ["train.py"], deps = [ ":config", '
     'requirement("absl-py"), ], )'),
    ("tests/attacks", "ball_test",
     'py_test( name = "ball_test", size = "medium", srcs = [ "ball_test.py", '
     '"//tests:run_pytest.py", ], args = ["$(rootpath ball_test.py)"], '
     'data = [ "//:configs", "//:pyproject.toml", ], '
     'main = "//tests:run_pytest.py", deps = [ "//conadv_tf", '
     '"//conadv_tf:train", "//conadv_tf/attacks", "//tests:conftest", '
     'requirement("pytest"), ], )'),
])
def test_targets(
    root: pathlib.Path, package: str, target: str, expected: str) -> None:
  assert rule(root, package, target) == expected


def test_only_what_is_used_is_loaded(root: pathlib.Path) -> None:
  attacks = (root / "conadv_tf/attacks/BUILD").read_text()
  assert re.findall(r'^load\("(.*?)"', attacks, re.MULTILINE) == [
      "@pypi//:requirements.bzl", "@rules_python//python:py_library.bzl"]
  assert "requirement" not in (root / "tools/BUILD").read_text()


def test_slow_tests_get_more_time(root: pathlib.Path) -> None:
  with (root / "tests/attacks/ball_test.py").open("a") as file:
    file.write("import pytest\npytestmark = pytest.mark.slow\n")
  assert run(root) == 0
  assert 'size = "large"' in rule(root, "tests/attacks", "ball_test")


def test_writing_again_changes_nothing(
    root: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
  capsys.readouterr()
  assert run(root) == 0 and run(root, "--check") == 0
  assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("old, new", [
    ('":noise"', '":noize"'),
    ('        "//conadv_tf:config",\n', ""),
    ('":noise",', '":noise",\n        "//conadv_tf:train",'),
])
def test_a_wrong_dependency_is_found(
    root: pathlib.Path, old: str, new: str,
    capsys: pytest.CaptureFixture[str]) -> None:
  path = root / "conadv_tf/attacks/BUILD"
  right = path.read_text()
  assert old in right
  path.write_text(right.replace(old, new))
  wrong = path.read_text()
  capsys.readouterr()
  assert run(root, "--check") == 1
  error = capsys.readouterr().err
  assert error.startswith("conadv_tf/attacks/BUILD is not what the imports say")
  assert error.count("\n") == 1
  assert path.read_text() == wrong
  assert run(root) == 0 and path.read_text() == right


def test_missing_and_left_over_files_are_found(
    root: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
  (root / "tools/BUILD").unlink()
  (root / "conadv_tf/gone").mkdir()
  (root / "conadv_tf/gone/BUILD").write_text("")
  capsys.readouterr()
  assert run(root, "--check") == 1
  assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == [
      "conadv_tf/gone/BUILD", "tools/BUILD"]
  assert run(root) == 0 and run(root, "--check") == 0
  assert not (root / "conadv_tf/gone/BUILD").exists()


@pytest.mark.parametrize("name, text, words", [
    ("conadv_tf/config.py", "import os\nimport torch\n",
     "conadv_tf/config.py:2: import of 'torch': name its distribution"),
    ("conadv_tf/config.py", "from conadv_tf.atacks import ball\n",
     "conadv_tf/config.py:1: there is no module conadv_tf.atacks"),
    ("conadv_tf/config.py", "from conadv_tf import train\n",
     "circular imports: "),
    ("conadv_tf/attacks/attacks.py", "",
     "conadv_tf/attacks: a module is named like its package"),
    ("conadv_tf/attacks.py", "", "conadv_tf/attacks"),
])
@pytest.mark.parametrize("flags", [[], ["--check"]])
def test_errors(
    root: pathlib.Path, name: str, text: str, words: str, flags: list[str],
    capsys: pytest.CaptureFixture[str]) -> None:
  (root / name).write_text(text)
  capsys.readouterr()
  assert run(root, *flags) == 1
  error = capsys.readouterr().err
  assert error.startswith(words) and error.count("\n") == 1
