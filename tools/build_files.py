"""Writes the Bazel BUILD files from what the Python files really import.

    python -m tools.build_files            # write them
    python -m tools.build_files --check    # list those that are not up to date

One target per module: a test, a binary where the file runs as a program, else
a library. A package's `__init__.py` is the target named like its directory;
only who imports names out of it depends on it, else it and the modules that it
gathers would depend on each other.
"""

import argparse
from collections.abc import Mapping, Sequence
import graphlib
import pathlib
import sys

from tools import import_scan

# Tests of the checkout itself, which Bazel's sandbox does not show them.
MANUAL = (
    "tests.architecture_test",
    "tests.readme_test",
    "tests.tools.build_files_test",
    "tests.tools.requirements_test",
    "tests.tools.tpu_vm_test",
    "tests.tools.tpu_vm_train_test",
)
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


def build_files(root: pathlib.Path) -> dict[str, str]:
  """Returns the BUILD files' text by their path relative to `root`."""
  modules = import_scan.scan(root)
  try:
    graphlib.TopologicalSorter(
        {name: module.imports for name, module in modules.items()}).prepare()
  except graphlib.CycleError as error:
    raise BuildError(
        f"circular imports: {' <- '.join(error.args[1])}") from error
  packages: dict[str, list[import_scan.Module]] = {}
  for module in modules.values():
    packages.setdefault(module.package, []).append(module)
  files = {f"{package}/BUILD": _build_file(package, members, modules)
           for package, members in packages.items()}
  return {"BUILD": ROOT_BUILD, **files}


def stale_files(root: pathlib.Path, wanted: Mapping[str, str]) -> list[str]:
  """Paths of BUILD files that are missing, left over or not as `wanted`."""
  present = {"BUILD", *(
      path.relative_to(root).as_posix()
      for package in import_scan.PACKAGES
      for path in (root / package).rglob("BUILD"))}
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
    wanted = build_files(args.root)
  except (BuildError, import_scan.ImportScanError) as error:
    print(error, file=sys.stderr)
    return 1
  stale = stale_files(args.root, wanted)
  if args.check:
    for path in stale:
      print(f"{path} is not what the imports say; run "
            "python -m tools.build_files", file=sys.stderr)
    return 1 if stale else 0
  for path in stale:
    if path in wanted:
      (args.root / path).write_text(wanted[path], encoding="utf-8")
    else:
      (args.root / path).unlink()
    print(path)
  return 0


def _build_file(package: str, members: list[import_scan.Module],
                modules: dict[str, import_scan.Module]) -> str:
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


def _rule(module: import_scan.Module,
          modules: dict[str, import_scan.Module]) -> str:
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
      labels, key=lambda label: (label[0] != ":", label.split(":")))]
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
