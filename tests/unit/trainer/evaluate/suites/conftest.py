"""Contexts of suites whose questions the fake gateway answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.unit.trainer.evaluate.conftest import KEY, Gateway
from tests.unit.trainer.evaluate.worlds import QUICK
from trainer.evaluate.arms import Arm
from trainer.evaluate.asking import HttpAnswerer
from trainer.evaluate.endpoint_client import Endpoint
from trainer.evaluate.likelihood import HttpScorer
from trainer.evaluate.suites.data import DataSources
from trainer.evaluate.suites.measured import SuiteContext
from trainer.evaluate.verdict import Rules

BASE = Arm(label="base", model="base")
CANDIDATE = Arm(label="candidate", model="shop@3")

MakeContext = Callable[..., SuiteContext]


@pytest.fixture
def make_context(gateway: Gateway, tmp_path: Path) -> MakeContext:
    """Makes contexts whose answers are kept in one folder."""
    endpoint = Endpoint(gateway.url, SecretStr(KEY))

    def make(limit: int = 200, hub: str | None = None) -> SuiteContext:
        return SuiteContext(
            scorer=HttpScorer(endpoint, tmp_path / "scores.jsonl", patience_s=60),
            answerer=HttpAnswerer(endpoint, tmp_path / "answers.jsonl", patience_s=60),
            sources=DataSources(tmp_path / "data", hub, tmp_path / "cache"),
            limit=limit,
            rules=Rules(method=QUICK),
        )

    return make
