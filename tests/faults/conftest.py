"""The run that nothing has hurt."""

import pathlib

import pytest

from tests.faults import groups


@pytest.fixture(scope='session')
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """All others of the same job must end like it."""
  path = tmp_path_factory.mktemp('unbroken')
  groups.finish(path)
  return path
