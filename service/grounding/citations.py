"""The passages that were put into a prompt, as an answer cites them.

`citations` lists all of them, with `used` once there is an answer. Each API's own form has only those that were used:
OpenAI's `annotations` and Anthropic's `search_result_location`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from service.grounding.attribution import Span, used_spans
from service.grounding.provider import Passage

MAX_EXCERPT_CHARS: Final = 1000
Spans = Sequence[Span | None]
"""For each passage the part of a text that uses it, or None."""


@dataclass(frozen=True, slots=True)
class Citations:
    """Passages in a prompt, and what is needed to tell which of them an answer uses.

    Attributes:
        passages: In the order of their numbers, from 1.
        texts: Their texts as quoted in the prompt. Empty for examples that are shown as turns: those are listed, and
            none is ever `used`, since it states nothing.
        question: What was asked.
        by_marker: The prompt asks for markers such as `[1]`.
    """

    passages: tuple[Passage, ...] = ()
    texts: tuple[str, ...] = ()
    question: str = ""
    by_marker: bool = False

    def spans(self, answer: str) -> Spans:
        """The part of the answer that uses each passage, if it does; see ``service.grounding.attribution``."""
        return used_spans(answer, self.question, self.texts, by_marker=self.by_marker)

    def listed(self, spans: Spans | None = None) -> list[dict[str, Any]]:
        """The member `citations`; without `used` if ``spans`` is None, before there is an answer."""
        entries = [citation(number, passage) for number, passage in enumerate(self.passages, start=1)]
        if spans is not None:
            for entry, span in zip(entries, spans, strict=True):
                entry["used"] = span is not None
        return entries

    def json(self) -> bytes:
        """The member `citations` before there is an answer."""
        return orjson.dumps(self.listed())

    def annotations(self, spans: Spans) -> list[dict[str, Any]]:
        """OpenAI's annotations of the passages that a text uses, as in its Responses API, in the order of the text.

        A passage of a file is a `file_citation`, one whose source is an address a `url_citation`; one that is neither
        has no annotation.
        """
        found = []
        for span, passage in self._used(spans):
            if passage.file_id is not None:
                file = {"file_id": passage.file_id, "filename": passage.source}
                found.append({"type": "file_citation", **file, "index": span.end})
            elif _is_address(passage.source):
                found.append({"type": "url_citation", **_url(span, passage)})
        return found

    def chat_annotations(self, spans: Spans) -> list[dict[str, Any]]:
        """OpenAI's annotations as in chat completions, in the order of the text.

        Its schema has `url_citation` alone there, and clients that hold an answer to it would lose the whole answer
        over another type: a passage whose source is no address has none, file or not.
        """
        return [
            {"type": "url_citation", "url_citation": _url(span, passage)}
            for span, passage in self._used(spans)
            if _is_address(passage.source)
        ]

    def _used(self, spans: Spans) -> list[tuple[Span, Passage]]:
        """The passages that a text uses, in the order of the text."""
        used = [(span, passage) for span, passage in zip(spans, self.passages, strict=True) if span is not None]
        return sorted(used, key=lambda pair: pair[0].end)

    def search_locations(self, spans: Spans) -> list[dict[str, Any]]:
        """Anthropic's citations of the passages that a text uses: each is a search result with one block."""
        return [
            {
                "type": "search_result_location",
                "cited_text": text,
                "search_result_index": index,
                "source": passage.file_id or passage.source,
                "title": passage.source or None,
                "start_block_index": 0,
                "end_block_index": 1,
            }
            for index, (span, passage, text) in enumerate(zip(spans, self.passages, self.texts, strict=True))
            if span is not None
        ]


NO_CITATIONS: Final = Citations()


def _is_address(source: str) -> bool:
    return source.startswith(("https://", "http://"))


def _url(span: Span, passage: Passage) -> dict[str, Any]:
    place = {"start_index": span.start, "end_index": span.end}
    return {**place, "title": passage.source, "url": passage.source}


def citation(number: int, passage: Passage) -> dict[str, Any]:
    """One member of `citations`; ``number`` is the passage's number in the prompt."""
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


def merge(spans: Spans | None, more: Spans) -> Spans:
    """The spans of two texts of one answer together, for what uses any of them."""
    return more if spans is None else [first or second for first, second in zip(spans, more, strict=True)]
