"""A worker's way to the gateway: plain HTTP with the job's key, like any other client."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx

from adapters.protocol.runs import FileRef
from trainer.durable import replaced_file
from trainer.errors import GatewayRefused, GatewayUnreachable
from trainer.tune.lineage import CONFIG_FILE, WEIGHTS_FILE

T = TypeVar("T")
TIMEOUT: Final = httpx.Timeout(30, connect=5)
PUSH_TIMEOUT: Final = httpx.Timeout(60, connect=5, read=900)
"""An upload is answered when it is proven; the proof waits for callers."""
LOAD_TIMEOUT: Final = httpx.Timeout(2)
PATIENCE_S: Final = 900.0
"""How long a gateway may be away (an upgrade, a restart of the engine) before a job gives up."""
RETRY_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
PASSING: Final = frozenset({408, 409, 429, 500, 502, 503, 504})
"""Answers that another attempt may better. A push is the same version however often it is sent."""
DECIDED: Final = PASSING - {409}
"""The same where a conflict is an answer: it stays one."""
NO_STORE: Final = "vector_store_not_found"


class Gateway:
    """One gateway and the job's key.

    Args:
        wait: Called instead of sleeping, with seconds; may raise to end the waiting.
    """

    def __init__(self, url: str, key: str, *, wait: Callable[[float], None] = time.sleep) -> None:
        self._http = httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=TIMEOUT)
        self._wait = wait

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def fetch(self, file: FileRef, target: Path) -> None:
        """Write a file's content to `target`, whole or not at all, and only if it is what its digest says."""
        self._persist(lambda: self._fetch(f"/v1/files/{file.id}/content", target, file.sha256))

    def fetch_content(self, file_id: str, target: Path) -> None:
        """Write to `target` the content of a file of which the id alone is known."""
        self._persist(lambda: self._fetch(f"/v1/files/{file_id}/content", target, None))

    def fetch_adapter(self, model: str, directory: Path) -> None:
        """Write the two files of `name@version` into `directory`."""
        name, _, version = model.partition("@")
        place = f"/v1/adapters/{name}/versions/{version}/files"
        directory.mkdir(parents=True, exist_ok=True)
        self._persist(lambda: self._fetch(f"{place}/config", directory / CONFIG_FILE, None))
        self._persist(lambda: self._fetch(f"{place}/weights", directory / WEIGHTS_FILE, None))

    def push(
        self, name: str, directory: Path, *, alias: str, settings: dict[str, Any], metadata: str
    ) -> dict[str, Any]:
        """Upload the adapter in `directory` and wait for its proof; the version object."""
        return self._persist(lambda: self._push(name, directory, alias, settings, metadata))

    def adapter(self, name: str) -> dict[str, Any]:
        """An adapter with its versions and aliases."""
        return self._persist(lambda: self._json(lambda: self._http.get(f"/v1/adapters/{name}")))

    def keep(self, name: str, content: bytes, purpose: str) -> str:
        """Upload a file; its id."""
        found = self._persist(
            lambda: self._json(
                lambda: self._http.post("/v1/files", data={"purpose": purpose}, files={"file": (name, content)})
            )
        )
        return str(found["id"])

    def record_verdict(self, model: str, body: dict[str, Any]) -> None:
        """Write a verdict on `name@version` down, unless the newest one there says the same already."""
        name, _, version = model.partition("@")
        place = f"/v1/adapters/{name}/versions/{version}/verdicts"

        def attempt() -> None:
            there = self._json(lambda: self._http.get(place, params={"limit": 1}))["data"]
            if not any(_says_the_same(verdict, body) for verdict in there):
                self._json(lambda: self._http.post(place, json=body))

        self._persist(attempt, DECIDED)

    def aim(self, model: str, alias: str, expected: int | None) -> None:
        """Point an alias to `name@version`, if it still points where it did.

        Raises:
            GatewayRefused: It has moved since, or the version cannot serve; `gateway_code` says which.
        """
        name, _, version = model.partition("@")
        body = {"version": int(version), "expected": expected}
        place = f"/v1/adapters/{name}/aliases/{alias}"
        self._persist(lambda: self._json(lambda: self._http.put(place, json=body, timeout=PUSH_TIMEOUT)), DECIDED)

    def serves(self, model: str) -> bool:
        """Whether `name@version` can serve now."""
        return bool(self._version(model)["servable"] == "ok")

    def _version(self, model: str) -> dict[str, Any]:
        name, _, version = model.partition("@")
        return self._persist(lambda: self._json(lambda: self._http.get(f"/v1/adapters/{name}/versions/{version}")))

    def settings(self, model: str) -> dict[str, Any]:
        """What `name@version` serves with; empty where nothing was set."""
        return {**(self._version(model).get("settings") or {})}

    def metadata(self, model: str) -> dict[str, Any]:
        """What was uploaded with `name@version`."""
        return {**(self._version(model).get("metadata") or {})}

    def held_out_by_its_job(self, model: str) -> str | None:
        """The id of the file with what the job of `name@version` held out, if it could judge it."""
        name, _, version = model.partition("@")
        place = f"/v1/adapters/{name}/versions/{version}/verdicts"
        params: dict[str, str] = {"limit": "100"}
        while True:
            page = self._persist(lambda: self._json(lambda: self._http.get(place, params=params)))
            for verdict in page["data"]:
                if verdict.get("kind") == "training":
                    found = (verdict.get("files") or {}).get("held_out")
                    return None if found is None else str(found)
            if not page.get("has_more"):
                return None
            params["after"] = str(page["last_id"])

    def reads_stores(self, model: str) -> bool:
        """Whether this key may read what a model is grounded in, if it is: the gateway says so before it answers."""
        body = {"model": model, "messages": [{"role": "user", "content": "?"}], "max_tokens": 1, "temperature": 0}
        ask = partial(self._http.post, "/v1/chat/completions", json=body, timeout=PUSH_TIMEOUT)
        try:
            self._persist(lambda: self._json(ask), DECIDED)
        except GatewayRefused as refused:
            if refused.gateway_code != NO_STORE:
                raise
            return False
        return True

    def fingerprint(self) -> str:
        """Of the base as it is served now, as one short hash; waits for an engine that is not ready."""
        return str(self._persist(lambda: self._json(lambda: self._http.get("/readyz")))["fingerprint"])

    def count_tokens(self, model: str, text: str) -> int:
        """How many tokens a text has."""
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        return int(self._persist(lambda: self._json(lambda: self._http.post("/v1/tokenize", json=body)))["count"])

    def load(self) -> tuple[int, int]:
        """Callers' requests that are waiting, and in flight. Raises GatewayUnreachable, GatewayRefused; at once."""
        found = self._json(lambda: self._http.get("/v1/load", timeout=LOAD_TIMEOUT))
        return int(found["waiting"]), int(found["in_flight"])

    def _push(self, name: str, directory: Path, alias: str, settings: dict[str, Any], metadata: str) -> dict[str, Any]:
        with (directory / WEIGHTS_FILE).open("rb") as weights:
            return self._json(
                lambda: self._http.post(
                    "/v1/adapters",
                    data={"name": name, "alias": alias, "settings": json.dumps(settings), "metadata": metadata},
                    files={
                        "config": (CONFIG_FILE, (directory / CONFIG_FILE).read_bytes()),
                        "weights": (WEIGHTS_FILE, weights),
                    },
                    timeout=PUSH_TIMEOUT,
                )
            )

    def _fetch(self, path: str, target: Path, sha256: str | None) -> None:
        seen = hashlib.sha256()
        try:
            with self._http.stream("GET", path) as response:
                if response.status_code != 200:
                    response.read()
                    raise _refused(response)
                with replaced_file(target) as file:
                    for chunk in response.iter_bytes():
                        seen.update(chunk)
                        file.write(chunk)
                    if sha256 is not None and seen.hexdigest() != sha256:
                        raise GatewayRefused(0, "file_changed", f"{path} is not what it was when the job was made")
        except httpx.TransportError as error:
            raise GatewayUnreachable(f"the gateway went away: {error}") from error

    def _json(self, ask: Callable[[], httpx.Response]) -> dict[str, Any]:
        try:
            response = ask()
        except httpx.TransportError as error:
            raise GatewayUnreachable(f"the gateway went away: {error}") from error
        if response.status_code >= 300:
            raise _refused(response)
        found: dict[str, Any] = response.json()
        return found

    def _persist(self, attempt: Callable[[], T], passing: frozenset[int] = PASSING) -> T:
        """Try until it succeeds, is refused for good, or the gateway has been away for PATIENCE_S."""
        deadline = time.monotonic() + PATIENCE_S
        for tries in range(10_000):
            try:
                return attempt()
            except GatewayUnreachable:
                if time.monotonic() > deadline:
                    raise
            except GatewayRefused as error:
                if error.status not in passing or time.monotonic() > deadline:
                    raise
            self._wait(RETRY_S[min(tries, len(RETRY_S) - 1)])
        raise GatewayUnreachable("the gateway did not answer")


def _says_the_same(there: dict[str, Any], body: dict[str, Any]) -> bool:
    return all(there.get(field) == body[field] for field in ("kind", "verdict", "sentence", "files"))


def _refused(response: httpx.Response) -> GatewayRefused:
    try:
        error = response.json()["error"]
        return GatewayRefused(response.status_code, str(error.get("code")), str(error.get("message")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return GatewayRefused(response.status_code, "unexpected_answer", f"status {response.status_code}")
