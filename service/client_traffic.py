"""The client's calls that steer traffic: splits and pins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

import httpx

from adapters.names import DEFAULT_ALIAS
from service.client_caller import Caller
from service.client_wire import JsonObject

WARMING: Final = httpx.Timeout(180, connect=5)
"""Moving an alias: each version that it moves to is loaded into the engine first, s."""


def adapter_path(*parts: object) -> str:
    """The path of an adapter, or of something of it."""
    return "/v1/adapters/" + "/".join(quote(str(part), safe="") for part in parts)


class TrafficCalls(Caller):
    """What ``HatrackClient`` can do with an adapter's traffic; every method raises ClientError."""

    def split(self, name: str, weights: Mapping[int, int], alias: str = DEFAULT_ALIAS) -> JsonObject:
        """Split an alias over several versions; the gateway warms them first. Promoting one of them ends it.

        Args:
            weights: Whole numbers by version, such as `{3: 90, 4: 10}`; a version's share is its weight over their sum.
        """
        body = {"split": {str(version): weight for version, weight in weights.items()}}
        return self._object("PUT", adapter_path(name, "aliases", alias), json=body, timeout=WARMING)

    def pin(self, name: str) -> JsonObject:
        """Keep an adapter's live version warm, wherever `live` moves."""
        return self._object("PUT", adapter_path(name, "pin"))

    def unpin(self, name: str) -> JsonObject:
        """Let an adapter come and go in the engine like any other."""
        return self._object("DELETE", adapter_path(name, "pin"))
