"""A gateway without vector stores: they are one provider of passages among others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import REPO
from tests.support.adapters import make_base
from tests.unit.service.gateway_app import BASE, running

CHAT = {"model": BASE, "messages": [{"role": "user", "content": "Where is my parcel?"}]}


async def test_a_gateway_runs_without_vector_stores(tmp_path: Path) -> None:
    async with running(tmp_path / "home", make_base(tmp_path / "base"), knowledge=False) as gateway:
        assert (await gateway.http.get("/v1/vector_stores")).status_code == 404
        assert (await gateway.http.post("/v1/chat/completions", json=CHAT)).status_code == 200
        grounded = CHAT | {"grounding": {"vector_store_ids": ["vs_a"]}}
        refused = await gateway.http.post("/v1/chat/completions", json=grounded)
        named = CHAT | {"grounding": {"provider": "embedded", "vector_store_ids": ["vs_a"]}}
        missing = await gateway.http.post("/v1/chat/completions", json=named)
        # files, which stores would hold, are uploaded, listed and narrowed by globs all the same
        key = await gateway.key("knowledge", stores=["policies*"])
        bearer = {"authorization": f"Bearer {key}"}
        listed = await gateway.http.get("/v1/files", headers=bearer)
    for answer in (refused, missing):
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "grounding.provider")
        assert "embedded" in answer.json()["error"]["message"]
    assert (listed.status_code, listed.json()["data"]) == (200, [])


def test_without_them_nothing_of_theirs_is_imported() -> None:
    program = "import sys, service.app; print([name for name in sys.modules if name.startswith('service.knowledge')])"
    shown = subprocess.run([sys.executable, "-c", program], cwd=REPO, check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == "[]"
