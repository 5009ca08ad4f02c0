"""The variables that hold secrets, of the gateway and of what runs beside it."""

from __future__ import annotations

from typing import Final

SECRETS: Final = frozenset(
    {
        "HATRACK_ADMIN_KEY",
        "HATRACK_AGENT_KEY",
        "HATRACK_DATABASE_URL",
        "HATRACK_ENGINE_KEY",
        "HATRACK_EMBEDDINGS_KEY",
        "HATRACK_FRONT_KEY",
        "HATRACK_GROUNDING_SECRET",
        "HATRACK_HUB_TOKEN",
        "HATRACK_METRICS_KEY",
        "HATRACK_TRAINER_DATABASE_URL",
        "HATRACK_TRAINER_SECRET",
    }
)
"""Variables whose value stands in no message."""
