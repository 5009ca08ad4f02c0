"""An engine that was found is used only where it is the one that the settings mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.engine.compatibility import IncompatibleEngine, check_compatibility
from service.engine.identity import ensure_store_id, read_store_id
from tests.unit.service.engine.fake import BASE, FakeEngine, config_for


def misfit(home: Path, **report: Any) -> str:
    config = config_for(home)
    with pytest.raises(IncompatibleEngine) as caught:
        check_compatibility(FakeEngine.of(config, **report).report, config, BASE, ensure_store_id(config.store))
    return str(caught.value)


def test_one_that_fits_is_taken(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    more = {"max_rank": 64, "context": 4096, "names": ["other", "base"]}
    check_compatibility(FakeEngine.of(config, **more).report, config, BASE, ensure_store_id(config.store))


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ({"protocol": 1}, "protocol 1, this gateway 2"),
        ({"names": ["llama"]}, "serves `llama`, not the base `base`"),
        ({"names": None}, "serves nothing, not the base `base`"),
        ({"base": None}, "does not report its base model: start it with `hatrack engine`"),
        ({"base": {**BASE.model_dump(), "weights": "x", "template": "y"}}, "weights, template differ"),
        ({"vllm": "0.33.1"}, "vLLM 0.33.1, but 0.32.0 is installed here"),
        ({"store_id": "another", "store": "/other"}, "it reads the adapter store /other, not "),
        ({"store_id": None}, "both must use the same directory (HATRACK_HOME)"),
        ({"slots": 2}, "2 adapter slots, HATRACK_ENGINE_SLOTS is 8"),
        ({"max_rank": 16}, "ranks up to 16, HATRACK_ENGINE_MAX_RANK is 32"),
        ({"context": 1024}, "context is 1024 tokens, HATRACK_ENGINE_CONTEXT is 2048"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, report: dict[str, Any], said: str) -> None:
    assert said in misfit(tmp_path, **report)


def test_all_that_does_not_fit_is_said_at_once(tmp_path: Path) -> None:
    said = misfit(tmp_path, slots=2, store_id=None, max_rank=8)
    assert all(part in said for part in ("adapter slots", "adapter store", "ranks up to 8"))


def test_a_base_is_the_same_whatever_vllm_the_gateway_has(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    none_here = BASE.model_copy(update={"engine_version": "unknown"})
    check_compatibility(FakeEngine.of(config).report, config, none_here, ensure_store_id(config.store))


def test_the_mark_of_a_store_stays(tmp_path: Path) -> None:
    assert read_store_id(tmp_path) is None
    mark = ensure_store_id(tmp_path / "store")
    assert ensure_store_id(tmp_path / "store") == mark == read_store_id(tmp_path / "store")
    assert ensure_store_id(tmp_path / "other") != mark
