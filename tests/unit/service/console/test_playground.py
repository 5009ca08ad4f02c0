"""The playground while an answer comes and after it: in a real Chromium, on streams that a test sends by pieces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.browser import Browser
from tests.unit.service.console.conftest import NONE, Answers, Stream, adapter, listed, models, show, version

ASK = "POST /v1/chat/completions"
PANE, FOOTER = "document.querySelector('.pane')", "document.querySelector('.pane footer').innerText"
PASSAGE = {"id": "p-1", "source": "policy.md", "score": 0.8125, "text": "Parcels go by sea."}


def text(content: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": content}, "finish_reason": finish}]}


def usage(prompt: int, completion: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


@pytest.fixture(autouse=True)
def forgotten(page: Browser) -> Iterator[None]:
    """Nothing asked in one test is remembered in the next; the page's clock stands still but for `window.clock`, ms."""
    page.run("sessionStorage.clear(); window.clock = 0; performance.now = () => window.clock; undefined")
    yield
    page.run("sessionStorage.clear()")


def ask(page: Browser, answers: Answers, stream: Stream) -> None:
    """Ask the one version of `voice`, whose answer is the stream."""
    answers.told |= {
        "GET /v1/models": [models("large")],
        "GET /v1/adapters": [listed(adapter(version(1)))],
        "GET /v1/vector_stores": [NONE],
        ASK: [stream],
    }
    show(page, "playground.js", "PlaygroundView", first="voice@1")
    page.click_labelled("Remove large")
    page.fill("#question", "Where is it?")
    page.click("Ask 1 model")
    page.wait(f"{PANE}?.getAttribute('aria-busy') === 'true'")


def test_an_answer_is_shown_as_it_comes_with_its_times_and_tokens(page: Browser, answers: Answers) -> None:
    stream = Stream(x_hatrack_adapter="voice@1", x_hatrack_grounding="ok")
    ask(page, answers, stream)
    page.wait_for_text("waiting for the first token")
    page.run("window.clock = 400")
    stream.send(text("Aboard"))
    page.wait(f"{PANE}.querySelector('.answer').innerText === 'Aboard'")
    assert page.run(FOOTER) == "", "nothing is measured before the end"
    assert "save as an example" not in page.text, "half an answer is no example"
    page.run("window.clock = 1000")
    stream.send(text(" the ship"))
    page.wait(f"{PANE}.querySelector('.answer').innerText === 'Aboard the ship'")
    assert page.run(f"{PANE}.getAttribute('aria-busy')") == "true"
    assert page.run("[...document.querySelectorAll('.actions button')].map((each) => each.innerText)") == ["Stop"]
    page.run("window.clock = 2400")
    stream.send(text(".", "length"), usage(1234, 9))
    stream.end()
    page.wait(f"{PANE}.getAttribute('aria-busy') === 'false'")
    shown = page.run(f"{FOOTER}.split('\\n').join(' ')")
    for words in ("first token 400 ms", "all 2.4 s", "1,234 → 9 tokens", "4.0 tokens/s", "cut at max_tokens"):
        assert words in shown
    sent = json.loads(answers.bodies[ASK])
    assert (sent["model"], sent["stream"], sent["stream_options"]) == ("voice@1", True, {"include_usage": True})


def test_an_answer_of_one_token_has_no_speed(page: Browser, answers: Answers) -> None:
    stream = Stream()
    ask(page, answers, stream)
    stream.send(text("Yes"), usage(3, 1))
    page.wait(f"{PANE}.querySelector('.answer').innerText === 'Yes'")
    page.run("window.clock = 5")
    stream.end()
    page.wait_for_text("3 → 1 tokens")
    page.wait_for_text("all 5 ms")
    assert "tokens/s" not in page.text


def test_a_passage_that_the_answer_did_not_use_is_marked(page: Browser, answers: Answers) -> None:
    stream = Stream(x_hatrack_grounding="ok")
    ask(page, answers, stream)
    unused = PASSAGE | {"id": "p-2", "source": "rates.md", "score": 0.2, "used": False}
    stream.send(text("By sea."), {"choices": [], "citations": [PASSAGE | {"used": True}, unused]})
    stream.end()
    page.click("2 passages in the prompt")
    rows = page.run("[...document.querySelectorAll('.citations li')].map((each) => each.innerText.split('\\n')[0])")
    assert rows == ["policy.md score 0.81", "rates.md score 0.20, not used"]
    page.wait_for_text("Parcels go by sea.")
    assert "Grounding:" not in page.text


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("empty", "no passage was found"),
        ("no_room", "the context had no space for a passage"),
        ("late", "the passages came too late"),
        ("broken", "the search failed"),
    ],
)
def test_an_answer_without_passages_says_why(page: Browser, answers: Answers, header: str, words: str) -> None:
    stream = Stream(x_hatrack_grounding=header)
    ask(page, answers, stream)
    stream.send(text("By sea."))
    stream.end()
    page.wait_for_text(f"Grounding: {words}")
    assert "in the prompt" not in page.text


def test_an_answer_becomes_an_example_with_its_question(page: Browser, answers: Answers) -> None:
    stream = Stream()
    ask(page, answers, stream)
    stream.send(text("Abord."))
    stream.end()
    page.click("save as an example")
    page.wait("document.querySelector('dialog[open] textarea')")
    assert page.run("document.querySelector('dialog .quoted').innerText") == "Where is it?"
    assert page.run("document.querySelector('dialog textarea').value") == "Abord."
    pushed = {"name": "support", "latest": 1, "versions": [{"dataset": "support", "version": 1, "file": "file-1"}]}
    answers.told |= {"GET /v1/datasets": [NONE, NONE, listed(pushed)], "POST /v1/files": [{"id": "file-1"}]}
    answers.told["POST /v1/datasets"] = [{"dataset": "support", "version": 1}]
    page.fill("dialog input", "support")
    page.fill("dialog textarea", "Aboard.")
    page.click("Save", "dialog")
    page.wait("!document.querySelector('dialog')")
    assert '{"role":"assistant","content":"Aboard."}' in answers.bodies["POST /v1/files"].decode()
    assert '{"role":"user","content":"Where is it?"}' in answers.bodies["POST /v1/files"].decode()


def test_a_stream_that_fails_midway_says_so(page: Browser, answers: Answers) -> None:
    stream = Stream()
    ask(page, answers, stream)
    stream.send(text("Abo"), {"error": {"message": "the engine went down", "code": "engine_down"}})
    stream.end()
    page.wait_for_text("The engine went down")
    page.wait("document.querySelector('.actions button').innerText === 'Ask 1 model'")
    assert "save as an example" not in page.text
