"""OpenAI's tool `file_search` of the Responses API: another way to say `grounding`, with an output item of its own."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from service.errors import FieldRefused
from service.grounding.citations import Citations
from service.grounding.config import MAX_FILTER_BYTES, MAX_RESULTS, MAX_STORE_ID_CHARS, MAX_STORES_NAMED
from service.grounding.filters import check_filters
from service.http.checks import anything, fields, integer, list_of, number, one_of, shaped, sized, text

FILE_SEARCH: Final = "file_search"
RESULTS: Final = "file_search_call.results"
"""The value of `include` that asks for the passages in the output item."""
CALL: Final = "file_search_call"


def _filters(value: Any, path: str) -> None:
    check_filters(value, path)


def _hybrid_search(_value: Any, path: str) -> None:
    raise FieldRefused(
        f"`{path}` cannot be used: words and meaning are weighted by the setting HATRACK_GROUNDING_VECTOR_WEIGHT",
        param=path,
    )


check_tool = shaped(
    {
        "type": text(),
        "vector_store_ids": list_of(text(MAX_STORE_ID_CHARS), min_items=1, max_items=MAX_STORES_NAMED),
        "max_num_results": integer(1, MAX_RESULTS),
        "filters": sized(MAX_FILTER_BYTES, _filters),
        "ranking_options": shaped(
            {
                "ranker": one_of("auto", "default-2024-11-15"),
                "score_threshold": number(0, 1),
                "hybrid_search": _hybrid_search,
            }
        ),
    },
    required=("vector_store_ids",),
)
check_call = fields(
    {"type": text(), "id": text(), "status": text(), "queries": list_of(text()), "results": anything},
)
"""An item of an earlier answer, which says nothing to the model."""


@dataclass(frozen=True, slots=True)
class FileSearch:
    """The tool as a request names it.

    Attributes:
        tool: The tool.
        index: Its place among the request's tools.
        tool_choice: The request's, where the engine does not get it; None: it does, or there is none.
        with_results: The output item is to have the passages.
    """

    tool: Mapping[str, Any]
    index: int
    tool_choice: Any = None
    with_results: bool = False

    @property
    def path(self) -> str:
        """The request's field."""
        return f"tools.{self.index}"

    def grounding(self) -> dict[str, Any]:
        """The field `grounding` that says the same."""
        names = ("vector_store_ids", "max_num_results", "filters")
        field = {name: self.tool[name] for name in names if name in self.tool}
        threshold = self.tool.get("ranking_options", {}).get("score_threshold")
        return field if threshold is None else {**field, "score_threshold": threshold}


@dataclass(frozen=True, slots=True)
class FileSearchCall:
    """A search that was made: an output item, and the events of a stream that announce it.

    Attributes:
        item: The item `file_search_call`.
        search: What was asked for.
    """

    item: dict[str, Any]
    search: FileSearch

    @classmethod
    def of(cls, search: FileSearch, query: str, citations: Citations, *, failed: bool) -> FileSearchCall:
        """The call whose results are the passages in the prompt."""
        results = None
        if search.with_results:
            results = [
                {
                    "attributes": dict(passage.attributes),
                    "file_id": passage.file_id,
                    "filename": passage.source,
                    "score": passage.score,
                    "text": passage.text,
                }
                for passage in citations.passages
            ]
        item = {
            "id": f"fs_{secrets.token_hex(24)}",
            "type": CALL,
            "status": "failed" if failed else "completed",
            "queries": [query],
            "results": results,
        }
        return cls(item, search)

    def events(self) -> Iterator[dict[str, Any]]:
        """The events of a stream, without their sequence numbers; the item is the first of the output."""
        place = {"item_id": self.item["id"], "output_index": 0}
        begun = {**self.item, "status": "in_progress", "results": None}
        yield {"type": "response.output_item.added", "item": begun, "output_index": 0}
        states = ["in_progress", "searching"] + (["completed"] if self.item["status"] == "completed" else [])
        for state in states:
            yield {"type": f"response.{CALL}.{state}", **place}
        yield {"type": "response.output_item.done", "item": self.item, "output_index": 0}

    def complete(self, response: dict[str, Any]) -> None:
        """Show the tool in a response object, as the request had it; changes it in place."""
        tools = response.get("tools")
        if isinstance(tools, list):
            tools.insert(self.search.index, dict(self.search.tool))
        if self.search.tool_choice is not None:
            response["tool_choice"] = self.search.tool_choice
