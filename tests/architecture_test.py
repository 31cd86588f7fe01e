"""The rules of the source tree that a reader relies on."""

import ast
import pathlib
import warnings

import pytest

from tools import import_scan

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
MODULES = import_scan.scan(REPOSITORY)
OURS = sorted(name for name in MODULES if name.split(".")[0] == "conadv_tf")

# A part may import from the levels above it in this list and from itself, not
# from its neighbours in the line.
LEVELS = (
    ("config", "exits", "randomness"),
    ("layers", "attacks", "objectives", "optimizers", "data", "models",
     "distribute"),
    ("methods",),
    ("training", "evaluation", "analysis"),
    ("components",),
    ("command_line", "counts", "experiment", "method_lines"),
    ("description",),
    ("runs", "saved_runs", "robustness"),
    ("__init__", "train", "evaluate", "export", "doctor"),
)
LEVEL = {part: i for i, parts in enumerate(LEVELS) for part in parts}
# A method stands alone, on what is common to all of them.
METHOD_BASES = tuple(
    f"conadv_tf.methods.{name}"
    for name in ("method", "passes", "adversarial", "growth", "embedded"))
# Seconds to import: only inside the functions that need them.
HEAVY = ("art", "foolbox", "keras_cv", "mlperf_logging", "official.nlp",
         "official.vision", "sklearn", "tensorflow_addons",
         "tensorflow_datasets", "tensorflow_text", "tokenizers")
CONFIG_MAY_IMPORT = ("official.modeling.hyperparams", "yaml")

MAX_FILE_LINES, GOOD_FILE_LINES, MAX_FUNCTION_LINES = 400, 300, 60


def part(name: str) -> str:
  """The package or top-level module below conadv_tf."""
  return (name.split(".") + ["__init__"])[1]


def tree(name: str) -> ast.Module:
  return ast.parse((REPOSITORY / MODULES[name].path).read_text("utf-8"))


def imported_at_the_top(name: str) -> list[str]:
  found = []
  for node in tree(name).body:
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      found += [f"{node.module}.{alias.name}" for alias in node.names]
  return found


def test_every_part_has_a_level() -> None:
  assert {part(name) for name in OURS} <= set(LEVEL)


@pytest.mark.parametrize("name", OURS)
def test_import_direction(name: str) -> None:
  for imported in MODULES[name].imports:
    assert imported.split(".")[0] == "conadv_tf", (
        f"{name} imports {imported}, which is no part of the package")
    here, there = part(name), part(imported)
    assert here == there or LEVEL[there] < LEVEL[here], (
        f"{name} imports {imported}: {there} is not below {here}")


def test_methods_do_not_import_methods() -> None:
  methods = [name for name in OURS if part(name) == "methods"]
  for name in methods:
    if name == "conadv_tf.methods":
      continue
    others = set(MODULES[name].imports) & set(methods)
    assert others <= set(METHOD_BASES), f"{name} imports {others}"


def test_nothing_imports_tools_or_tests() -> None:
  for name, module in MODULES.items():
    tops = {imported.split(".")[0] for imported in module.imports}
    home = name.split(".")[0]
    if home == "tools":
      assert "tests" not in tops, name
    elif home == "conadv_tf":
      assert not tops & {"tools", "tests"}, name


@pytest.mark.parametrize("name", OURS)
def test_heavy_packages_are_imported_late(name: str) -> None:
  heavy = [imported for imported in imported_at_the_top(name)
           if imported.startswith(HEAVY)]
  assert not heavy


def test_config_needs_no_more_than_hyperparams() -> None:
  for name in OURS:
    if part(name) == "config":
      third_party = [
          imported for imported in imported_at_the_top(name)
          if imported.split(".")[0] in import_scan.DISTRIBUTIONS]
      assert all(imported.startswith(CONFIG_MAY_IMPORT)
                 for imported in third_party), (name, third_party)
      assert {part(imported) for imported in MODULES[name].imports} <= {
          "config"}, name


def test_every_package_has_an_init() -> None:
  """Without it an installed copy would lack the directory."""
  packages = {REPOSITORY / MODULES[name].path.parent for name in OURS}
  assert not [p for p in packages if not (p / "__init__.py").exists()]


def test_no_module_is_called_utils() -> None:
  vague = [module.path for module in MODULES.values()
           if module.path.stem in ("utils", "util", "helpers", "common")]
  assert not vague


@pytest.mark.parametrize("name", sorted(MODULES))
def test_sizes(name: str) -> None:
  path = MODULES[name].path
  lines = len((REPOSITORY / path).read_text("utf-8").splitlines())
  assert lines <= MAX_FILE_LINES, f"{path} has {lines} lines"
  if lines > GOOD_FILE_LINES:
    warnings.warn(f"{path} has {lines} lines", stacklevel=1)
  for node in ast.walk(tree(name)):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      length = node.end_lineno - node.lineno + 1
      assert length <= MAX_FUNCTION_LINES, (
          f"{path}:{node.lineno}: {node.name} has {length} lines")
