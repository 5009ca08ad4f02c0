"""The Python client: everything over HTTP, nothing of the gateway's own code."""

from __future__ import annotations

from service.client.client import HatrackClient
from service.client.upload import AdapterDirectory, read_examples, read_json_object
from service.client.wire import FINAL_STATUSES, CannotConnect, ClientError, JsonObject

__all__ = [
    "FINAL_STATUSES",
    "AdapterDirectory",
    "CannotConnect",
    "ClientError",
    "HatrackClient",
    "JsonObject",
    "read_examples",
    "read_json_object",
]
