"""The console on the real gateway: stores, splits, pins and advice, clicked as the ops team and the decider would."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.console.conftest import ADVISED, JOB_S, WITH_RUNS, go, live_version, picture
from tests.integration.test_ladder import labelled
from tests.support.browser import Browser
from trainer.samples import heldout_file

pytestmark = [pytest.mark.engine, pytest.mark.slow, WITH_RUNS]
INDEX_S = 300.0
"""The embedder starts with the first document: torch and a model are loaded."""
SPLIT, GROUNDED = "console-choir", "console-clerk"
QUESTION = "Can I return my shoes?"
BOTH = "Can I send my shoes back, and who made the lamp of the lighthouse?"


@pytest.fixture
def documents(tmp_path: Path) -> list[Path]:
    """Two that can be read, and one that cannot."""
    texts = {
        "returns.md": b"# Returns\n\nUnworn shoes may be sent back within 45 days of delivery.\n",
        "lamp.txt": b"The lamp of the lighthouse was made by Agnes Pell in 1911.\n",
        "broken.pdf": b"%PDF-1.7\nthis is no PDF\n",
    }
    for name, content in texts.items():
        (tmp_path / name).write_bytes(content)
    return [tmp_path / name for name in texts]


@pytest.fixture
def two_versions(client: httpx.Client) -> Iterator[str]:
    """An adapter with two versions without weights; `live` points to the first."""
    for prompt in ("Answer with a greeting.", "Answer with one word."):
        body = {"name": SPLIT, "settings": {"system_prompt": prompt}}
        assert client.post("/v1/adapters", json=body).status_code == 201
    yield SPLIT
    client.delete(f"/v1/adapters/{SPLIT}", params={"force": "true"})


def in_section(page: Browser, name: str) -> str:
    """What a section of the page shows."""
    selector = json.dumps(f"section[aria-label={json.dumps(name)}]")
    return str(page.run(f"document.querySelector({selector})?.innerText ?? ''"))


def sources_in_the_playground(page: Browser, store: str) -> list[str]:
    """What the base and a voice cite when they are asked with a store."""
    go(page, "playground/tidewater")
    page.fill("#question", QUESTION)
    page.click("Settings and grounding")
    page.fill_labelled("Grounding", store)
    page.fill_labelled("max_tokens", "24")
    page.click("Ask 2 models")
    page.wait("document.querySelectorAll('.pane footer .link').length === 2", within_s=180)
    page.run("document.querySelectorAll('details.citations').forEach((each) => { each.open = true; })")
    picture(page, "playground")
    sources: list[str] = page.run(
        "[...document.querySelectorAll('.citations li strong')].map((each) => each.textContent)"
    )
    return sources


def test_a_store_is_made_filled_searched_and_deleted(
    page: Browser, client: httpx.Client, documents: list[Path]
) -> None:
    go(page, "stores")
    page.click("New store")
    page.fill("dialog input", "console-shop")
    page.click("Make it", "dialog")
    page.wait_for_text("Drop documents here")
    store = page.run("location.hash").rpartition("/")[2]
    page.attach(".drop input", *documents)
    states = "[...document.querySelectorAll('section[aria-label=Documents] .badge')].map((each) => each.innerText)"
    page.wait(f"{states}.sort().join() === 'completed,completed,failed'", within_s=INDEX_S)
    failed = client.get(f"/v1/vector_stores/{store}/files", params={"filter": "failed"}).json()["data"]
    assert [each["last_error"]["message"] in in_section(page, "Documents") for each in failed] == [True]

    page.fill("input[type=search]", BOTH)
    page.click("Search")
    page.wait("document.querySelectorAll('.results li').length === 2", within_s=INDEX_S)
    picture(page, "store")
    found = client.post(f"/v1/vector_stores/{store}/search", json={"query": BOTH}).json()["data"]
    shown = page.run("[...document.querySelectorAll('.results li strong')].map((each) => each.innerText)")
    assert shown == [each["filename"] for each in found]
    assert set(shown) == {"returns.md", "lamp.txt"}
    scores = page.run("[...document.querySelectorAll('.results b')].map((each) => each.innerText)")
    assert scores == [f"{each['score']:.3f}" for each in found]

    go(page, "stores")
    page.click("New store")
    page.fill("dialog input", "console-shop")
    page.wait_for_text("There is already a store of this name")
    assert page.run("[...document.querySelectorAll('dialog button')].at(-1).disabled")
    page.click("open it", "dialog")
    page.wait_for_text("lamp.txt")

    page.click_labelled("Remove lamp.txt")
    page.wait_for_text("Its 1 passage is no longer found.")
    page.click("Remove it", "dialog")
    page.wait("!document.querySelector('dialog')")
    page.wait("!document.querySelector('section[aria-label=Documents]').innerText.includes('lamp.txt')")
    page.fill("input[type=search]", BOTH)
    page.click("Search")
    page.wait("document.querySelectorAll('.results li').length === 1")

    assert sources_in_the_playground(page, store) == ["returns.md", "returns.md"]
    go(page, f"stores/{store}")

    user = {"name": GROUNDED, "settings": {"grounding": {"vector_store_ids": [store]}}}
    assert client.post("/v1/adapters", json=user).status_code == 201
    page.click("Delete the store")
    page.wait_for_text("These versions lose their passages")
    assert f"{GROUNDED}@1" in page.text
    page.click("Delete the store", "dialog")
    page.wait_for_text("New store")
    assert client.get(f"/v1/vector_stores/{store}").status_code == 404
    client.delete(f"/v1/adapters/{GROUNDED}", params={"force": "true"})


def test_traffic_is_split_and_a_promotion_says_that_it_ends_the_split(
    page: Browser, client: httpx.Client, two_versions: str
) -> None:
    go(page, f"adapters/{two_versions}")
    page.click("Split …")
    page.fill("input[aria-label='Weight of version 1']", "60")
    page.fill("input[aria-label='Weight of version 2']", "40")
    page.wait("document.querySelector('dialog .change').innerText.replace(/\\s+/g, ' ').includes('@1 60% @2 40%')")
    page.click("Split the traffic", "dialog")
    page.wait("!document.querySelector('dialog')")
    assert client.get(f"/v1/adapters/{two_versions}").json()["splits"] == {"live": {"1": 60, "2": 40}}
    page.wait(
        "document.querySelector('section[aria-label=Aliases]').innerText.replace(/\\s+/g, ' ').includes('@2 40%')"
    )
    assert answered_by(client, two_versions, 40) == {f"{two_versions}@1", f"{two_versions}@2"}

    page.click("Promote …")  # the newest comes first
    page.wait_for_text("This ends the split.")
    page.click("Point live to @2", "dialog")
    page.wait("!document.querySelector('dialog')")
    assert live_version(client, two_versions) == 2
    assert client.get(f"/v1/adapters/{two_versions}").json()["splits"] == {}
    go(page, "traffic")
    page.wait(f"document.querySelector('section[aria-label=Usage]')?.innerText.includes({json.dumps(two_versions)})")
    page.wait("document.querySelectorAll('.tiles dd').length === 8")
    page.wait("!document.querySelector('.tiles').innerText.includes('…')")
    page.click("By version: rates, queue and latency")
    picture(page, "traffic")
    go(page, "adapters")
    page.wait_for_text(two_versions)
    picture(page, "adapters")


def answered_by(client: httpx.Client, name: str, users: int) -> set[str]:
    """The versions that answer requests of so many users."""
    body: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 1}
    answers = [client.post("/v1/chat/completions", json=body | {"user": f"user-{at}"}) for at in range(users)]
    return {answer.headers["x-hatrack-adapter"] for answer in answers}


def test_a_version_is_judged_from_its_page(page: Browser, client: httpx.Client, tmp_path: Path) -> None:
    held_out = tmp_path / "held.jsonl"
    held_out.write_bytes(b"".join(heldout_file("tidewater").read_bytes().splitlines(keepends=True)[:6]))
    go(page, "adapters/tidewater")
    page.click("Judge …")
    page.wait("document.querySelector('dialog .drop input')")
    page.attach("dialog .drop input", held_out)
    page.wait_for_text("held.jsonl")
    page.click("How it is judged: chosen from the examples unless you say otherwise")
    page.fill_labelled("Suites", "")
    page.fill_labelled("max_tokens", "16")
    picture(page, "judge")
    page.click("Start the evaluation", "dialog")
    page.wait("location.hash.startsWith('#/train/eval-')")
    evaluation = page.run("location.hash").rpartition("/")[2]
    page.wait_for_text("Verdict: not enough evidence", within_s=JOB_S)
    picture(page, "evaluation")
    run = client.get(f"/v1/evaluations/{evaluation}").json()
    assert (run["model"], run["status"], run["promote"]) == ("tidewater@1", "succeeded", "never")
    go(page, "train")
    page.wait_for_text("Judge a version")
    page.wait("document.querySelector('section[aria-label=Evaluations]')")
    picture(page, "train")


@pytest.fixture
def unpinned(client: httpx.Client) -> Iterator[str]:
    """The name of an adapter with weights that is not pinned, and is not afterwards."""
    yield "pemberton"
    client.delete("/v1/adapters/pemberton/pin")


def test_an_adapter_is_pinned_and_unpinned(page: Browser, client: httpx.Client, unpinned: str) -> None:
    assert answered_by(client, unpinned, 1) == {f"{unpinned}@1"}  # the metrics name what was asked since the start
    page.click_labelled(f"Pin {unpinned}")
    page.wait_for_text("It takes a slot from all other adapters for good.")
    page.click("Pin", "dialog")
    page.wait_for_text("Unpin …")
    go(page, f"adapters/{unpinned}")
    page.wait("[...document.querySelectorAll('h1 .badge')].some((each) => each.innerText === 'pinned')")
    assert client.get(f"/v1/adapters/{unpinned}").json()["pinned"] is True
    # the pinned version is loaded beside the answer; the view looks again every 15 s
    page.wait("[...document.querySelectorAll('.version .badge')].some((each) => each.innerText === 'loaded')", 180)
    page.click("Unpin")
    page.wait_for_text("may be unloaded when other adapters need the slot")
    page.click("Unpin", "dialog")
    page.wait("!document.querySelector('h1 .badge')")
    assert client.get(f"/v1/adapters/{unpinned}").json()["pinned"] is False


def test_advice_is_asked_for_watched_and_cancelled(page: Browser, client: httpx.Client, tmp_path: Path) -> None:
    go(page, "train")
    page.click("Train from a file")
    page.wait("document.querySelector('.drop input')")
    page.attach(".drop input", labelled(tmp_path / "desk.jsonl"))
    page.wait_for_text("The job", within_s=180)
    page.click("Is training worth it?")
    page.fill_labelled("Adapter", ADVISED)
    page.click("Measure it")
    page.wait_for_text(f"Is fine-tuning {ADVISED} worth it?", within_s=180)
    ladder = page.run("location.hash").rpartition("/")[2]
    page.wait("document.querySelectorAll('section[aria-label=Rungs] tbody tr').length > 0", within_s=JOB_S)
    rung = client.get(f"/v1/ladders/{ladder}").json()["rungs"][0]
    assert rung["title"].lower() in in_section(page, "Rungs").lower()
    page.click("Cancel")
    page.wait_for_text("What was measured so far stays to be seen.")
    page.click("Cancel it", "dialog")
    page.wait("document.querySelector('h1 .badge').innerText === 'cancelled'", within_s=180)
    assert client.get(f"/v1/ladders/{ladder}").json()["status"] == "cancelled"
    assert rung["title"].lower() in in_section(page, "Rungs").lower(), "what was measured stays"
    go(page, "train")
    page.wait("document.querySelector('section[aria-label=Advice]')")
    assert ADVISED in in_section(page, "Advice")
