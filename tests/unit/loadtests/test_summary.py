"""Medians over rounds, and a gateway's own part of a latency."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from loadtests.gateway.cells import Cell, percentile
from loadtests.gateway.clock import Reading
from loadtests.gateway.contenders import Place, litellm, vllm_router
from loadtests.gateway.picture import draw
from loadtests.gateway.report import table, verdict
from loadtests.gateway.summary import rows


def cell(contender: str = "Hatrack", **more: Any) -> Cell:
    plain: dict[str, Any] = {
        "round": 0,
        "stream": False,
        "connections": 16,
        "phase": "saturation",
        "offered": 0.0,
        "answers_per_s": 1000.0,
        "tokens_per_s": 0.0,
        "latency_ms": (1.0, 2.0),
        "first_ms": (1.0, 2.0),
        "cpu_us_per_answer": 200.0,
        "cpu_us_per_token": None,
        "gateway_cores": 1.0,
        "load_cores": 0.3,
        "other_cores": 0.0,
        "samples": 100,
        "errors": 0,
        "first_error": "",
    }
    return Cell(contender=contender, **{**plain, **more})


def result(*cells: Cell) -> dict[str, Any]:
    return {
        "date": "2026-01-01T00:00:00+00:00",
        "machine": {"cpu": "CPU <&>", "cores": 2, "python": "3.11"},
        "load_average_at_start": (0.1, 0.1, 0.1),
        "rounds": 1,
        "seconds": 1.0,
        "contenders": {each.contender: "what it is" for each in cells},
        "absent": ["vllm-router"],
        "memory_mib": {each.contender: 100.0 for each in cells},
        "rows": [row.as_dict() for row in rows(cells)],
        "cells": [asdict(each) for each in cells],
    }


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([3.0], 0.99, 3.0),
        ([4.0, 1.0, 3.0, 2.0], 0.5, 2.0),
        ([float(n) for n in range(1, 101)], 0.99, 99.0),
        ([float(n) for n in range(1, 102)], 0.99, 100.0),
    ],
)
def test_percentiles_are_nearest_ranks(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_a_row_takes_the_median_of_its_rounds() -> None:
    (row,) = rows([cell(round=n, answers_per_s=rate) for n, rate in enumerate((900.0, 1000.0, 5000.0))])
    assert row.requests_per_s == 1000.0


def test_added_latency_is_against_the_engine_alone_in_the_same_round() -> None:
    found = rows(
        [
            cell(phase="half", latency_ms=(3.0, 9.0)),
            cell(phase="direct", latency_ms=(1.0, 2.0)),
            cell(round=1, phase="half", latency_ms=(30.0, 90.0)),
        ]
    )
    assert (found[0].added_p50_ms, found[0].added_p99_ms) == (2.0, 7.0)


def test_streams_and_plain_answers_are_not_mixed() -> None:
    (row,) = rows(
        [
            cell(stream=True, phase="half", cpu_us_per_token=25.0, first_ms=(3.0, 5.0), offered=1.0),
            cell(stream=True, phase="direct", first_ms=(1.0, 1.0)),
            cell(phase="half", cpu_us_per_token=999.0, first_ms=(70.0, 70.0)),
        ]
    )
    assert (row.cpu_us_per_chunk, row.added_first_p50_ms, row.chunk_interval_ms) == (25.0, 2.0, 1.0)
    assert row.added_p50_ms is None


def test_long_bodies_have_figures_of_their_own() -> None:
    cells = [cell(), cell(phase="long", answers_per_s=700.0, cpu_us_per_answer=300.0)]
    (row,) = rows(cells)
    assert (row.requests_per_s, row.cpu_us_per_request) == (1000.0, 200.0)
    assert (row.long_requests_per_s, row.cpu_us_per_long_request) == (700.0, 300.0)
    head, rule, line = (text for text in table(result(*cells)).splitlines() if text.startswith("|"))
    assert head.count("|") == rule.count("|") == line.count("|")
    assert line.endswith("| 100 | 700 | 300 |")
    (before,) = rows([cell()])
    assert before.long_requests_per_s is None


def test_a_full_core_of_engine_and_driver_is_marked() -> None:
    found = rows([cell("fast", load_cores=0.97), cell("slow", load_cores=0.4)])
    assert [row.load_limited for row in found] == [True, False]
    assert "could do more" in table(result(cell("fast", load_cores=0.97)))


def test_the_table_has_each_contender_and_says_who_was_absent() -> None:
    text = table(result(cell("bare relay", answers_per_s=2000.0), cell("Hatrack", errors=3)))
    assert "| Hatrack (3 errors) | 1,000 | 0.50 |" in text
    assert "vllm-router: absent" in text


@pytest.mark.parametrize(("relay", "words"), [(1500.0, "0.67, reached"), (2000.0, "0.50, **missed**")])
def test_the_aims_are_reached_or_missed(relay: float, words: str) -> None:
    text = verdict(result(cell("bare relay", answers_per_s=relay), cell("Hatrack")))
    assert words in text
    assert "| requests/s, at least 40 times LiteLLM's | – |" in text


@pytest.mark.parametrize(("ours", "words"), [(4.5, "0.50, reached"), (5.5, "1.50, **missed**")])
def test_latency_is_judged_by_that_of_the_bare_relay_in_the_same_run(ours: float, words: str) -> None:
    """The relay's own p99 is 3 ms above the engine's."""
    cells = [
        cell(name, phase=phase, latency_ms=(1.0, p99))
        for name, added in (("bare relay", 4.0), ("Hatrack", ours))
        for phase, p99 in (("half", added), ("direct", 1.0))
    ]
    line = "added latency p99 at half load, at most 1 ms above the bare relay's, ms"
    assert f"| {line} | {words} |" in verdict(result(*cells))
    assert f"| {line} | – |" in verdict(result(*cells[2:])), "without the relay there is no verdict"


@pytest.mark.parametrize(("chunk_us", "words"), [(25.0, "25.00, reached"), (25.1, "25.10, **missed**")])
def test_the_aim_for_a_chunk(chunk_us: float, words: str) -> None:
    text = verdict(result(cell(stream=True, phase="half", cpu_us_per_token=chunk_us)))
    assert f"| at most 25 µs of CPU per streamed chunk | {words} |" in text


def test_the_picture_is_well_formed_and_names_everyone() -> None:
    drawing = draw(result(cell("bare relay"), cell("Hatrack", cpu_us_per_answer=None)))
    text = " ".join(ElementTree.fromstring(drawing).itertext())  # noqa: S314 (our own text)
    assert "bare relay" in text
    assert "not measured" in text
    assert "CPU <&>" in text


def test_peers_that_are_not_installed_are_absent(tmp_path: Path) -> None:
    place = Place(tmp_path, "http://127.0.0.1:1", 0)
    assert litellm(place, tmp_path) is None
    assert vllm_router(place, tmp_path) is None


def test_results_are_json() -> None:
    assert json.loads(json.dumps(result(cell())))["rows"][0]["contender"] == "Hatrack"


def test_cpu_time_of_this_process_shows_in_its_clock() -> None:
    before = Reading.take({"me": os.getpid()})
    sum(range(300_000))
    used = Reading.take({"me": os.getpid()}).since(before)
    assert used.named_s["me"] > 0
    assert used.own_s > 0
    assert used.wall_s > 0
