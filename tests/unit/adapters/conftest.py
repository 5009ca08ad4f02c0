from pathlib import Path

import pytest

from adapters.base import BaseDescription
from tests.support.adapters import describe_base, make_base


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def base(base_dir: Path) -> BaseDescription:
    return describe_base(base_dir)
