"""The grounding hook of the data path: retrieves passages for a request, adds them to its prompt, and cites them.

Access is checked before any provider is called: a store that the key may not read looks like one that does not exist.
A provider that fails after that leads to an answer without passages, marked as such (`fail_open`), or to 503
(`fail_closed`).
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
from service.grounding.attribution import shows_markers
from service.grounding.citations import NO_CITATIONS, Citations, citation
from service.grounding.config import EMBEDDED, PASSAGES, TURNS, GroundingSettings, OnFailure
from service.grounding.counts import GroundingCounts
from service.grounding.fields import PROVIDER_PARAM, RetrievalOptions
from service.grounding.file_search import FileSearchCall
from service.grounding.injectors import PromptInjector
from service.grounding.outcome import GroundingResult, Outcome
from service.grounding.provider import MAX_PASSAGE_CHARS, Passage, Provider, Query, StoreAwareProvider, store_not_found
from service.grounding.required_filters import allows
from service.grounding.template import (
    CHARS_A_TOKEN,
    FRAME_TOKENS,
    FormattedPassages,
    PassageFormatter,
    token_upper_bound,
)

RETRY_S: Final = 5
MAX_ID_CHARS: Final = 200
MAX_HEADER_CHARS: Final = 1024
SPARE: Final = 0.03
"""Share of the context that is kept free, because token counts are estimates here."""
MAX_QUESTION_CHARS: Final = 4096
"""Characters of the query; of a longer question the end is used, where the actual question usually is."""
Failure = Literal["late", "broken", "no_examples"]
"""Why nothing was retrieved; ``no_examples``: what was found cannot be inserted as turns, which counts as broken."""
_LOG = logging.getLogger("hatrack.grounding")


class NoExample(ValueError):
    """A passage is to be inserted as turns and has none."""


class Hook:
    """Adds retrieved passages to requests.

    Args:
        providers: By the name that settings and requests use.
        formatter: Formats passages for the prompt.
        context: The engine's context in tokens; None: unknown, and only the limit on the passages applies.
        on_failure: Default for versions that do not set it.
        timeout_s: Default for versions that do not set it.
        min_score: Minimum score of the provider `embedded`'s passages where neither request nor version sets one. The
            scores of other providers have scales of their own.
    """

    def __init__(
        self,
        providers: Mapping[str, Provider],
        formatter: PassageFormatter,
        *,
        context: int | None,
        on_failure: OnFailure,
        timeout_s: float,
        min_score: float = 0.0,
    ) -> None:
        self._providers = dict(providers)
        self._formatter = formatter
        self._context = context
        self._on_failure = on_failure
        self._timeout_s = timeout_s
        self._min_score = min_score
        self.counts = GroundingCounts()

    @property
    def providers(self) -> tuple[str, ...]:
        """The names of the providers."""
        return tuple(sorted(self._providers))

    async def ground(
        self,
        options: RetrievalOptions,
        caller: Caller,
        adapter: str | None,
        body: dict[str, Any],
        injector: PromptInjector,
        *,
        reserved_tokens: int = 0,
    ) -> GroundingResult:
        """Retrieve passages and insert them into ``body``, the checked request with its version's settings.

        Args:
            adapter: The name of the requested adapter; None: the base.
            reserved_tokens: Of the context, for what is added to the prompt later.

        Raises:
            BadRequest: The request names an unknown provider, or asks for grounding without a question; or the version
                fails closed, and what was found cannot be inserted as turns.
            NotFound: A store does not exist, or the key may not read it.
            Unavailable: The provider timed out or failed, and the version fails closed.
        """
        provider = self._providers.get(options.provider)
        if provider is None and options.provider_requested:
            raise BadRequest(
                f"no grounding provider {options.provider!r}; available: {', '.join(self.providers)}",
                param=PROVIDER_PARAM if options.file_search is None else options.path,
            )
        stores_param = f"{options.path}.vector_store_ids"
        await _demand_readable(provider, options.provider, options.store_ids, caller, stores_param)
        question = injector.question(body)
        if not question.strip() and not options.requested:
            return GroundingResult("empty", injector, 0.0, headers=_headers("empty", ()))
        if not question.strip():
            raise BadRequest("grounding needs a question, but no user message contains text", param=options.path)
        query = self._query(question, options, caller, adapter, injector.conversation(body))
        started = time.perf_counter()
        passages = await self._retrieve(provider, query, options)
        seconds = time.perf_counter() - started
        outcome: Outcome
        citations, tokens = NO_CITATIONS, 0
        if isinstance(passages, str):
            outcome = "broken" if passages == "no_examples" else passages
        else:
            outcome = "no_room" if passages else "empty"
            room = self._budget(options, body, injector, reserved_tokens)
            formatted = self._formatted(caller.project, options, passages, room)
            if formatted is not None:
                outcome, tokens = "ok", formatted.tokens
                citations = _citations(formatted, query, options.template)
                injector.inject(body, formatted)
        self.counts.record(options.provider, outcome, seconds, len(citations.passages))
        if isinstance(passages, str):
            self._raise_if_closed(options, passages)
        search = None
        if options.file_search is not None:
            failed = outcome in ("late", "broken")
            search = FileSearchCall.of(options.file_search, query.text, citations, failed=failed)
        headers = _headers(outcome, citations.passages)
        return GroundingResult(outcome, injector, seconds, citations, headers, tokens, search)

    def _formatted(
        self, project: str, options: RetrievalOptions, passages: Sequence[Passage], budget: int
    ) -> FormattedPassages | None:
        """What is inserted into the prompt, within ``budget`` tokens; None if there is nothing, or nothing fits."""
        if not passages:
            return None
        if options.insert_as == TURNS:
            return self._formatter.turns(passages, budget)
        return self._formatter.format(project, options.template, passages, budget)

    def _query(
        self,
        question: str,
        options: RetrievalOptions,
        caller: Caller,
        adapter: str | None,
        messages: Sequence[Mapping[str, str]],
    ) -> Query:
        threshold = options.threshold
        # the minimum keeps out documents that answer nothing; the nearest example shows the form of an answer, at least
        quoted = options.insert_as == PASSAGES
        if threshold is None and quoted and options.provider == EMBEDDED and self._min_score > 0:
            threshold = self._min_score
        return Query(
            text=question[-MAX_QUESTION_CHARS:],
            messages=messages,
            adapter=adapter,
            project=caller.project,
            store_ids=options.store_ids,
            filters=options.filters,
            k=options.k,
            threshold=threshold,
            required=options.required,
        )

    async def check_settings(
        self, settings: GroundingSettings, caller: Caller, param: str = "settings.grounding"
    ) -> None:
        """Check that a version's grounding can be asked for; ``param`` is the request's field that has it.

        Raises:
            BadRequest: There is no such provider.
            NotFound: A store does not exist, or the caller may not read it.
        """
        provider = self._providers.get(settings.provider)
        if provider is None:
            raise BadRequest(
                f"no grounding provider {settings.provider!r}; available: {', '.join(self.providers) or 'none'}",
                param=f"{param}.provider",
            )
        stores = settings.vector_store_ids
        await _demand_readable(provider, settings.provider, stores, caller, f"{param}.vector_store_ids")

    async def _retrieve(
        self, provider: Provider | None, query: Query, options: RetrievalOptions
    ) -> list[Passage] | Failure:
        """The usable passages, or why there are none."""
        if provider is None:  # the version was created where the provider was installed: not the caller's fault
            _LOG.error("no grounding provider %s, although a version's settings name it", options.provider)
            return "broken"
        timeout_s = options.timeout_s or self._timeout_s
        deadline = asyncio.get_running_loop().time() + timeout_s
        outcome: Failure
        try:
            async with asyncio.timeout_at(deadline):
                passages = (await provider.retrieve(query, deadline))[: query.k]
            return self._usable(passages, query, options)
        except TimeoutError:
            outcome = "late"
            _LOG.warning("grounding provider %s timed out", options.provider, extra={"timeout_s": timeout_s})
        except NoExample:
            outcome = "no_examples"
            _LOG.warning("what the stores have is no examples", extra={"stores": options.store_ids})
        except Exception:
            # a provider may be third-party code: any exception counts as its failure
            outcome = "broken"
            _LOG.exception("grounding provider %s failed", options.provider)
        return outcome

    def _usable(self, passages: Sequence[Passage], query: Query, options: RetrievalOptions) -> list[Passage]:
        """The provider's passages without the malformed or disallowed ones, those without text and those below the
        threshold; of passages that are to be turns, without those that are no examples.

        Raises:
            TypeError, ValueError: All of them are malformed, outside the required filters, or no examples.
        """
        name = options.provider
        usable, errors = [], []
        for passage in passages:
            try:
                _check(passage, query)
                if options.insert_as == TURNS and passage.turns is None:
                    raise NoExample("a passage is no example (`insert_as` is `turns`)")
            except (TypeError, ValueError) as error:
                errors.append(error)
            else:
                usable.append(passage)
        if errors:
            self.counts.record_unusable(name, len(errors))
            if not usable:
                raise errors[0]
            extra = {"passages": len(errors), "reason": str(errors[0])}
            _LOG.warning("grounding provider %s returned unusable passages", name, extra=extra)
        return [
            passage
            for passage in usable
            if (passage.text.strip() or options.insert_as == TURNS)  # of an example only its turns are shown
            and (query.threshold is None or passage.score >= query.threshold)
        ]

    def _raise_if_closed(self, options: RetrievalOptions, failure: Failure) -> None:
        """Raise Unavailable, or BadRequest where a retry would find the same, if the request fails closed."""
        if not self._closed(options):
            return
        if failure == "no_examples":
            raise BadRequest(
                "the passages that were found are no examples, and `insert_as: turns` shows examples alone: name a "
                "store of training data, or leave `insert_as` out",
                param=f"{options.path}.insert_as",
            )
        failed = "timed out" if failure == "late" else "failed"
        raise Unavailable(
            f"the grounding provider {options.provider!r} {failed}, and this model requires grounding "
            "(`fail_closed`); retry later",
            retry_after=RETRY_S,
            param="grounding",
            code="grounding_unavailable",
        )

    def _closed(self, options: RetrievalOptions) -> bool:
        return (options.on_failure or self._on_failure) == "fail_closed"

    def _budget(
        self, options: RetrievalOptions, body: Mapping[str, Any], injector: PromptInjector, reserved_tokens: int
    ) -> int:
        """Tokens available for passages: their limit, or what prompt and answer leave of the context if less."""
        if self._context is None:
            return options.max_passage_tokens
        remaining = int(self._context * (1 - SPARE)) - answer_tokens(body) - reserved_tokens
        for text in injector.prompt(body):
            if remaining <= 0:
                return 0
            # count no further than the remaining budget: prompts may be long, and this runs on the event loop
            remaining -= token_upper_bound(text[: remaining * CHARS_A_TOKEN]) + FRAME_TOKENS
        return min(options.max_passage_tokens, remaining)


async def _demand_readable(
    provider: Provider | None, name: str, store_ids: Sequence[str], caller: Caller, param: str
) -> None:
    """Raise NotFound for the first store that does not exist or that the caller may not read."""
    if isinstance(provider, StoreAwareProvider):
        await provider.demand_readable(caller, store_ids, param)
        return
    # stores of other providers have no names here: match the key's globs against the provider's name and the ids
    for each in (name, *store_ids):
        if not caller.may_read(each):
            raise store_not_found(each, param)


def _check(passage: Passage, query: Query) -> None:
    """Raise TypeError or ValueError if a provider's passage cannot, or must not, be put into a prompt and cited."""
    if not isinstance(passage, Passage) or not _is_well_typed(passage):
        raise TypeError("a provider must return Passage objects whose fields have the documented types")
    said = sum(len(turn["content"]) for turn in passage.turns or ())
    if max(len(passage.text), said) > MAX_PASSAGE_CHARS or not 1 <= len(passage.id) <= MAX_ID_CHARS:
        raise ValueError(f"a passage may have at most {MAX_PASSAGE_CHARS} characters, and its id 1 to {MAX_ID_CHARS}")
    if not allows(query.required, passage.attributes):
        names = ", ".join(query.required)
        raise ValueError(f"a passage's attributes do not show the required value of {names}")
    # fails for what JSON cannot hold: a lone surrogate, or an integer of more than 64 bits
    orjson.dumps((passage.text, citation(0, passage), [turn["content"] for turn in passage.turns or ()]))


def _is_well_typed(passage: Passage) -> bool:
    """Whether the passage's fields have the documented types, which a plugin may violate."""
    if not isinstance(passage.attributes, Mapping) or not (passage.turns is None or _are_turns(passage.turns)):
        return False
    texts = (passage.id, passage.text, passage.source, passage.store_id, passage.file_id or "")
    values = [*passage.attributes.values(), passage.score]
    return all(isinstance(text, str) for text in (*texts, *passage.attributes)) and all(
        isinstance(value, (str, int, float)) for value in values
    )


def _are_turns(value: Any) -> bool:
    """Whether they are messages of a user and an assistant in turn, the last of which is an answer."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value or len(value) % 2:
        return False
    return all(
        isinstance(turn, Mapping) and turn.get("role") == role and isinstance(turn.get("content"), str)
        for turn, role in zip(value, ("user", "assistant") * (len(value) // 2), strict=True)
    )


def _citations(formatted: FormattedPassages, query: Query, template: str) -> Citations:
    # of what the user has said only the question itself: any conversation may have come upon an `[1]` that is none
    asked = [message["content"] for message in query.messages if message["role"] in ("system", "developer")]
    said = [message["content"] for message in query.messages if message["role"] == "user"]
    by_marker = not formatted.turns and shows_markers([template, *asked, *said[-1:]])
    return Citations(formatted.used, formatted.texts, query.text, by_marker)


def _headers(outcome: Outcome, cited: Sequence[Passage]) -> tuple[tuple[bytes, str], ...]:
    """The response headers: the outcome, and the ids of the cited passages up to MAX_HEADER_CHARS characters."""
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
