"""The webhook provider against a real HTTP server."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any

import orjson
import pytest
import standardwebhooks
from aiohttp import web

from service.errors import SettingsError
from service.grounding.provider import Passage, Query
from service.grounding.webhook import MAX_ANSWER_BYTES, Webhook, WebhookFailed
from service.http.addresses import is_allowed

SECRET = "a-shared-secret-of-32-characters"
GOOD = {"passages": [{"id": "p", "text": "t", "score": 1, "source": "s", "attributes": {"a": True}, "more": 1}]}
QUERY = Query("q", [{"role": "user", "content": "q"}], "voice", "default", ("kb-1",), {"type": "eq"}, 3, 0.5)
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def ask(url: str, *, timeout_s: float = 60, **options: Any) -> Any:
    webhook = Webhook(f"{url}/retrieve", SECRET, **options)
    try:
        return await webhook.retrieve(QUERY, asyncio.get_running_loop().time() + timeout_s)
    finally:
        await webhook.close()


WHSEC = "whsec_" + base64.b64encode(b"twenty-four-random-bytes").decode()


@pytest.mark.parametrize("secret", [SECRET, WHSEC], ids=["text", "whsec"])
async def test_a_library_of_standard_webhooks_verifies_the_signature(secret: str) -> None:
    seen: list[tuple[dict[str, str], bytes]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((dict(request.headers), await request.read()))
        return web.json_response(GOOD)

    async with serving(answer) as url:
        for _ in range(2):
            webhook = Webhook(f"{url}/retrieve", secret)
            await webhook.retrieve(QUERY, asyncio.get_running_loop().time() + 60)
            await webhook.close()
    theirs = secret if secret == WHSEC else "whsec_" + base64.b64encode(secret.encode()).decode()
    verifier = standardwebhooks.Webhook(theirs)
    for headers, body in seen:
        assert verifier.verify(body, headers)["query"] == "q"
    assert len({headers["webhook-id"] for headers, _ in seen}) == 2
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        verifier.verify(seen[0][1] + b" ", seen[0][0])


def test_a_secret_that_only_begins_as_theirs_is_a_mistake_at_start() -> None:
    with pytest.raises(SettingsError, match="HATRACK_GROUNDING_SECRET"):
        Webhook("http://127.0.0.1:1/retrieve", "whsec_not base64")


async def test_a_signed_question_and_its_passages() -> None:
    seen: list[tuple[dict[str, str], bytes]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((dict(request.headers), await request.read()))
        return web.json_response(GOOD)

    async with serving(answer) as url:
        found = await ask(url, clock=lambda: 1_767_225_600.9)
    assert found == [Passage("p", "t", 1.0, "s", "", None, {"a": True})]
    [(headers, body)] = seen
    assert headers["x-hatrack-timestamp"] == "1767225600"
    expected = hmac.new(SECRET.encode(), b"1767225600." + body, hashlib.sha256).hexdigest()
    assert headers["x-hatrack-signature"] == f"v1={expected}"
    assert headers["webhook-timestamp"] == "1767225600"
    assert orjson.loads(body) == {
        "query": "q",
        "messages": [{"role": "user", "content": "q"}],
        "adapter": "voice",
        "project": "default",
        "vector_store_ids": ["kb-1"],
        "filters": {"type": "eq"},
        "required_filters": {},
        "max_num_results": 3,
        "score_threshold": 0.5,
    }


async def test_a_retriever_gives_examples_with_their_turns() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy"}]
    passage = {"id": "p", "text": "Hi: Ahoy", "score": 1, "source": "s", "turns": [{**turns[0], "more": 1}, turns[1]]}

    async def answer(_request: web.Request) -> web.Response:
        return web.json_response({"passages": [passage]})

    async with serving(answer) as url:
        [found] = await ask(url)
    assert found.turns == turns


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"{}"),
        (204, b""),
        (200, b"no json"),
        (200, b"[]"),
        (200, b'{"passages":[{"id":"p","text":"t","source":"s"}]}'),
        (200, b'{"passages":[{"id":"","text":"t","source":"s","score":1}]}'),
        (200, b'{"passages":[{"id":"p","text":5,"source":"s","score":1}]}'),
        (200, b'{"passages":[{"id":"p","text":"t","source":"s","score":"1"}]}'),
        (200, b'{"passages":[{"id":"p","text":"t","source":"s","score":1,"turns":[{"role":"system","content":"x"}]}]}'),
        (200, b'{"passages":"' + b"x" * MAX_ANSWER_BYTES + b'"}'),
    ],
)
async def test_what_is_no_answer(status: int, body: bytes) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, body=body)

    async with serving(answer) as url:
        with pytest.raises(WebhookFailed):
            await ask(url)


async def test_a_redirect_is_not_followed() -> None:
    paths: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        paths.append(request.path)
        if request.path == "/elsewhere":
            return web.json_response(GOOD)
        return web.Response(status=307, headers={"location": "/elsewhere"})

    async with serving(answer) as url:
        with pytest.raises(WebhookFailed, match="307"):
            await ask(url)
    assert paths == ["/retrieve"]


async def test_a_slow_one_is_given_up_at_the_deadline() -> None:
    async def answer(_request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.json_response(GOOD)

    async with serving(answer) as url:
        with pytest.raises(TimeoutError):
            await ask(url, timeout_s=0.2)


async def test_nobody_there_is_a_failure() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, not listening: the port refuses and nobody else can take it
        with pytest.raises(WebhookFailed):
            await ask(f"http://127.0.0.1:{held.getsockname()[1]}")


async def test_a_name_that_leads_elsewhere_is_not_asked() -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response(GOOD)

    async with serving(answer) as url:
        named = url.replace("127.0.0.1", "localhost")
        assert await ask(named, networks=[ip_network("127.0.0.0/8")])
        with pytest.raises(WebhookFailed):
            await ask(named, networks=[ip_network("10.0.0.0/8")])
    assert asked == ["/retrieve"]


def test_an_address_that_is_not_allowed_is_a_mistake_at_start() -> None:
    with pytest.raises(SettingsError, match=r"169\.254\.169\.254"):
        Webhook("http://169.254.169.254/latest", SECRET)
    with pytest.raises(SettingsError):
        Webhook("http://[::1]:80/", SECRET, [ip_network("10.0.0.0/8")])
    Webhook("http://[::1]:80/", SECRET)
    Webhook("http://169.254.169.254/", SECRET, [ip_network("169.254.169.254/32")])


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.1.2.3", True),
        ("10.1.2.3", True),
        ("93.184.216.34", True),
        ("169.254.169.254", False),
        ("::ffff:169.254.169.254", False),
        ("fe80::1%eth0", False),
        ("224.0.0.1", False),
        ("0.0.0.0", False),  # noqa: S104
        ("fd00:ec2::254", False),
        ("fd00::1", True),
    ],
)
def test_addresses_that_may_be_asked_without_a_setting(address: str, allowed: bool) -> None:
    assert is_allowed(address, ()) is allowed
