"""Reads which modules the repository has and what they really import.

Imports inside functions count, as do `importlib.import_module` with a literal
name, submodules in `__all__` (imported when first used) and `"-m", "module"`
in a command.
"""

import ast
from collections.abc import Iterable, Iterator
import dataclasses
import pathlib
import sys

PACKAGES = ("conadv_tf", "tests", "tools")
# Import name -> distribution in requirements.txt or requirements-dev.txt.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "art": "adversarial-robustness-toolbox",
    "foolbox": "foolbox",
    "keras_cv": "keras-cv",
    "markdown": "markdown",
    "matplotlib": "matplotlib",
    "mlperf_logging": "mlperf-logging",
    "neural_structured_learning": "neural-structured-learning",
    "numpy": "numpy",
    "official": "tf-models-official",
    "pytest": "pytest",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "tensorboard": "tensorboard",
    "tensorflow": "tensorflow",
    "tensorflow_addons": "tensorflow-addons",
    "tensorflow_datasets": "tensorflow-datasets",
    "tensorflow_text": "tensorflow-text",
    "tokenizers": "tokenizers",
    "yaml": "pyyaml",
}


class ImportScanError(Exception):
  """An import that belongs to nothing known; the message says where."""


@dataclasses.dataclass(frozen=True)
class Module:
  """One Python file of this repository.

  Attributes:
    name: dotted, without a trailing `__init__`.
    path: relative to the repository.
    imports: dotted names of this repository's modules, sorted.
    distributions: third-party packages, sorted.
    is_program: whether it is run: has `if __name__ == "__main__"`.
    is_slow: whether it holds tests marked slow.
    reads_configs: whether it names the directory `configs`.
  """

  name: str
  path: pathlib.PurePath
  imports: tuple[str, ...]
  distributions: tuple[str, ...]
  is_program: bool
  is_slow: bool
  reads_configs: bool

  @property
  def package(self) -> str:
    """The directory, which is the Bazel package."""
    return self.path.parent.as_posix()

  @property
  def target(self) -> str:
    """The target's name in its package."""
    is_init = self.path.stem == "__init__"
    return self.path.parent.name if is_init else self.path.stem

  @property
  def is_test(self) -> bool:
    """Whether pytest collects it."""
    return self.target.endswith("_test")

  def label(self, package: str) -> str:
    """How a target in `package` names this one."""
    if package == self.package:
      return f":{self.target}"
    if self.package.rsplit("/", 1)[-1] == self.target:
      return f"//{self.package}"
    return f"//{self.package}:{self.target}"


def scan(root: pathlib.Path) -> dict[str, Module]:
  """Reads every Python file of the repository.

  Args:
    root: the repository.

  Returns:
    The modules by dotted name, sorted.

  Raises:
    ImportScanError: for an import that is neither ours, nor of the standard
      library, nor of a package in DISTRIBUTIONS, and for two files of one name.
  """
  paths = {}
  for package in PACKAGES:
    for path in (root / package).rglob("*.py"):
      relative = path.relative_to(root)
      parts = relative.with_suffix("").parts
      name = ".".join(part for part in parts if part != "__init__")
      if name in paths:
        raise ImportScanError(f"{paths[name]} and {relative} are both {name}")
      paths[name] = relative
  return {name: _read(root, name, path, paths)
          for name, path in sorted(paths.items())}


def _read(root: pathlib.Path, name: str, path: pathlib.PurePath,
          known: Iterable[str]) -> Module:
  text = (root / path).read_text(encoding="utf-8")
  tree = ast.parse(text, str(path))
  package = name if path.stem == "__init__" else name.rpartition(".")[0]
  ours, distributions = set(), set()
  for line, imported in _imported(tree, package, known):
    top = imported.partition(".")[0]
    if imported in known:
      ours.add(imported)
    elif top in PACKAGES:
      raise ImportScanError(f"{path}:{line}: there is no module {imported}")
    elif top in DISTRIBUTIONS:
      distributions.add(DISTRIBUTIONS[top])
    elif top not in sys.stdlib_module_names:
      raise ImportScanError(
          f"{path}:{line}: import of {top!r}: name its distribution in "
          "DISTRIBUTIONS of tools/import_scan.py, and pin it")
  strings = [node.value for node in ast.walk(tree)
             if isinstance(node, ast.Constant) and isinstance(node.value, str)]
  return Module(
      name, path, tuple(sorted(ours - {name})), tuple(sorted(distributions)),
      is_program=any(map(_is_main_guard, tree.body)),
      is_slow="mark.slow" in text,
      reads_configs=any(s.partition("/")[0] == "configs" for s in strings))


def _imported(tree: ast.Module, package: str, known: Iterable[str]
              ) -> Iterator[tuple[int, str]]:
  """Line and dotted name of everything that a file imports or runs."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield node.lineno, alias.name
    elif isinstance(node, ast.ImportFrom):
      parts = package.split(".")[:len(package.split(".")) + 1 - node.level]
      base = ".".join([*(parts if node.level else []),
                       *([node.module] if node.module else [])])
      for alias in node.names:
        submodule = f"{base}.{alias.name}"
        yield node.lineno, submodule if submodule in known else base
    elif isinstance(node, ast.Call) and node.args:
      if (ast.unparse(node.func).endswith("import_module")
          and isinstance(node.args[0], ast.Constant)):
        yield node.lineno, node.args[0].value
    elif (isinstance(node, ast.Assign)
          and ast.unparse(node.targets[0]) == "__all__"):
      for name in ast.literal_eval(node.value):
        if f"{package}.{name}" in known:
          yield node.lineno, f"{package}.{name}"
    elif isinstance(node, ast.List | ast.Tuple):
      words = [getattr(element, "value", None) for element in node.elts]
      for flag, word in zip(words, words[1:]):
        if flag == "-m" and word in known:
          yield node.lineno, word


def _is_main_guard(node: ast.stmt) -> bool:
  return isinstance(node, ast.If) and (
      ast.unparse(node.test) == "__name__ == '__main__'")
