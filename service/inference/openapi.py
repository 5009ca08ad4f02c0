"""The data path in the OpenAPI document: its bodies are the tables of fields that check them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from service.http.checks import schema_of
from service.inference.anthropic import MESSAGES
from service.inference.dialect import Route
from service.inference.fields import FieldRule
from service.inference.models import CHAT, EMBEDDING
from service.inference.prompt import RENDER_PATH, RENDERED_SCHEMAS
from service.inference.relay import EMBEDDINGS

EMBEDDINGS_REF: Final = {"$ref": "#/components/schemas/EmbeddingList"}
RENDERED: Final = {"$ref": "#/components/schemas/RenderedPrompt"}
ERROR: Final = {"$ref": "#/components/schemas/ErrorResponse"}
ANTHROPIC_ERROR_REF: Final = {"$ref": "#/components/schemas/AnthropicErrorResponse"}
SUMMARIES: Final = {
    "/v1/chat/completions": "Chat completion",
    RENDER_PATH: "A chat completion's prompt, with settings, examples and passages, without its answer",
    "/v1/completions": "Text completion",
    "/v1/responses": "Response (stateless)",
    "/v1/messages": "Message (Anthropic's API)",
    "/v1/messages/count_tokens": "Count a message's tokens (Anthropic's API)",
    "/v1/embeddings": "Embeddings, of the embedder or of a base that makes some",
    "/tokenize": "Text or messages to tokens",
    "/v1/tokenize": "Text or messages to tokens",
    "/detokenize": "Tokens to text",
    "/v1/detokenize": "Tokens to text",
}
STATUSES: Final = {
    "400": "A field is missing, unknown, refused or not allowed, or the prompt is longer than the context.",
    "401": "`invalid_api_key`: no key, or one that is unknown, revoked or expired.",
    "403": "The key may not infer.",
    "404": "`model_not_found`, or `no_live_version`: the adapter has versions, and none is live.",
    "408": "The body did not arrive in time.",
    "409": "The version cannot serve now; the code says why (`version_other_base`, `version_corrupt`, …).",
    "413": "The body is too large.",
    "415": "The body is not `application/json`.",
    "429": "The key's limits, or its share of the queue; `retry-after` says when to come back.",
    "500": "`adapter_not_finite`: the adapter's numbers are no numbers; or the gateway failed.",
    "502": "The engine gave something that is no answer.",
    "503": "No engine is ready, or the queue is full; `retry-after` says when to come back.",
    "504": "The request took longer than it may.",
}
ANTHROPIC_ERROR: Final = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {"$ref": "#/components/schemas/Error"},
        "request_id": {"type": "string"},
    },
    "additionalProperties": False,
}
OPENAI: Final = "An object as OpenAI documents it, with vLLM's extensions; `model` is the name that was asked for."
ANTHROPIC: Final = "An object as Anthropic documents it; `model` is the name that was asked for."
MODEL: Final = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
        "root": {"type": "string", "description": "The version behind the name; of a split, the alias."},
        "parent": {"type": ["string", "null"], "description": "The base; null of a base, and where it is not served."},
        "type": {
            "enum": [CHAT, EMBEDDING],
            "description": "`embedding`: it answers `/v1/embeddings` alone; `chat`: the routes that generate.",
        },
    },
}
EMBEDDING_SCHEMAS: Final = {
    "EmbeddingList": {
        "type": "object",
        "required": ["object", "data", "model", "usage"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/Embedding"}},
            "model": {"type": "string", "description": "The name that was asked for."},
            "usage": {"$ref": "#/components/schemas/EmbeddingUsage"},
        },
    },
    "Embedding": {
        "type": "object",
        "required": ["object", "index", "embedding"],
        "properties": {
            "object": {"const": "embedding"},
            "index": {"type": "integer", "description": "Of the text in `input`."},
            "embedding": {
                "anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}],
                "description": "Numbers; with `encoding_format: base64` those of little-endian float32.",
            },
        },
    },
    "EmbeddingUsage": {
        "type": "object",
        "required": ["prompt_tokens", "total_tokens"],
        "properties": {"prompt_tokens": {"type": "integer"}, "total_tokens": {"type": "integer"}},
    },
}
"""Of the embedder; an engine that embeds adds fields to it."""


def inference_paths(routes: Mapping[str, Route], schemas: dict[str, Any]) -> dict[str, Any]:
    """The paths of the data path; adds to ``schemas`` what they name."""
    schemas |= {"Model": MODEL, "AnthropicErrorResponse": ANTHROPIC_ERROR} | RENDERED_SCHEMAS
    schemas |= EMBEDDING_SCHEMAS
    paths: dict[str, Any] = {path: {"post": _operation(path, route)} for path, route in routes.items()}
    list_schema = {
        "type": "object",
        "required": ["object", "data"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
        },
    }
    paths["/v1/models"] = {
        "get": _get("list_models", "Models that the key may ask for", list_schema, "400", "401", "403", "500")
    }
    get_operation = _get(
        "get_model", "One model", {"$ref": "#/components/schemas/Model"}, "400", "401", "403", "404", "409", "500"
    )
    model_parameter = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    paths["/v1/models/{model}"] = {"get": {**get_operation, "parameters": [model_parameter]}}
    return paths


def _operation(path: str, route: Route) -> dict[str, Any]:
    """A POST whose body the route's table checks."""
    description, error = (ANTHROPIC, ANTHROPIC_ERROR_REF) if route.dialect is MESSAGES else (OPENAI, ERROR)
    if route.renders:
        description = "The request as the engine would get it."
    schema = RENDERED if route.renders else EMBEDDINGS_REF if path == EMBEDDINGS else {"type": "object"}
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if route.generates and not route.renders:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "tags": ["inference"],
        "operationId": "post" + path.replace("/", "_"),
        "summary": SUMMARIES[path],
        "security": [{"key": []}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body_schema(route)}}},
        "responses": {"200": {"description": description, "content": content}} | _errors(*STATUSES, schema=error),
    }


def body_schema(route: Route) -> dict[str, Any]:
    """The JSON schema of a route's body: the fields that it takes, in the order of their names. Refused ones are left
    out but for the values that mean nothing."""
    properties: dict[str, Any] = {"model": {"type": "string"}, "adapter": {"type": "string"}}
    for name, rule in sorted(route.table.items()):
        if rule.refuse is None or rule.neutral:
            properties[name] = _field(rule)
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    required = [name for name in route.required if "|" not in name]
    schema["required"] = ["model", *required]
    choices = [name.split("|") for name in route.required if "|" in name]
    if choices:
        schema["anyOf"] = [{"required": [name]} for name in choices[0]]
    return schema


def _field(rule: FieldRule) -> dict[str, Any]:
    if rule.refuse is not None:
        return {"enum": [*rule.neutral, None], "description": f"Has no effect: {rule.refuse}."}
    schema = schema_of(rule.check)
    if not rule.forward:
        schema["description"] = "Has no effect."
    if not schema or "anyOf" in schema or "enum" in schema:
        return {"anyOf": [schema, {"type": "null"}]} if schema else {}
    kind = schema.get("type")
    return schema | {"type": [kind, "null"]} if isinstance(kind, str) else schema


def _get(name: str, summary: str, schema: dict[str, Any], *statuses: str) -> dict[str, Any]:
    answer = {"description": summary, "content": {"application/json": {"schema": schema}}}
    return {
        "tags": ["inference"],
        "operationId": name,
        "summary": summary,
        "security": [{"key": []}],
        "responses": {"200": answer} | _errors(*statuses),
    }


def _errors(*statuses: str, schema: Mapping[str, Any] = ERROR) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {status: {"description": STATUSES[status], "content": content} for status in statuses}
