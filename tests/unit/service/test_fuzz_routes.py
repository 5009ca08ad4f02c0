"""Whatever a client sends to whichever route: never a 5xx, one shape of errors, and nothing in it of how we are built.

The routes are the app's own: FastAPI's, and the data path's table.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx
import orjson
import pytest
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import adapters
import service
from service.inference.routes import build_routes
from tests.support.adapters import make_adapter, make_base
from tests.unit.service.gateway_app import BASE, GatewayApp, describe_base, running

PLUGIN: Final = "service.engine.plugin."
"""Its modules belong in the engine's process, and need torch and vLLM."""
SERVE: Final = "service.cluster.application"
"""Belongs in Ray, which only the extra `cluster` has."""
EXAMPLES: Final = 5
MANY_EXAMPLES: Final = 150
MESSAGES: Final = "/v1/messages"
FORBIDDEN: Final = re.compile(
    r"pydantic|traceback|site-packages|\bFile \"|\.py\b|object at 0x|<class|<function"
    r"|function-(after|before|wrap|plain)|constrained-|instance of|\bservice\.|\bstarlette|\bfastapi"
    r"|sqlalchemy|sqlite|orjson|NoneType|\bstr\b|\bdict\b",
    re.IGNORECASE,
)
NAMES: Final = (
    *("name", "project", "scopes", "adapters", "stores", "limits", "expires_at", "version", "split", "expected"),
    *("metadata", "description", "file_ids", "files", "file_id", "attributes", "chunking_strategy", "expires_after"),
    *("query", "filters", "max_num_results", "ranking_options", "rewrite_query", "all", "verdict", "sentence"),
    *("metric", "examples", "kind", "evaluation", "model", "training_file", "validation_file", "suffix", "seed"),
    *("hyperparameters", "method", "integrations", "arms", "candidate", "bases", "held_out", "suites", "promote"),
    *(
        "file",
        "note",
        "judge",
        "max_tokens",
        "repeats",
        "static",
        "type",
        "grounding",
        "label",
        "prompt",
        "requests_per_minute",
    ),
)
QUERY: Final = (
    *("after", "before", "limit", "order", "filter", "purpose", "wait", "force", "revalidation", "start", "end"),
    *("bucket", "project", "key", "adapter", "group_by", "action", "against"),
)
PATH_PARTS: Final = (
    *("voice", "1", "0", "-1", "99999999999999999999", "live", "cancel", "x", "a" * 300, "%00", "%FF%FE"),
    *("%ED%A0%80", "..%2F..", "caf%C3%A9", "@x", "current", "file-" + "x" * 24, "vs_" + "0" * 24, "a%0d%0ab"),
)
PARTS: Final = (
    *("name", "alias", "config", "readme", "metadata", "settings", "weights", "purpose", "file", "", "x" * 200, "é"),
    *("expires_after[anchor]", "expires_after[seconds]"),
)


def deep(levels: int, inner: bytes = b"1") -> bytes:
    return b'{"a":' * levels + inner + b"}" * levels


RAW: Final = (
    *(b"", b" ", b"null", b"[]", b'"x"', b"1", b"{", b"}", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf{}", b"NaN"),
    *(b'{"a":NaN}', b'{"a":-Infinity}', b'{"a":1e999}', b'{"name":"a","name":"b"}', b'{"name":"\\ud800"}'),
    *(b'{"\\udfff":1}', b'{"name":"\\u0000"}', b'{"name":"\xff"}', b'{"a":' + b"9" * 5000 + b"}", b"[" * 5000),
    *(deep(99), deep(300), deep(3000), b'{"metadata":' + deep(300) + b"}", b'{"name":"a\nb"}', b"{}" * 50),
)
NUMBERS: Final = (0, 1, -1, 2**31, 2**53, 2**63 - 1, -(2**63), 2**64 - 1, 0.5, -0.0, 1e308, 10**17)
TEXTS: Final = (
    "",
    "a",
    "live",
    "default",
    BASE,
    "voice",
    "\x00",
    "\n",
    "é" * 70,
    "x" * 5000,
    "*",
    "[",
    "../x",
    "\u202e",
)
VALUES: Final = st.recursive(
    st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.sampled_from(TEXTS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from((*NAMES, "self", "x")), inner, max_size=3)
    ),
    max_leaves=8,
)


@dataclass(frozen=True)
class Place:
    """A route as it is asked: ``fields`` are the names that its body may have."""

    method: str
    path: str
    fields: tuple[str, ...]
    sound: tuple[tuple[str, Any], ...] = ()
    """Fields that let a body pass the first checks."""


def places(gateway: GatewayApp) -> list[Place]:
    """Every route of the app."""
    found = [
        Place(method, route.path, NAMES)
        for route in gateway.api.routes
        if isinstance(route, APIRoute)
        for method in sorted(route.methods)
    ]
    for path, route in build_routes(gateway.settings).items():
        sound = (("model", BASE), ("messages", [{"role": "user", "content": "x"}]), ("max_tokens", 3))
        known = tuple((name, value) for name, value in sound if name == "model" or name in route.table)
        found.append(Place("POST", path, tuple(route.table), known))
    return [*found, Place("GET", "/v1/models", ()), Place("GET", "/v1/models/{name}", ())]


@st.composite
def bodies(draw: st.DrawFn, place: Place) -> tuple[bytes, str]:
    """A body and its content type."""
    kind = draw(st.sampled_from(("fields", "fields", "fields", "raw", "multipart", "multipart junk")))
    if kind == "raw":
        return draw(st.sampled_from(RAW)), "application/json"
    if kind == "multipart junk":
        boundary = draw(st.sampled_from(("b", "", "x" * 300, "b b")))
        junk = draw(st.sampled_from((b"", b"--b", b"--b--\r\n", b"--b\r\nno header\r\n\r\n", b"\x00" * 100)))
        return junk, f"multipart/form-data; boundary={boundary}"
    if kind == "multipart":
        return draw(forms()), "multipart/form-data; boundary=b"
    names = st.sampled_from(place.fields or NAMES)
    body = dict(place.sound) if draw(st.booleans()) else {}
    body |= draw(st.dictionaries(names, VALUES, max_size=4))
    text = orjson.dumps(body)
    if draw(st.integers(0, 5)) == 0:  # what no serializer would write, in a field that is known
        name = draw(names).encode()
        odd = draw(
            st.sampled_from((b"9" * 400, b'"\\ud800"', b'"\\u0000"', deep(120), b"NaN", b"[" * 300 + b"]" * 300))
        )
        text = b'{"model":"tiny","' + name + b'":' + odd + b"}"
    return text, draw(st.sampled_from(("application/json", "application/json", "application/json", "text/plain", "")))


@st.composite
def forms(draw: st.DrawFn) -> bytes:
    """A form of parts that are known or not, some of them sound."""
    contents = st.sampled_from(RAW) | st.sampled_from(
        (b"voice", b"fine-tune", b"assistants", b"evals", b"created_at", b"3600", b'{"metadata":{"a":1}}', HEADER)
    )
    body = b""
    for name in draw(st.lists(st.sampled_from(PARTS), max_size=5)):
        filename = draw(
            st.sampled_from((b"", b'; filename="a.safetensors"', b'; filename="\xff\x00"', b"; filename=x"))
        )
        head = b'content-disposition: form-data; name="' + name.encode() + b'"' + filename
        body += b"--b\r\n" + head + b"\r\n\r\n" + draw(contents) + b"\r\n"
    return body + draw(st.sampled_from((b"--b--\r\n", b"")))


def safetensors(name: str) -> bytes:
    """A weights file with one tensor of this name, as JSON writes it."""
    entry = '{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}'
    header = f'{{"{name}":{entry}}}'.encode()
    return len(header).to_bytes(8, "little") + header + b"\0" * 4


HEADER: Final = safetensors("base_model.model.\\ud800.lora_A.weight")


@st.composite
def requests(draw: st.DrawFn, place: Place) -> dict[str, Any]:
    """One request to a route."""
    path = re.sub(r"\{[^}]*\}", lambda _: draw(st.sampled_from(PATH_PARTS)), place.path)
    query = draw(
        st.dictionaries(st.sampled_from(QUERY), st.sampled_from((*TEXTS, "1", "-1", "9" * 30, "é")), max_size=3)
    )
    content, kind = draw(bodies(place)) if place.method in ("POST", "PUT", "DELETE") else (b"", "")
    headers: dict[str, bytes] = {"content-type": kind.encode()} if kind else {}
    odd = st.sampled_from(("authorization", "openai-project", "idempotency-key", "x-request-id", "last-event-id"))
    for name in draw(st.lists(odd, max_size=1)):
        headers[name] = draw(st.sampled_from((b"", b"\xff\xfe", b"Bearer", b"Bearer \xe9", b"a" * 300, b"' OR 1=1 --")))
    return {"method": place.method, "url": path, "params": query, "content": content, "headers": headers}


class Judge:
    """Says what is wrong with an answer."""

    def __init__(self, gateway: GatewayApp) -> None:
        self._home = str(gateway.settings.home)
        self._classes = re.compile(r"\b(" + "|".join(sorted(class_names())) + r")\b")

    def __call__(self, place: Place, answer: httpx.Response) -> None:
        assert answer.status_code < 500, answer.text[:500]
        assert answer.headers["x-request-id"]
        if answer.status_code < 400:
            return
        body = answer.json()
        error = body["error"]
        if place.path.startswith(MESSAGES):
            assert set(body) == {"type", "error", "request_id"}, body
            assert body["type"] == "error"
            assert set(error) == {"type", "message", "code", "param"}, error
        else:
            assert set(body) == {"error"}, body
            assert set(error) == {"message", "type", "param", "code"}, error
            assert isinstance(error["code"], str), error
        assert error["message"], error
        told = f"{error['message']} {error.get('param')}"
        assert len(told) < 2000, told
        leak = FORBIDDEN.search(told) or self._classes.search(told)
        assert leak is None, (leak, told)
        assert self._home not in told, told


def class_names() -> set[str]:
    """The names of our models and errors, as far as they are no words: whatever was imported before, of all modules."""
    return {
        name
        for package in (service, adapters)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.", onerror=_raise)
        if not module.name.startswith((PLUGIN, SERVE))
        for name, value in vars(importlib.import_module(module.name)).items()
        if inspect.isclass(value) and issubclass(value, BaseModel | Exception) and re.search(r"[a-z][A-Z]", name)
    }


def _raise(module: str) -> None:
    raise ImportError(module)


@pytest.mark.slow
def test_the_names_are_the_same_whatever_was_imported_before() -> None:
    command = "from tests.unit.service.test_fuzz_routes import class_names; print(len(class_names()))"
    alone = subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True, timeout=300)
    found = class_names()
    assert int(alone.stdout) == len(found)
    assert {"VerdictRequest", "LogprobsNotFinite"} <= found


@contextmanager
def gateway_in(home: Any) -> Iterator[tuple[asyncio.Runner, GatewayApp]]:
    """A gateway with an adapter, a dataset and a vector store in it, and the loop that it lives on."""
    base = make_base(home / "base")
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        gateway = runner.run(stack.enter_async_context(running(home / "h", base)))
        try:
            runner.run(furnish(gateway, home))
            yield runner, gateway
        finally:
            runner.run(stack.aclose())


async def furnish(gateway: GatewayApp, home: Any) -> None:
    adapter = make_adapter(home / "adapter", describe_base(gateway.settings))
    files = {"config": adapter.config, "weights": ("w.safetensors", adapter.weights)}
    pushed = await gateway.http.post("/v1/adapters", data={"name": "voice"}, files=files)
    assert pushed.status_code == 201, pushed.text
    rows = ("rows.jsonl", b'{"prompt": "q", "completion": "a"}\n')
    file = await gateway.http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": rows})
    dataset = await gateway.http.post("/v1/datasets", json={"name": "voice", "file": file.json()["id"]})
    assert dataset.status_code == 201, dataset.text
    made = await gateway.http.post("/v1/vector_stores", json={"name": "docs"})
    assert made.status_code == 200, made.text


def fuzz(home: Any, examples: int) -> None:
    with gateway_in(home) as (runner, gateway):
        judge = Judge(gateway)
        for place in places(gateway):
            ask_of(place, examples, lambda request: runner.run(gateway.http.request(**request)), judge)


def ask_of(place: Place, examples: int, ask: Callable[[dict[str, Any]], httpx.Response], judge: Judge) -> None:
    """Ask a route so often, the same in each run."""

    @settings(max_examples=examples, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(requests(place))
    def one(request: dict[str, Any]) -> None:
        judge(place, ask(request))

    one()


def test_no_request_gets_more_than_an_error_of_the_one_shape(tmp_path_factory: pytest.TempPathFactory) -> None:
    fuzz(tmp_path_factory.mktemp("g"), EXAMPLES)


@pytest.mark.slow
def test_no_request_of_many_does(tmp_path_factory: pytest.TempPathFactory) -> None:
    fuzz(tmp_path_factory.mktemp("g"), MANY_EXAMPLES)
