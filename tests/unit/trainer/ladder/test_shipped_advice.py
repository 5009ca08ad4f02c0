"""The finished report that ships beside the example's data: what it says, and how a browser shows it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.browser import Browser, browser
from tests.support.legibility import check_legible
from trainer.ladder.reporting import LadderReport, render

MARLOW: Final = Path(__file__).parents[4] / "trainer" / "samples" / "marlow"
WRITTEN: Final = MARLOW / "advice.json"
PAGE: Final = MARLOW / "advice.html"
HOSTILE: Final = "<img src=x onerror=alert(1)>"
TOO_WIDE: Final = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
LOADED: Final = "performance.getEntriesByType('resource').map((each) => each.name)"


@pytest.fixture(scope="module")
def report() -> LadderReport:
    return LadderReport.model_validate_json(WRITTEN.read_bytes())


def test_the_page_is_the_one_that_is_made_of_the_report_now(report: LadderReport) -> None:
    made = render(report)
    assert made == PAGE.read_text("utf-8"), "write it again: render() of advice.json into advice.html"


def test_every_rung_that_could_matter_was_measured_on_the_same_examples(report: LadderReport) -> None:
    measured = [rung.key for rung in report.rungs]
    assert measured[:4] == ["base", "instructions", "examples", "retrieved_examples"]
    assert "lora" in measured
    assert len({rung.mean.examples for rung in report.rungs}) == 1
    assert all(len(rung.shown) == 3 for rung in report.rungs)


def test_texts_of_data_and_models_are_shown_as_texts(report: LadderReport) -> None:
    content = json.loads(report.model_dump_json())
    page = render(LadderReport.model_validate(_hostile(content)))
    assert HOSTILE not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") > len(report.rungs)


def _hostile(content: dict[str, Any]) -> dict[str, Any]:
    for rung in content["rungs"]:
        rung["system_prompt"] = HOSTILE
        for shown in rung["shown"]:
            shown |= {"asked": HOSTILE, "answer": HOSTILE, "reference": HOSTILE}
    content["file"] = HOSTILE
    return content


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as tab:
        yield tab


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_a_desk_and_a_phone_is_legible_and_loads_nothing(tab: Browser, width: int) -> None:
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    encoded = base64.b64encode(PAGE.read_bytes()).decode()
    tab.open(f"data:text/html;charset=utf-8;base64,{encoded}")
    tab.wait("document.querySelector('details')")
    tab.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert not tab.run(TOO_WIDE)
    assert tab.run(LOADED) == []
    assert tab.problems == []
    check_legible(tab)
