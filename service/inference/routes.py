"""The data path's ASGI app: bare, in front of FastAPI, because every microsecond here is paid by every request."""

from __future__ import annotations

import logging
from collections.abc import Callable

import orjson

from service.access.authentication import Authenticator
from service.config import Settings
from service.errors import HatrackError, Internal, MethodNotAllowed, NotFound
from service.grounding.hook import Hook
from service.grounding.places import CHAT, MESSAGES_PLACE, RESPONSES_PLACE
from service.inference.account import Account, LogAccount
from service.inference.anthropic import MESSAGES
from service.inference.anthropic_fields import count_tokens_table, messages_table
from service.inference.exchange import Exchange, Receive, Scope, Send
from service.inference.fields import (
    chat_table,
    completions_table,
    detokenize_table,
    embeddings_table,
    tokenize_table,
)
from service.inference.models import list_models, show_model
from service.inference.pipeline import Pipeline, Route, Suspect
from service.inference.ports import Gate, Limiter, Tracer
from service.inference.responses import RESPONSES
from service.inference.responses_fields import responses_table
from service.inference.upstream import Upstream
from service.registry.catalog import Catalog

MODELS = "/v1/models"
MESSAGES_PATH = "/v1/messages"
_LOG = logging.getLogger("hatrack.inference")


def build_routes(settings: Settings) -> dict[str, Route]:
    """Every inference path with its route."""
    tokenize = Route("/tokenize", tokenize_table(settings), ("prompt|messages",))
    detokenize = Route("/detokenize", detokenize_table(settings), ("tokens",))
    return {
        "/v1/chat/completions": Route(
            "/v1/chat/completions", chat_table(settings), ("messages",), generates=True, salted=True, place=CHAT
        ),
        "/v1/completions": Route(
            "/v1/completions", completions_table(settings), ("prompt",), generates=True, salted=True
        ),
        "/v1/responses": Route(
            "/v1/responses",
            responses_table(settings),
            ("input",),
            generates=True,
            salted=True,
            dialect=RESPONSES,
            place=RESPONSES_PLACE,
        ),
        MESSAGES_PATH: Route(
            MESSAGES_PATH,
            messages_table(settings),
            ("messages", "max_tokens"),
            generates=True,
            salted=True,
            dialect=MESSAGES,
            place=MESSAGES_PLACE,
        ),
        "/v1/messages/count_tokens": Route(
            "/v1/messages/count_tokens", count_tokens_table(settings), ("messages",), dialect=MESSAGES
        ),
        "/v1/embeddings": Route("/v1/embeddings", embeddings_table(settings), ("input",), salted=True),
        "/tokenize": tokenize,
        "/v1/tokenize": tokenize,
        "/detokenize": detokenize,
        "/v1/detokenize": detokenize,
    }


class InferenceApp:
    """Serves the inference routes and `/v1/models`; the composition root sends it the scopes that it `handles`.

    Args:
        account: Is told of every inference request once it is over.
        suspect: Is told the digest of an adapter whose request failed in the engine.
        saw_tokens: Is called whenever the engine gave something: a sign of life.
        limiter: Holds callers to their limits; None: nobody is limited.
        gate: Fair admission; None: everyone goes straight to the engine.
        tracer: Begins a trace for each request; None: no traces.
        hook: Retrieves for requests that want it; None: such a request is refused.
    """

    def __init__(
        self,
        settings: Settings,
        authenticator: Authenticator,
        catalog: Catalog,
        engine: Upstream,
        *,
        account: Account | None = None,
        suspect: Suspect = lambda digest: None,
        saw_tokens: Callable[[], None] = lambda: None,
        limiter: Limiter | None = None,
        gate: Gate | None = None,
        tracer: Tracer | None = None,
        hook: Hook | None = None,
    ) -> None:
        self._authenticator = authenticator
        self._catalog = catalog
        self._routes = build_routes(settings)
        self.pipeline = Pipeline(
            settings,
            authenticator,
            catalog,
            engine,
            account=account or LogAccount(),
            suspect=suspect,
            saw_tokens=saw_tokens,
            limiter=limiter,
            gate=gate,
            tracer=tracer,
            hook=hook,
        )

    def handles(self, scope: Scope) -> bool:
        """True for an HTTP request whose path is one of ours, whatever its method."""
        if scope["type"] != "http":
            return False
        path = scope["path"]
        return path in self._routes or path == MODELS or path.startswith((MODELS + "/", MESSAGES_PATH + "/"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        exchange = Exchange(scope, receive, send)
        try:
            route = self._routes.get(exchange.path)
            if route is not None:
                exchange.speak(route.dialect.error_body, route.dialect.id_header)
                _only(scope, "POST")
                await self.pipeline.infer(route, exchange)
            elif exchange.path.startswith(MESSAGES_PATH):
                exchange.speak(MESSAGES.error_body, MESSAGES.id_header)
                raise NotFound("there is nothing here")
            else:
                _only(scope, "GET")
                await self._models(exchange)
        except HatrackError as error:
            await exchange.fail(error)
        except Exception:
            _LOG.exception("a request for the models failed", extra={"request_id": exchange.request_id})
            await exchange.fail(Internal("the gateway failed; its log has the reason"))

    async def _models(self, exchange: Exchange) -> None:
        caller = self._authenticator.authenticate(exchange.headers)
        name = exchange.path.removeprefix(MODELS)
        if not name:
            found = list_models(self._catalog, caller)
        elif name.startswith("/"):
            found = show_model(self._catalog, caller, name[1:])
        else:
            raise NotFound("there is nothing here")
        await exchange.answer(200, orjson.dumps(found))


def _only(scope: Scope, method: str) -> None:
    if scope["method"] != method:
        raise MethodNotAllowed(f"only {method} is allowed here", headers={"allow": method})
