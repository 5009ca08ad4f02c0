"""The hook in the data path: retrieve for one request, put the passages into its prompt, and say what was cited.

What a request may read is decided before any provider is asked: a store that the key may not read answers as one that
does not exist. After that, whatever a provider does wrong ends in one of two ways, by setting: an answer without
passages that says so, or 503.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal
from urllib.parse import quote

import orjson

from service.access.caller import Caller
from service.admission.estimate import answer_tokens
from service.errors import BadRequest, Unavailable
from service.grounding.config import OnFailure
from service.grounding.counts import GroundingCounts
from service.grounding.fields import PROVIDER_PARAM, STORES_PARAM, Wish
from service.grounding.outcome import Grounded, Outcome
from service.grounding.places import Place
from service.grounding.provider import MAX_PASSAGE_CHARS, KnowsStores, Passage, Provider, Query, store_not_found
from service.grounding.template import CHARS_A_TOKEN, Quoted, Quoter, upper_tokens

RETRY_S: Final = 5
MAX_ID_CHARS: Final = 200
MAX_EXCERPT_CHARS: Final = 1000
MAX_HEADER_CHARS: Final = 1024
FRAME_TOKENS: Final = 8
"""Tokens around one piece of text in a chat template, and then some."""
SPARE: Final = 0.03
"""Share of the context that stays free: counts are guesses here."""
MAX_QUESTION_CHARS: Final = 4096
"""Of a longer question, its end is what is looked up: there people ask."""
_LOG = logging.getLogger("hatrack.grounding")


class Hook:
    """Grounds requests.

    Args:
        providers: By the name that settings and requests use.
        quoter: Makes text of passages.
        context: The engine's context in tokens; None: not known, only the passages' own bound counts.
        on_failure: For versions that do not say.
        timeout_s: For versions that do not say.
    """

    def __init__(
        self,
        providers: Mapping[str, Provider],
        quoter: Quoter,
        *,
        context: int | None,
        on_failure: OnFailure,
        timeout_s: float,
    ) -> None:
        self._providers = dict(providers)
        self._quoter = quoter
        self._context = context
        self._on_failure = on_failure
        self._timeout_s = timeout_s
        self.counts = GroundingCounts()

    @property
    def providers(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(sorted(self._providers))

    async def ground(
        self, wish: Wish, caller: Caller, adapter: str | None, body: dict[str, Any], place: Place
    ) -> Grounded:
        """Retrieve, and put the passages into ``body``: the checked request with its version's settings.

        Args:
            adapter: The name of the adapter that the request is for; None: the base.

        Raises:
            BadRequest: The request names a provider that there is not, or wants passages and asks nothing.
            NotFound: A store that does not exist, or that the key may not read.
            Unavailable: The provider was late or broken, and the version fails closed.
        """
        provider = self._providers.get(wish.provider)
        if provider is None and wish.provider_asked:
            raise BadRequest(
                f"there is no grounding provider {wish.provider!r}; there are {', '.join(self.providers)}",
                param=PROVIDER_PARAM,
            )
        await self._demand_readable(provider, wish, caller)
        question = place.question(body)
        if not question.strip() and not wish.asked:
            return Grounded("empty", place, 0.0, headers=_headers("empty", ()))
        if not question.strip():
            raise BadRequest("grounding needs a question: no message of the user has text", param="grounding")
        query = Query(
            text=question[-MAX_QUESTION_CHARS:],
            messages=place.conversation(body),
            adapter=adapter,
            project=caller.project,
            store_ids=wish.store_ids,
            filters=wish.filters,
            k=wish.k,
            threshold=wish.threshold,
        )
        began = time.perf_counter()
        found = await self._ask(provider, query, wish)
        seconds = time.perf_counter() - began
        if isinstance(found, str):
            outcome: Outcome = found
        else:
            room = self._budget(wish, body, place)
            quoted = self._quoter.quote(caller.project, wish.template, found, room) if found else None
            if quoted is not None:
                self.counts.note(wish.provider, "ok", seconds, len(quoted.used))
                place.put(body, quoted)
                return _grounded(quoted, place, seconds)
            outcome = "no_room" if found else "empty"
        self.counts.note(wish.provider, outcome, seconds, 0)
        self._demand_open(wish, outcome)
        return Grounded(outcome, place, seconds, headers=_headers(outcome, ()))

    async def _demand_readable(self, provider: Provider | None, wish: Wish, caller: Caller) -> None:
        """Raise NotFound for the first store that is not there for this caller."""
        if isinstance(provider, KnowsStores):
            await provider.demand_readable(caller, wish.store_ids, STORES_PARAM)
            return
        # others' stores have no names here, and what an id says to them is their own affair: a key's globs are held
        # against the provider's name, and then against the ids too
        for name in (wish.provider, *wish.store_ids):
            if not caller.may_read(name):
                raise store_not_found(name, STORES_PARAM)

    async def _ask(
        self, provider: Provider | None, query: Query, wish: Wish
    ) -> list[Passage] | Literal["late", "broken"]:
        if provider is None:  # its version was made where the provider was installed: no fault of the caller's
            _LOG.error("there is no grounding provider %s, which a version's settings name", wish.provider)
            return "broken"
        timeout_s = wish.timeout_s or self._timeout_s
        deadline = asyncio.get_running_loop().time() + timeout_s
        failed: Literal["late", "broken"]
        try:
            async with asyncio.timeout_at(deadline):
                given = (await provider.retrieve(query, deadline))[: query.k]
            return self._usable(given, query, wish.provider)
        except TimeoutError:
            failed = "late"
            _LOG.warning("grounding provider %s was late", wish.provider, extra={"timeout_s": timeout_s})
        except Exception:
            # a provider may be anybody's code: whatever it raises is its failure, and the request has its own way on
            failed = "broken"
            _LOG.exception("grounding provider %s failed", wish.provider)
        return failed

    def _usable(self, given: Sequence[Passage], query: Query, name: str) -> list[Passage]:
        """What fits among a provider's passages; those that cannot be used cost themselves alone.

        Raises:
            TypeError, ValueError: None of them can be used.
        """
        sound, errors = [], []
        for passage in given:
            try:
                _check(passage)
            except (TypeError, ValueError) as error:
                errors.append(error)
            else:
                sound.append(passage)
        if errors:
            self.counts.drop(name, len(errors))
            if not sound:
                raise errors[0]
            extra = {"passages": len(errors), "reason": str(errors[0])}
            _LOG.warning("grounding provider %s gave passages that cannot be used", name, extra=extra)
        return [one for one in sound if one.text.strip() and (query.threshold is None or one.score >= query.threshold)]

    def _demand_open(self, wish: Wish, outcome: Outcome) -> None:
        """Raise Unavailable where the provider failed and nothing may be answered without it."""
        if outcome in ("late", "broken") and (wish.on_failure or self._on_failure) == "fail_closed":
            raise Unavailable(
                f"the grounding provider {wish.provider!r} is {outcome}, and this model does not answer without it",
                retry_after=RETRY_S,
                param="grounding",
                code="grounding_unavailable",
            )

    def _budget(self, wish: Wish, body: Mapping[str, Any], place: Place) -> int:
        """Tokens that passages may take: their own bound, and what the context leaves beside the prompt and answer."""
        if self._context is None:
            return wish.max_passage_tokens
        left = int(self._context * (1 - SPARE)) - answer_tokens(body)
        for text in place.prompt(body):
            if left <= 0:
                return 0
            # no more than tells that nothing is left: a prompt may be long, and the event loop counts
            left -= upper_tokens(text[: left * CHARS_A_TOKEN]) + FRAME_TOKENS
        return min(wish.max_passage_tokens, left)


def _check(passage: Passage) -> None:
    """Raise TypeError, ValueError where what a provider gave is no passage that can be shown and cited."""
    if not isinstance(passage, Passage) or not _well_typed(passage):
        raise TypeError("a provider must return passages, each member of the type that Passage says")
    if len(passage.text) > MAX_PASSAGE_CHARS or not 1 <= len(passage.id) <= MAX_ID_CHARS:
        raise ValueError(f"a passage has at most {MAX_PASSAGE_CHARS} characters, its id 1 to {MAX_ID_CHARS}")
    # as JSON will hold it: half a character (a lone surrogate) or an integer of more than 64 bits cannot be sent
    orjson.dumps((passage.text, _citation(0, passage)))


def _well_typed(passage: Passage) -> bool:
    """Whether a provider's members can be shown: nobody checks a plugin's types before."""
    if not isinstance(passage.attributes, Mapping):
        return False
    texts = (passage.id, passage.text, passage.source, passage.store_id, passage.file_id or "")
    values = [*passage.attributes.values(), passage.score]
    return all(isinstance(text, str) for text in (*texts, *passage.attributes)) and all(
        isinstance(value, (str, int, float)) for value in values
    )


def _grounded(quoted: Quoted, place: Place, seconds: float) -> Grounded:
    return Grounded(
        "ok",
        place,
        seconds,
        citations=orjson.dumps([_citation(n, passage) for n, passage in enumerate(quoted.used, start=1)]),
        headers=_headers("ok", quoted.used),
        tokens=quoted.tokens,
        passages=len(quoted.used),
    )


def _citation(number: int, passage: Passage) -> dict[str, Any]:
    return {
        "index": number,
        "id": passage.id,
        "source": passage.source,
        "file_id": passage.file_id,
        "vector_store_id": passage.store_id or None,
        "score": passage.score,
        "text": passage.text[:MAX_EXCERPT_CHARS],
        "attributes": dict(passage.attributes),
    }


def _headers(outcome: Outcome, used: Sequence[Passage]) -> tuple[tuple[bytes, str], ...]:
    """How it ended, and the ids of what is cited, as many as fit."""
    ids: list[str] = []
    size = 0
    for passage in used:
        name = quote(passage.id, safe="-._~:#/@")
        size += len(name) + 1
        if size > MAX_HEADER_CHARS:
            break
        ids.append(name)
    said = ((b"x-hatrack-grounding", outcome),)
    return (*said, (b"x-hatrack-citations", ",".join(ids))) if ids else said
