"""Damaged adapters on the real engine are refused or held back from `live`; sound ones go live."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.adapters import describe_base, make_adapter
from tests.support.gateway import Gateway

Push = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def push(gateway: Gateway, base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Push:
    """Pushes a random adapter whose B has this standard deviation, with these settings of `make_adapter`."""
    root = tmp_path_factory.mktemp("scaled")
    base = describe_base(base_dir, cache_dir=root / "cache")

    def call(name: str, scale: float, **more: Any) -> httpx.Response:
        return gateway.push(name, make_adapter(root / name, base, scale=scale, seed=3, **more).directory)

    return call


def get(gateway: Gateway, path: str) -> Any:
    with gateway.http() as http:
        return http.get(path).json()


@pytest.mark.slow
def test_a_sound_adapter_goes_live_and_its_proof_reports_perplexity_on_plain_text(gateway: Gateway, push: Push) -> None:
    shown = push("plain-sound", 0.1).json()
    assert (shown["aliases"], shown["held_back"]) == (["live"], None)
    perplexity = shown["proof"]["perplexity"]
    assert perplexity["tokens"] > 512
    assert 0.8 < perplexity["ratio"] < 3
    assert shown["proof"]["mixed_batch"]["base"] < 0.1
    assert shown["warnings"] == []


def test_the_trained_voices_change_the_perplexity_of_plain_text_little(gateway: Gateway) -> None:
    for name in ("tidewater", "pemberton"):
        shown = get(gateway, f"/v1/adapters/{name}/versions/1")
        assert shown["aliases"] == ["live"]
        assert 0.5 < shown["proof"]["perplexity"]["ratio"] < 3


@pytest.mark.slow
def test_a_held_back_version_answers_by_its_number_and_goes_live_only_by_force(gateway: Gateway, push: Push) -> None:
    shown = push("plain-held", 0.5).json()
    assert (shown["state"], shown["aliases"]) == ("ready", [])
    assert shown["held_back"]["code"] == "perplexity_too_high"
    assert gateway.chat("plain-held@1", "Hello?", max_tokens=4).status_code == 200
    missing = gateway.chat("plain-held", "Hello?", max_tokens=4)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "no_live_version")
    with gateway.http() as http:
        refused = http.put("/v1/adapters/plain-held/aliases/live", json={"version": 1})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "version_held_back")
        assert http.put("/v1/adapters/plain-held/aliases/live", json={"version": 1, "force": True}).status_code == 200
    assert gateway.chat("plain-held", "Hello?", max_tokens=4).status_code == 200


def test_an_adapter_that_ruins_plain_text_is_refused(gateway: Gateway, push: Push) -> None:
    refused = push("plain-wreck", 50, alpha=2)  # 40 times the base's weights: inspection lets up to 100 pass
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "perplexity_too_high")
    with gateway.http() as http:
        assert http.get("/v1/adapters/plain-wreck").status_code == 404
