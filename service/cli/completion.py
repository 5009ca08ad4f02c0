"""What the shell offers when Tab is pressed: names of adapters and of stores, asked of the gateway."""

from __future__ import annotations

from http import HTTPStatus

from service.client import ClientError, HatrackClient

PATIENCE_S = 2.0


def complete_adapter(incomplete: str) -> list[str]:
    """Adapters that begin with what was typed; those that are live, where the key may only ask them. None where the
    gateway does not answer at once."""
    try:
        with HatrackClient(patience_s=PATIENCE_S) as client:
            return [name for name in _adapters(client) if name.startswith(incomplete)]
    except ClientError:
        return []


def complete_model(incomplete: str) -> list[str]:
    """The bases and the adapters that are live and begin with what was typed."""
    try:
        with HatrackClient(patience_s=PATIENCE_S) as client:
            models = [str(model["id"]) for model in client.models.list() if model.get("type") != "embedding"]
            return [name for name in models if name.startswith(incomplete)]
    except ClientError:
        return []


def complete_store(incomplete: str) -> list[str]:
    """Knowledge bases that begin with what was typed."""
    try:
        with HatrackClient(patience_s=PATIENCE_S) as client:
            names = [store.get("name") or "" for store in client.vector_stores.list()]
            return [name for name in names if name and name.startswith(incomplete)]
    except ClientError:
        return []


def _adapters(client: HatrackClient) -> list[str]:
    try:
        return [adapter["name"] for adapter in client.adapters.list()]
    except ClientError as error:
        if error.status != HTTPStatus.FORBIDDEN:
            raise
        return [str(model["id"]) for model in client.models.list() if model.get("parent")]
