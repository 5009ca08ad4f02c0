from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.service.knowledge.knowledge_app import KnowledgeApp, vectors


@pytest.fixture
async def knowledge_app(tmp_path: Path) -> AsyncIterator[KnowledgeApp]:
    async with vectors() as url, KnowledgeApp(tmp_path, url).open() as ready:
        yield ready
