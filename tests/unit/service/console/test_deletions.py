"""What is said before something is deleted, and what is then sent: in a real Chromium, on answers written here."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.browser import Browser
from tests.unit.service.console.conftest import Answers, adapter, show, version

ADAPTER = "/v1/adapters/voice"
BREAK, DELETE = "Applications will break", "document.querySelector('dialog footer button.danger')"


def voice(**more: Any) -> dict[str, Any]:
    """The adapter `voice`: `live` points to 1, `next` and 2 share a split, `canary` points to 2, and 3 has no alias."""
    made = version(1, aliases=["live"]), version(2, aliases=["canary", "next"]), version(3)
    return adapter(*made, aliases={"live": 1, "canary": 2, "next": None}, splits={"next": {"1": 90, "2": 10}}) | more


def usage(*requests: tuple[int, int], key: str | None = None) -> dict[str, Any]:
    """The usage of versions, as (version, requests)."""
    rows = [
        {"id": f"row-{number}", "project": "default", "adapter": "voice", "version": number}
        | {"requests": asked, "errors": 0}
        for number, asked in requests
    ]
    return {"data": rows, "has_more": False, "start": 0, "end": 86400, "only_key": key}


def press_enter(page: Browser) -> None:
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="Enter", windowsVirtualKeyCode=13, text="\r")


def delete_from_page(page: Browser, answers: Answers, name: str, counted: dict[str, Any]) -> None:
    """Open the dialog for a version of `voice` on the adapter's page."""
    answers.told = {
        f"GET {ADAPTER}": [voice()],
        "GET /v1/usage": [counted],
        "GET /metrics": [(403, {"error": {"message": "no", "code": "insufficient_permissions"}})],
    }
    show(page, "adapter.js", "AdapterView", name="voice")
    page.wait("document.querySelectorAll('article.version').length === 3")
    page.run(
        "[...document.querySelectorAll('article.version')]"
        f".find((each) => each.innerText.startsWith({json.dumps(name)})).querySelector('button.danger').click()"
    )
    page.wait("document.querySelector('dialog[open]')")


@pytest.mark.parametrize(
    ("counted", "words"),
    [
        (usage((1, 700), (3, 1234)), "It had 1,234 requests in the last 24 hours, by whichever name."),
        (usage((3, 1)), "It had 1 request in the last 24 hours"),
        (usage((1, 700)), "It had no requests in the last 24 hours"),
        (usage((3, 2), key="key_team"), "2 requests by this key in the last 24 hours"),
        (usage(key="key_team"), "no requests by this key in the last 24 hours"),
    ],
    ids=["many", "one", "none", "own", "none_own"],
)
def test_a_version_without_an_alias_is_deleted_after_what_callers_lose_was_said(
    page: Browser, answers: Answers, counted: dict[str, Any], words: str
) -> None:
    delete_from_page(page, answers, "@3", counted)
    shown = " ".join(page.run("document.querySelector('dialog').innerText").split())
    assert "Requests for voice@3 get 404 from the next one on" in shown
    assert words in shown
    assert ("What other keys ask is not counted here." in shown) == (counted["only_key"] is not None)
    assert BREAK not in shown
    assert page.run("document.querySelector('dialog input[type=checkbox]')") is None


def test_a_version_is_deleted_once_its_name_is_typed_and_the_page_shows_the_rest(
    page: Browser, answers: Answers
) -> None:
    delete_from_page(page, answers, "@3", usage((1, 700)))
    deletion = f"DELETE {ADAPTER}/versions/3"
    answers.told |= {deletion: [{"deleted": True}], f"GET {ADAPTER}": [voice(versions=voice()["versions"][:2])]}
    for typed in ("voice", "voice@", "voice@33", "VOICE@3"):
        page.fill_labelled("Type voice@3", typed)
        assert page.run(f"{DELETE}.disabled"), typed
        press_enter(page)
    assert deletion not in answers.asked
    page.fill_labelled("Type voice@3", "voice@3")
    press_enter(page)
    page.wait("document.querySelectorAll('article.version').length === 2")
    assert answers.queries[deletion] == [{}], "once, and not by force"
    assert page.run("document.querySelector('dialog')") is None


@pytest.mark.parametrize(
    ("number", "path", "names", "split"),
    [
        (None, ADAPTER, ("voice", "voice:canary", "voice:next"), False),
        (1, f"{ADAPTER}/versions/1", ("voice",), False),
        (2, f"{ADAPTER}/versions/2", ("voice:canary", "voice:next"), True),
    ],
    ids=["adapter", "live", "split"],
)
def test_what_an_alias_names_is_deleted_by_force_alone_after_a_warning(
    page: Browser, answers: Answers, number: int | None, path: str, names: tuple[str, ...], split: bool
) -> None:
    whole = voice()
    name = f"voice@{number}" if number else "voice"
    named = {"version": whole["versions"][number - 1]} if number else {}
    refusal = {"message": "it is being trained", "code": "busy"}
    answers.told = {f"DELETE {path}": [(409, {"error": refusal}), {"deleted": True}]}
    show(page, "alias_dialogs.js", "DeleteDialog", adapter=whole, **named)
    page.wait_for_text(BREAK)
    warning = " ".join(page.run("document.querySelector('dialog .notice.bad').innerText").split())
    assert f"Requests for {', '.join(names)} will get an error from the next one on." in warning
    assert ("A split that names this version is deleted with it." in warning) == split
    assert ("All 3 versions and their files" in page.text) == (number is None)
    tick = "document.querySelector('dialog input[type=checkbox]').click()"
    page.fill_labelled("Type", name)
    assert page.run(f"{DELETE}.disabled"), "the name alone is not enough"
    page.run(tick)
    page.fill_labelled("Type", f"{name}x")
    assert page.run(f"{DELETE}.disabled"), "nor is the tick"
    page.fill_labelled("Type", name)
    page.run(tick)
    page.wait(f"{DELETE}.disabled")
    press_enter(page)
    page.run(tick)
    assert answers.asked == []
    page.click(f"Delete {name}", "dialog")
    page.wait_for_text("It is being trained")
    assert page.run("window.called") == [], "a refusal leaves the dialog open"
    page.click(f"Delete {name}", "dialog")
    page.wait("window.called.includes('done')")
    assert answers.queries[f"DELETE {path}"] == [{"force": "true"}] * 2


def test_a_deletion_that_is_called_off_sends_nothing(page: Browser, answers: Answers) -> None:
    show(page, "alias_dialogs.js", "DeleteDialog", adapter=voice())
    page.fill_labelled("Type", "voice")
    page.run("document.querySelector('dialog input[type=checkbox]').click()")
    page.click("Cancel", "dialog")
    assert page.run("window.called") == ["close"]
    assert answers.asked == []


@pytest.mark.parametrize("alias", ["canary", "next"])
def test_an_alias_is_removed_after_it_was_said_who_loses_it(page: Browser, answers: Answers, alias: str) -> None:
    removal = f"DELETE {ADAPTER}/aliases/{alias}"
    answers.told = {removal: [{"deleted": True}]}
    show(page, "alias_dialogs.js", "RemoveAliasDialog", adapter=voice(), alias=alias)
    page.wait_for_text(f"Remove voice:{alias}")
    page.wait_for_text(f"Requests for voice:{alias} will get an error from the next one on. The versions stay.")
    page.wait("document.activeElement.innerText === 'Cancel'")
    press_enter(page)
    page.wait("window.called.includes('close')")
    assert answers.asked == [], "Enter alone removes nothing"
    page.click("Remove the alias", "dialog")
    page.wait("window.called.includes('done')")
    assert answers.queries[removal] == [{}]
