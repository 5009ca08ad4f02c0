"""A gateway with an agent, to which tests add fronts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.adapters import make_base
from tests.unit.service.fronts.support import Cluster, cluster


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("front-base"))


@pytest.fixture
async def made(tmp_path: Path, base_dir: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path / "home", base_dir) as one:
        yield one
