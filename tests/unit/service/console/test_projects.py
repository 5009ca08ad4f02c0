"""What the console counts of a project, and what it says where a key may see less, in a real Chromium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.browser import Browser
from tests.unit.service.console.conftest import Answers, adapter, listed, show, version

METRICS = """
hatrack_adapter_resident{project="acme",adapter="voice",version="1"} 1
hatrack_adapter_resident{project="default",adapter="voice",version="1"} 0
hatrack_adapter_resident{project="default",adapter="voice",version="2"} 1
"""
USAGE, ADAPTERS = "GET /v1/usage", "GET /v1/adapters"
REQUESTS = "document.querySelector('tbody tr td:nth-child(7)')"
STORE = {"id": "vs_1", "name": "shop"}
UNKNOWN = "This key may not see which versions use this store."


def refused(scope: str) -> tuple[int, dict[str, Any]]:
    message = f"The API key is missing the scope `{scope}`."
    error = {"message": message, "type": "permission_error", "param": None, "code": "insufficient_permissions"}
    return 403, {"error": error}


def usage(*requests: int, project: str = "default", has_more: bool = False, key: str | None = None) -> dict[str, Any]:
    """A page with a row for each number, of the versions 1, 2, …, and one of another project."""
    rows = [
        {"id": f"row-{number}", "adapter": "voice", "version": number, "requests": each, "errors": 0}
        | {"project": project}
        for number, each in enumerate(requests, start=1)
    ]
    other = rows[0] | {"id": "other", "project": "somebody else's", "requests": 1000}
    return {"data": [other, *rows], "has_more": has_more, "start": 3600, "end": 90000, "only_key": key}


def sign_in(page: Browser, key: str, project: str = "") -> None:
    page.run(
        f"import('/console/api.js').then(({{ session }}) => session.open({json.dumps(key)}, {json.dumps(project)}))"
    )


@pytest.fixture(autouse=True)
def signed_out(page: Browser) -> Iterator[None]:
    yield
    page.run("sessionStorage.clear()")


@pytest.mark.parametrize(("project", "shown", "loaded"), [("", "default", "on demand"), ("acme", "acme", "loaded")])
def test_an_admin_sees_what_the_shown_project_has_and_every_page_of_it(
    page: Browser, answers: Answers, project: str, shown: str, loaded: str
) -> None:
    answers.told = {
        ADAPTERS: [listed(adapter(version(1), version(2)))],
        USAGE: [usage(4, project=shown, has_more=True), usage(3, project=shown)],
        "GET /metrics": [METRICS],
    }
    sign_in(page, "hk-admin", project)
    show(page, "adapters.js", "AdaptersView")
    page.wait(f"{REQUESTS}?.innerText === '7'")
    first, second = answers.queries[USAGE]
    assert first == {"group_by": "project,adapter,version", "limit": "1000"}
    assert second == first | {"start": "3600", "end": "90000", "after": "row-1"}, "the next page, of the same hours"
    assert page.run(f"{REQUESTS}.dataset.label") == "Requests, 24 h"
    assert page.run("document.querySelector('td[data-label=Loaded]').innerText") == loaded


def test_another_key_sees_that_the_requests_are_its_own(page: Browser, answers: Answers) -> None:
    only_its_own = usage(2, project="acme", key="key_team")
    del only_its_own["data"][0]
    answers.told = {
        ADAPTERS: [listed(adapter(version(1)))],
        f"{ADAPTERS}/voice": [adapter(version(1))],
        USAGE: [only_its_own],
        "GET /metrics": [refused("admin")],
    }
    sign_in(page, "hk-team")
    show(page, "adapters.js", "AdaptersView")
    page.wait(f"{REQUESTS}?.dataset.label === 'Requests by this key, 24 h'")
    page.wait_for_text("Requests by this key, 24 h")
    show(page, "adapter.js", "AdapterView", name="voice")
    page.wait_for_text("2 requests by this key in 24 h")


def test_a_key_that_may_not_see_adapters_is_told_before_a_store_is_deleted(page: Browser, answers: Answers) -> None:
    answers.told = {ADAPTERS: [refused("adapters")]}
    show(page, "stores.js", "Removal", store=STORE)
    page.wait_for_text(UNKNOWN)


def test_every_adapter_is_read_before_a_store_is_deleted(page: Browser, answers: Answers) -> None:
    others = {"data": [adapter(version(1))] * 100, "has_more": True, "last_id": "voice"}
    grounded = version(7, adapter="last", settings={"grounding": {"vector_store_ids": ["vs_1"]}})
    answers.told = {ADAPTERS: [others, others, others, others, listed(adapter(grounded, name="last"))]}
    show(page, "stores.js", "Removal", store=STORE)
    page.wait_for_text("These versions lose their passages")
    page.wait_for_text("last@7")
    assert UNKNOWN not in page.text
