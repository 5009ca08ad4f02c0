"""Every route of the gateway needs a key, but for the few that are listed here, and says so in one shape.

The routes are asked of the app itself, so a new one is tested as soon as it is there.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import orjson
import pytest
import pytest_asyncio
from fastapi.routing import APIRoute

from service.app import DataPathFirst, create_app
from service.config import Settings
from service.console.routes import static_files
from tests.support.adapters import make_base
from tests.unit.service.server.served import Answer, Served, served

ADMIN_KEY = "the-admin-key-of-these-tests"
PUBLIC = {
    *(("GET", path) for path in ("/", "/console", "/docs", "/health", "/healthz", "/openapi.json", "/readyz")),
    *(("GET", f"/docs/{name}") for name in ("start.js", "swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")),
    *(("GET", f"/console/{name}") for name in static_files() if name != "index.html"),
}
"""All that answers without a key; `/metrics` does so on loopback alone, and is tested here where it does not."""
BEARERS = {
    "none": None,
    "empty": b"",
    "a scheme alone": b"Bearer",
    "an empty key": b"Bearer  ",
    "Basic": b"Basic dXNlcjpwYXNz",
    "another scheme": b"Token abc",
    "no scheme": ADMIN_KEY.encode(),
    "SQL": b"Bearer ' OR '1'='1'; DROP TABLE keys; --",
    "SQL with a comment": b"Bearer admin'/*",
    "10 KB": b"Bearer " + b"k" * 10_240,
    "not ASCII": "Bearer schlüssel-\u2603".encode(),
    "latin-1": b"Bearer \xfc\xff",
    "invalid UTF-8": b"Bearer \xc3\x28\xed\xa0\x80",
    "lower-case scheme": b"bearer wrong",
    "upper-case scheme": b"BEARER wrong",
    "two schemes": b"Bearer Bearer " + ADMIN_KEY.encode(),
    "well formed": b"Bearer hk_" + b"0" * 49,
    "a template": b"Bearer {{7*7}} ${jndi:ldap://x} %s%n %00",
    "a path": b"Bearer ../../admin.key",
    "JSON": b'Bearer {"admin": true}',
    "a list": b"Bearer wrong, Bearer " + ADMIN_KEY.encode(),
    "a prefix of the key": b"Bearer " + ADMIN_KEY[:-1].encode(),
    "the key and more": b"Bearer " + ADMIN_KEY.encode() + b"x",
}
NO_KEY = {"none", "empty", "a scheme alone", "an empty key", "Basic", "another scheme", "no scheme"}
"""Those that show no key, and are told so; all others get one and the same answer."""


class Route(NamedTuple):
    method: str
    path: str


ONE_OF_EACH_KIND = (
    *(Route("POST", "/v1/chat/completions"), Route("POST", "/v1/messages"), Route("POST", "/tokenize")),
    *(Route("GET", "/v1/models"), Route("GET", "/v1/keys"), Route("POST", "/v1/adapters"), Route("POST", "/v1/files")),
    *(Route("GET", "/v1/fine_tuning/x"), Route("GET", "/metrics"), Route("GET", "/v1/no/such/route")),
)
"""Routes that look at the key in different places: on these everything is tried."""
METHODS = ("HEAD", "OPTIONS", "PATCH", "TRACE", "PROPFIND")


class Gateway(NamedTuple):
    here: Served
    routes: list[Route]


@pytest_asyncio.fixture(scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    """The whole app behind its server; nothing that it would start runs, so whoever gets past the key gets a 500."""
    home = tmp_path_factory.mktemp("home")
    make_base(home / "base")
    settings: dict[str, Any] = {
        "home": home,
        "base_model": str(home / "base"),
        "engine_url": "http://127.0.0.1:9",
        "admin_key": ADMIN_KEY,
        "metrics": "key",
        "engine_device": "cpu",
    }
    app = create_app(Settings(**settings))
    assert isinstance(app, DataPathFirst)
    async with served(app, **settings) as here:
        yield Gateway(here, routes_of(app))


def routes_of(app: DataPathFirst) -> list[Route]:
    """All routes of both halves of the app, with something in the place of each parameter."""
    found = {Route("POST", path) for path in app._inference.routes}
    found |= {Route("GET", "/v1/models"), Route("GET", "/v1/models/x"), Route("POST", "/v1/messages/x")}
    for route in app._rest.app.routes:  # type: ignore[attr-defined]
        assert isinstance(route, APIRoute), "a kind of route that this test does not know"
        path = re.sub(r"\{[a-z_]*number\}", "1", route.path)
        path = re.sub(r"\{[^}]*\}", "x", path)
        found |= {Route(method, path) for method in route.methods}
    return sorted(found)


def bearer(name: str) -> tuple[bytes, ...]:
    """The Authorization header of that name in ``BEARERS``."""
    value = BEARERS[name]
    return () if value is None else (b"authorization: " + value,)


def request(
    route: Route, *headers: bytes, target: bytes | None = None, host: bytes = b"x", body: bytes = b"{not JSON"
) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (route.method.encode(), target or route.path.encode()), b"host: " + host, *headers]
    if route.method in ("POST", "PUT"):
        lines += [b"content-type: application/json", b"content-length: %d" % len(body)]
    else:
        body = b""
    return b"\r\n".join((*lines, b"", body))


def check_401(answer: Answer, route: Route) -> str:
    """The message of a refusal for want of a key, whose shape must be the one of the route."""
    assert answer.status == 401, (route, answer)
    assert answer.headers["www-authenticate"] == 'Bearer realm="hatrack"'
    assert answer.headers["x-request-id"]
    error = orjson.loads(answer.body)["error"]
    assert error["type"] == "authentication_error"
    if not route.path.startswith("/v1/messages"):
        assert (error["param"], error["code"]) == (None, "invalid_api_key")
    return str(error["message"])


def test_the_routes_are_those_of_the_whole_app(gateway: Gateway) -> None:
    assert len(gateway.routes) > 80
    assert {("POST", "/v1/chat/completions"), ("GET", "/v1/keys"), ("GET", "/metrics")} <= set(gateway.routes)
    assert set(gateway.routes) >= PUBLIC
    assert {route for route in ONE_OF_EACH_KIND if "no/such" not in route.path} <= set(gateway.routes)


async def test_every_route_needs_a_key(gateway: Gateway) -> None:
    client = await gateway.here.connect()
    messages = set()
    for number, route in enumerate(gateway.routes):
        # beside nothing at all, two of the bearers: all of them are tried below
        for name in ("none", *(list(BEARERS)[(2 * number + more) % len(BEARERS)] for more in (0, 1))):
            answer = await client.ask(request(route, *bearer(name)))
            if route in PUBLIC:
                assert answer.status in (200, 503), (route, name, answer)
            else:
                message = check_401(answer, route)
                if name == "none":
                    messages.add(message)
    assert len(messages) == 1


async def test_nothing_tells_in_what_way_a_key_is_wrong(gateway: Gateway) -> None:
    client = await gateway.here.connect()
    for route in ONE_OF_EACH_KIND:
        messages = {name: check_401(await client.ask(request(route, *bearer(name))), route) for name in BEARERS}
        assert len({message for name, message in messages.items() if name not in NO_KEY}) == 1, messages


async def test_x_api_key_is_no_other_door(gateway: Gateway) -> None:
    client = await gateway.here.connect()
    for route in ONE_OF_EACH_KIND:
        for key in (b"", b"' OR 1=1 --", b"k" * 10_240, b"\xff\xfe", b"wrong"):
            check_401(await client.ask(request(route, b"x-api-key: " + key)), route)
        both = (b"authorization: Bearer " + ADMIN_KEY.encode(), b"x-api-key: wrong")
        for headers in (both, both[::-1]):
            answer = await client.ask(request(route, *headers))
            assert answer.status == 400, (route, answer)
            assert b"different keys" in answer.body


async def test_no_host_opens_a_route(gateway: Gateway) -> None:
    """Of others' advisories: a path that is put together from the Host header, and so from what a client says."""
    hosts = (
        b"x/healthz?",
        b"x#",
        b"x/healthz#",
        b"x?/healthz",
        b"@x",
        b"x@healthz",
        b"x\\healthz",
        b"x:80/healthz/..",
        b"",
    )
    client = await gateway.here.connect()
    for number, route in enumerate(gateway.routes):
        if route not in PUBLIC:
            for host in hosts if route in ONE_OF_EACH_KIND else (*hosts[:2], hosts[number % len(hosts)]):
                check_401(await client.ask(request(route, host=host)), route)


async def test_no_other_spelling_of_a_path_opens_a_route(gateway: Gateway) -> None:
    client = await gateway.here.connect()
    for number, route in enumerate(gateway.routes):
        if route in PUBLIC:
            continue
        targets = spellings(route.path.encode())
        for target in targets if route in ONE_OF_EACH_KIND else (targets[number % len(targets)], b"/@x"):
            check_401(await client.ask(request(route, target=target)), Route(route.method, target_path(target)))
        for method in METHODS if route in ONE_OF_EACH_KIND else METHODS[number % len(METHODS) :][:1]:
            other = Route(method, route.path)
            await client.send(request(other))
            if method == "HEAD":  # its answer has no body
                head = await client.reader.readuntil(b"\r\n\r\n")
                assert b" 401 " in head.split(b"\r\n")[0]
            else:
                check_401(await client.answer(), other)


def spellings(path: bytes) -> tuple[bytes, ...]:
    """Targets that somebody in front may take for this path, or for `/healthz`."""
    first, _, rest = path[1:].partition(b"/")
    encoded = b"/" + path[1:].replace(b"/", b"%2f"), b"/" + first + b"%2F" + rest
    return (
        *(b"/" + path, path + b"/", b"/." + path, b"/healthz/.." + path, b"/healthz/..;" + path, b"/x/../" + path),
        *(path + b"?/healthz", path + b"#/healthz", path + b";/healthz", path + b"/..;/healthz", path + b"%00"),
        *(path + b"/../../healthz", *encoded, path.upper(), path + b"%20", b"/@x" + path),
        *(b"/%2e%2e" + path, b"/%" + path[1:], path + b"%0d%0aauthorization:"),
        *(b"http://x" + path, b"http://127.0.0.1@x" + path, b"http://x/healthz/.." + path, b"HTTP://x" + path),
    )


def target_path(target: bytes) -> str:
    """Where the target leads, for the shape of the answer: that of its route, which is OpenAI's if it has none."""
    return re.sub(rb"(?i)^http://[^/]*|[?#].*", b"", target).decode()


async def test_two_keys_or_a_trailer_are_refused_on_every_route(gateway: Gateway) -> None:
    good, wrong = b"authorization: Bearer " + ADMIN_KEY.encode(), b"authorization: Bearer wrong"
    twice = ((good, wrong), (wrong, good), (good, good), (b"x-api-key: a", b"x-api-key: b"))
    for number, route in enumerate(gateway.routes):
        for headers in twice if route in ONE_OF_EACH_KIND else twice[number % len(twice) :][:1]:
            assert (await gateway.here.ask(request(route, *headers))).error() == (400, "repeated_header")
        head = f"{route.method} {route.path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        answer = await gateway.here.ask(head + b"1\r\nx\r\n0\r\n" + good + b"\r\n\r\n")
        assert answer.error() == (400, "trailers_not_allowed")


async def test_with_a_key_an_unknown_route_is_404(gateway: Gateway) -> None:
    bearer = b"authorization: Bearer " + ADMIN_KEY.encode()
    for path in (
        "/v1",
        "/v1/",
        "/v2/models",
        "/v1/keys/",
        "/docs/",
        "/docs/x",
        "/console/",
        "/console/index.html",
        "/console/../app.py",
        "/openapi.yaml",
        "//v1/models",
        "/v1/messages/x",
    ):
        answer = await gateway.here.ask(request(Route("GET", path), bearer))
        assert answer.status == 404, path
