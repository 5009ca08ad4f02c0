"""The stream of OpenAI's chat and text completions."""

from __future__ import annotations

import re
from typing import ClassVar, Final

from service.http.stream import END
from service.inference.relay import EventRelay, Renamer, are_objects, find_usage

_DONE: Final = b"data: [DONE]"
_ERROR: Final = b'data: {"error"'
_OBJECT: Final = b"data: {"
_CONTENT: Final = b'"choices":[{'
_USAGE: Final = b'"usage":{'
_QUOTE, _LINE_BREAK = b'"\n'
_AROUND_TEXT: Final = re.compile(
    rb'(.*"choices":\[\{.*?"(?:content|text|reasoning)":")[^"\n\\]+("[,}].*)', re.DOTALL | re.ASCII
)
"""An event with a text: what stands before the text, and what stands after it."""
MAX_TEMPLATE_BYTES: Final = 4096
MAX_TEMPLATES: Final = 8
"""Templates of one stream: a few, as reasoning comes before text, and none for long where each event is unlike the
last, as with log-probabilities."""


class ChatRelay(EventRelay):
    """The stream of chat and text completions: `data:` lines, and `[DONE]` at the end."""

    __slots__ = ("_prefix", "_renamed_prefix", "_renamed_suffix", "_show_usage", "_suffix", "_templates")
    _member: ClassVar[tuple[str, type]] = ("choices", list)

    def __init__(self, renamer: Renamer, *, show_usage: bool) -> None:
        super().__init__(renamer)
        self._show_usage = show_usage
        self._prefix = self._suffix = b"\0"  # no event begins or ends so
        self._renamed_prefix = self._renamed_suffix = b""
        self._templates = 0

    def _process(self, block: bytes) -> bytes:
        # The events of a stream mostly differ in their text alone. The markers searched for below begin with a quote,
        # and in each a colon follows the next quote: none lies in a text without quotes, or across either of its ends.
        prefix, suffix = self._prefix, self._suffix
        is_known = block.startswith(prefix) and block.endswith(suffix)
        if is_known:
            text = block[len(prefix) : -len(suffix)]
            if text and _QUOTE not in text and _LINE_BREAK not in text:
                self.events += 1
                return self._renamed_prefix + text + self._renamed_suffix
            texts = text.split(suffix + prefix)  # several events that were read at once
            joined = b"".join(texts)
            if len(texts) > 1 and _QUOTE not in joined and _LINE_BREAK not in joined:
                self.events += len(texts)
                between = self._renamed_suffix + self._renamed_prefix
                return self._renamed_prefix + between.join(texts) + self._renamed_suffix
        events, with_content = block.count(END), block.count(_CONTENT)
        if with_content != events or _USAGE in block or not are_objects(block, events, _OBJECT):
            block = self._scan(block)
            with_content = block.count(_CONTENT)
        elif events == 1 and not is_known and self._templates < MAX_TEMPLATES and len(block) <= MAX_TEMPLATE_BYTES:
            self._learn(block)
        self.events += with_content
        return self._rename(block)

    def _learn(self, event: bytes) -> None:
        """Keep what stands around the text of an event, for the events that differ from it in their text alone."""
        match = _AROUND_TEXT.fullmatch(event)
        if match is not None:
            self._templates += 1
            self._prefix, self._suffix = match.groups()
            self._renamed_prefix, self._renamed_suffix = self._rename(self._prefix), self._rename(self._suffix)

    def _is_plain(self, block: bytes, events: int) -> bool:
        return are_objects(block, events, _OBJECT) and block.count(b'"choices":[') == events

    def _scan(self, block: bytes) -> bytes:
        output: list[bytes] = []
        for event in block.split(END)[:-1]:
            if event.startswith(_ERROR):
                self.error = event[len(b"data: ") :]
                break
            if event == _DONE:
                output.append(event + END)
                self.done = True
                break
            self.error = self._fault(event)
            if self.error is not None:
                break
            if _USAGE in event:
                self.usage = find_usage(event)
                if not self._show_usage and b'"choices":[]' in event:
                    continue
            output.append(event + END)
        return b"".join(output)
