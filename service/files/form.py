"""The body of an upload: ``purpose`` and perhaps ``expires_after``, and one file that is written as it comes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from service.access.caller import Caller
from service.concurrency import in_thread
from service.errors import BadRequest, TooLarge, UnknownField
from service.files.blob_store import Incoming
from service.files.jsonl import LineCheck
from service.files.purposes import Purpose, parse_upload_purpose
from service.http.multipart import FRAMING_BYTES, MultipartForm, feed_body, parse_boundary

ANCHOR: Final = "expires_after[anchor]"
SECONDS: Final = "expires_after[seconds]"
PARTS: Final = ("purpose", ANCHOR, SECONDS, "file")
MAX_FIELD_BYTES: Final = 1024
MAX_FILENAME_CHARS: Final = 255
DEFAULT_FILENAME: Final = "upload"
MIN_EXPIRY_S: Final = 3600
MAX_EXPIRY_S: Final = 2_592_000
MAX_OVERHEAD_BYTES: Final = len(PARTS) * MAX_FIELD_BYTES + FRAMING_BYTES
"""Of a body, what is not the file at most."""
UPLOAD_HINT: Final = "send the file as multipart/form-data (with a boundary), with the parts `purpose` and `file`"


@dataclass(frozen=True, slots=True)
class FileUpload:
    """The fields of an upload; ``expires_after_s`` counts from the file's creation."""

    filename: str
    purpose: Purpose
    expires_after_s: int | None


async def receive(
    headers: Mapping[str, str], body: AsyncIterator[bytes], incoming: Incoming, *, caller: Caller, max_bytes: int
) -> FileUpload:
    """Read the whole body; the file's bytes go to ``incoming``.

    Args:
        headers: The request's headers, names in lower case.
        body: The body's chunks.
        incoming: Where the file goes.
        caller: Whose scopes must cover the purpose.
        max_bytes: Most bytes of the file.

    Raises:
        WrongMediaType: Not multipart/form-data.
        TooLarge: The file, a field or the whole is over its bound.
        BadRequest: Not well formed; a part (`param`) is missing, repeated, unknown or not what it should be; or a file
            for training holds lines that cannot be trained on.
        Forbidden: The key's scopes do not cover the purpose.
        DiskFull: There is no room.
    """
    form = _FileForm(parse_boundary(headers.get("content-type", ""), UPLOAD_HINT), incoming, caller)
    await feed_body(headers, body, form.feed, max_bytes=max_bytes + MAX_OVERHEAD_BYTES)
    return await in_thread(form.upload)


def declared_bytes(headers: Mapping[str, str]) -> int | None:
    """The size of the body that the request declares; None: it does not, or not in digits."""
    declared = headers.get("content-length", "")
    return int(declared[:20]) if declared.isascii() and declared.isdigit() else None


class _FileForm(MultipartForm):
    """Where each part's bytes go. Lines are checked as they arrive where the purpose came first, else at the end."""

    def __init__(self, boundary: bytes, incoming: Incoming, caller: Caller) -> None:
        super().__init__(boundary)
        self._incoming = incoming
        self._caller = caller
        self._part = ""
        self._parts: dict[str, bytearray] = {}
        self._filename = DEFAULT_FILENAME
        self._purpose: Purpose | None = None
        self._check: LineCheck | None = None

    def begin_part(self, name: str, filename: str | None) -> None:
        if name not in PARTS:
            raise UnknownField(f"unknown part `{name[:100]}`; allowed are {', '.join(PARTS)}", param=name[:100])
        if name in self._parts:
            raise BadRequest(f"the part `{name}` appears twice", param=name, code="repeated_parameter")
        self._part = name
        self._parts[name] = bytearray()
        if name == "file":
            self._filename = _plain_name(filename)
            self._check = LineCheck() if self._purpose is Purpose.FINE_TUNE else None

    def part_data(self, data: bytes) -> None:
        if self._part == "file":
            self._incoming.write(data)
            if self._check is not None:
                self._check.feed(data)
            return
        field = self._parts[self._part]
        if len(field) + len(data) > MAX_FIELD_BYTES:
            raise TooLarge(f"`{self._part}` has more than {MAX_FIELD_BYTES} bytes", param=self._part)
        field += data

    def end_part(self) -> None:
        if self._part == "purpose":
            self._purpose = parse_upload_purpose(self._caller, self._text("purpose") or "")
        self._part = ""

    def upload(self) -> FileUpload:
        """What came, checked, once the whole body is fed."""
        self.require_complete()
        for part in ("purpose", "file"):
            if part not in self._parts:
                raise BadRequest(f"the part `{part}` is missing", param=part, code="missing_required_parameter")
        assert self._purpose is not None  # noqa: S101  the part has ended
        if self._incoming.bytes_written == 0:
            raise BadRequest("`file` is empty", param="file", code="empty_file")
        if self._purpose is Purpose.FINE_TUNE:
            self._finish_check()
        return FileUpload(self._filename, self._purpose, self._expiry())

    def _finish_check(self) -> None:
        check = self._check
        if check is None:
            check = LineCheck()
            for chunk in self._incoming.chunks():
                check.feed(chunk)
        check.finish()

    def _expiry(self) -> int | None:
        anchor, seconds = self._text(ANCHOR), self._text(SECONDS)
        if anchor is None and seconds is None:
            return None
        if anchor != "created_at":
            raise BadRequest(f"`{ANCHOR}` must be `created_at`; got {anchor!r}", param="expires_after.anchor")
        seconds_given = int(seconds) if seconds is not None and seconds.isascii() and seconds.isdigit() else -1
        if not MIN_EXPIRY_S <= seconds_given <= MAX_EXPIRY_S:
            raise BadRequest(
                f"`{SECONDS}` must be from {MIN_EXPIRY_S} to {MAX_EXPIRY_S}; got {seconds!r}",
                param="expires_after.seconds",
            )
        return seconds_given

    def _text(self, part: str) -> str | None:
        if part not in self._parts:
            return None
        try:
            return self._parts[part].decode()
        except UnicodeDecodeError:
            raise BadRequest(f"`{part}` is not UTF-8", param=part) from None


def _plain_name(given: str | None) -> str:
    """A file's own name, without the directories that a client may have sent before it. Raises BadRequest."""
    name = PurePosixPath((given or DEFAULT_FILENAME).replace("\\", "/")).name or DEFAULT_FILENAME
    if len(name) > MAX_FILENAME_CHARS or not name.isprintable():
        raise BadRequest(
            f"the file name must have at most {MAX_FILENAME_CHARS} characters, all printable; got {len(name)}",
            param="file",
        )
    return name
