"""The stream of OpenAI's chat and text completions."""

from __future__ import annotations

from typing import ClassVar, Final

from service.http.stream import END
from service.inference.relay import EventRelay, Renamer, are_objects, find_usage

_DONE: Final = b"data: [DONE]"
_ERROR: Final = b'data: {"error"'
_OBJECT: Final = b"data: {"
_CONTENT: Final = b'"choices":[{'
_USAGE: Final = b'"usage":{'


class ChatRelay(EventRelay):
    """The stream of chat and text completions: `data:` lines, and `[DONE]` at the end."""

    __slots__ = ("_show_usage",)
    _member: ClassVar[tuple[str, type]] = ("choices", list)

    def __init__(self, renamer: Renamer, *, show_usage: bool) -> None:
        super().__init__(renamer)
        self._show_usage = show_usage

    def _process(self, block: bytes) -> bytes:
        events, with_content = block.count(END), block.count(_CONTENT)
        if with_content != events or _USAGE in block or not are_objects(block, events, _OBJECT):
            block = self._scan(block)
            with_content = block.count(_CONTENT)
        self.events += with_content
        return self._rename(block)

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
