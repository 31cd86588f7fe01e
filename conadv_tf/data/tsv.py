"""Tab-separated tables with a header line, in UTF-8, as GLUE's are."""

from collections.abc import Sequence
import gzip
import os
import zlib

import tensorflow as tf

from conadv_tf.config import InputError
from conadv_tf.data import checks


def find(folder: str, name: str) -> str:
  """Returns the path of `<name>.tsv` or `<name>.tsv.gz` in a folder.

  Raises:
    InputError: neither is there.
  """
  paths = [os.path.join(folder, f'{name}{end}') for end in ('.tsv', '.tsv.gz')]
  for path in paths:
    if tf.io.gfile.exists(path):
      return path
  raise InputError(
      f'data.path={folder}: no {name}.tsv or {name}.tsv.gz; give the folder '
      'that holds it.')


def count(path: str) -> int:
  """Returns how many rows there are below the header."""
  return len(_lines(path)) - 1


def read(path: str, columns: Sequence[str]) -> dict[str, list[str]]:
  """Reads some columns. Quotes have no meaning, as in GLUE.

  Args:
    path: a .tsv or .tsv.gz.
    columns: their names in the header line, in any order.

  Returns:
    Every column's fields, in the order of the file; row i is line i + 2.

  Raises:
    InputError: that names the line: invalid UTF-8, another number of fields
      than the header has; or a column that is absent, or no rows.
  """
  lines = _lines(path)
  header = _decoded(lines[0], path, 1).removeprefix('\ufeff').split('\t')
  absent = [name for name in columns if name not in header]
  if absent:
    raise InputError(
        f'{path}: no column {", ".join(absent)}; its header line has '
        f'{", ".join(header)[:200]}.')
  if len(lines) == 1:
    raise InputError(f'{path}: has no rows below its header line.')
  places = [header.index(name) for name in columns]
  found = [[] for _ in columns]
  for number, line in enumerate(lines[1:], 2):
    fields = _decoded(line, path, number).split('\t')
    if len(fields) != len(header):
      raise InputError(
          f'{path}, line {number}: {len(fields)} fields, the header has '
          f'{len(header)}; mend the line.')
    for values, place in zip(found, places):
      values.append(fields[place])
  return dict(zip(columns, found))


def _lines(path: str) -> list[bytes]:
  """Returns the lines of a file, the header first, without their ends."""
  try:
    with tf.io.gfile.GFile(path, 'rb') as file:
      content = file.read()
    if path.endswith('.gz'):
      content = gzip.decompress(content)
  except (OSError, EOFError, zlib.error, tf.errors.OpError) as error:
    raise InputError(
        f'{path}: cannot be read ({checks.first_line(error)}); get it '
        'again.') from error
  # Not splitlines: a sentence may hold other characters that end lines.
  lines = content.split(b'\n')
  if not lines[-1]:
    lines.pop()
  if not lines:
    raise InputError(f'{path}: is empty; its first line must name the columns.')
  return [line.removesuffix(b'\r') for line in lines]


def _decoded(line: bytes, path: str, number: int) -> str:
  try:
    return line.decode('utf-8')
  except UnicodeDecodeError as error:
    raise InputError(
        f'{path}, line {number}: invalid UTF-8 at byte {error.start + 1}; '
        'save the file as UTF-8.') from error
