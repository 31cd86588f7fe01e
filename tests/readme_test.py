"""The README's Python snippets run as they stand."""

import pathlib
import re

import tensorflow as tf

_README = pathlib.Path(__file__).parent.parent / "README.md"


def test_readme_snippet_trains_and_merges() -> None:
  snippets = re.findall(r"```python\n(.*?)```", _README.read_text(), re.DOTALL)
  assert len(snippets) == 1
  scope = {}
  exec(compile(snippets[0], str(_README), "exec"), scope)  # pylint: disable=exec-used
  # 256 examples in batches of 64, three epochs.
  assert int(scope["model"].optimizer.iterations) == 12
  plain = scope["plain"]
  assert not isinstance(plain, type(scope["model"]))
  images = scope["images"][:8]
  tf.debugging.assert_equal(plain(images, training=False),
                            scope["model"](images))


def test_files_that_the_readme_links_to_exist() -> None:
  links = re.findall(r"\]\(([^)#:]+)\)", _README.read_text())
  assert links
  missing = [link for link in links if not (_README.parent / link).exists()]
  assert not missing
