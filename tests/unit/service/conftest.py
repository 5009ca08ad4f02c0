"""Patience, for all tests of the gateway: how fast the machine is is none of their questions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

PATIENCE_S: Final = 240.0
TIMES: Final = (
    "service.engine.adopt.CANARY_TIMEOUT_S",
    "service.engine.adopt.REPORT_TIMEOUT_S",
    "service.engine.client.CONNECT_TIMEOUT_S",
    "service.engine.residency.POLL_TIMEOUT_S",
    "service.knowledge.embedder.model.CONNECT_TIMEOUT_S",
    "service.knowledge.embedder.document_reader.START_TIMEOUT_S",
    "service.knowledge.embeddings.CONNECT_TIMEOUT_S",
    "service.knowledge.service.SEARCH_TIMEOUT_S",
    "service.telemetry.exposition.SOURCE_TIMEOUT_S",
    "service.training.client.CONNECT_TIMEOUT_S",
    "service.training.process.STOP_TIMEOUT_S",
)
"""Of the gateway, in seconds: as short as callers need them to be, and too short for a busy machine: a first search,
for one, starts the embedder's process. A test of what comes at the end of such a time sets it itself."""


@pytest.fixture(scope="session", autouse=True)
def _patient() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in TIMES:
            patch.setattr(name, PATIENCE_S)
        yield
