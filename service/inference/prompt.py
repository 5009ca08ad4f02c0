"""`POST /v1/chat/completions/render`: the request as the engine would get it, without asking the engine.

Training uses it: a LoRA that is to be served with retrieved passages must be trained on prompts that the same hook has
rendered. People use it to see what a version's settings make of their question.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from service.config import Settings
from service.grounding.outcome import OUTCOMES, GroundingResult
from service.inference.fields import Table, chat_table, refused
from service.registry.catalog import Target

RENDER_PATH: Final = "/v1/chat/completions/render"
_PROMPT: Final = ("messages", "tools")
RENDERED_SCHEMAS: Final[dict[str, Any]] = {
    "RenderedPrompt": {
        "type": "object",
        "required": ["object", "model", "messages", "tools", "parameters", "grounding"],
        "properties": {
            "object": {"const": "chat.completion.prompt"},
            "model": {"type": "string", "description": "The name that was asked for."},
            "messages": {
                "type": "array",
                "items": {"type": "object", "additionalProperties": True},
                "description": "With the version's system prompt and examples, and the retrieved passages.",
            },
            "tools": {"type": "array", "items": {"type": "object", "additionalProperties": True}},
            "parameters": {
                "type": "object",
                "additionalProperties": True,
                "description": "Every other field, with the version's sampling defaults.",
            },
            "grounding": {
                "anyOf": [{"$ref": "#/components/schemas/RenderedGrounding"}, {"type": "null"}],
                "description": "Null if nothing was to be retrieved.",
            },
        },
        "additionalProperties": False,
    },
    "RenderedGrounding": {
        "type": "object",
        "required": ["outcome", "citations"],
        "properties": {
            "outcome": {"enum": list(OUTCOMES)},
            "citations": {"type": "array", "items": {"$ref": "#/components/schemas/Citation"}},
        },
        "additionalProperties": False,
    },
    "Citation": {
        "type": "object",
        "required": ["index", "id", "source", "file_id", "vector_store_id", "score", "text", "attributes"],
        "properties": {
            "index": {"type": "integer"},
            "id": {"type": "string"},
            "source": {"type": "string"},
            "file_id": {"type": ["string", "null"]},
            "vector_store_id": {"type": ["string", "null"]},
            "score": {"type": "number"},
            "text": {"type": "string"},
            "attributes": {
                "type": "object",
                "additionalProperties": {"anyOf": [{"type": "string"}, {"type": "boolean"}, {"type": "number"}]},
            },
            "used": {
                "type": "boolean",
                "description": "Whether the answer uses it; a rendered prompt, which has no answer, does not say.",
            },
        },
        "additionalProperties": False,
    },
}
"""The answer's schema, and those that it names."""


def render_table(settings: Settings) -> Table:
    """The fields of a chat completion, but that nothing can be streamed."""
    return {
        **chat_table(settings),
        **refused("a rendered prompt is no stream", "stream", neutral=(False,)),
        **refused("a rendered prompt is no stream", "stream_options"),
    }


def rendered_prompt(body: dict[str, Any], target: Target, grounded: GroundingResult | None) -> bytes:
    """The answer, JSON as in `RENDERED_SCHEMAS`.

    Args:
        body: The finished request.
        grounded: What retrieval came to; None if the request was not grounded.
    """
    answer = {
        "object": "chat.completion.prompt",
        "model": target.label,
        "messages": body["messages"],
        "tools": body.get("tools", []),
        "parameters": {name: value for name, value in body.items() if name not in _PROMPT},
        "grounding": None
        if grounded is None
        else {"outcome": grounded.outcome, "citations": grounded.citations.listed()},
    }
    return orjson.dumps(answer)
