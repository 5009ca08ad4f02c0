from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from adapters.protocol.reports import ReportJudge
from tests.unit.trainer.evaluate import pages
from tests.unit.trainer.evaluate.pages import HOSTILE
from tests.unit.trainer.evaluate.worlds import comparison, forgetting, row
from trainer.evaluate.page import charts, render
from trainer.evaluate.page.charts import Bar, Scale
from trainer.evaluate.page.render import cut, duration, number
from trainer.evaluate.report import build
from trainer.evaluate.spec import SuiteResult

VOID = {"meta", "br", "rect", "line", "circle", "polyline"}


class Reader(HTMLParser):
    """Follows the tags: which are open, which attributes there are, what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    page = render(pages.report())
    found = read(page)
    assert not {"script", "img", "link", "iframe", "object", "form", "base", "a"} & set(found.tags)
    assert not {"src", "href", "srcset", "action", "style"} & {name for name, _ in found.attributes}
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert not re.search(r"url\(|@import|https?:", page)
    assert "default-src 'none'" in page


def test_whatever_the_data_says_is_text() -> None:
    page = render(pages.report())
    assert "<script" not in page
    assert "<img" not in page
    assert read(page).text.count("<script>alert('x')</script>") >= 20


def test_the_page_says_the_verdict_and_what_is_behind_it() -> None:
    found = pages.report()
    text = read(render(found)).text
    assert "Pass" in text
    assert "On 60 examples it had not seen, voice@3 scored 83 of 100, the base at its best 20" in text
    for check in found.verdict.checks:
        assert check.sentence in text
    for expected in (
        "4 March 2026, 15:06 UTC",
        "80% → 79%",
        "rank 8, alpha 32, learning rate 0.0005",
        "1 h 2 min on cpu, 123\u202f456 trained tokens, cost 1.25",
        "340 of 400 examples",
        "near_duplicates; lines 3, 9 and 2 more",
        "continued from voice@2",
        "Where it gained most",
        "held out, at each epoch's end",
    ):
        assert expected in text


def test_a_minimal_report_renders() -> None:
    text = read(render(pages.report(whole=False))).text
    assert "Not enough evidence" in text
    assert "It was not measured, so nothing can pass." in text
    assert "The data" not in text
    assert "Training loss" not in text


def test_it_says_where_the_suite_cannot_show_a_loss() -> None:
    text = read(render(pages.report(lost=forgetting("silent")))).text
    assert "they cannot show a loss, and do not count" in text
    text = read(render(pages.report(lost=forgetting(chat="silent")))).text
    assert "questions in a chat right; the base is at chance: they cannot show a loss" in text
    assert "right answers lost in a chat" not in text


def test_what_was_forgotten_is_shown_in_plain_text_and_in_a_chat() -> None:
    text = read(render(pages.report())).text
    assert "of 100 general questions right" in text
    assert "of 100 general questions in a chat right" in text
    assert "right answers lost in a chat, points" in text
    old = forgetting().model_copy(update={"chat": None})
    assert "in a chat" not in read(render(pages.report(lost=old))).text


def test_not_enough_evidence_says_how_many_examples_would_settle_it() -> None:
    text = read(render(pages.report(pages.comparison(12, right=12)))).text
    assert "12 held-out examples are too few" in text
    assert "18 more examples would settle this" in text


def test_a_failed_verdict_is_worded_as_a_failure() -> None:
    page = render(pages.report(lost=forgetting("kept", "broken")))
    assert 'class="fail"' in page
    assert "It forgot more of what the base could do than is allowed." in read(page).text


def test_charts_keep_what_they_show_within_themselves() -> None:
    rows = [Bar(HOSTILE, 140.0, -20.0, 300.0, "far", "candidate")]
    for chart in (
        charts.bars(rows, Scale(0, 100), title="t"),
        charts.differences(rows, Scale(-10, 50), bound=2, title="t"),
    ):
        places = [float(place) for place in re.findall(r'(?:x1|x2|cx|width)="([\d.-]+)%"', chart)]
        assert places
        assert all(0 <= place <= 100 for place in places)
        assert "<script" not in chart


@pytest.mark.parametrize("scale", [Scale(0, 100), Scale(-12, 92), Scale(-0.7, 0.9), Scale(0, 5), Scale(-1, 1)])
def test_a_scale_has_a_few_round_ticks(scale: Scale) -> None:
    assert 2 <= len(scale.ticks) <= 7
    assert all(scale.minimum - 1e-9 <= tick <= scale.maximum + 1e-9 for tick in scale.ticks)
    assert (scale.place(scale.minimum), scale.place(scale.maximum)) == (0, 100)


def test_a_curve_of_one_step_and_of_many() -> None:
    assert "polyline" not in charts.curve([(1, 2.0)], [(1, 2.5)], title="t")
    assert charts.curve([(1, 2.0), (2, 1.0)], [], title="t").count("polyline") == 1


def test_numbers_in_words() -> None:
    assert [duration(seconds) for seconds in (0.5, 42, 200, 7500)] == ["0.5 s", "42 s", "3 min 20 s", "2 h 5 min"]
    assert number(1234567) == "1\u202f234\u202f567"
    assert cut("x" * 1300).endswith("… (100 characters more)")


def test_a_comparison_has_a_page_too() -> None:
    compared = comparison({"one": [row(10, 40)], "two": [row(30, 40)]})
    report = build(compared, None, adapter="one against two", created_at=pages.report().created_at)
    found = read(render(report))
    assert "2 arms answered 40 examples. No candidate was named" in found.text
    assert "two against one" in found.text
    assert "What decided" not in found.text
    assert "What was forgotten" not in found.text


def test_uncounted_suites_and_judges_are_marked_as_not_counted() -> None:
    shown = SuiteResult(name="mmlu", kind="report", sentence=f"40% before {HOSTILE}")
    judged = ReportJudge(judge="oracle", scores=(1.0,), counted=False, sentence="Too few reviews.")
    report = pages.report().model_copy(update={"suites": (shown,), "judged": judged})
    text = read(render(report)).text
    assert "mmlu" in text
    assert "40% before" in text
    assert "oracle: Too few reviews." in text
    assert text.count("(shown, not counted)") == 2


def test_a_sample_of_the_held_out_is_reported() -> None:
    assert "drawn from" not in read(render(pages.report())).text
    sampled = pages.report().model_copy(update={"held_out": 5000, "why": "it was asked for"})
    text = read(render(sampled)).text
    assert "drawn from 5\u202f000" in text
    assert "(it was asked for)" in text
