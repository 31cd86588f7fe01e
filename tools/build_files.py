"""Writes the Bazel BUILD files from what the Python files really import.

    python -m tools.build_files            # write them
    python -m tools.build_files --check    # list those that are not up to date

One target per module: a test, a binary where the file runs as a program, else
a library. Imports inside functions count, as do `importlib.import_module` with
a literal name and `"-m", "module"` in a command. A package's `__init__.py` is
the target named like its directory; only who imports names out of it depends
on it, else it and the modules that it gathers would depend on each other.
"""

import argparse
import ast
from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import graphlib
import pathlib
import re
import sys

PACKAGES = ("conadv_tf", "tests", "tools")
# Import name -> distribution in requirements.txt or requirements-dev.txt.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "foolbox": "foolbox",
    "keras_cv": "keras-cv",
    "numpy": "numpy",
    "official": "tf-models-official",
    "pytest": "pytest",
    "sklearn": "scikit-learn",
    "tensorflow": "tensorflow",
    "tensorflow_addons": "tensorflow-addons",
    "tensorflow_datasets": "tensorflow-datasets",
    "yaml": "pyyaml",
}
# Tests of the checkout itself, which Bazel's sandbox does not show them.
MANUAL = ("tests.architecture_test", "tests.tools.build_files_test")
HEADER = """\
# SPDX-License-Identifier: Apache-2.0
# Written by tools/build_files.py from the imports; do not edit.

"""
ROOT_BUILD = HEADER + """\
package(default_visibility = ["//visibility:public"])

exports_files([
    "constraints.txt",
    "pyproject.toml",
])

filegroup(
    name = "configs",
    srcs = glob(["configs/**/*.yaml"]),
)
"""


class BuildError(Exception):
  """The BUILD files cannot be written; the message says why."""


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
    BuildError: for an import that is neither ours, nor of the standard
      library, nor of a package in DISTRIBUTIONS.
  """
  paths = {}
  for package in PACKAGES:
    for path in (root / package).rglob("*.py"):
      relative = path.relative_to(root)
      parts = relative.with_suffix("").parts
      paths[".".join(p for p in parts if p != "__init__")] = relative
  return {name: _read(root, name, path, paths)
          for name, path in sorted(paths.items())}


def build_files(root: pathlib.Path) -> dict[str, str]:
  """Returns the BUILD files' text by their path relative to `root`."""
  modules = scan(root)
  try:
    graphlib.TopologicalSorter(
        {name: module.imports for name, module in modules.items()}).prepare()
  except graphlib.CycleError as error:
    raise BuildError(
        f"circular imports: {' <- '.join(error.args[1])}") from error
  packages: dict[str, list[Module]] = {}
  for module in modules.values():
    packages.setdefault(module.package, []).append(module)
  files = {f"{package}/BUILD": _build_file(package, members, modules)
           for package, members in packages.items()}
  return {"BUILD": ROOT_BUILD, **files}


def stale_files(root: pathlib.Path) -> list[str]:
  """Paths of BUILD files that are missing, wrong or left over."""
  wanted = build_files(root)
  present = {"BUILD", *(
      path.relative_to(root).as_posix()
      for package in PACKAGES for path in (root / package).rglob("BUILD"))}
  return sorted(
      path for path in present | set(wanted)
      if not (root / path).exists()
      or (root / path).read_text(encoding="utf-8") != wanted.get(path))


def main(argv: Sequence[str] | None = None) -> int:
  """Writes or checks; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--check", action="store_true",
                      help="write nothing, list the files that differ")
  parser.add_argument("--root", type=pathlib.Path, help="the repository",
                      default=pathlib.Path(__file__).resolve().parents[1])
  args = parser.parse_args(argv)
  try:
    stale = stale_files(args.root)
    if args.check:
      for path in stale:
        print(f"{path} is not what the imports say; run "
              "python -m tools.build_files", file=sys.stderr)
      return 1 if stale else 0
    wanted = build_files(args.root)
  except BuildError as error:
    print(error, file=sys.stderr)
    return 1
  for path in stale:
    if path in wanted:
      (args.root / path).write_text(wanted[path], encoding="utf-8")
    else:
      (args.root / path).unlink()
    print(path)
  return 0


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
      raise BuildError(f"{path}:{line}: there is no module {imported}")
    elif top in DISTRIBUTIONS:
      distributions.add(DISTRIBUTIONS[top])
    elif top not in sys.stdlib_module_names:
      raise BuildError(
          f"{path}:{line}: import of {top!r}: name its distribution in "
          "DISTRIBUTIONS of tools/build_files.py, and pin it")
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
    elif isinstance(node, ast.List | ast.Tuple):
      words = [getattr(element, "value", None) for element in node.elts]
      for flag, word in zip(words, words[1:]):
        if flag == "-m" and word in known:
          yield node.lineno, word


def _is_main_guard(node: ast.stmt) -> bool:
  return isinstance(node, ast.If) and (
      ast.unparse(node.test) == "__name__ == '__main__'")


def _build_file(package: str, members: list[Module],
                modules: dict[str, Module]) -> str:
  """The text of one BUILD file."""
  targets = [module.target for module in members]
  if len(set(targets)) < len(targets):
    raise BuildError(f"{package}: a module is named like its package")
  rules = [_rule(module, modules) for module in members]
  kinds = sorted({rule.partition("(")[0] for rule in rules})
  loads = [f'load("@rules_python//python:{kind}.bzl", "{kind}")'
           for kind in kinds]
  if any("requirement(" in rule for rule in rules):
    loads.insert(0, 'load("@pypi//:requirements.bzl", "requirement")')
  public = package.partition("/")[0] == "conadv_tf"
  visibility = "//visibility:public" if public else "//:__subpackages__"
  testing = package.partition("/")[0] == "tests"
  parts = [HEADER + "\n".join(loads), _call("package", [
      *([("default_testonly", "True")] if testing else []),
      ("default_visibility", _strings([visibility]))])]
  if package == "tests":
    parts.append('exports_files(["run_pytest.py"])')
  return "\n\n".join(parts + rules) + "\n"


def _rule(module: Module, modules: dict[str, Module]) -> str:
  """One target."""
  file = module.path.name
  imports, srcs, data = set(module.imports), [file], []
  if module.is_test:
    # pytest loads these without an import.
    imports.update(f"{'.'.join(parent.parts)}.conftest"
                   for parent in module.path.parents if parent.parts)
    imports &= set(modules)
    srcs.append("//tests:run_pytest.py")
    data.append("//:pyproject.toml")
  if module.is_test and module.reads_configs:
    data.append("//:configs")
  labels = {modules[name].label(module.package) for name in imports}
  third_party = set(module.distributions) | (
      {"pytest"} if module.is_test else set())
  deps = [f'"{label}"' for label in sorted(
      labels, key=lambda label: re.split("[:/]", label))]
  deps += [f'requirement("{name}")' for name in sorted(third_party)]

  attributes = [("name", f'"{module.target}"')]
  if module.is_test:
    attributes.append(("size", '"large"' if module.is_slow else '"medium"'))
  attributes.append(("srcs", _strings(srcs)))
  if module.is_test:
    attributes.append(("args", _strings([f"$(rootpath {file})"])))
  if data:
    attributes.append(("data", _strings(sorted(data))))
  if module.is_test:
    attributes.append(("main", '"//tests:run_pytest.py"'))
  if module.name in MANUAL:
    attributes.append(("tags", _strings(["manual"])))
  if deps:
    attributes.append(("deps", _list(deps)))
  kind = ("py_test" if module.is_test else
          "py_binary" if module.is_program else "py_library")
  return _call(kind, attributes)


def _call(function: str, attributes: list[tuple[str, str]]) -> str:
  if len(attributes) == 1:
    return f"{function}({attributes[0][0]} = {attributes[0][1]})"
  lines = "".join(f"    {key} = {value},\n" for key, value in attributes)
  return f"{function}(\n{lines})"


def _strings(values: Sequence[str]) -> str:
  return _list([f'"{value}"' for value in values])


def _list(values: Sequence[str]) -> str:
  if len(values) == 1:
    return f"[{values[0]}]"
  return "[\n" + "".join(f"        {value},\n" for value in values) + "    ]"


if __name__ == "__main__":
  sys.exit(main())
