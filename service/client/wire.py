"""What the client reads off the wire: the error shape, server-sent events, and the errors that they become."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias

import httpx

JsonObject: TypeAlias = dict[str, Any]
_ERRNO: Final = re.compile(r"^\[Errno -?\d+\] ")
FINAL_STATUSES: Final = frozenset({"succeeded", "failed", "cancelled"})
"""Statuses of jobs and evaluations that have ended."""
REBASE: Final = "rebase"
"""The key in a job's metadata that `hatrack rebase` finds its jobs by."""


def base_names(models: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of the bases among the models of `GET /v1/models`, the default first.

    An adapter whose base is not served has no parent either, but a version of its own as its root.
    """
    return [
        model["id"]
        for model in models
        if model.get("parent") is None and model.get("type") == "chat" and model.get("root", model["id"]) == model["id"]
    ]


class ClientError(Exception):
    """A request that did not succeed.

    Args:
        status: HTTP status; 0 where there was no answer or nothing was sent.
        code: Machine-readable reason: the gateway's `error.code`, or one of this module's.
        message: A sentence for a person.
        param: The field at fault, or None.
    """

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param

    def payload(self) -> JsonObject:
        """The error in the shape that the gateway uses on the wire, with the status beside it."""
        error = {"message": self.message, "code": self.code, "param": self.param, "status": self.status or None}
        return {"error": error}


class CannotConnect(ClientError):
    """No gateway answers at the URL."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            0,
            "cannot_connect",
            f"Cannot connect to Hatrack at {url} ({_ERRNO.sub('', reason)}). Start it with `hatrack up`, or name "
            "another gateway: set HATRACK_URL, or run `hatrack login URL`.",
        )


def json_body(response: httpx.Response) -> Any:
    """The body as JSON; None if it is not JSON, as from a proxy or another server."""
    try:
        return json.loads(response.content)
    except ValueError:
        return None


def refusal(response: httpx.Response) -> ClientError:
    """The error for an unsuccessful response, whoever sent it."""
    body = json_body(response)
    if isinstance(body, dict) and "error" in body:
        return error_of(response.status_code, body)
    address = f"{response.url.scheme}://{response.url.netloc.decode('ascii')}"
    text = (
        f"Something other than Hatrack answered at {address}: a proxy in between, or another server. "
        "Check the address, and the proxy's own log."
    )
    return ClientError(response.status_code, "not_hatrack", text)


def error_of(status: int, body: Mapping[str, Any]) -> ClientError:
    """The error in a body or in an event of a stream."""
    error = body["error"]
    if not isinstance(error, dict):
        return ClientError(status, "unknown", str(error))
    code = error.get("code") or error.get("type") or "unknown"
    return ClientError(status, str(code), str(error.get("message") or "No reason given."), error.get("param"))


def events(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The data of server-sent events, one line each.

    Cut at line feeds in the bytes: `iter_lines` of httpx also cuts at U+2028 and its like, which may stand in a text.
    """
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def event_of(data: bytes) -> JsonObject:
    """The object in one event. Raises ClientError `not_hatrack`."""
    try:
        event = json.loads(data)
    except ValueError as error:
        raise ClientError(200, "not_hatrack", "The stream contained an event that is not JSON.") from error
    if not isinstance(event, dict):
        raise ClientError(200, "not_hatrack", "The stream contained an event that is not a JSON object.")
    return event
