"""The body of an upload: multipart/form-data, read as it comes, its weights handed on while they arrive.

A version without weights is sent without the two files, or as JSON (``json_upload``).

Nothing of the size of an adapter is ever in memory, and nothing is believed: not the length that the client declares,
not a file's name. Files that can run code when they are opened are refused by name and by their first bytes, unread.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from pydantic import ValidationError

from adapters.base import Fingerprint
from adapters.errors import PickleRefused
from adapters.inspect import Inspection
from adapters.validation import shown
from service.access.caller import Caller
from service.errors import BadRequest, Forbidden, TooLarge, UnknownField
from service.grounding.filters import check_filters
from service.http.body import parse, validation_error
from service.http.multipart import FRAMING_BYTES, MultipartForm, feed_body, parse_boundary
from service.registry.catalog import VersionSettings
from service.registry.records import VersionDraft

KIB: Final = 1024
MIB: Final = 1024 * KIB
BOUNDS: Final[Mapping[str, int]] = {
    "name": KIB,
    "alias": KIB,
    "config": MIB,
    "readme": MIB,
    "metadata": 256 * KIB,
    "settings": 256 * KIB,
    "expires_at": KIB,
    "base": KIB,
}
"""Most bytes of each part but ``weights``, whose bound is a setting."""

PARTS: Final = (*BOUNDS, "weights")
WANTED: Final = (
    "upload an adapter as multipart/form-data (with a boundary), with the files `config` and `weights`; "
    "a version without weights may also be JSON"
)
FILES: Final = ("config", "weights")
"""A version has both or none."""
JSON_TYPE: Final = "application/json"

SNIFFED_BYTES: Final = 16
UNSAFE_SUFFIXES: Final = frozenset(
    {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
    | {".npz", ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"}
)
_ARCHIVES: Final = (
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ",
    b"7z\xbc\xaf",
    b"Rar!",
    b"\x28\xb5\x2f\xfd",
)

SAMPLING: Final[Mapping[str, tuple[type, float, float]]] = {
    "temperature": (float, 0.0, 2.0),
    "top_p": (float, 0.0, 1.0),
    "top_k": (int, -1, 1_000_000),
    "min_p": (float, 0.0, 1.0),
    "presence_penalty": (float, -2.0, 2.0),
    "frequency_penalty": (float, -2.0, 2.0),
    "repetition_penalty": (float, 0.01, 10.0),
    "max_tokens": (int, 1, 10_000_000),
    "seed": (int, -(2**63), 2**63 - 1),
}
"""Request fields that a version may set a default for: type, least and largest value."""


@dataclass(frozen=True, slots=True)
class ReceivedUpload:
    """The parts of an upload except the weights. ``alias`` is None if the part is missing, empty for "no alias".

    ``config`` is empty for a version without weights. ``base`` is the served name of the base that it is for; None: the
    one that ``config`` names, if it is served, else the default.
    """

    name: str
    config: bytes
    readme: bytes | None
    metadata: dict[str, Any]
    settings: VersionSettings
    alias: str | None
    has_weights: bool = True
    expires_at: int | None = None
    base: str | None = None

    def draft_without_weights(self, base: Fingerprint) -> VersionDraft:
        """The version to create of settings alone, which is not proven yet."""
        return VersionDraft(
            digest=None,
            settings=self.settings.stored(),
            metadata=self.metadata,
            rank=0,
            alpha=0.0,
            target_modules=[],
            bytes=0,
            zero_effect=False,
            base=base.model_dump(),
            config=b"",
            readme=self.readme,
            warnings=[],
            wanted_alias=self.alias,
            expires_at=self.expires_at,
        )

    def draft(self, inspection: Inspection, digest: str, base: Fingerprint) -> VersionDraft:
        """The version to create, which is not proven yet."""
        return VersionDraft(
            digest=digest,
            settings=self.settings.stored(),
            metadata=self.metadata,
            rank=inspection.rank,
            alpha=inspection.alpha,
            target_modules=list(inspection.target_modules),
            bytes=inspection.bytes,
            zero_effect=inspection.effect_is_zero,
            base=base.model_dump(),
            config=self.config,
            readme=self.readme,
            warnings=list(inspection.warnings),
            wanted_alias=self.alias,
            expires_at=self.expires_at,
        )


def is_json(headers: Mapping[str, str]) -> bool:
    """Whether a body is JSON, by its headers, names in lower case."""
    return headers.get("content-type", "").partition(";")[0].strip().lower() == JSON_TYPE


def require_name_allowed(caller: Caller, name: str) -> None:
    """Raise Forbidden where the key's globs do not match the name, of an adapter that may or may not exist."""
    if not caller.may_use(name):
        globs = ", ".join(f"`{glob}`" for glob in caller.adapters or ()) or "none"
        raise Forbidden(
            f"the API key may only push adapters whose names match {globs}; got `{name[:100]}`",
            param="name",
            code="adapter_not_allowed",
        )


async def receive(
    headers: Mapping[str, str],
    body: AsyncIterator[bytes],
    write: Callable[[bytes], object],
    *,
    max_weights: int,
    check_name: Callable[[str], object] = lambda _name: None,
) -> ReceivedUpload:
    """Read the whole body; the weights are passed to ``write`` in a thread, in order.

    Args:
        headers: The request's headers, names in lower case.
        body: The body's chunks.
        write: Called with pieces of the weights; what it raises ends the upload.
        max_weights: Most bytes of weights.
        check_name: Called with the adapter's name as soon as that part is there, which may be before the weights;
            what it raises ends the upload.

    Raises:
        WrongMediaType: Not multipart/form-data (JSON is read by ``service.registry.json_upload``).
        TooLarge: A part, or the whole, is over its bound.
        BadRequest: Not well formed, or a part (`param`) is missing, repeated, unknown or not what it should be.
        PickleRefused: The weights are a pickle or an archive.
    """
    form = _AdapterForm(parse_boundary(headers.get("content-type", ""), WANTED), write, max_weights, check_name)
    max_bytes = max_weights + sum(BOUNDS.values()) + FRAMING_BYTES
    await feed_body(headers, body, form.feed, max_bytes=max_bytes)
    return form.upload()


def future(expires_at: str | int | None) -> int | None:
    """A Unix time in seconds. Raises BadRequest where it is none, or has passed."""
    digits = str(expires_at)
    if expires_at is None or (
        digits.isascii() and digits.isdecimal() and len(digits) <= 11 and time.time() < int(digits)
    ):
        return None if expires_at is None else int(digits)
    wanted = "`expires_at` must be a Unix time in seconds, in the future"
    raise BadRequest(f"{wanted}; got {shown(expires_at)}", param="expires_at")


def require_settings(settings: VersionSettings, param: str) -> None:
    """Raise BadRequest where a version without weights has no settings either."""
    if settings.is_empty:
        raise BadRequest(
            "neither weights nor settings were sent: send the files `config` and `weights`, or for a version without "
            "weights at least one of `settings.system_prompt`, `settings.examples`, `settings.sampling` and "
            "`settings.grounding`",
            param=param,
            code="missing_required_parameter",
        )


class _AdapterForm(MultipartForm):
    """Where each part's bytes go."""

    def __init__(
        self,
        boundary: bytes,
        write: Callable[[bytes], object],
        max_weights: int,
        check_name: Callable[[str], object],
    ) -> None:
        super().__init__(boundary)
        self._write = write
        self._check_name = check_name
        self._max_weights = max_weights
        self._part = ""
        self._parts: dict[str, bytearray] = {}
        self._weights = 0
        self._head = bytearray()

    def upload(self) -> ReceivedUpload:
        """The parts, checked, once the whole body is fed."""
        self.require_complete()
        has_weights = any(part in self._parts for part in FILES)
        for part in ("name", *(FILES if has_weights else ())):
            if part not in self._parts:
                raise BadRequest(f"the part `{part}` is missing", param=part, code="missing_required_parameter")
        settings = parse_settings(self._object("settings"))
        if not has_weights:
            require_settings(settings, "weights")
        readme = self._parts.get("readme")
        return ReceivedUpload(
            name=self._text("name") or "",
            config=bytes(self._parts.get("config", b"")),
            readme=None if readme is None else bytes(readme),
            metadata=self._object("metadata"),
            settings=settings,
            alias=self._text("alias"),
            has_weights=has_weights,
            expires_at=future(self._text("expires_at") or None),
            base=self._text("base") or None,
        )

    def _text(self, part: str) -> str | None:
        if part not in self._parts:
            return None
        try:
            return self._parts[part].decode()
        except UnicodeDecodeError:
            raise BadRequest(f"`{part}` must be UTF-8", param=part) from None

    def _object(self, part: str) -> dict[str, Any]:
        if not self._parts.get(part):
            return {}
        value = parse(self._parts[part], part)
        if not isinstance(value, dict):
            raise BadRequest(f"`{part}` must be a JSON object; got {shown(value)}", param=part)
        return value

    def begin_part(self, part: str, filename: str | None) -> None:
        if part not in PARTS:
            raise UnknownField(f"unknown part `{part[:100]}`; allowed are {', '.join(PARTS)}", param=part[:100])
        if part in self._parts:
            raise BadRequest(f"the part `{part}` was sent twice; send it once", param=part, code="repeated_parameter")
        suffix = PurePosixPath((filename or "").lower()).suffix
        if part == "weights" and suffix in UNSAFE_SUFFIXES:
            raise PickleRefused(
                f"The weights are a `{suffix}` file: pickles and archives are never opened. "
                "Send adapter_model.safetensors.",
                param="weights",
            )
        self._part = part
        self._parts[part] = bytearray()

    def part_data(self, data: bytes) -> None:
        if self._part == "weights":
            self._take_weights(data)
            return
        content, bound = self._parts[self._part], BOUNDS[self._part]
        if len(content) + len(data) > bound:
            raise TooLarge(f"`{self._part}` must have at most {bound} bytes", param=self._part)
        content += data

    def _take_weights(self, data: bytes) -> None:
        self._weights += len(data)
        if self._weights > self._max_weights:
            raise TooLarge(
                f"`weights` must have at most {self._max_weights} bytes (HATRACK_MAX_ADAPTER_MIB)", param="weights"
            )
        if len(self._head) >= SNIFFED_BYTES:
            self._write(data)
            return
        self._head += data
        if len(self._head) >= SNIFFED_BYTES:
            refuse_unsafe(bytes(self._head[:SNIFFED_BYTES]))
            self._write(bytes(self._head))

    def end_part(self) -> None:
        if self._part == "weights" and self._weights < SNIFFED_BYTES:
            self._write(bytes(self._head))
        if self._part == "name":
            self._check_name(self._text("name") or "")
        self._part = ""


def refuse_unsafe(head: bytes) -> None:
    """Raise PickleRefused where a file's first 16 bytes are those of a pickle or an archive.

    A safetensors header may be 640 bytes long and so begin like a pickle (80 02): the brace behind its length decides.
    """
    if head[8:9] == b"{" and head[6:8] == b"\0\0":
        return
    if head.startswith(_ARCHIVES) or (head[:1] == b"\x80" and 2 <= head[1] <= 5):
        raise PickleRefused(
            "The weights are a pickle or an archive, which is never opened. Send adapter_model.safetensors.",
            param="weights",
        )


def parse_settings(value: dict[str, Any]) -> VersionSettings:
    """A version's settings.

    Raises:
        BadRequest: A value is not allowed; `param` is its dotted name.
        UnknownField: There is no such setting.
    """
    try:
        settings = VersionSettings.model_validate(value)
    except ValidationError as error:
        raise validation_error(error, value, "settings") from None
    for field, given in settings.sampling.items():
        check_sampling(field, given, "settings.sampling")
    if settings.grounding is not None and settings.grounding.filters is not None:
        check_filters(settings.grounding.filters, "settings.grounding.filters")
    return settings


def check_sampling(field: str, value: object, where: str) -> None:
    """Check one sampling default. Raises BadRequest, UnknownField; `param` is its name under ``where``."""
    param = f"{where}.{field[:100]}"
    if field == "stop":
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) and 0 < len(text) <= 256 for text in texts):
            raise BadRequest(
                f"`{param}` must be a string, or an array of strings, of 1 to 256 characters each", param=param
            )
        if len(texts) > 16:
            raise BadRequest(f"`{param}` must have at most 16 strings; got {len(texts)}", param=param)
        return
    if field not in SAMPLING:
        raise UnknownField(
            f"unknown sampling default `{param}`; allowed are {', '.join(SAMPLING)} and stop", param=param
        )
    kind, low, high = SAMPLING[field]
    is_number = isinstance(value, int | float if kind is float else int) and not isinstance(value, bool)
    if not is_number or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequest(
            f"`{param}` must be {'a number' if kind is float else 'an integer'} from {low:g} to {high:g}; "
            f"got {str(value)[:100]}",
            param=param,
        )
