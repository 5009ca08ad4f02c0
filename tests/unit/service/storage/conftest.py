from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.adapters import make_base
from tests.unit.service.storage.storage_home import StorageHome, make_home


@pytest.fixture(scope="session")
def made_home(tmp_path_factory: pytest.TempPathFactory) -> StorageHome:
    """Made once; tests get copies."""
    directory = tmp_path_factory.mktemp("storage")
    return make_home(directory / "home", make_base(directory / "base"))


@pytest.fixture
def home(made_home: StorageHome, tmp_path: Path) -> StorageHome:
    """A home of the test's own, with one of everything."""
    shutil.copytree(made_home.path, tmp_path / "home")
    return made_home.at(tmp_path / "home")
