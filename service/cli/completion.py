"""What the shell offers when Tab is pressed: names of adapters, asked of the gateway."""

from __future__ import annotations

from service.client import ClientError, HatrackClient

PATIENCE_S = 2.0


def complete_adapter(incomplete: str) -> list[str]:
    """Adapters that are live and begin with what was typed; none where the gateway does not answer at once."""
    return [name for name in _models()[1:] if name.startswith(incomplete)]


def complete_model(incomplete: str) -> list[str]:
    """The base and the adapters that are live and begin with what was typed."""
    return [name for name in _models() if name.startswith(incomplete)]


def _models() -> list[str]:
    try:
        with HatrackClient(patience_s=PATIENCE_S) as client:
            return [str(model["id"]) for model in client.models.list() if model.get("type") != "embedding"]
    except ClientError:
        return []
