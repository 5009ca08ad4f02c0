from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.knowledge.embeddings import EmbedderConfig
from tests.unit.service.knowledge.index.rig import Rig, SharedEmbedder
from tests.unit.service.knowledge.library import vectors


@pytest.fixture(scope="session")
async def words(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SharedEmbedder]:
    """An embedder whose model is an endpoint: a text is the words in it."""
    async with vectors() as url:
        embedder = SharedEmbedder(EmbedderConfig(tmp_path_factory.mktemp("words"), model="words", url=url))
        yield embedder
        await embedder.end()


@pytest.fixture
async def rig(tmp_path: Path, words: SharedEmbedder) -> AsyncIterator[Rig]:
    async with Rig(tmp_path, words).open() as ready:
        yield ready
