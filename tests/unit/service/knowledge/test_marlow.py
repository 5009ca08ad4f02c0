"""The shop's own store: who asks for another's order finds nothing of it, by whatever filter."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, Final

import openai

from tests.unit.service.knowledge.knowledge_app import KnowledgeApp

MARLOW: Final = Path(__file__).parents[4] / "trainer" / "samples" / "marlow"
ORDERS: Final = sorted((MARLOW / "store" / "orders").glob("*.csv"))
QUESTIONS: Final[list[dict[str, Any]]] = [
    json.loads(line) for line in (MARLOW / "questions.jsonl").read_text("utf-8").splitlines()
]


def test_every_row_is_its_customers() -> None:
    assert len(ORDERS) == 12
    for path in ORDERS:
        with path.open(encoding="utf-8", newline="") as file:
            customers = {row["customer"] for row in csv.DictReader(file)}
        assert customers == {path.stem}


async def test_a_shopper_finds_the_own_orders_and_no_others(knowledge_app: KnowledgeApp) -> None:
    admin = knowledge_app.client()
    store = await admin.vector_stores.create(name="marlow")
    policies = sorted((MARLOW / "store" / "policies").glob("*.md"))
    orders = [await knowledge_app.text(path.name, path.read_text("utf-8")) for path in ORDERS]
    shared = [await knowledge_app.text(path.name, path.read_text("utf-8")) for path in policies]
    files: list[Any] = [{"file_id": file_id} for file_id in orders]
    files += [{"file_id": file_id, "attributes": {"customer": "*"}} for file_id in shared]
    batch = await admin.vector_stores.file_batches.create_and_poll(store.id, files=files, poll_interval_ms=50)
    assert batch.file_counts.completed == len(files)
    keys: dict[str, openai.AsyncOpenAI] = {}
    asked_for_others = 0
    for question in QUESTIONS:
        customer = question["customer"] or "*"
        if customer not in keys:
            made = await knowledge_app.http.post("/v1/keys", json={"name": "c", "filters": {"customer": customer}})
            keys[customer] = knowledge_app.client(made.json()["key"])
        results = (
            await keys[customer].vector_stores.search(store.id, query=question["question"], max_num_results=50)
        ).data
        assert {result.attributes["customer"] for result in results if result.attributes} <= {customer, "*"}
        if question.get("must_not_contain"):
            asked_for_others += 1
            assert question["source"] not in {result.filename for result in results}
        elif question["customer"]:
            assert question["source"] in {result.filename for result in results}
    assert asked_for_others == 8
