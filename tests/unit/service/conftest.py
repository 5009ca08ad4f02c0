"""Patience, for all tests of the gateway: how fast the machine is is none of their questions. And quick databases."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from typing import Any, Final

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from service import heap
from service.database import MIGRATIONS

PATIENCE_S: Final = 240.0
TIMES: Final = (
    "service.engine.adopt.CANARY_TIMEOUT_S",
    "service.engine.adopt.REPORT_TIMEOUT_S",
    "service.engine.client.CONNECT_TIMEOUT_S",
    "service.engine.residency.POLL_TIMEOUT_S",
    "service.knowledge.embedder.remote.CONNECT_TIMEOUT_S",
    "service.knowledge.embedder.document_reader.START_TIMEOUT_S",
    "service.knowledge.embeddings.CONNECT_TIMEOUT_S",
    "service.knowledge.embeddings.INPUTS_START_TIMEOUT_S",
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


FREEZE, THAW = heap.freeze, heap.thaw
LOGGERS = ("", "hatrack", "service", "adapters", "uvicorn", "uvicorn.error", "uvicorn.access")


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """A command that a test runs in this process sends the logs to its stderr, which is closed when it has ended: the
    next record, of another test, would be an error in place of what that expects there."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers[:], logger.level, logger.propagate, logger.disabled) for logger in loggers]
    yield
    for logger, (handlers, level, propagate, disabled) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate, logger.disabled = handlers, propagate, disabled
        logger.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def _heap_of_the_tests() -> Iterator[None]:
    """No gateway of a test looks for garbage in all that the process of the tests holds: it takes longer than most."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heap, "freeze", lambda: None)
        patch.setattr(heap, "thaw", lambda: None)
        yield


@pytest.fixture
def frozen_heap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process of its own."""
    monkeypatch.setattr(heap, "freeze", FREEZE)
    monkeypatch.setattr(heap, "thaw", THAW)
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _migrated_once() -> Iterator[None]:
    """A new database gets at once the tables that the migrations made for the first: thousands of tests need one."""
    upgrade, statements = command.upgrade, list[str]()

    def create_or_upgrade(config: Config, revision: str, **options: Any) -> None:
        connection: sa.Connection | None = config.attributes.get("connection")
        ours = config.get_main_option("script_location") == str(MIGRATIONS)
        is_sqlite = connection is not None and connection.dialect.name == "sqlite"
        if not (is_sqlite and ours) or revision != "head" or sa.inspect(connection).get_table_names():
            upgrade(config, revision, **options)
            return
        if not statements:
            upgrade(config, revision, **options)
            dump = connection.connection.driver_connection.iterdump()  # type: ignore[union-attr]
            statements.extend(line for line in dump if line not in ("BEGIN TRANSACTION;", "COMMIT;"))
            return
        for statement in statements:
            connection.exec_driver_sql(statement)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "upgrade", create_or_upgrade)
        yield
