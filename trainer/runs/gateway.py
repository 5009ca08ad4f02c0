"""The worker's HTTP client for the gateway; it uses the run's key, like any other client."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx

from adapters.protocol.runs import FileRef
from trainer.durable import replaced_file
from trainer.errors import GatewayRefused, GatewayUnreachable
from trainer.installation import BaseGone
from trainer.tune.lineage import CONFIG_FILE, WEIGHTS_FILE

T = TypeVar("T")
TIMEOUT: Final = httpx.Timeout(30, connect=5)
PUSH_TIMEOUT: Final = httpx.Timeout(60, connect=5, read=900)
"""An upload is answered once the adapter is proven, and the proof yields to callers' requests."""
LOAD_TIMEOUT: Final = httpx.Timeout(2)
PATIENCE_S: Final = 900.0
"""How long the gateway may be unavailable (an upgrade, an engine restart) before a run gives up."""
RETRY_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
TOLD_AFTER: Final = 2
"""Failed tries before an outage is told: 1.5 s."""
AWAY: Final = frozenset({500, 502, 503, 504})
RETRYABLE: Final = frozenset({408, 409, 429, 500, 502, 503, 504})
"""Statuses that are worth a retry. Pushing the same adapter again gives the same version."""
RETRYABLE_EXCEPT_CONFLICT: Final = RETRYABLE - {409}
"""The same, for calls where a conflict is a final answer."""
NO_STORE: Final = "vector_store_not_found"
FILTER_MISSING: Final = "required_filter_missing"
ANSWER_PARTS: Final = ("content", "reasoning_content", "reasoning", "tool_calls")
"""Parts of a chunk's `delta` that the model has written."""


class Gateway:
    """A client of one gateway with the run's key.

    Every method but `load` retries for up to PATIENCE_S, then raises GatewayUnreachable or GatewayRefused.

    Args:
        wait: Called instead of `time.sleep`; may raise to stop waiting.
        on_outage: Called with the reason when the gateway, or its engine, has failed to answer for some seconds, and
            with None when it answers again.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        wait: Callable[[float], None] = time.sleep,
        on_outage: Callable[[str | None], None] | None = None,
    ) -> None:
        self._http = httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=TIMEOUT)
        self._wait = wait
        self._on_outage = on_outage or (lambda _reason: None)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def fetch(self, file: FileRef, target: Path) -> None:
        """Atomically write a file's content to `target`. Raises GatewayRefused if its digest does not match."""
        self._with_retries(lambda: self._fetch(f"/v1/files/{file.id}/content", target, file.sha256))

    def fetch_content(self, file_id: str, target: Path) -> None:
        """Atomically write the content of the file with this id to `target`; no digest is checked."""
        self._with_retries(lambda: self._fetch(f"/v1/files/{file_id}/content", target, None))

    def fetch_adapter(self, model: str, directory: Path) -> None:
        """Write the two files of `name@version` into `directory`."""
        name, _, version = model.partition("@")
        place = f"/v1/adapters/{name}/versions/{version}/files"
        directory.mkdir(parents=True, exist_ok=True)
        self._with_retries(lambda: self._fetch(f"{place}/config", directory / CONFIG_FILE, None))
        self._with_retries(lambda: self._fetch(f"{place}/weights", directory / WEIGHTS_FILE, None))

    def push(
        self,
        name: str,
        directory: Path,
        *,
        base: str,
        alias: str,
        settings: dict[str, Any],
        metadata: str,
        expires_at: int | None = None,
    ) -> dict[str, Any]:
        """Upload the adapter in `directory`, wait for its proof, and return the version object.

        Args:
            base: The served name of the base that it was trained for; the gateway refuses one that it does not serve.
            expires_at: When the gateway deletes the version, in Unix seconds; None: never.
        """
        fields = {"name": name, "base": base, "alias": alias, "settings": json.dumps(settings), "metadata": metadata}
        if expires_at is not None:
            fields["expires_at"] = str(expires_at)
        return self._with_retries(lambda: self._push(directory, fields))

    def push_settings(self, name: str, settings: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
        """Make a version without weights that no alias points to, and return the version object.

        Equal settings return the version that has them already.
        """
        body = {"name": name, "settings": settings, "metadata": metadata, "alias": ""}
        send = partial(self._http.post, "/v1/adapters", json=body, timeout=PUSH_TIMEOUT)
        return self._with_retries(lambda: self._json(send))

    def create_store(self, name: str, file_id: str) -> str:
        """Make a vector store of one file, and return its id before the file is indexed."""
        body = {"name": name, "file_ids": [file_id]}
        store = self._with_retries(lambda: self._json(lambda: self._http.post("/v1/vector_stores", json=body)))
        return str(store["id"])

    def store_named(self, name: str) -> str | None:
        """The id of the newest vector store of this name among the last 100; None if there is none."""
        listed = self._with_retries(
            lambda: self._json(lambda: self._http.get("/v1/vector_stores", params={"limit": "100"}))
        )
        return next((str(store["id"]) for store in listed["data"] if store["name"] == name), None)

    def store(self, store_id: str) -> dict[str, Any]:
        """The vector store object."""
        return self._with_retries(lambda: self._json(lambda: self._http.get(f"/v1/vector_stores/{store_id}")))

    def indexing_errors(self, store_id: str) -> list[str]:
        """Why files of a vector store could not be indexed, by its last 100 of them."""
        path, params = f"/v1/vector_stores/{store_id}/files", {"filter": "failed", "limit": "100"}
        listed = self._with_retries(lambda: self._json(lambda: self._http.get(path, params=params)))
        return [str(file["last_error"]["message"]) for file in listed["data"] if file.get("last_error")]

    def finds(self, store_id: str, filters: Mapping[str, Any]) -> bool:
        """Whether a search of the vector store with these filters finds anything."""
        body = {"query": "anything", "filters": filters, "max_num_results": 1}
        path = f"/v1/vector_stores/{store_id}/search"
        return bool(self._with_retries(lambda: self._json(lambda: self._http.post(path, json=body)))["data"])

    def adapter(self, name: str) -> dict[str, Any]:
        """The adapter object, with its versions and aliases."""
        return self._with_retries(lambda: self._json(lambda: self._http.get(f"/v1/adapters/{name}")))

    def upload_file(self, name: str, content: bytes, purpose: str) -> str:
        """Upload a file and return its id."""
        uploaded = self._with_retries(
            lambda: self._json(
                lambda: self._http.post("/v1/files", data={"purpose": purpose}, files={"file": (name, content)})
            )
        )
        return str(uploaded["id"])

    def record_verdict(self, model: str, body: dict[str, Any]) -> None:
        """Record a verdict on `name@version`, unless the newest recorded verdict is the same."""
        name, _, version = model.partition("@")
        place = f"/v1/adapters/{name}/versions/{version}/verdicts"

        def attempt() -> None:
            newest = self._json(lambda: self._http.get(place, params={"limit": 1}))["data"]
            if not any(_is_same_verdict(verdict, body) for verdict in newest):
                self._json(lambda: self._http.post(place, json=body))

        self._with_retries(attempt, RETRYABLE_EXCEPT_CONFLICT)

    def set_alias(self, model: str, alias: str, expected: int | None) -> None:
        """Point an alias to `name@version`, if it still points to version `expected`.

        Raises:
            GatewayRefused: The alias has moved, or the version cannot serve; see `gateway_code`.
        """
        name, _, version = model.partition("@")
        body = {"version": int(version), "expected": expected}
        place = f"/v1/adapters/{name}/aliases/{alias}"
        self._with_retries(
            lambda: self._json(lambda: self._http.put(place, json=body, timeout=PUSH_TIMEOUT)),
            RETRYABLE_EXCEPT_CONFLICT,
        )

    def is_servable(self, model: str) -> bool:
        """Whether `name@version` can serve now."""
        return bool(self._version(model)["servable"] == "ok")

    def _version(self, model: str) -> dict[str, Any]:
        name, _, version = model.partition("@")
        return self._with_retries(lambda: self._json(lambda: self._http.get(f"/v1/adapters/{name}/versions/{version}")))

    def settings(self, model: str) -> dict[str, Any]:
        """The serving settings of `name@version`; empty if none are set."""
        return {**(self._version(model).get("settings") or {})}

    def metadata(self, model: str) -> dict[str, Any]:
        """The metadata that was uploaded with `name@version`."""
        return {**(self._version(model).get("metadata") or {})}

    def held_out_file(self, model: str) -> str | None:
        """The id of the file with the examples that the job of `name@version` held out; None if it is not known."""
        name, _, version = model.partition("@")
        place = f"/v1/adapters/{name}/versions/{version}/verdicts"
        params: dict[str, str] = {"limit": "100"}
        while True:
            page = self._with_retries(lambda: self._json(lambda: self._http.get(place, params=params)))
            for verdict in page["data"]:
                if verdict.get("kind") == "training":
                    file_id = (verdict.get("files") or {}).get("held_out")
                    return None if file_id is None else str(file_id)
            if not page.get("has_more"):
                return None
            params["after"] = str(page["last_id"])

    def can_read_stores(self, model: str) -> bool:
        """Whether this key may read the vector stores that `model` is grounded in; asks the model for one token."""
        body = {"model": model, "messages": [{"role": "user", "content": "?"}], "max_tokens": 1, "temperature": 0}
        send = partial(self._http.post, "/v1/chat/completions", json=body, timeout=PUSH_TIMEOUT)
        try:
            self._with_retries(lambda: self._json(send), RETRYABLE_EXCEPT_CONFLICT)
        except GatewayRefused as refused:
            if refused.gateway_code == FILTER_MISSING:
                return True  # not known: an evaluation's questions give the value, and say what they may not read
            if refused.gateway_code != NO_STORE:
                raise
            return False
        return True

    def rendered(self, model: str, messages: list[dict[str, str]], grounding: dict[str, Any]) -> list[dict[str, Any]]:
        """The messages as the engine would get them from `model`, with what `grounding` retrieves; nothing is asked."""
        body = {"model": model, "messages": messages, "grounding": grounding}
        path = "/v1/chat/completions/render"
        answer = self._with_retries(lambda: self._json(lambda: self._http.post(path, json=body)))
        rendered: list[dict[str, Any]] = answer["messages"]
        return rendered

    def first_token_seconds(self, body: dict[str, Any]) -> float:
        """Stream a chat completion to its end, and return the seconds from sending it to its first token."""
        return self._with_retries(lambda: self._first_token_seconds(body | {"stream": True}))

    def fingerprint(self, base_name: str) -> str:
        """The fingerprint of what is served, a short text that differs if any base or its engine does.

        Waits until an engine of the base is ready. All bases count: a version may be compared with one on another.
        """

        def ask() -> str:
            return engine_fingerprint(self._json(lambda: self._http.get("/readyz")), base_name)

        return self._with_retries(ask)

    def count_tokens(self, model: str, text: str) -> int:
        """The number of tokens in `text`."""
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        return int(self._with_retries(lambda: self._json(lambda: self._http.post("/v1/tokenize", json=body)))["count"])

    def load(self) -> tuple[int, int]:
        """The numbers of callers' requests that wait and that are in flight.

        Raises:
            GatewayUnreachable, GatewayRefused: Without a retry.
        """
        load = self._json(lambda: self._http.get("/v1/load", timeout=LOAD_TIMEOUT))
        return int(load["waiting"]), int(load["in_flight"])

    def _push(self, directory: Path, fields: dict[str, str]) -> dict[str, Any]:
        with (directory / WEIGHTS_FILE).open("rb") as weights:
            return self._json(
                lambda: self._http.post(
                    "/v1/adapters",
                    data=fields,
                    files={
                        "config": (CONFIG_FILE, (directory / CONFIG_FILE).read_bytes()),
                        "weights": (WEIGHTS_FILE, weights),
                    },
                    timeout=PUSH_TIMEOUT,
                )
            )

    def _fetch(self, path: str, target: Path, sha256: str | None) -> None:
        digest = hashlib.sha256()
        try:
            with self._http.stream("GET", path) as response:
                if response.status_code != 200:
                    response.read()
                    raise _refused(response)
                with replaced_file(target) as file:
                    for chunk in response.iter_bytes():
                        digest.update(chunk)
                        file.write(chunk)
                    if sha256 is not None and digest.hexdigest() != sha256:
                        raise GatewayRefused(0, "file_changed", f"the content of {path} does not match its SHA-256")
        except httpx.TransportError as error:
            raise GatewayUnreachable(f"cannot reach the gateway: {error}") from error

    def _first_token_seconds(self, body: dict[str, Any]) -> float:
        first: float | None = None
        began = time.monotonic()
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body, timeout=PUSH_TIMEOUT) as response:
                if response.status_code != 200:
                    response.read()
                    raise _refused(response)
                for line in response.iter_lines():
                    event = _event(line)
                    if "error" in event:
                        raise GatewayRefused(0, str(event["error"].get("code")), str(event["error"].get("message")))
                    if first is None and _has_token(event):
                        first = time.monotonic() - began
        except httpx.TransportError as error:
            raise GatewayUnreachable(f"cannot reach the gateway: {error}") from error
        if first is None:
            raise GatewayRefused(0, "no_token", "the answer has no token")
        return first

    def _json(self, send: Callable[[], httpx.Response]) -> dict[str, Any]:
        try:
            response = send()
        except httpx.TransportError as error:
            raise GatewayUnreachable(f"cannot reach the gateway: {error}") from error
        if response.status_code >= 300:
            raise _refused(response)
        content: dict[str, Any] = response.json()
        return content

    def _with_retries(self, attempt: Callable[[], T], retryable: frozenset[int] = RETRYABLE) -> T:
        """Call `attempt` until it succeeds, is refused for good, or PATIENCE_S have passed."""
        deadline = time.monotonic() + PATIENCE_S
        outage = False
        for tries in range(10_000):
            try:
                answer = attempt()
            except (GatewayUnreachable, GatewayRefused) as error:
                status = error.status if isinstance(error, GatewayRefused) else None
                if (status is not None and status not in retryable) or time.monotonic() > deadline:
                    raise
                if not outage and tries >= TOLD_AFTER and status in (None, *AWAY):
                    outage = True
                    self._on_outage(error.message)
            else:
                if outage:
                    self._on_outage(None)
                return answer
            self._wait(RETRY_S[min(tries, len(RETRY_S) - 1)])
        raise GatewayUnreachable("the gateway did not answer")


def engine_fingerprint(readiness: dict[str, Any], base_name: str) -> str:
    """See ``Gateway.fingerprint``.

    Raises:
        GatewayUnreachable: No engine of the base is ready.
        BaseGone: It has none, which waiting does not change.
    """
    engines = readiness.get("engines")
    if not engines:
        return str(readiness["fingerprint"])
    states = {engine["state"] for engine in engines if engine["base"] == base_name}
    if not states:
        raise BaseGone(base_name, dict.fromkeys(engine["base"] for engine in engines))
    if "ready" not in states:
        raise GatewayUnreachable(f"no engine of the base `{base_name}` is ready: {', '.join(sorted(states))}")
    return " ".join(sorted({f"{engine['base']}:{engine['fingerprint']}" for engine in engines}))


def _event(line: str) -> dict[str, Any]:
    """The object of a line of an event stream; empty for other lines and for the end."""
    data = line.removeprefix("data:").strip()
    if not line.startswith("data:") or data == "[DONE]":
        return {}
    event: dict[str, Any] = json.loads(data)
    return event


def _has_token(event: dict[str, Any]) -> bool:
    """Whether a chunk of a chat completion has a part of the answer, its reasoning included, or ends it."""
    return any(
        choice.get("finish_reason") is not None or any(choice.get("delta", {}).get(part) for part in ANSWER_PARTS)
        for choice in event.get("choices") or ()
    )


def _is_same_verdict(recorded: dict[str, Any], body: dict[str, Any]) -> bool:
    return all(recorded.get(field) == body[field] for field in ("kind", "verdict", "sentence", "files"))


def _refused(response: httpx.Response) -> GatewayRefused:
    try:
        error = response.json()["error"]
        return GatewayRefused(response.status_code, str(error.get("code")), str(error.get("message")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return GatewayRefused(response.status_code, "unexpected_answer", f"status {response.status_code}")
