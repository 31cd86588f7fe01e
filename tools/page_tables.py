"""Tables of results in pages, see `tools.fill_tables`; no flags."""

from collections.abc import Iterator
import pathlib
import re

from conadv_tf.config import InputError

_START = re.compile(r"<!-- table: (?P<path>\S+): (?P<title>.+) -->")
_END = "<!-- end -->"


def pages(root: pathlib.Path) -> list[pathlib.Path]:
  """Those that may hold tables."""
  return [path for path in (root / "README.md",
                            *sorted((root / "docs").glob("*.md")))
          if path.exists()]


def table(path: pathlib.Path, title: str) -> list[str]:
  """The lines of the first table below a heading of a Markdown file.

  Raises:
    InputError: if there is no such file, heading or table.
  """
  try:
    lines = path.read_text(encoding="utf-8").splitlines()
  except OSError as error:
    raise InputError(f"{path}: {error.strerror}") from error
  found: list[str] = []
  here = False
  for line in lines:
    if line.startswith("#"):
      if found:
        break
      here = line.lstrip("#").strip() == title
    elif here and line.startswith("|"):
      found.append(line)
    elif found:
      break
  if not found:
    raise InputError(f"{path}: no table below a heading {title}")
  return found


def filled(text: str, root: pathlib.Path, page: str) -> str:
  """A page with the tables that its marks name.

  Args:
    text: of the page.
    root: of the repository.
    page: its name, for messages.

  Raises:
    InputError: if a mark has no end, or its table is not there.
  """
  return "".join(line + "\n" for line in _filled(
      text.splitlines(), root, page))


def _filled(lines: list[str], root: pathlib.Path, page: str) -> Iterator[str]:
  rest = iter(lines)
  for line in rest:
    yield line
    mark = _START.fullmatch(line)
    if mark is None:
      continue
    try:
      new = table(root / mark["path"], mark["title"])
    except InputError as error:
      raise InputError(f"{page}: {error}") from error
    yield from ("", *new, "")
    for old in rest:
      if _START.fullmatch(old):
        raise InputError(f"{page}: no {_END} after {line}")
      if old == _END:
        yield _END
        break
    else:
      raise InputError(f"{page}: no {_END} after {line}")


def fill(root: pathlib.Path, check: bool) -> list[str]:
  """Writes the pages whose tables are others, or only names them.

  Returns:
    Their names, relative to the root.
  """
  stale = {}
  for path in pages(root):
    name, text = str(path.relative_to(root)), path.read_text(encoding="utf-8")
    if _START.search(text) and (new := filled(text, root, name)) != text:
      stale[name] = new
  for name, new in stale.items() if not check else ():
    (root / name).write_text(new, encoding="utf-8")
  return list(stale)
