"""The data path's ASGI app: bare, in front of FastAPI, because every microsecond here is paid by every request."""

from __future__ import annotations

import re
from typing import Protocol

import orjson

from service.access.caller import Caller
from service.config import Settings
from service.errors import MethodNotAllowed, no_such_route, to_hatrack_error
from service.grounding.injectors import CHAT_INJECTOR, MESSAGES_INJECTOR, RESPONSES_INJECTOR
from service.inference.anthropic import MESSAGES
from service.inference.anthropic_fields import count_tokens_table, messages_table
from service.inference.dialect import Route
from service.inference.exchange import Exchange, Receive, Scope, Send
from service.inference.fields import (
    chat_table,
    completions_table,
    detokenize_table,
    embeddings_table,
    tokenize_table,
)
from service.inference.models import WrittenLists, show_model
from service.inference.pipeline import Pipeline
from service.inference.prompt import RENDER_PATH, render_table
from service.inference.responses import RESPONSES
from service.inference.responses_fields import responses_table

MODELS = "/v1/models"
MESSAGES_PATH = "/v1/messages"
_COUNT, _INPUT_TOKENS = re.compile(rb'"count":\s*(\d+)'), re.compile(rb'"input_tokens":\s*(\d+)')


def build_routes(settings: Settings) -> dict[str, Route]:
    """Every inference path with its route."""
    tokenize = Route("/tokenize", tokenize_table(settings), ("prompt|messages",), count=_COUNT)
    detokenize = Route("/detokenize", detokenize_table(settings), ("tokens",))
    prompt = completions_table(settings)
    completions = Route("/v1/completions", prompt, ("prompt",), generates=True, salted=True, member="choices")
    return {
        "/v1/chat/completions": Route(
            "/v1/chat/completions",
            chat_table(settings),
            ("messages",),
            generates=True,
            salted=True,
            member="choices",
            injector=CHAT_INJECTOR,
        ),
        RENDER_PATH: Route(
            RENDER_PATH,
            render_table(settings),
            ("messages",),
            generates=True,
            renders=True,
            injector=CHAT_INJECTOR,
        ),
        "/v1/completions": completions,
        "/v1/responses": Route(
            "/v1/responses",
            responses_table(settings),
            ("input",),
            generates=True,
            salted=True,
            member="output",
            dialect=RESPONSES,
            injector=RESPONSES_INJECTOR,
        ),
        MESSAGES_PATH: Route(
            MESSAGES_PATH,
            messages_table(settings),
            ("messages", "max_tokens"),
            generates=True,
            salted=True,
            member="content",
            dialect=MESSAGES,
            injector=MESSAGES_INJECTOR,
        ),
        "/v1/messages/count_tokens": Route(
            "/v1/messages/count_tokens",
            count_tokens_table(settings),
            ("messages",),
            dialect=MESSAGES,
            count=_INPUT_TOKENS,
        ),
        "/v1/embeddings": Route("/v1/embeddings", embeddings_table(settings), ("input",), salted=True, member="data"),
        "/tokenize": tokenize,
        "/v1/tokenize": tokenize,
        "/detokenize": detokenize,
        "/v1/detokenize": detokenize,
    }


class RefusalNotes(Protocol):
    """Counts requests that are refused access; ``service.access.refusals.Refusals`` does."""

    def note(
        self, status: int, code: str | None, caller: Caller | None, peer: str, path: str, request_id: str | None = None
    ) -> None:
        """Count a request answered with ``status``, if that refuses access."""


class InferenceApp:
    """Serves the inference routes and `/v1/models`; the composition root sends it the scopes that it `handles`.

    Args:
        settings: Bounds of the routes' fields.
        pipeline: Answers requests to the inference routes.
        refusals: Told of requests for the models that are refused access; None: nobody is.
    """

    def __init__(self, settings: Settings, pipeline: Pipeline, refusals: RefusalNotes | None = None) -> None:
        self.routes = build_routes(settings)
        self.pipeline = pipeline
        self._authenticator = pipeline.authenticator
        self._catalog = pipeline.catalog
        self._lists = WrittenLists(pipeline.catalog)
        self._refusals = refusals

    def handles(self, scope: Scope) -> bool:
        """True for an HTTP request whose path is one of ours, whatever its method."""
        if scope["type"] != "http":
            return False
        path = scope["path"]
        return path in self.routes or path == MODELS or path.startswith((MODELS + "/", MESSAGES_PATH + "/"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        exchange = Exchange(scope, receive, send)
        try:
            route = self.routes.get(exchange.path)
            if route is not None:
                exchange.set_dialect(route.dialect.error_body, route.dialect.id_header)
                if scope["method"] == "POST":
                    return await self.pipeline.infer(route, exchange)
            elif exchange.path.startswith(MESSAGES_PATH):
                exchange.set_dialect(MESSAGES.error_body, MESSAGES.id_header)
            # without a key nobody learns more than that one is needed
            caller = self._authenticator.authenticate(exchange.headers)
            if route is not None:
                _require_method(scope, "POST")
            elif exchange.path.startswith(MESSAGES_PATH):
                raise no_such_route(scope["method"], exchange.path)
            else:
                _require_method(scope, "GET")
                await self._models(exchange, caller)
        except Exception as error:
            refusal = to_hatrack_error(error, exchange.request_id)
            if self._refusals is not None:
                self._refusals.note(
                    refusal.status, refusal.code, None, exchange.peer, exchange.path, exchange.request_id
                )
            await exchange.fail(refusal)

    async def _models(self, exchange: Exchange, caller: Caller) -> None:
        name = exchange.path.removeprefix(MODELS)
        if not name:
            body = self._lists.body(caller, exchange.peer)
        elif name.startswith("/"):
            body = orjson.dumps(show_model(self._catalog, caller, name[1:]))
        else:
            raise no_such_route("GET", exchange.path)
        await exchange.answer(200, body)


def _require_method(scope: Scope, method: str) -> None:
    if scope["method"] != method:
        raise MethodNotAllowed(f"only {method} is allowed here", headers={"allow": method})
