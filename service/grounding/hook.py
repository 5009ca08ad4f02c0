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
from service.grounding.fields import PROVIDER_PARAM, STORES_PARAM, RetrievalOptions
from service.grounding.injectors import PromptInjector
from service.grounding.outcome import GroundingResult, Outcome
from service.grounding.provider import MAX_PASSAGE_CHARS, Passage, Provider, Query, StoreAwareProvider, store_not_found
from service.grounding.template import CHARS_A_TOKEN, FormattedPassages, PassageFormatter, token_upper_bound

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
        formatter: PassageFormatter,
        *,
        context: int | None,
        on_failure: OnFailure,
        timeout_s: float,
    ) -> None:
        self._providers = dict(providers)
        self._formatter = formatter
        self._context = context
        self._on_failure = on_failure
        self._timeout_s = timeout_s
        self.counts = GroundingCounts()

    @property
    def providers(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(sorted(self._providers))

    async def ground(
        self,
        options: RetrievalOptions,
        caller: Caller,
        adapter: str | None,
        body: dict[str, Any],
        injector: PromptInjector,
    ) -> GroundingResult:
        """Retrieve, and put the passages into ``body``: the checked request with its version's settings.

        Args:
            adapter: The name of the adapter that the request is for; None: the base.

        Raises:
            BadRequest: The request names a provider that there is not, or wants passages and asks nothing.
            NotFound: A store that does not exist, or that the key may not read.
            Unavailable: The provider was late or broken, and the version fails closed.
        """
        provider = self._providers.get(options.provider)
        if provider is None and options.provider_requested:
            raise BadRequest(
                f"there is no grounding provider {options.provider!r}; there are {', '.join(self.providers)}",
                param=PROVIDER_PARAM,
            )
        await self._check_stores(provider, options, caller)
        question = injector.question(body)
        if not question.strip() and not options.requested:
            return GroundingResult("empty", injector, 0.0, headers=_headers("empty", ()))
        if not question.strip():
            raise BadRequest("grounding needs a question: no message of the user has text", param="grounding")
        query = Query(
            text=question[-MAX_QUESTION_CHARS:],
            messages=injector.conversation(body),
            adapter=adapter,
            project=caller.project,
            store_ids=options.store_ids,
            filters=options.filters,
            k=options.k,
            threshold=options.threshold,
        )
        started = time.perf_counter()
        passages = await self._retrieve(provider, query, options)
        seconds = time.perf_counter() - started
        if isinstance(passages, str):
            outcome: Outcome = passages
        else:
            room = self._budget(options, body, injector)
            formatted = self._formatter.format(caller.project, options.template, passages, room) if passages else None
            if formatted is not None:
                self.counts.record(options.provider, "ok", seconds, len(formatted.used))
                injector.inject(body, formatted)
                return _result(formatted, injector, seconds)
            outcome = "no_room" if passages else "empty"
        self.counts.record(options.provider, outcome, seconds, 0)
        self._raise_if_closed(options, outcome)
        return GroundingResult(outcome, injector, seconds, headers=_headers(outcome, ()))

    async def _check_stores(self, provider: Provider | None, options: RetrievalOptions, caller: Caller) -> None:
        """Raise NotFound for the first store that is not there for this caller."""
        if isinstance(provider, StoreAwareProvider):
            await provider.demand_readable(caller, options.store_ids, STORES_PARAM)
            return
        # others' stores have no names here, and what an id says to them is their own affair: a key's globs are held
        # against the provider's name, and then against the ids too
        for name in (options.provider, *options.store_ids):
            if not caller.may_read(name):
                raise store_not_found(name, STORES_PARAM)

    async def _retrieve(
        self, provider: Provider | None, query: Query, options: RetrievalOptions
    ) -> list[Passage] | Literal["late", "broken"]:
        if provider is None:  # its version was made where the provider was installed: no fault of the caller's
            _LOG.error("there is no grounding provider %s, which a version's settings name", options.provider)
            return "broken"
        timeout_s = options.timeout_s or self._timeout_s
        deadline = asyncio.get_running_loop().time() + timeout_s
        outcome: Literal["late", "broken"]
        try:
            async with asyncio.timeout_at(deadline):
                passages = (await provider.retrieve(query, deadline))[: query.k]
            return self._usable(passages, query, options.provider)
        except TimeoutError:
            outcome = "late"
            _LOG.warning("grounding provider %s was late", options.provider, extra={"timeout_s": timeout_s})
        except Exception:
            # a provider may be anybody's code: whatever it raises is its failure, and the request has its own way on
            outcome = "broken"
            _LOG.exception("grounding provider %s failed", options.provider)
        return outcome

    def _usable(self, passages: Sequence[Passage], query: Query, name: str) -> list[Passage]:
        """What fits among a provider's passages; those that cannot be used cost themselves alone.

        Raises:
            TypeError, ValueError: None of them can be used.
        """
        usable, errors = [], []
        for passage in passages:
            try:
                _check(passage)
            except (TypeError, ValueError) as error:
                errors.append(error)
            else:
                usable.append(passage)
        if errors:
            self.counts.record_unusable(name, len(errors))
            if not usable:
                raise errors[0]
            extra = {"passages": len(errors), "reason": str(errors[0])}
            _LOG.warning("grounding provider %s gave passages that cannot be used", name, extra=extra)
        return [
            passage
            for passage in usable
            if passage.text.strip() and (query.threshold is None or passage.score >= query.threshold)
        ]

    def _raise_if_closed(self, options: RetrievalOptions, outcome: Outcome) -> None:
        """Raise Unavailable where the provider failed and nothing may be answered without it."""
        if outcome in ("late", "broken") and (options.on_failure or self._on_failure) == "fail_closed":
            raise Unavailable(
                f"the grounding provider {options.provider!r} is {outcome}, and this model does not answer without it",
                retry_after=RETRY_S,
                param="grounding",
                code="grounding_unavailable",
            )

    def _budget(self, options: RetrievalOptions, body: Mapping[str, Any], injector: PromptInjector) -> int:
        """Tokens that passages may take: their own bound, and what the context leaves beside the prompt and answer."""
        if self._context is None:
            return options.max_passage_tokens
        remaining = int(self._context * (1 - SPARE)) - answer_tokens(body)
        for text in injector.prompt(body):
            if remaining <= 0:
                return 0
            # no more than tells that nothing is left: a prompt may be long, and the event loop counts
            remaining -= token_upper_bound(text[: remaining * CHARS_A_TOKEN]) + FRAME_TOKENS
        return min(options.max_passage_tokens, remaining)


def _check(passage: Passage) -> None:
    """Raise TypeError, ValueError where what a provider gave is no passage that can be shown and cited."""
    if not isinstance(passage, Passage) or not _is_well_typed(passage):
        raise TypeError("a provider must return passages, each member of the type that Passage says")
    if len(passage.text) > MAX_PASSAGE_CHARS or not 1 <= len(passage.id) <= MAX_ID_CHARS:
        raise ValueError(f"a passage has at most {MAX_PASSAGE_CHARS} characters, its id 1 to {MAX_ID_CHARS}")
    # as JSON will hold it: half a character (a lone surrogate) or an integer of more than 64 bits cannot be sent
    orjson.dumps((passage.text, _citation(0, passage)))


def _is_well_typed(passage: Passage) -> bool:
    """Whether a provider's members can be shown: nobody checks a plugin's types before."""
    if not isinstance(passage.attributes, Mapping):
        return False
    texts = (passage.id, passage.text, passage.source, passage.store_id, passage.file_id or "")
    values = [*passage.attributes.values(), passage.score]
    return all(isinstance(text, str) for text in (*texts, *passage.attributes)) and all(
        isinstance(value, (str, int, float)) for value in values
    )


def _result(formatted: FormattedPassages, injector: PromptInjector, seconds: float) -> GroundingResult:
    return GroundingResult(
        "ok",
        injector,
        seconds,
        citations=orjson.dumps([_citation(n, passage) for n, passage in enumerate(formatted.used, start=1)]),
        headers=_headers("ok", formatted.used),
        tokens=formatted.tokens,
        passages=len(formatted.used),
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


def _headers(outcome: Outcome, cited: Sequence[Passage]) -> tuple[tuple[bytes, str], ...]:
    """How it ended, and the ids of what is cited, as many as fit."""
    ids: list[str] = []
    size = 0
    for passage in cited:
        name = quote(passage.id, safe="-._~:#/@")
        size += len(name) + 1
        if size > MAX_HEADER_CHARS:
            break
        ids.append(name)
    headers = ((b"x-hatrack-grounding", outcome),)
    return (*headers, (b"x-hatrack-citations", ",".join(ids))) if ids else headers
