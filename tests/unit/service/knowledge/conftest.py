from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.service.knowledge.library import Library, vectors


@pytest.fixture
async def library(tmp_path: Path) -> AsyncIterator[Library]:
    async with vectors() as url, Library(tmp_path, url).open() as ready:
        yield ready
