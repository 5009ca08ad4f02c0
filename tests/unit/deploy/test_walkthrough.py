"""The walkthrough's step to `live`, on what `hatrack show` says; the steps themselves run in tests/integration."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

_SPEC = importlib.util.spec_from_file_location("walkthrough", Path("deploy/walkthrough.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
walkthrough = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(walkthrough)

FAILED = {"verdict": {"sentence": "Fail: it scored less."}, "held_back": {"code": "verdict"}}


def version(number: int, **fields: Any) -> dict[str, Any]:
    return {"version": number, "expires_at": None, "verdict": None, "held_back": None, **fields}


class Shown:
    """Stands for the commands: tells what is there, and keeps what is run."""

    def __init__(self, live: int, *versions: dict[str, Any]) -> None:
        self._adapter = {"aliases": {"live": live}, "versions": list(versions)}
        self.ran: list[tuple[str, ...]] = []

    def require_voice(self) -> None:
        pass

    def read(self, *_: str) -> dict[str, Any]:
        return self._adapter

    def run(self, *arguments: str) -> None:
        self.ran.append(arguments)


@pytest.mark.parametrize(
    ("shown", "promoted", "printed"),
    [
        (Shown(2, version(1), version(2)), (), "marlow@2 is live already"),
        (Shown(2, version(1), version(2), version(3, expires_at=9)), (), "marlow@2 is live already"),
        (Shown(1, version(1), version(2), version(3, expires_at=9)), ("marlow@2",), "It was never judged."),
        (Shown(1, version(1), version(2, **FAILED)), ("marlow@2", "--force"), "Fail: it scored less."),
    ],
    ids=["its verdict passed", "and checkpoints came after it", "never judged, and checkpoints", "it failed"],
)
def test_the_jobs_result_goes_live_and_not_one_of_its_checkpoints(
    shown: Shown, promoted: tuple[str, ...], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    walkthrough.live(shown)
    assert shown.ran == ([("promote", *promoted)] if promoted else []) + [("ls",)]
    assert printed in capsys.readouterr().out
