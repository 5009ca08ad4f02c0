"""Sends the client's requests: checks the responses, follows pages, and turns every failure into a ClientError."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar, cast
from urllib.parse import quote

import httpx

from service.client.output import writing
from service.client.wire import CannotConnect, ClientError, json_body, refusal

CONNECT_S: Final = 5.0
QUICK: Final = httpx.Timeout(30, connect=CONNECT_S)
"""Reads and small writes."""
LONG: Final = httpx.Timeout(60, connect=CONNECT_S)
"""Requests that the trainer answers."""
PAGE: Final = 100
"""Items per page; the most that every list allows."""

Item = TypeVar("Item")


class Connection:
    """One connection pool to one gateway.

    Args:
        url: The gateway's address, for messages.
        http: Sends the requests; has the address and the key.

    Every method raises ClientError.
    """

    def __init__(self, url: str, http: httpx.Client) -> None:
        self.url = url
        self._http = http

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def request(self, cast_to: type[Item], method: str, path: str, **options: Any) -> Item:
        """Send a request that is answered by a JSON object.

        Args:
            cast_to: The typed dictionary that the object is. Nothing is checked or converted.
            options: As for `httpx.Client.request`.
        """
        response = self.checked(method, path, **options)
        value = json_body(response)
        if value is None:
            message = f"{self.url} returned something other than JSON; is it a Hatrack gateway?"
            raise ClientError(response.status_code, "not_hatrack", message)
        if not isinstance(value, dict):
            message = f"{self.url} returned something other than a JSON object; is it a Hatrack gateway?"
            raise ClientError(200, "not_hatrack", message)
        return cast(Item, value)

    def pages(
        self,
        cast_to: type[Item],
        path: str,
        filters: Mapping[str, Any] | None = None,
        *,
        page_size: int | None = None,
        cursor: str = "id",
        carry_over: tuple[str, ...] = (),
    ) -> Iterator[Item]:
        """The items of a list, page after page; each page is requested when the iteration reaches it.

        Args:
            cast_to: The typed dictionary that an item is.
            filters: Query parameters; None is left out.
            page_size: Items per page. None: 100.
            cursor: The field of an item that the next page continues after.
            carry_over: Fields of the first page that become query parameters of the following ones.
        """
        params = {**given(filters or {}), "limit": page_size or PAGE}
        while True:
            page = self.request(dict[str, Any], "GET", path, params=params)
            data = page.get("data") or []
            yield from data
            if not page.get("has_more") or not data or data[-1][cursor] == params.get("after"):
                return
            params |= {"after": data[-1][cursor], **{field: page[field] for field in carry_over}}

    def checked(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request and return its successful response, read to the end."""
        with self.translated():
            response = self._http.request(method, path, **options)
        if not response.is_success:
            raise refusal(response)
        return response

    def unchecked(self, method: str, path: str) -> httpx.Response:
        """Send a request and return its response, whatever its status."""
        with self.translated():
            return self._http.request(method, path)

    @contextmanager
    def stream(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """Send a request; the successful response is not read yet. Closes it in the end."""
        with self.translated(), self._http.stream(method, path, **options) as response:
            if not response.is_success:
                response.read()
                raise refusal(response)
            yield response

    def download(self, path: str, target: Path | str) -> int:
        """Save the bytes at a path; ``target`` is created only once they are complete. Returns their number.

        Raises:
            ClientError: `disk_full` or `not_writable`.
        """
        target = Path(target)
        part = target.with_name(target.name + ".part")
        with writing(target):
            try:
                headers = {"accept-encoding": "identity"}
                with self.stream("GET", path, headers=headers) as response, part.open("wb") as out:
                    for chunk in response.iter_bytes():
                        out.write(chunk)
                size = part.stat().st_size
                part.replace(target)
                return size
            finally:
                part.unlink(missing_ok=True)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn httpx's errors into ours."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise CannotConnect(self.url, str(error) or "no answer") from error
        except httpx.TimeoutException as error:
            message = f"{self.url} accepted the connection but did not answer in time."
            raise ClientError(0, "timeout", message) from error
        except httpx.TransportError as error:
            message = f"The connection to {self.url} broke: {str(error) or type(error).__name__}."
            raise ClientError(0, "connection_lost", message) from error


class Resource:
    """A group of calls on one kind of object, such as `client.adapters`. Every method raises ClientError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection


def path_of(*parts: object) -> str:
    """A path under `/v1`, its parts quoted."""
    return "/v1/" + "/".join(quote(str(part), safe="") for part in parts)


def given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
