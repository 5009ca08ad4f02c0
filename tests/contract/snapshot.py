"""The snapshot of the public contract: `*.json` beside this file, a line for what a client could notice.

    python -m tests.contract.snapshot            # what differs
    python -m tests.contract.snapshot --write    # accept it

`tests/unit/test_contract.py` compares. A difference is a change of the interface: accept it with the change that makes
it, and say so in the changelog.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Final
from unittest.mock import patch

import httpx

from tests.contract import derived
from tests.contract.answers import answers
from tests.contract.derived import Document
from tests.contract.gateway import running
from tests.contract.routes import fastapi_of, refusals, routes
from tests.support.system import plain_environment

HERE: Final = Path(__file__).parent
ACCEPT: Final = "python -m tests.contract.snapshot --write"


def from_code() -> dict[str, Document]:
    """The documents that are derived from the code, by their files' names."""
    with patch.dict(os.environ, plain_environment(), clear=True):
        return {
            "commands": derived.commands(),
            "errors": derived.errors(),
            "inference_fields": derived.inference_fields(),
            "metrics": derived.metrics(),
            "settings": derived.settings(),
        }


async def from_gateway(scratch: Path) -> dict[str, Document]:
    """The documents that are recorded from a gateway that runs."""
    async with running(scratch) as gateway:
        app = fastapi_of(gateway.app)
        inference = list(derived.inference_fields())
        async with httpx.AsyncClient(base_url=gateway.http.base_url, timeout=60) as nobody:
            refused = await refusals(app, inference, nobody)
        return {
            "routes": routes(app),
            "trainer_routes": routes(fastapi_of(gateway.trainer_app)),
            "without_a_key": refused,
            "answers": await answers(gateway),
        }


def text_of(document: Document) -> str:
    """As it is in its file."""
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def difference(name: str, document: Document) -> str:
    """What differs from the file, as a diff with the command that accepts it; empty where nothing does."""
    path = HERE / f"{name}.json"
    accepted = path.read_text() if path.exists() else ""
    names = (f"{path.name} (accepted)", f"{path.name} (now)")
    lines = difflib.unified_diff(accepted.splitlines(), text_of(document).splitlines(), *names, lineterm="")
    shown = "\n".join(lines)
    return f"{shown}\n\nThe interface has changed. If that is meant: {ACCEPT}\n" if shown else ""


def main() -> int:
    """The command; 1 where something differs and is not accepted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="accept what the code does now")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hatrack-contract-") as scratch:
        documents = from_code() | asyncio.run(from_gateway(Path(scratch)))
    different = [found for name, document in documents.items() if (found := difference(name, document))]
    if options.write:
        for name, document in documents.items():
            (HERE / f"{name}.json").write_text(text_of(document))
    sys.stdout.write("\n".join(different))
    return 1 if different and not options.write else 0


if __name__ == "__main__":
    sys.exit(main())
