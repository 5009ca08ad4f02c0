"""The client's calls that judge versions again; they need a key with the scopes `train`, `infer` and `adapters`."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

import httpx

from service.client_caller import Caller
from service.client_traffic import adapter_path
from service.client_wire import JsonObject

BEGINNING: Final = httpx.Timeout(300, connect=5)
"""Making evaluations: up to a hundred of them, s."""


class RevalidationCalls(Caller):
    """What ``HatrackClient`` can do to judge versions again; every method raises ClientError."""

    def revalidate(self, name: str, version: int) -> JsonObject:
        """Judge one version again: the evaluation, which may be one that is under way."""
        return self._object("POST", adapter_path(name, "versions", version, "revalidate"), timeout=BEGINNING)

    def revalidate_due(self, *, every: bool = False) -> JsonObject:
        """Judge again what is due of the project.

        Args:
            every: All versions that were ever judged.

        Returns:
            `data`: for each version its `reasons` and its `evaluation`, or the `error` why it cannot be judged again;
            `left`: how many versions a next call would begin with.
        """
        return self._object("POST", "/v1/revalidations", json={"all": every}, timeout=BEGINNING)

    def revalidation(self, evaluation_id: str) -> JsonObject:
        """The evaluation that judges a version again, as it is now."""
        return self._object("GET", f"/v1/evaluations/{quote(evaluation_id, safe='')}")

    def verdicts(self, name: str, version: int) -> list[JsonObject]:
        """A version's latest verdicts, newest first, at most 100."""
        page = self._object("GET", adapter_path(name, "versions", version, "verdicts"), params={"limit": 100})
        return list(page.get("data", []))
