"""Other ways to stand in front of an engine, each as small as its kind allows."""

from __future__ import annotations

import argparse

MODEL = "voice"
"""The name that clients ask for."""
ENGINE_MODEL = "base"
"""The name that the engine knows."""


def arguments(description: str | None) -> argparse.Namespace:
    """The two arguments of a relay: the port it listens on, the engine's URL."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    return parser.parse_args()
