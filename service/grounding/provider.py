"""The grounding hook: one async method that finds passages for a request.

`embedded` (our own stores), `webhook` (the operator's retriever over HTTP) and whatever a package registers under the
entry point group ``hatrack.grounding`` are providers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Protocol, runtime_checkable

from adapters.dataset import chat
from service.access.caller import Caller
from service.errors import NotFound

Attribute = str | float | bool
"""A value of a document's metadata, as in OpenAI's vector stores."""
Filters = Mapping[str, Any]
"""OpenAI's ComparisonFilter ``{"type", "key", "value"}`` or CompoundFilter ``{"type": "and"|"or", "filters": […]}``."""
MAX_PASSAGE_CHARS: Final = chat.MAX_PASSAGE_CHARS
"""Maximum length of a passage's text; longer passages are dropped."""
NO_ATTRIBUTES: Final[Mapping[str, Attribute]] = MappingProxyType({})
Turns = Sequence[Mapping[str, str]]
"""Messages of a user and an assistant in turn, ``{"role", "content"}``, of which the last is an answer."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document that may answer a question.

    Attributes:
        id: Names the passage at its provider; stable as long as its document is.
        text: What is put into the prompt; at most MAX_PASSAGE_CHARS characters.
        score: How well it fits, larger is better; comparable within one answer of one provider only.
        source: What a reader knows the document by: its file's name, a title, an address.
        store_id: The store it comes from; empty where the provider has no stores.
        file_id: The file it comes from; None where there is none.
        attributes: The document's metadata.
        turns: Of an example, which can be shown as earlier turns of the conversation; None: it is none.
    """

    id: str
    text: str
    score: float
    source: str
    store_id: str = ""
    file_id: str | None = None
    attributes: Mapping[str, Attribute] = field(default_factory=lambda: NO_ATTRIBUTES)
    turns: Turns | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """A query to a provider.

    Attributes:
        text: The question: the text of the last message of the user.
        messages: The whole conversation as role and text, oldest first; system prompts are in it, images are not.
        adapter: The adapter's name, ``brand-voice``; None for the base.
        project: Whose stores may be read, and no others.
        store_ids: The stores to look in, each of which the caller may read.
        filters: Only passages of documents whose metadata match, the required ones included; None is all.
        k: Maximum number of passages, at least 1.
        threshold: Only passages with at least this score; None is all.
        required: Attributes that every passage must have with this value, or with `*`, which stands for everyone. A
            passage without them is dropped, whatever the provider makes of ``filters``.
    """

    text: str
    messages: Sequence[Mapping[str, str]]
    adapter: str | None
    project: str
    store_ids: tuple[str, ...]
    filters: Filters | None = None
    k: int = 4
    threshold: float | None = None
    required: Mapping[str, Attribute] = field(default_factory=lambda: NO_ATTRIBUTES)


@runtime_checkable
class Provider(Protocol):
    """Finds passages. Any exception counts as a failure of the provider; its message never reaches a client."""

    async def retrieve(self, query: Query, deadline: float) -> Sequence[Passage]:
        """The best matching passages, best first, at most ``query.k``.

        Args:
            query: The question and its constraints.
            deadline: On the event loop's clock, seconds; the call is cancelled then.
        """


@runtime_checkable
class StoreAwareProvider(Protocol):
    """A provider that checks access to its stores itself; for others, the key's globs are matched against names."""

    async def demand_readable(self, caller: Caller, store_ids: Sequence[str], param: str) -> None:
        """Check all stores that a request names, in the field ``param``.

        Raises:
            NotFound: One does not exist, or the caller's key may not read it; the error is the same.
        """


def store_not_found(store_id: str, param: str = "vector_store_id", *, hint: str = "") -> NotFound:
    """The error for a store that does not exist or that the key may not read."""
    return NotFound(f"no such vector store: {store_id[:80]!r}{hint}", param=param, code="vector_store_not_found")
