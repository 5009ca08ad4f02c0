"""Adds citations to answers and streams: one class for each API dialect, one object for each answer.

An answer without passages is not parsed: its empty `citations` are inserted at byte sequences that cannot occur inside
a JSON string, as in `service.inference.relay`. One with passages is, because which of them it uses is told from its
text; but without its log-probabilities, which may have 200 MiB. An answer that is not JSON, which no engine should
send, is passed on with `citations` that have no `used`.
"""

from __future__ import annotations

import re
import secrets
from typing import Any, Final

import orjson

from service.errors import HatrackError
from service.grounding.attribution import MAX_COMPARED_CHARS
from service.grounding.citations import Citations, Spans, merge
from service.grounding.file_search import FileSearchCall
from service.http.stream import END, Relay, TokenUsage

_DATA: Final = b"data: "
_DELTA: Final = b'"delta"'
_FINISH: Final = b'"finish_reason":"'
"""Occurs in exactly those events of a chat completion that get the citations."""
_RESPONSE: Final = b'"response":{'
_ENDS_OF: Final = {
    b'"logprobs":{': (b',"finish_reason":',),
    b'"prompt_logprobs":[': (b',"prompt_token_ids":',),
    b'"logprobs":[': (b',"output_index":', b'}],"role":', b'},"sequence_number":'),
}
"""How log-probabilities begin, and what vLLM writes next to them: in chat completions, and in events and messages of
Responses. None of it can stand inside a JSON string."""
_LOGPROBS: Final = re.compile(b"|".join(map(re.escape, _ENDS_OF)))
_KEPT: Final = secrets.token_hex(16)
"""Stands, with a number, for what is not parsed; no text contains it by chance or intent."""
_KEPT_AT: Final = re.compile(rf'"{_KEPT}(\d+)"'.encode())


class Citer:
    """For chat completions; subclasses override what differs in their dialect.

    Args:
        citations: What the prompt has.
        search: The call of the tool `file_search` that led to them, for dialects that have it.
    """

    def __init__(self, citations: Citations, search: FileSearchCall | None = None) -> None:
        self._citations = citations
        self._search = search
        self._texts: dict[int, _Text] = {}
        self._spans: Spans | None = None
        """Of all texts of the answer so far."""
        self._judged: dict[str, Spans] = {}
        """By text: a stream of Responses has each of them again in its last event."""

    def whole(self, answer: bytes) -> bytes:
        """The answer, a JSON object, with its citations."""
        if not self._citations.passages and self._search is None:
            return add_citations(answer, b"[]")
        try:
            parsed = _Parsed(answer)
        except orjson.JSONDecodeError:
            return add_citations(answer, self._citations.json())
        self._cite(parsed.value)
        return parsed.written(parsed.value)

    def event(self, event: bytes) -> bytes:
        """The events to send for one of the engine's, which is without its terminator."""
        if not self._citations.passages:
            return (add_citations(event, b"[]") if _FINISH in event else event) + END
        if _DELTA not in event:
            return event + END
        parsed = _Parsed(event[len(_DATA) :])
        chunk = parsed.value
        is_last = False
        for choice in chunk["choices"]:
            number, delta = choice["index"], choice["delta"]
            self._text(number).append(delta.get("content"))
            if choice.get("finish_reason") is not None:
                is_last = True
                spans = self._citations.spans(self._text(number).text)
                delta["annotations"] = self._citations.chat_annotations(spans)
                chunk["citations"] = self._citations.listed(spans)
        return (_DATA + parsed.written(chunk) if is_last else event) + END

    def error_event(self, event: bytes) -> bytes:
        """The event that reports an error, in its place in the stream."""
        return event

    def _cite(self, answer: dict[str, Any]) -> None:
        for choice in answer["choices"]:
            message = choice["message"]
            spans = self._judge(message.get("content"))
            message["annotations"] = self._citations.chat_annotations(spans)
        answer["citations"] = self._listed()

    def _text(self, number: int) -> _Text:
        """The text with this number, of several that a stream may have."""
        return self._texts.setdefault(number, _Text())

    def _judge(self, text: str | None) -> Spans:
        """What one of the answer's texts uses; counted for the whole answer, too."""
        spans = self._spans_of(text or "")
        self._spans = merge(self._spans, spans)
        return spans

    def _spans_of(self, text: str) -> Spans:
        if text not in self._judged:
            self._judged[text] = self._citations.spans(text)
        return self._judged[text]

    def _listed(self) -> list[dict[str, Any]]:
        """The member `citations` of the answer as far as it has been judged."""
        return self._citations.listed(self._spans if self._spans is not None else self._citations.spans(""))


class ResponsesCiter(Citer):
    """For `/v1/responses`: annotations of each text, and `citations` in the response object.

    With passages or a search every event is written anew, because what is inserted moves the numbers of the others.
    """

    _last = (b"event: response.completed\n", b"event: response.incomplete\n", b"event: response.failed\n")

    def __init__(self, citations: Citations, search: FileSearchCall | None = None) -> None:
        super().__init__(citations, search)
        self._sequence = 0
        self._is_announced = search is None
        self._annotations: dict[tuple[int, int], list[dict[str, Any]]] = {}
        """Of the texts that are complete, by the places of item and part."""

    def event(self, event: bytes) -> bytes:
        if not self._citations.passages and self._search is None:
            before, marker, after = event.partition(_RESPONSE)
            is_last = event.startswith(self._last) and marker
            return (before + marker + b'"citations":[],' + after if is_last else event) + END
        parsed = _Parsed(event.partition(b"\n" + _DATA)[2])
        return b"".join(self._written(each, parsed) for each in self._events(parsed.value))

    def error_event(self, event: bytes) -> bytes:
        parsed = _Parsed(event.partition(b"\n" + _DATA)[2])
        return self._written(parsed.value, parsed) if self._sequence else event

    def _written(self, payload: dict[str, Any], parsed: _Parsed) -> bytes:
        kind: str = payload["type"]
        payload["sequence_number"] = self._sequence
        self._sequence += 1
        return b"event: " + kind.encode() + b"\n" + _DATA + parsed.written(payload) + END

    def _events(self, payload: dict[str, Any]) -> list[dict[str, Any]]:
        """The events to send for one of the engine's."""
        kind = payload["type"]
        events: list[dict[str, Any]] = []
        if not self._is_announced and self._search is not None and kind not in _OPENING:
            events += self._search.events()
            self._is_announced = True
        if self._search is not None and "output_index" in payload:
            payload["output_index"] += 1
        if kind == "response.output_text.done":
            events += self._annotation_events(payload)
        elif kind == "response.content_part.done":
            _annotate(payload["part"], self._annotations.get(_place(payload)))
        elif kind == "response.output_item.done":
            for at, part in enumerate(payload["item"].get("content") or ()):
                _annotate(part, self._annotations.get((payload["output_index"], at)))
        elif kind in _ENDS:
            self._cite(payload["response"])
        elif kind in _OPENING and self._search is not None:
            self._search.complete(payload["response"])
        return [*events, payload]

    def _annotation_events(self, done: dict[str, Any]) -> list[dict[str, Any]]:
        """What announces the annotations of a text, before the event with which it is done."""
        annotations = self._citations.annotations(self._spans_of(done["text"]))
        self._annotations[_place(done)] = annotations
        place = {name: done[name] for name in ("item_id", "output_index", "content_index")}
        kind = "response.output_text.annotation.added"
        return [
            {"type": kind, **place, "annotation_index": at, "annotation": annotation}
            for at, annotation in enumerate(annotations)
        ]

    def _cite(self, answer: dict[str, Any]) -> None:
        for item in answer.get("output") or ():
            for part in (item.get("content") or ()) if item.get("type") == "message" else ():
                if part.get("type") == "output_text":
                    _annotate(part, self._citations.annotations(self._judge(part["text"])))
        if self._search is not None:
            answer["output"] = [self._search.item, *(answer.get("output") or ())]
            self._search.complete(answer)
        answer["citations"] = self._listed()


class MessagesCiter(Citer):
    """For `/v1/messages`: citations of each text block and, in a stream, `citations` beside the stop reason."""

    def event(self, event: bytes) -> bytes:
        is_delta = event.startswith(b"event: message_delta\n")
        if not self._citations.passages:
            return (add_citations(event, b"[]") if is_delta else event) + END
        if is_delta:
            return add_citations(event, orjson.dumps(self._listed())) + END
        if event.startswith((b"event: content_block_delta\n", b"event: content_block_stop\n")):
            payload = orjson.loads(event.partition(b"\n" + _DATA)[2])
            number = payload["index"]
            if payload["type"] == "content_block_stop" and number in self._texts:
                return self._citation_events(number) + event + END
            if payload["type"] == "content_block_delta" and payload["delta"]["type"] == "text_delta":
                self._text(number).append(payload["delta"]["text"])
        return event + END

    def _citation_events(self, number: int) -> bytes:
        """What cites the passages that a text block uses, before the block ends."""
        events = []
        for location in self._citations.search_locations(self._judge(self._texts[number].text)):
            delta = {"type": "citations_delta", "citation": location}
            data = orjson.dumps({"type": "content_block_delta", "index": number, "delta": delta})
            events.append(b"event: content_block_delta\n" + _DATA + data + END)
        return b"".join(events)

    def _cite(self, answer: dict[str, Any]) -> None:
        for block in answer["content"]:
            if block["type"] == "text":
                block["citations"] = self._citations.search_locations(self._judge(block["text"])) or None
        answer["citations"] = self._listed()


class CitationRelay:
    """Wraps a stream's relay, and adds the citations to its events."""

    __slots__ = ("_citer", "_inner")

    def __init__(self, inner: Relay, citer: Citer) -> None:
        self._inner = inner
        self._citer = citer

    def feed(self, chunk: bytes) -> bytes:
        """The bytes to send to the client now."""
        block = self._inner.feed(chunk)
        if not block:
            return block
        cite = self._citer.event
        return b"".join(cite(event) for event in block.split(END)[:-1])

    @property
    def done(self) -> bool:
        """Whether the engine has sent its last event."""
        return self._inner.done

    @property
    def error(self) -> bytes | None:
        """The engine's error event, if it has sent one."""
        return self._inner.error

    def counted(self) -> TokenUsage | None:
        """The engine's token count, or an estimate of it."""
        return self._inner.counted()

    def error_event(self, error: HatrackError, request_id: str) -> bytes:
        """The event that reports an error to the client."""
        return self._citer.error_event(self._inner.error_event(error, request_id))


class _Text:
    """A text that comes in pieces; only as much of it is kept as is compared with the passages."""

    __slots__ = ("_pieces", "_room")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._room = MAX_COMPARED_CHARS

    def append(self, piece: str | None) -> None:
        """Add what came next."""
        if piece and self._room > 0:
            self._pieces.append(piece)
            self._room -= len(piece)

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self._pieces)


class _Parsed:
    """The object of an answer or event, whose log-probabilities stay bytes."""

    __slots__ = ("_kept", "value")

    def __init__(self, data: bytes) -> None:
        self._kept: list[bytes] = []
        try:
            self.value: Any = orjson.loads(self._without_logprobs(data))
        except orjson.JSONDecodeError:  # not in vLLM's order, or a caller's own tool has fields of these names
            self._kept = []
            self.value = orjson.loads(data)

    def _without_logprobs(self, data: bytes) -> bytes:
        pieces, begin = [], 0
        while (start := _LOGPROBS.search(data, begin)) is not None:
            at = start.end() - 1
            end = min((place for mark in _ENDS_OF[start[0]] if (place := data.find(mark, at)) >= 0), default=-1)
            if end < 0:
                break
            pieces += [data[begin:at], f'"{_KEPT}{len(self._kept)}"'.encode()]
            self._kept.append(data[at:end])
            begin = end
        return b"".join([*pieces, data[begin:]]) if pieces else data

    def written(self, value: dict[str, Any]) -> bytes:
        """The JSON of ``value``, with the log-probabilities in their places."""
        data = orjson.dumps(value)
        return _KEPT_AT.sub(lambda match: self._kept[int(match[1])], data) if self._kept else data


_OPENING: Final = ("response.created", "response.in_progress")
_ENDS: Final = ("response.completed", "response.incomplete", "response.failed")


def _place(payload: dict[str, Any]) -> tuple[int, int]:
    return payload["output_index"], payload["content_index"]


def _annotate(part: dict[str, Any], annotations: list[dict[str, Any]] | None) -> None:
    if annotations is not None and part.get("type") == "output_text":
        part["annotations"] = annotations


def add_citations(data: bytes, citations: bytes) -> bytes:
    """The bytes of a JSON object with the member `citations` appended."""
    before, brace, after = data.rpartition(b"}")
    return before + b',"citations":' + citations + brace + after
