from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.unit.service.knowledge.library import Library, vectors


@pytest.fixture(scope="session", autouse=True)
def _patient_search() -> Iterator[None]:
    """A first search starts the embedder's process, for which a busy machine may need longer than callers are given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.knowledge.service.SEARCH_TIMEOUT_S", 60.0)
        yield


@pytest.fixture
async def library(tmp_path: Path) -> AsyncIterator[Library]:
    async with vectors() as url, Library(tmp_path, url).open() as ready:
        yield ready
