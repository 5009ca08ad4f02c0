"""The console in a real browser against the real gateway: what a person does in it, from signing in to a promotion."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.integration.console.conftest import ADAPTER, WITH_RUNS, go, live_version, picture, sign_in
from tests.support.browser import Browser, browser
from tests.support.gateway import Gateway, upload_evaluation_file
from tests.support.judge import NAME, ScriptedJudge
from tests.support.legibility import faint_texts
from tests.support.runs import wait_for_run
from trainer.samples import heldout_file

pytestmark = pytest.mark.engine

PHONE = 390


def test_a_wrong_key_is_refused_in_words_and_not_kept(gateway: Gateway) -> None:
    with browser() as tab:
        tab.open(f"{gateway.url}/console")
        tab.fill("#key", "hk_wrong")
        tab.click("Sign in")
        tab.wait_for_text("This key is not accepted")
        assert tab.run("sessionStorage.length + localStorage.length + document.cookie.length") == 0
        assert all("401" in problem for problem in tab.problems), tab.problems


def test_a_key_that_may_only_ask_is_told_what_it_lacks(gateway: Gateway, client: httpx.Client) -> None:
    key = client.post("/v1/keys", json={"name": "console", "scopes": ["infer"]}).json()
    with browser() as tab:
        sign_in(tab, gateway, key["key"])
        tab.wait_for_text("This key may not see this")
        tab.wait_for_text("missing the scope adapters")
        go(tab, "playground")
        tab.wait_for_text("tidewater")
        assert all("403" in problem for problem in tab.problems), tab.problems
    client.delete(f"/v1/keys/{key['id']}")


def test_a_prompt_becomes_a_version_is_promoted_and_rolled_back(page: Browser, client: httpx.Client) -> None:
    page.wait_for_text("tidewater")
    for number, prompt in enumerate(("Answer with a greeting.", "Answer with one word."), 1):
        page.click("New from a prompt")
        page.fill("dialog input", ADAPTER)
        page.fill("dialog textarea", prompt)
        page.click("Make a version", "dialog")
        page.wait_for_text(f"{ADAPTER}@{number} is ready")
        page.click("Show it", "dialog")
        page.wait_for_text("Versions")
        go(page, "adapters")
        page.wait_for_text("pemberton")
    assert live_version(client, ADAPTER) == 1

    go(page, f"adapters/{ADAPTER}")
    page.click("Promote …")
    page.wait_for_text("never judged")
    page.click("Point live to @2", "dialog")
    page.wait("!document.querySelector('dialog')")
    assert live_version(client, ADAPTER) == 2

    page.click("Roll back …")
    page.wait("document.querySelector('dialog .change')?.innerText.includes('@1')")
    page.click("Roll back", "dialog")
    page.wait("!document.querySelector('dialog')")
    assert live_version(client, ADAPTER) == 1


def test_the_playground_asks_the_base_and_a_voice_side_by_side(page: Browser) -> None:
    go(page, "playground/tidewater")
    page.fill("#question", "Where is my parcel? <b>bold</b> <script>document.title = 'run'</script>")
    page.click("Settings and grounding")
    page.fill("details input[type=number]", "12")
    page.click("Ask 2 models")
    page.wait("document.querySelectorAll('.pane footer .link').length === 2", within_s=180)
    answers = page.run("[...document.querySelectorAll('.answer')].map((each) => each.innerText)")
    assert len(answers) == 2
    assert all(answers)
    assert answers[0] != answers[1]
    assert "tidewater@1" in page.text
    assert "12 tokens" in page.text
    assert page.run("document.title") == "Playground · Hatrack"


@pytest.mark.slow
def test_a_dropped_folder_is_uploaded_and_proven(page: Browser, client: httpx.Client, voices: dict[str, Path]) -> None:
    page.click("Upload an adapter")
    page.fill("dialog input", ADAPTER)
    page.attach("dialog input[type=file]", voices["pemberton"])
    page.wait_for_text("adapter_model.safetensors")
    page.click("Upload and prove", "dialog")
    page.wait_for_text("is ready", within_s=180)
    page.click("Show it", "dialog")
    page.wait_for_text("LoRA, rank")
    newest = client.get(f"/v1/adapters/{ADAPTER}").json()["versions"][-1]
    assert newest["state"] == "ready"
    assert newest["digest"]


@pytest.mark.slow
def test_a_folder_without_weights_is_refused_before_it_is_sent(page: Browser, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    page.click("Upload an adapter")
    page.attach("dialog input[type=file]", tmp_path)
    page.wait_for_text("This is not a whole adapter")
    assert page.run("[...document.querySelectorAll('dialog button')].at(-1).disabled")


@pytest.mark.slow
def test_a_dropped_training_file_is_reported_on_and_mended(page: Browser, tmp_path: Path) -> None:
    rows = [
        ("Where is it?", "Aboard, matey."),
        ("Where is it?", "Aboard, matey."),
        *((f"Is {n} here?", f"No, {n} is ashore.") for n in range(10)),
    ]
    lines = [
        json.dumps({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}) for q, a in rows
    ]
    file = tmp_path / "voice.jsonl"
    file.write_text("\n".join(lines))
    go(page, "train")
    page.click("Train from a file")
    page.wait("document.querySelector('.drop input')")
    page.attach(".drop input", file)
    page.wait_for_text("What stood out")
    before = page.run("[...document.querySelectorAll('.report dd')].map((each) => each.innerText)[1]")
    assert before.startswith("12")
    page.run("[...document.querySelectorAll('button')].find((each) => each.innerText.startsWith('Mend')).click()")
    page.click("leave it out")
    page.click("Check again with 1 change")
    page.wait("[...document.querySelectorAll('.report dd')].map((each) => each.innerText)[1]?.startsWith('11')")


def test_the_keyboard_is_enough_to_move_and_to_leave_a_dialog(page: Browser, gateway: Gateway) -> None:
    page.wait_for_text("tidewater")
    page.press("Tab")
    assert page.run("document.activeElement.innerText") == "New from a prompt", "signing in leads into the view"
    page.open("about:blank")
    page.open(f"{gateway.url}/console")
    page.wait_for_text("tidewater")
    page.press("Tab")
    assert page.run("document.activeElement.className") == "skip"
    assert page.run("document.activeElement.getBoundingClientRect().left") >= 0, "the skip link is seen while focused"
    for _ in range(2):
        page.press("Tab")
    assert page.run("document.activeElement.innerText") == "Adapters"
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.click("Upload an adapter")
    page.wait("document.querySelector('dialog[open]')?.contains(document.activeElement)")
    page.press("Escape")
    page.wait("!document.querySelector('dialog')")


def test_signing_out_forgets_the_key_and_what_was_asked(page: Browser) -> None:
    go(page, "playground")
    page.fill("#question", "a secret")
    page.wait("Object.values(sessionStorage).join().includes('a secret')")
    page.click("Sign out")
    page.wait("document.querySelector('#key')")
    assert page.run("sessionStorage.length") == 0
    assert "a secret" not in page.text


@pytest.fixture(scope="module")
def evaluation(client: httpx.Client, judge: ScriptedJudge) -> str:
    """The id of an evaluation that has left pairs for people to review."""
    lines = heldout_file("tidewater").read_bytes().splitlines(keepends=True)[:4]
    body = {
        "arms": [{"label": "voice", "model": "tidewater"}, {"label": "base", "model": client.get("/").json()["base"]}],
        "candidate": "voice",
        "bases": ["base"],
        "held_out": upload_evaluation_file(client, "held.jsonl", b"".join(lines)),
        "metric": "rouge_l",
        "suites": [],
        "judge": NAME,
        "max_tokens": 24,
        "repeats": 1,
    }
    answer = client.post("/v1/evaluations", json=body)
    assert answer.status_code == 200, answer.text
    made = wait_for_run(client, answer.json()["id"])
    assert made["status"] == "succeeded", made
    return str(made["id"])


@pytest.mark.slow
@WITH_RUNS
def test_pairs_are_reviewed_with_one_key_each_without_knowing_whose_they_are(
    page: Browser, client: httpx.Client, evaluation: str
) -> None:
    pairs = client.get("/v1/reviews/next", params={"evaluation": evaluation}).json()["total"]
    assert pairs > 0
    go(page, f"review/{evaluation}")
    for reviewed in range(pairs):
        page.wait_for_text(f"{reviewed} of {pairs} reviewed")
        page.wait("[...document.querySelectorAll('.pane button')].some((each) => !each.disabled)")
        assert "tidewater" not in page.text
        if reviewed == 0:
            picture(page, "review")
        page.press(("1", "2", "0")[reviewed % 3])
    page.wait_for_text("No pairs left to review")
    (queue,) = [each for each in client.get("/v1/reviews").json()["data"] if each["id"] == evaluation]
    assert (queue["reviewed"], queue["final"]) == (pairs, True)


VIEWS = {
    "adapters": ("Adapters", "tidewater"),
    "adapters/tidewater": ("tidewater", "Aliases"),
    "playground": ("Playground", "Question"),
    "train": ("Train", "Train from a file"),
    "traffic": ("Traffic", "Usage and cost by adapter"),
    "stores": ("Stores", "New store"),
    "review": ("Review", "without knowing whose they are"),
}
"""Every view with its heading, and a text that it shows."""


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_view_fits_a_phone_and_can_be_read(page: Browser, gateway: Gateway, dark: bool) -> None:
    gateway.answer("tidewater", "Hello", max_tokens=1)  # or there is no usage to show
    page.look(PHONE, 844, dark=dark)
    unnamed = (
        "[...document.querySelectorAll('button, a, input:not(.hidden), select, textarea')].filter((each) => "
        "!(each.innerText || each.ariaLabel || each.labels?.length || each.querySelector('img'))).length"
    )
    for view, (heading, shows) in VIEWS.items():
        go(page, view)
        page.wait(f"document.querySelector('h1')?.innerText.trim() === {json.dumps(heading)}")
        page.wait_for_text(shows)
        assert page.run("document.documentElement.scrollWidth") <= PHONE, f"{view}: something is wider than the window"
        assert faint_texts(page) == [], view
        assert page.run(unnamed) == 0, f"{view}: something that can be used has no name"
