from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.knowledge.embeddings import EmbedderConfig
from tests.unit.service.knowledge.index.local_stores import LocalStores, SharedEmbedder
from tests.unit.service.knowledge.knowledge_app import vectors


@pytest.fixture(scope="session")
async def words(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SharedEmbedder]:
    """An embedder whose model is an endpoint: a text is the words in it."""
    async with vectors() as url:
        embedder = SharedEmbedder(EmbedderConfig(tmp_path_factory.mktemp("words"), model="words", url=url))
        yield embedder
        await embedder.end()


@pytest.fixture
async def local_stores(tmp_path: Path, words: SharedEmbedder) -> AsyncIterator[LocalStores]:
    async with LocalStores(tmp_path, words).open() as ready:
        yield ready
