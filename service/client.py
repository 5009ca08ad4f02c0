"""A Python client for Hatrack's control plane and for streamed chat; it speaks HTTP only.

    with HatrackClient() as hatrack:
        hatrack.push("brand-voice", "out/brand-voice")
        hatrack.promote("brand-voice@3")

Applications that only ask a model use the `openai` client; this one is for those who look after the adapters.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self, Unpack

import httpx

from adapters.names import DEFAULT_ALIAS, parse_reference
from service.addresses import on_this_machine, without_v1
from service.client_access import AccessCalls
from service.client_evaluation import EvaluationCalls
from service.client_grounding import GroundingCalls
from service.client_revalidate import RevalidationCalls
from service.client_reviews import ReviewCalls
from service.client_traffic import WARMING, TrafficCalls, adapter_path
from service.client_training import TrainingCalls
from service.client_upload import (
    CONFIG_FILE,
    README_FILE,
    WEIGHTS_FILE,
    AdapterDirectory,
    CountedFile,
    read_json_object,
)
from service.client_usage import UsageQuestion, all_pages
from service.client_wire import CannotConnect, ClientError, JsonObject, error_of, event_of, events, json_body, refusal
from service.config import ClientSettings

__all__ = ["AdapterDirectory", "CannotConnect", "ClientError", "HatrackClient", "JsonObject", "read_json_object"]

_CONNECT_S: Final = 5.0
_POLL_S: Final = 0.25
QUICK: Final = httpx.Timeout(30, connect=_CONNECT_S)
"""Reads and small writes of the registry."""
PROVING: Final = httpx.Timeout(60, connect=_CONNECT_S, read=360)
"""An upload that waits for its proof; above the gateway's own limit, so that its answer arrives and not our timeout."""
GENERATING: Final = httpx.Timeout(60, connect=_CONNECT_S, read=600)
"""Between two pieces of a streamed answer; the first may wait for a slot."""


class HatrackClient(
    AccessCalls, TrafficCalls, TrainingCalls, EvaluationCalls, ReviewCalls, RevalidationCalls, GroundingCalls
):
    """One gateway, one key, one connection pool; usable as a context manager.

    Args:
        base_url: The gateway's address, with or without `/v1`. None: `HATRACK_URL`, else `OPENAI_BASE_URL`,
            else http://127.0.0.1:8000.
        api_key: The key. None: `HATRACK_KEY`, else `OPENAI_API_KEY` where the address is `OPENAI_BASE_URL`, else, for a
            gateway on this machine, the admin key under `HATRACK_HOME`.
        project: The project that an admin's key acts in. None: `HATRACK_PROJECT`, else the gateway's `default`.
        transport: Another way to reach the gateway, such as `httpx.ASGITransport`.

    Every method raises ClientError (CannotConnect where nobody listens).
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        project: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        settings = ClientSettings()
        url = _checked_url(without_v1(base_url if base_url is not None else settings.gateway_url))
        found = api_key if api_key is not None else settings.gateway_key(url)
        if found is not None and not (found.isascii() and found.isprintable()):
            raise ClientError(0, "key_invalid", "The API key holds characters that no key of Hatrack has.")
        acts_in = project or settings.project
        http = httpx.Client(
            base_url=url,
            headers=({"authorization": f"Bearer {found}"} if found else {})
            | ({"openai-project": acts_in} if acts_in else {}),
            timeout=QUICK,
            transport=transport,
            trust_env=not on_this_machine(url),  # a proxy cannot reach our loopback address
        )
        super().__init__(url, http)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # state

    def health(self) -> JsonObject:
        """The process's own health; needs no key."""
        return self._object("GET", "/healthz")

    def ready(self) -> JsonObject:
        """The readiness report, whether it says ready (200) or not (503); needs no key."""
        with self._translated():
            response = self._http.get("/readyz")
        if response.status_code == 503:
            report = json_body(response)
            if isinstance(report, dict) and "status" in report:
                return report
        checked = self._checked(response)
        return checked if isinstance(checked, dict) else {}

    def wait_ready(self, timeout_s: float) -> JsonObject:
        """Ask for readiness until the gateway says yes; a gateway that does not listen yet is waited for, too.

        Raises:
            ClientError: `not_ready`: it was not within `timeout_s` seconds; the message has the last reason.
        """
        end = time.monotonic() + timeout_s
        while True:
            try:
                report = self.ready()
                if report.get("status") == "ready":
                    return report
                reason = json.dumps(report.get("engine") or report.get("status"), ensure_ascii=False)
            except ClientError as error:
                if error.status:
                    raise
                reason = error.message
            if time.monotonic() >= end:
                raise ClientError(503, "not_ready", f"{self.url} was not ready within {timeout_s:g} s: {reason}")
            time.sleep(_POLL_S)

    def metrics(self) -> str:
        """The gateway's `/metrics`, in Prometheus' text format."""
        with self._translated():
            response = self._http.get("/metrics")
        if not response.is_success:
            raise refusal(response)
        return response.text

    def models(self) -> list[JsonObject]:
        """What a request may name as `model`: the base first, then adapters with a `live` alias."""
        return list(self._object("GET", "/v1/models").get("data", []))

    # adapters

    def adapters(self) -> list[JsonObject]:
        """All adapters, page after page."""
        found: list[JsonObject] = []
        after: dict[str, str] = {}
        while True:
            page = self._object("GET", "/v1/adapters", params=after)
            data = page.get("data", [])
            found.extend(data)
            if not page.get("has_more") or not data or data[-1]["name"] == after.get("after"):
                return found
            after = {"after": data[-1]["name"]}

    def adapter(self, name: str) -> JsonObject:
        """One adapter with its aliases and versions."""
        return self._object("GET", adapter_path(name))

    def version(self, name: str, version: int) -> JsonObject:
        """One version of an adapter, also a rejected one."""
        return self._object("GET", adapter_path(name, "versions", version))

    def push(
        self,
        name: str,
        directory: Path | str | AdapterDirectory,
        *,
        settings: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        alias: str | None = None,
        wait: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> JsonObject:
        """Upload the output directory of a PEFT run as a new version.

        Args:
            name: The adapter's name; made if there is none.
            directory: Holds adapter_config.json and adapter_model.safetensors, and perhaps README.md, metadata.json
                and settings.json.
            settings: In the place of settings.json: `system_prompt`, `sampling`.
            metadata: In the place of metadata.json.
            alias: Moved to the version when it is ready. None: the gateway's rule (`live` for a name's first
                version); an empty string: none.
            wait: Wait until the version is proven; else it comes back as `proving`.
            progress: Called with the number of weights bytes sent since its last call.

        Returns:
            The version object.
        """
        source = directory if isinstance(directory, AdapterDirectory) else AdapterDirectory.read(directory)
        fields = {"name": name}
        if alias is not None:
            fields["alias"] = alias
        for field, value in (("settings", settings), ("metadata", metadata)):
            chosen = value if value is not None else getattr(source, field)
            if chosen is not None:
                fields[field] = json.dumps(chosen, ensure_ascii=False)
        try:
            weights = CountedFile(source.weights, progress or (lambda _sent: None))
            files: dict[str, tuple[str, Any, str]] = {
                "config": (CONFIG_FILE, source.config.read_bytes(), "application/json")
            }
            if source.readme is not None:
                files["readme"] = (README_FILE, source.readme.read_bytes(), "text/markdown")
        except OSError as error:
            raise ClientError(0, "not_readable", f"{error.filename} cannot be read: {error.strerror}.") from error
        files["weights"] = (WEIGHTS_FILE, weights, "application/octet-stream")
        params = {} if wait else {"wait": "false"}
        with weights:
            return self._object("POST", "/v1/adapters", params=params, data=fields, files=files, timeout=PROVING)

    def promote(self, reference: str, alias: str = DEFAULT_ALIAS) -> JsonObject:
        """Point an alias at a version, `brand-voice@3`; the gateway warms it first.

        Raises:
            ClientError: `version_missing` where the reference names no version.
            adapters.errors.AdapterError: The reference is not well formed.
        """
        target = parse_reference(reference)
        if target.version is None:
            raise ClientError(0, "version_missing", f"Say which version: {target.name}@3.", "reference")
        return self._object(
            "PUT", adapter_path(target.name, "aliases", alias), json={"version": target.version}, timeout=WARMING
        )

    def rollback(self, name: str, alias: str = DEFAULT_ALIAS) -> JsonObject:
        """Point an alias at the version that it pointed at before."""
        return self._object("POST", adapter_path(name, "aliases", alias, "rollback"), timeout=WARMING)

    def remove(self, reference: str, *, force: bool = False) -> None:
        """Delete a version (`brand-voice@2`) or an adapter with all its versions (`brand-voice`).

        Args:
            force: Also where an alias points there.

        Raises:
            ClientError: `reference_invalid` for an alias: deleting through one would be a guess at what is meant.
            adapters.errors.AdapterError: The reference is not well formed.
        """
        target = parse_reference(reference)
        if target.alias is not None:
            message = f"{reference} is an alias: name a version ({target.name}@2) or the whole adapter ({target.name})."
            raise ClientError(0, "reference_invalid", message, "reference")
        below = () if target.version is None else ("versions", target.version)
        path = adapter_path(target.name, *below)
        self._request("DELETE", path, params={"force": "true"} if force else {})

    def download(self, name: str, version: int, file: Literal["config", "weights"], target: Path) -> int:
        """Fetch a file as it was uploaded, byte for byte; `target` appears only when it is whole.

        Returns:
            Its size in bytes.
        """
        part = target.with_name(target.name + ".part")
        headers = {"accept-encoding": "identity"}
        path = adapter_path(name, "versions", version, "files", file)
        try:
            with self._translated(), self._http.stream("GET", path, headers=headers) as response:
                if not response.is_success:
                    response.read()
                    raise refusal(response)
                with part.open("wb") as out:
                    for chunk in response.iter_bytes():
                        out.write(chunk)
            size = part.stat().st_size
            part.replace(target)
            return size
        finally:
            part.unlink(missing_ok=True)

    # usage

    def usage(self, **question: Unpack[UsageQuestion]) -> list[JsonObject]:
        """Rows of usage, oldest first, page after page; of the last 24 hours where nothing else is asked."""
        return all_pages(lambda params: self._object("GET", "/v1/usage", params=params), question)

    # inference

    def chat_stream(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        cited: list[JsonObject] | None = None,
        **params: Any,
    ) -> Generator[str, None, None]:
        """Ask a model and yield its answer in pieces of text as they come.

        Closing the generator early closes the connection, which stops the generation.

        Args:
            cited: Takes the answer's citations, where it has any.
            params: More fields of the request, such as `max_tokens` or `temperature`.

        Raises:
            ClientError: Also in mid-stream: the gateway's error event, or `stream_cut` where the answer has no end.
        """
        body = {"model": model, "messages": list(messages), "stream": True, **params}
        with (
            self._translated(),
            self._http.stream("POST", "/v1/chat/completions", json=body, timeout=GENERATING) as response,
        ):
            if not response.is_success:
                response.read()
                raise refusal(response)
            for data in events(response.iter_bytes()):
                if data == b"[DONE]":
                    return
                event = event_of(data)
                if "error" in event:
                    raise error_of(response.status_code, event)
                if cited is not None:
                    cited += event.get("citations") or []
                for choice in event.get("choices") or []:
                    if text := (choice.get("delta") or {}).get("content"):
                        yield text
        raise ClientError(200, "stream_cut", "The answer broke off: the stream ended before its end mark.")


def _checked_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ClientError(0, "url_invalid", f"{url!r} is not a URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ClientError(0, "url_invalid", f"{url!r} is not an address of a gateway: write http://HOST:PORT.")
    return url
