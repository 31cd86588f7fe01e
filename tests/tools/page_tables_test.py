"""Tables of results in pages, and whether the shipped ones are current."""

import pathlib

import pytest

from conadv_tf import config
from tools import page_tables

_REPORT = """# All

## One: a table

Words.

| a |
| --- |
| 1 |

| b |

## Two

| c |
"""
_PAGE = """# Page

before
<!-- table: results/x/report.md: One: a table -->
old
<!-- end -->
after, and code:

    <!-- table: results/NAME/report.md: TITLE -->
"""


def _root(folder: pathlib.Path, page: str = _PAGE) -> pathlib.Path:
  (folder / 'results' / 'x').mkdir(parents=True)
  (folder / 'docs').mkdir()
  (folder / 'results' / 'x' / 'report.md').write_text(_REPORT)
  (folder / 'docs' / 'page.md').write_text(page)
  (folder / 'README.md').write_text('No table.')
  return folder


def test_the_shipped_pages_have_their_results_tables() -> None:
  assert page_tables.fill(pathlib.Path(), check=True) == []


def test_a_stale_page_is_named_then_written(tmp_path: pathlib.Path) -> None:
  page = _root(tmp_path) / 'docs' / 'page.md'
  assert page_tables.fill(tmp_path, check=True) == ['docs/page.md']
  assert page.read_text() == _PAGE
  assert page_tables.fill(tmp_path, check=False) == ['docs/page.md']
  assert page.read_text() == _PAGE.replace(
      'old\n', '\n| a |\n| --- |\n| 1 |\n\n')
  assert page_tables.fill(tmp_path, check=True) == []
  assert (tmp_path / 'README.md').read_text() == 'No table.'


@pytest.mark.parametrize(('old', 'new', 'message'), [
    ('One: a table', 'Three', 'report.md: no table below a heading Three'),
    ('/x/', '/y/', 'report.md: No such file'),
    ('<!-- end -->', '', 'docs/page.md: no <!-- end --> after <!-- table'),
    ('<!-- end -->', '<!-- table: a: b -->\n<!-- end -->',
     'no <!-- end --> after <!-- table: results/x')])
def test_marks_that_cannot_be_filled(tmp_path: pathlib.Path, old: str, new: str,
                                     message: str) -> None:
  with pytest.raises(config.InputError, match=message):
    page_tables.fill(_root(tmp_path, _PAGE.replace(old, new)), check=True)
