"""Reads fine-tuning jobs and their files from an OpenAI account, with the account's own key. It changes nothing there.

The key is sent to OpenAI alone, and is in no message: OpenAI's own words about a wrong key, which repeat a part of it,
are left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite
from pathlib import Path
from typing import Any, Final, Literal, NotRequired, Self, TypedDict, TypeVar, cast
from urllib.parse import urlsplit

import httpx

from service.client.addresses import on_this_machine, without_v1
from service.client.connection import CONNECT_S, PAGE, path_of
from service.client.output import writing
from service.client.wire import ClientError, json_body

OPENAI_URL: Final = "https://api.openai.com/v1"
ANSWERING: Final = httpx.Timeout(60, connect=CONNECT_S)
PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0)
"""Between two of the five tries, where OpenAI does not say how long."""
MAX_PAUSE_S: Final = 120.0
"""Who asks for a longer one is asked again by the person, later."""
TRANSIENT: Final = frozenset({408, 409, 429, 500, 502, 503, 504})
SPENT: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
"""Codes of a 429 that waiting does not end."""
KEY_INVALID: Final = "openai_key_invalid"
NOT_FOUND: Final = "openai_not_found"
PIECE_BYTES: Final = 256 * 1024

Item = TypeVar("Item")


class OpenAIMethod(TypedDict):
    """`method`: its type, and under the type's name its options."""

    type: str
    supervised: NotRequired[dict[str, Any] | None]
    dpo: NotRequired[dict[str, Any] | None]
    reinforcement: NotRequired[dict[str, Any] | None]


class OpenAIJob(TypedDict):
    """A `fine_tuning.job`."""

    object: Literal["fine_tuning.job"]
    id: str
    created_at: int
    status: str
    model: str
    """The model that was trained: one of OpenAI's, or `ft:…`, an earlier job's."""
    fine_tuned_model: str | None
    """`ft:MODEL:ORGANIZATION:SUFFIX:ID`; null unless the job succeeded."""
    user_provided_suffix: NotRequired[str | None]
    training_file: str
    validation_file: NotRequired[str | None]
    seed: NotRequired[int | None]
    hyperparameters: NotRequired[dict[str, Any] | None]
    """Of jobs older than `method`; of others the same as there."""
    method: NotRequired[OpenAIMethod | None]
    metadata: NotRequired[dict[str, str] | None]
    integrations: NotRequired[list[dict[str, Any]] | None]


class OpenAIFile(TypedDict):
    """A `file`."""

    object: Literal["file"]
    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: NotRequired[int | None]


class OpenAIAccount:
    """The account of a key, or one project of it; usable as a context manager. It sends GET requests only.

    Args:
        url: OpenAI's address, with or without `/v1`; https, or one on this machine.
        key: The account's key.
        organization: The organization's id, for a key that belongs to several.
        project: The project's id.
        transport: Another way to reach OpenAI, such as `httpx.MockTransport`.
        on_wait: Called before a wait that OpenAI asks for, with its seconds and the reason.
        sleep: Waits for a number of seconds.

    Raises:
        ClientError: `openai_url_invalid` or `openai_key_invalid`; nothing was sent.

    Every method raises ClientError, with the status 0, since the gateway has no part in it: `openai_key_invalid`,
    `openai_forbidden`, `openai_not_found`, `openai_rate_limited`, `openai_quota`, `openai_refused`,
    `openai_unavailable` or `openai_unreachable`.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        organization: str | None = None,
        project: str | None = None,
        transport: httpx.BaseTransport | None = None,
        on_wait: Callable[[float, str], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url: Final = _checked_url(url)
        if not (key.isascii() and key.isprintable() and key.strip()):
            raise ClientError(0, KEY_INVALID, "OPENAI_API_KEY must be printable ASCII; copy the key again.")
        headers = {"authorization": f"Bearer {key}"}
        headers |= {"openai-organization": organization} if organization else {}
        headers |= {"openai-project": project} if project else {}
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=ANSWERING,
            transport=transport,
            follow_redirects=True,  # to another host the key does not follow
            event_hooks={"request": [self._require_tls]},  # each redirect is a request of its own
            trust_env=not on_this_machine(self.url),
        )
        self._key = key
        self._on_wait = on_wait
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def _require_tls(self, request: httpx.Request) -> None:
        """Raise ClientError where a redirect leads off TLS, on which the files would be anyone's to read and change."""
        url, own = request.url, httpx.URL(self.url)
        if url.scheme != "https" and (url.scheme, url.host, url.port) != (own.scheme, own.host, own.port):
            message = f"{self.url} redirects to {url.scheme}://{url.host}, which is not https; nothing was asked there."
            raise ClientError(0, "openai_refused", message)

    def jobs(self) -> Iterator[OpenAIJob]:
        """All fine-tuning jobs, newest first; each page is requested when the iteration reaches it."""
        params: dict[str, Any] = {"limit": PAGE}
        while True:
            page = self._read(dict[str, Any], path_of("fine_tuning", "jobs"), "the fine-tuning jobs", params)
            data = page.get("data") or []
            yield from data
            if not page.get("has_more") or not data or data[-1]["id"] == params.get("after"):
                return
            params["after"] = data[-1]["id"]

    def job(self, job_id: str) -> OpenAIJob:
        """One fine-tuning job."""
        return self._read(OpenAIJob, path_of("fine_tuning", "jobs", job_id), f"the job {job_id}")

    def file(self, file_id: str) -> OpenAIFile:
        """One file, without its content."""
        return self._read(OpenAIFile, path_of("files", file_id), f"the file {file_id}")

    def download(self, file: OpenAIFile, target: Path, progress: Callable[[int], None] | None = None) -> None:
        """Save a file's content as ``target``, which is there only once it is complete.

        Args:
            progress: Called with the number of bytes that are saved, again and again; less than before where a try
                has begun anew.

        Raises:
            ClientError: Also `openai_incomplete`: it has another length than OpenAI says; `disk_full`, `not_writable`.
        """
        partial = target.with_name(f".{target.name}.partial")
        what = f"the content of {file['id']} ({file['filename']})"
        try:
            with writing(target):
                size = self._tried(what, lambda: self._save(file["id"], partial, what, progress))
                if size != file["bytes"]:
                    message = f"OpenAI sent {size} bytes as {what}, which has {file['bytes']}; try again."
                    raise ClientError(0, "openai_incomplete", message)
                partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def _save(self, file_id: str, target: Path, what: str, progress: Callable[[int], None] | None) -> int:
        with self._http.stream("GET", path_of("files", file_id, "content")) as response, target.open("wb") as out:
            if not response.is_success:
                response.read()
                raise self._refusal(response, what)
            size = 0
            for piece in response.iter_bytes(PIECE_BYTES):
                out.write(piece)
                size += len(piece)
                if progress is not None:
                    progress(size)
        return size

    def _read(self, cast_to: type[Item], path: str, what: str, params: Mapping[str, Any] | None = None) -> Item:
        """The object at a path, cast to ``cast_to`` unchecked."""

        def ask() -> Item:
            response = self._http.get(path, params=params)
            if not response.is_success:
                raise self._refusal(response, what)
            value = json_body(response)
            if not isinstance(value, dict):
                raise ClientError(0, "not_openai", f"{self.url} did not answer as OpenAI does; check --openai-url.")
            return cast(Item, value)

        return self._tried(what, ask)

    def _tried(self, what: str, ask: Callable[[], Item]) -> Item:
        """What ``ask`` returns; it is called again after a passing failure, as often and as late as OpenAI wants."""
        for pause_s in PAUSES_S:
            try:
                return ask()
            except httpx.RequestError:
                wait_s, reason = pause_s, "does not answer"
            except _Passing as error:
                wait_s, reason = pause_s if error.wait_s is None else error.wait_s, error.reason
                if wait_s > MAX_PAUSE_S:
                    raise error.final from error
            if self._on_wait is not None:
                self._on_wait(wait_s, reason)
            self._sleep(wait_s)
        try:
            return ask()
        except httpx.RequestError as error:
            message = f"Cannot read {what} from {self.url}: {str(error) or type(error).__name__}."
            raise ClientError(0, "openai_unreachable", message) from error
        except _Passing as error:
            raise error.final from error

    def _refusal(self, response: httpx.Response, what: str) -> Exception:
        """Why OpenAI did not answer with what was asked for: a ClientError, or a _Passing."""
        body = json_body(response)
        error = body.get("error") if isinstance(body, dict) else None
        error = error if isinstance(error, dict) else {}
        said = str(error.get("message") or f"status {response.status_code}").replace(self._key, "(the key)").strip()
        status = response.status_code
        if status == 401:
            text = "OpenAI does not accept OPENAI_API_KEY. Check that it is complete, is OpenAI's, and was not revoked."
            return ClientError(0, KEY_INVALID, text)
        if status == 403:
            return ClientError(0, "openai_forbidden", f"OPENAI_API_KEY may not read {what}. OpenAI says: {said}")
        if status == 404:
            return ClientError(
                0, NOT_FOUND, f"OpenAI no longer has {what}: it has expired, was deleted, or is another's."
            )
        if status == 429 and {error.get("code"), error.get("type")} & SPENT:
            return ClientError(0, "openai_quota", f"OpenAI refuses to send {what}: {said}")
        if status not in TRANSIENT or response.headers.get("x-should-retry") == "false":
            return ClientError(0, "openai_refused", f"OpenAI refused to send {what} (status {status}): {said}")
        wait_s = _retry_after(response.headers)
        again = f"try again in {wait_s:.0f} s" if wait_s is not None else "try again later"
        if status == 429:
            final = ClientError(
                0, "openai_rate_limited", f"OpenAI limits how often it is asked; {again}. It says: {said}"
            )
            return _Passing(final, wait_s, "limits how often it is asked")
        final = ClientError(0, "openai_unavailable", f"OpenAI cannot send {what} now (status {status}); {again}.")
        return _Passing(final, wait_s, f"answered with status {status}")


class _Passing(Exception):
    """A failure that another try may end.

    Args:
        final: What it is if no try did.
        wait_s: Seconds that OpenAI wants to pass before the next; None if it does not say.
        reason: What OpenAI did, as the rest of a sentence.
    """

    def __init__(self, final: ClientError, wait_s: float | None, reason: str) -> None:
        super().__init__(final.message)
        self.final = final
        self.wait_s = wait_s
        self.reason = reason


def _retry_after(headers: httpx.Headers) -> float | None:
    """The seconds in `retry-after-ms` or `retry-after` (RFC 9110: seconds, or a date); None without a valid one."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "")
        try:
            seconds = float(text) * unit_s
        except ValueError:
            continue
        return max(0.0, seconds) if isfinite(seconds) else None
    try:
        moment = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _checked_url(url: str) -> str:
    bare = without_v1(url)
    try:
        parts = urlsplit(bare)
        valid = parts.scheme == "https" or (parts.scheme == "http" and on_this_machine(bare))
    except ValueError:
        valid = False
    if not valid or not parts.hostname:
        message = f"{url!r} cannot be OpenAI's address: it must begin with https://, since the key is sent to it."
        raise ClientError(0, "openai_url_invalid", message)
    return bare
