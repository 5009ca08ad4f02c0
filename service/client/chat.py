"""`client.models`, `client.chat` and `client.embeddings`: what can be asked, and asking it. Needs the scope `infer`.

Applications use the `openai` client; this is what the `hatrack` command needs.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Final, TypedDict

import httpx

from service.client.connection import CONNECT_S, Connection, Resource, given, path_of
from service.client.types.gateway import Citation, EmbeddingList, Model, RenderedPrompt
from service.client.wire import ClientError, error_of, event_of, events

GENERATING: Final = httpx.Timeout(60, connect=CONNECT_S, read=600)
"""Between two pieces of an answer; the first may wait for its turn."""


class _ModelList(TypedDict):
    """All models; the list has no pages."""

    data: list[Model]


class Models(Resource):
    """`client.models`: the names that a request may send as `model`. Every method raises ClientError."""

    def list(self) -> Iterator[Model]:
        """The base model first, then the adapters with a `live` alias."""
        return iter(self._connection.request(_ModelList, "GET", path_of("models"))["data"])

    def retrieve(self, model: str) -> Model:
        """One model: the base model, an adapter, a version or an alias.

        Raises:
            ClientError: `model_not_found` or `no_live_version` (404).
        """
        return self._connection.request(Model, "GET", path_of("models", model))


class Embeddings(Resource):
    """`client.embeddings`: vectors of texts."""

    def create(self, model: str, input: str | Sequence[str], *, dimensions: int | None = None) -> EmbeddingList:
        """Embed texts.

        Args:
            model: The embedding model's name: the one in `client.models.list()` whose `type` is `embedding`.
            input: A text, or up to 2,048 of them.
            dimensions: That the vectors are to have. None: as many as the model has.

        Raises:
            ClientError: `context_length_exceeded` (400) if a text is longer than the model's window;
                `embedder_unavailable` (503) while the embedder starts.
        """
        texts = input if isinstance(input, str) else list(input)
        body = given({"model": model, "input": texts, "dimensions": dimensions})
        return self._connection.request(EmbeddingList, "POST", path_of("embeddings"), json=body, timeout=GENERATING)


class Chat(Resource):
    """`client.chat`: chat completions."""

    def stream(self, model: str, messages: Sequence[Mapping[str, Any]], **params: Any) -> ChatStream:
        """Ask a model; the request is sent when the iteration starts.

        Args:
            model: `brand-voice`, `brand-voice@3`, `brand-voice:canary`, or the base model's name.
            messages: As in OpenAI's chat completions.
            params: Further fields of the request, such as `max_tokens` or `grounding`.
        """
        return ChatStream(self._connection, {"model": model, "messages": list(messages), "stream": True, **params})

    def render(self, model: str, messages: Sequence[Mapping[str, Any]], **params: Any) -> RenderedPrompt:
        """The request as the engine would get it; no model is asked. The arguments are those of `stream`.

        Raises:
            ClientError: As for the chat completion itself.
        """
        body = {"model": model, "messages": list(messages), **params}
        path = path_of("chat", "completions", "render")
        return self._connection.request(RenderedPrompt, "POST", path, json=body)


class ChatStream:
    """Iterates over an answer's text as it is generated.

    Attributes:
        citations: What the answer is grounded on; complete once the iteration has ended.

    Iterating raises ClientError, also in mid-stream: the gateway's error, or `stream_cut` if the answer ends early.
    """

    def __init__(self, connection: Connection, body: Mapping[str, Any]) -> None:
        self.citations: list[Citation] = []
        self._connection = connection
        self._text = self._read(body)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._text)

    def close(self) -> None:
        """Close the connection, which stops the generation."""
        self._text.close()

    def _read(self, body: Mapping[str, Any]) -> Generator[str, None, None]:
        path = path_of("chat", "completions")
        with self._connection.stream("POST", path, json=body, timeout=GENERATING) as response:
            for data in events(response.iter_bytes()):
                if data == b"[DONE]":
                    return
                event = event_of(data)
                if "error" in event:
                    raise error_of(response.status_code, event)
                self.citations += event.get("citations") or []
                for choice in event.get("choices") or []:
                    if text := (choice.get("delta") or {}).get("content"):
                        yield text
        raise ClientError(200, "stream_cut", "The answer is incomplete: the stream ended before its end mark.")
