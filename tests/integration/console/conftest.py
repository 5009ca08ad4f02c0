"""A browser that is signed in to the console of the real gateway, and the API to see what it has done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.browser import Browser, browser
from tests.support.gateway import Gateway

ADAPTER, ADVISED = "console-greeter", "console-desk"
JOB_S = 3600.0
"""A job of ten steps and its judging take two minutes on an idle machine of two cores, and many times as long on a slow
or busy one."""
WITH_RUNS = pytest.mark.timeout(2 * JOB_S)
"""For tests that wait for jobs, evaluations or advice."""


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[httpx.Client]:
    """The API with the admin key, to see what the console has done."""
    headers = {"authorization": f"Bearer {gateway.key}"}
    with httpx.Client(base_url=gateway.url, headers=headers, timeout=180, trust_env=False) as http:
        yield http
        for name in (ADAPTER, ADVISED):
            http.delete(f"/v1/adapters/{name}", params={"force": "true"})


@pytest.fixture
def page(gateway: Gateway) -> Iterator[Browser]:
    """A browser that is signed in with the admin key. Afterwards its log must have no error that no test expects."""
    with browser() as tab:
        sign_in(tab, gateway, gateway.key)
        yield tab
        assert tab.problems == []


def sign_in(tab: Browser, gateway: Gateway, key: str) -> None:
    """Open the console and sign in."""
    tab.look(1280, 900)
    tab.open(f"{gateway.url}/console")
    tab.fill("#key", key)
    tab.click("Sign in")
    tab.wait_for_text("Sign out")


def go(tab: Browser, view: str) -> None:
    """Show a view, as a link to it would."""
    tab.run(f"location.hash = {json.dumps(f'#/{view}')}")


def live_version(client: httpx.Client, name: str) -> int | None:
    """The version that an adapter's `live` points to; None: to none, or to a split."""
    aliases: dict[str, int | None] = client.get(f"/v1/adapters/{name}").json()["aliases"]
    return aliases.get("live")


PICTURES = {"light": (1280, False), "dark": (1280, True), "phone": (390, False)}


def picture(tab: Browser, name: str) -> None:
    """Leave screenshots of the page, light, dark and as on a telephone, in the folder `HATRACK_SCREENSHOTS`, if that is
    set: for people to look at."""
    if folder := os.environ.get("HATRACK_SCREENSHOTS"):
        for kind, (width, dark) in PICTURES.items():
            tab.look(width, 844, dark=dark)
            tab.run("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
            tab.screenshot(Path(folder) / f"{name}-{kind}.png")
        tab.look(1280, 900)
