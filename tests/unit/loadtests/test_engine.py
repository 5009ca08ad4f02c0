"""The engine beside plain vLLM: what is sent, with which flags, and what comes of the figures."""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from loadtests import engine
from loadtests.engine import (
    FIRST,
    QUICK,
    SLOTS,
    STREAMS,
    TOKENS,
    decoding,
    engine_config,
    medians,
    plain_command,
    plain_environment,
    popular,
    table,
    zipf,
)


def test_both_get_the_same_requests_and_no_two_prompts_are_alike() -> None:
    cases = decoding(QUICK)
    assert cases == decoding(QUICK)
    assert {len(requests) for requests in cases.values()} == {STREAMS * QUICK.batches}
    asked = [request for requests in cases.values() for request in requests]
    assert len({request.text for request in asked}) == len(asked)
    assert {request.tokens for request in asked} == {TOKENS}
    adapters = {name: {request.adapter for request in requests} for name, requests in cases.items()}
    assert adapters["base"] == {None}
    assert adapters["one adapter"] == {0}
    assert adapters["eight adapters"] == set(range(8))
    half = Counter(request.adapter is None for request in cases["half base, half eight adapters"])
    assert half[True] == half[False]
    assert adapters["half base, half eight adapters"] == {None, *range(8)}


def test_a_few_adapters_are_asked_for_most_of_the_time() -> None:
    drawn = Counter(zipf(128, 10_000, random.Random(1)))
    assert drawn[0] > 1.5 * drawn[1] > 1.5 * 1.5 * drawn[3]
    assert len(drawn) > 100
    assert popular(QUICK) == popular(QUICK)
    assert len({request.adapter for request in popular(QUICK)}) > SLOTS


def test_plain_vllm_has_our_flags_and_nothing_of_ours(tmp_path: Path) -> None:
    config = engine_config(tmp_path, tmp_path, 32)
    command = plain_command(config, 8001, [tmp_path / "voice-000"])
    ours = config.argv()
    own = command[len(ours) + 2 :]
    assert own == ["--lora-modules", f"voice-000={tmp_path / 'voice-000'}"]
    assert [flag for flag in command if flag.startswith("--")] == [
        *(
            name
            for flag in ours
            if flag.startswith("--")
            for name in (["--host", "--port"] if flag == "--uds" else [flag])
        ),
        "--lora-modules",
    ]
    environment = plain_environment(config)
    assert environment["VLLM_PLUGINS"] == "none"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert not any(name.startswith("HATRACK_") for name in environment)


def test_a_plain_vllm_that_ends_by_itself_is_an_error_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = [sys.executable, "-c", "print('no such device'); raise SystemExit(3)"]
    monkeypatch.setattr(engine, "plain_command", lambda *_: dying)
    with (
        pytest.raises(RuntimeError, match=r"vLLM ended with 3:\nno such device"),
        engine.plain_vllm(tmp_path / "home", tmp_path, []),
    ):
        pass


def test_the_table_has_medians_and_how_many_times_as_good_ours_is() -> None:
    zipf_case = f"Zipf over 32 adapters, 8 slots: {FIRST}"
    plain = [{"base": value, zipf_case: 11.3} for value in (240.0, 248.0, 1000.0)]
    ours = [{"base": 496.0, zipf_case: 4.9}]
    assert medians(plain)["base"] == 248.0
    assert table(plain, ours).splitlines() == [
        "| tokens/s | plain vLLM | Hatrack | |",
        "|---|---:|---:|---:|",
        "| base | 248 | 496 | 2.0× |",
        "| Zipf over 32 adapters, 8 slots: p99 to the first token | 11.3 s | 4.9 s | 2.3× |",
    ]
