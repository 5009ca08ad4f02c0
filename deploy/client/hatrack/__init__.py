"""Hatrack's client: adapters, training, evaluations, keys; over HTTP, to a gateway that runs elsewhere.

    import hatrack

    with hatrack.Client("https://hatrack.example.com", "hk_…") as client:
        version = client.adapters.push("brand-voice", "out/brand-voice")
        client.adapters.promote(f"brand-voice@{version['version']}")

Without arguments it finds its gateway as the command `hatrack` does. Applications that ask a model use the `openai`
client.
"""

from hatrack._version import __version__
from hatrack.client import (
    FINAL_STATUSES,
    AdapterDirectory,
    CannotConnect,
    ClientError,
    HatrackClient,
    JsonObject,
    read_examples,
)

Client = HatrackClient
"""The client under a shorter name."""

__all__ = [
    "FINAL_STATUSES",
    "AdapterDirectory",
    "CannotConnect",
    "Client",
    "ClientError",
    "HatrackClient",
    "JsonObject",
    "__version__",
    "read_examples",
]
