"""Under which bases and engines an evaluation's answers were given."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.errors import GatewayUnreachable
from trainer.installation import BaseGone
from trainer.runs.gateway import engine_fingerprint


def engine(base: str, fingerprint: str, state: str = "ready") -> dict[str, Any]:
    return {"name": f"{base}-{state}", "base": base, "fingerprint": fingerprint, "state": state}


def test_of_one_engine_it_is_the_gateways() -> None:
    assert engine_fingerprint({"fingerprint": "f1"}, "small") == "f1"
    assert engine_fingerprint({"fingerprint": "f1", "engines": None}, "small") == "f1"


def test_of_several_bases_each_counts() -> None:
    engines = [engine("small", "f1"), engine("large", "f2"), engine("large", "f2", "down")]
    found = engine_fingerprint({"fingerprint": "f1", "engines": engines}, "large")
    assert found == engine_fingerprint({"fingerprint": "f1", "engines": engines[::-1]}, "small")
    for changed in ([engine("small", "f3"), engines[1]], [engines[0], engine("large", "f3")]):
        assert engine_fingerprint({"fingerprint": "f1", "engines": changed}, "large") != found


def test_an_engine_of_the_base_is_waited_for() -> None:
    engines = [engine("small", "f1"), engine("large", "f2", "starting")]
    with pytest.raises(GatewayUnreachable, match="no engine of the base `large` is ready: starting"):
        engine_fingerprint({"fingerprint": "f1", "engines": engines}, "large")
    with pytest.raises(BaseGone, match="The base `gone` is no longer served; the gateway serves `small`, `large`"):
        engine_fingerprint({"fingerprint": "f1", "engines": engines}, "gone")
