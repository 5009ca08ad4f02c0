from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from service.knowledge.embeddings import EmbedderConfig
from tests.unit.service.knowledge.index.local_stores import SharedEmbedder


@pytest.fixture(scope="session")
async def minilm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SharedEmbedder]:
    """The embedder with the packaged model; it takes some seconds to load."""
    embedder = SharedEmbedder(EmbedderConfig(tmp_path_factory.mktemp("minilm")))
    yield embedder
    await embedder.end()
