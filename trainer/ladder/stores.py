"""The stores of the rungs with retrieval: the one of examples that a ladder makes, and what can be found in others."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from adapters.dataset.chat import MAX_PASSAGE_CHARS
from trainer.data.format import Example
from trainer.durable import replace_file
from trainer.errors import GatewayRefused
from trainer.ladder import spec
from trainer.ladder.spec import LadderPlan, LadderSpec
from trainer.runs.directory import RunDirectory
from trainer.runs.gateway import Gateway

RETRIEVED: Final = 4
"""Passages of the rungs with retrieval."""
INDEXED_S: Final = 600.0
"""How long a store may take to be indexed."""
POLL_S: Final = 1.0
TOO_LONG: Final = (
    f"example is longer than {MAX_PASSAGE_CHARS} characters, and not among those that are retrieved",
    f"examples are longer than {MAX_PASSAGE_CHARS} characters, and not among those that are retrieved",
)


class RungStores:
    """Makes and looks into a ladder's stores.

    Args:
        upload: Uploads content under a name and for a purpose, once, and returns the file's id.
        check: Raises Interrupted if the worker should exit.
    """

    def __init__(
        self,
        job: LadderSpec,
        directory: RunDirectory,
        gateway: Gateway,
        upload: Callable[[str, bytes, str], str],
        check: Callable[[], None],
    ) -> None:
        self._job, self._directory, self._gateway = job, directory, gateway
        self._upload, self._check = upload, check

    def of_examples(self, documents: bytes) -> str:
        """The id of a store of the examples, once it is indexed. Raises GatewayRefused if it cannot be."""
        marker = self._directory.path(spec.STORE)
        if marker.exists():
            store = marker.read_text().strip()
        else:
            name = f"{self._job.body.adapter}-examples-{self._job.id[-6:]}"
            file_id = self._upload(f"{self._job.id}-examples.jsonl", documents, "assistants")
            store = self._gateway.store_named(name) or self._gateway.create_store(name, file_id)
            replace_file(marker, store)
        if self._indexed(store)["file_counts"]["failed"]:
            why = "; ".join(self._gateway.indexing_errors(store)) or "the store does not say why"
            raise GatewayRefused(0, "store_failed", f"their file could not be indexed: {why}")
        return store

    def are_unfindable(self, attributes: Sequence[str], stores: Sequence[str]) -> bool:
        """Whether filters on these attributes find nothing in the stores, whatever the values."""
        if not attributes:
            return False
        has_attributes = any_value_of(attributes)
        for store in stores:
            with suppress(GatewayRefused):  # a key without `knowledge` may search, and not ask how far a store is
                self._indexed(store)
            if self._gateway.finds(store, has_attributes):
                return False
        return True

    def _indexed(self, store: str) -> dict[str, Any]:
        """The store, once all its files are indexed or have failed. Raises GatewayRefused if that takes too long."""
        deadline = time.monotonic() + INDEXED_S
        while (state := self._gateway.store(store))["status"] != "completed":
            if time.monotonic() > deadline:
                raise GatewayRefused(0, "store_not_indexed", f"the store was not indexed within {INDEXED_S:.0f} s")
            time.sleep(POLL_S)
            self._check()
        return state


def example_lines(examples: Sequence[Example]) -> tuple[str, int]:
    """The examples as JSON lines for a store: those that can be shown as turns, with their group and filters.

    Returns:
        The lines, and how many examples were left out because they are longer than a passage: a file with one would be
        refused as a whole.
    """
    rows, too_long = [], 0
    for example in examples:
        if example.turns is None or example.passage is None:
            continue
        if len(example.passage) > MAX_PASSAGE_CHARS:
            too_long += 1
            continue
        row: dict[str, Any] = {"messages": [{"role": turn.role, "content": turn.content} for turn in example.turns]}
        row |= {} if example.group is None else {"group": example.group}
        rows.append(row | ({"filters": dict(example.filters)} if example.filters else {}))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), too_long


def any_value_of(attributes: Sequence[str]) -> dict[str, Any]:
    """The filter that matches passages which have each of the attributes, whatever its value."""
    conditions = [
        {
            "type": "or",
            "filters": [
                {"type": "gte", "key": name, "value": ""},  # every string
                {"type": "gte", "key": name, "value": -sys.float_info.max},  # every number
                {"type": "in", "key": name, "value": [True, False]},
            ],
        }
        for name in attributes
    ]
    return {"type": "and", "filters": conditions}


def unfindable(attributes: Sequence[str]) -> str:
    """Why the rung with documents is skipped, and what to do."""
    names = " and ".join(f"`{name}`" for name in attributes)
    options = " ".join(f"--attribute {name}=…" for name in attributes)
    return (
        f"no document has {names}, on which the examples have `filters`, so nothing would ever be found: add the "
        f'documents with `hatrack kb add STORE FILE {options}` ("*" for what is everyone\'s) and advise with `--docs '
        "STORE`, or leave `filters` out of the examples"
    )


def rung_grounding(plan: LadderPlan, stores: Sequence[str]) -> dict[str, Any]:
    """What a rung retrieves. It demands the filters that every example gives: whatever is one customer's is shown to
    that customer alone, on the rung as in the version that it becomes."""
    grounding: dict[str, Any] = {"vector_store_ids": list(stores), "max_num_results": RETRIEVED}
    return grounding | ({"required_filters": list(plan.required_filters)} if plan.required_filters else {})
