"""How the client asks: one request, its answer as JSON, and every failure as a ClientError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from service.client_wire import CannotConnect, ClientError, JsonObject, json_body, refusal


class Caller:
    """What every group of the client's calls is built on.

    Args:
        url: The gateway's address, for messages.
        http: Sends the requests; has that address and the key.
    """

    def __init__(self, url: str, http: httpx.Client) -> None:
        self.url = url
        self._http = http

    def _object(self, method: str, path: str, **options: Any) -> JsonObject:
        value = self._request(method, path, **options)
        if not isinstance(value, dict):
            raise ClientError(200, "not_hatrack", f"{self.url} answered {method} {path} with no JSON object.")
        return value

    def _request(self, method: str, path: str, **options: Any) -> Any:
        with self._translated():
            response = self._http.request(method, path, **options)
        return self._checked(response)

    def _checked(self, response: httpx.Response) -> Any:
        if not response.is_success:
            raise refusal(response)
        if not response.content:
            return None
        value = json_body(response)
        if value is None:
            message = f"{self.url} answered with something that is not JSON: is it a Hatrack gateway?"
            raise ClientError(response.status_code, "not_hatrack", message)
        return value

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn httpx's errors into ours."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise CannotConnect(self.url, str(error) or "no answer") from error
        except httpx.TimeoutException as error:
            message = f"{self.url} took the connection but did not answer in time."
            raise ClientError(0, "timeout", message) from error
        except httpx.TransportError as error:
            message = f"The connection to {self.url} broke: {str(error) or type(error).__name__}."
            raise ClientError(0, "connection_lost", message) from error
