"""Whether an upload can be training data: told line by line while it arrives, in bounded memory.

The lines are read by the same code as in a data check, a job and an evaluation. What needs the base model's tokenizer
or all examples at once (lengths, duplicates) is left to the trainer's quality report.
"""

from __future__ import annotations

from adapters.dataset.formats import BYTE_ORDER_MARK, ExampleReader
from adapters.dataset.lines import MAX_LINE_BYTES, describe_problems
from service.errors import BadRequest


class LineCheck:
    """Checks JSON lines that are fed in chunks; stops after `adapters.dataset.lines.MAX_PROBLEMS` invalid lines."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._reader = ExampleReader()

    def feed(self, data: bytes) -> None:
        """Check the lines that ``data`` completes. Raises BadRequest if the rest of the file need not be read."""
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            self._rest += data[start:end]
            self._line(bytes(self._rest))
            self._rest.clear()
            start = end + 1
        self._rest += data[start:]
        if len(self._rest) > MAX_LINE_BYTES + len(BYTE_ORDER_MARK):
            self._line(bytes(self._rest))
            raise self._refusal()

    def finish(self) -> None:
        """Check the last line. Raises BadRequest if a line is invalid, or there is none."""
        if self._rest.strip():
            self._line(bytes(self._rest))
        if self._reader.lines == 0:
            self._reader.refuse("the file is empty", line=1)
        if self._reader.problems:
            raise self._refusal()

    def _line(self, line: bytes) -> None:
        self._reader.read(line)
        if self._reader.done:
            raise self._refusal()

    def _refusal(self) -> BadRequest:
        return BadRequest(
            f"the training file cannot be used: {describe_problems(self._reader.problems)}",
            param="file",
            code="invalid_training_file",
        )
