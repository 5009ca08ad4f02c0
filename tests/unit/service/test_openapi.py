"""The OpenAPI document: everything is in it, and what answers is what it says (every test over `GatewayApp` is held to
it; here what they do not ask)."""

from __future__ import annotations

from pathlib import Path

from service.openapi import TAGS
from tests.support.adapters import make_base
from tests.unit.service.gateway_app import running


async def test_a_stranger_is_told_what_this_is_and_may_read_the_document(tmp_path: Path) -> None:
    async with running(tmp_path / "home", make_base(tmp_path / "base")) as gateway:
        nobody = {"authorization": ""}
        about = await gateway.http.get("/", headers=nobody)
        document = await gateway.http.get("/openapi.json", headers=nobody)
        page = await gateway.http.get("/docs", headers=nobody)
        for name in ("swagger-ui-bundle.js", "swagger-ui.css", "start.js", "favicon.png"):
            assert f"/docs/{name}" in page.text or name == "favicon.png"
            assert (await gateway.http.get(f"/docs/{name}", headers=nobody)).status_code == 200
    assert (about.json()["docs"], about.json()["console"]) == ("/docs", "/console")
    assert "//" not in page.text.replace("<!doctype html>", ""), "nothing is loaded from elsewhere"
    paths = document.json()["paths"]
    assert {"/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/models", "/v1/keys", "/v1/adapters"} <= set(
        paths
    )


async def test_every_operation_has_a_schema_of_its_answer_and_errors(tmp_path: Path) -> None:
    async with running(tmp_path / "home", make_base(tmp_path / "base")) as gateway:
        document = (await gateway.http.get("/openapi.json")).json()
    used = {tag for operations in document["paths"].values() for each in operations.values() for tag in each["tags"]}
    assert [tag["name"] for tag in document["tags"]] == sorted(used, key=list(TAGS).index)
    bare = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            good = [answer for status, answer in operation["responses"].items() if status.startswith("2")]
            described = [content["schema"] for answer in good for content in answer.get("content", {}).values()]
            if not good or not all(described):
                bare.append(f"{method} {path}")
    assert bare == []
