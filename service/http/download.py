"""A file as an answer, whole or in part (`Range`), with errors in the one shape."""

from __future__ import annotations

from typing import Any, Final

from fastapi.responses import FileResponse
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from service.errors import BadRequest, HatrackError, RangeNotSatisfiable
from service.http.schema import ErrorResponse

BYTES: Final = "application/octet-stream"


RANGE_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    206: {
        "description": "The part that the header `Range` asks for; several parts come as multipart/byteranges.",
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}} for kind in (BYTES, "multipart/byteranges")
        },
    },
    416: {"model": ErrorResponse, "description": "`range_not_satisfiable`: the file does not reach so far."},
}
"""What a download may answer beside the file."""


class Download(FileResponse):
    """A file response. Unlike Starlette's, it refuses an invalid or unsatisfiable `Range` with a JSON error."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        refused: HatrackError | None = None

        async def send_in_shape(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] in (400, 416):
                refused = (
                    BadRequest(
                        "`Range` must be `bytes=FIRST-LAST`, or a comma-separated list of such ranges", param="Range"
                    )
                    if message["status"] == 400
                    else RangeNotSatisfiable("`Range` is beyond the end of the file", param="Range")
                )
                headers = MutableHeaders(raw=list(message.get("headers", ())))
                headers["content-type"], headers["content-length"] = "application/json", str(len(refused.body()))
                message = {**message, "headers": headers.raw}
            elif message["type"] == "http.response.body" and refused is not None:
                message = {**message, "body": refused.body()}
            await send(message)

        await super().__call__(scope, receive, send_in_shape)
