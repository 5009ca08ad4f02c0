"""Checks of the request fields that have a shape of their own."""

from __future__ import annotations

from typing import Any

from service.errors import BadRequest, FieldRefused
from service.http.checks import (
    INT64,
    Check,
    anything,
    boolean,
    describe,
    either,
    fields,
    integer,
    invalid_value,
    list_of,
    mapping,
    number,
    one_of,
    schema_of,
    text,
    with_schema,
)
from service.inference.tools import parameters_schema, tool_name

MAX_LOGIT_BIAS = 1024
MAX_HINT_CHARS = 512
MAX_TOKEN_ID = 2**31 - 1
MAX_ALLOWED_TOKENS = 2**18
"""Of `allowed_token_ids`: as many as the largest vocabularies have. The engine copies them between two steps."""
MAX_TEMPLATE_KWARGS = 16
RENDERER_NAMES = frozenset(
    {
        "self",
        "cls",
        "args",
        "kwargs",
        "context",
        "environment",
        "model_config",
        "tokenizer",
        "tokenize",
        "chat_template",
    }
    | {"conversation", "conversations", "messages", "message", "tools", "documents", "padding", "truncation"}
    | {"max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"}
    | {"raise_exception", "strftime_now", "tojson", "namespace", "range", "dict", "lipsum", "cycler", "joiner"}
    | {"bos_token", "eos_token", "loop", "caller", "varargs"}
)
"""What the renderer takes itself: parameters of vLLM's, transformers' and Jinja's functions, and global names."""
MAX_METADATA = 16
MAX_METADATA_NAME_CHARS = 64


def metadata(value: Any, path: str) -> None:
    """OpenAI's labels: a few names with short strings."""
    if not isinstance(value, dict) or len(value) > MAX_METADATA:
        raise invalid_value(path, value, f"an object of at most {MAX_METADATA} strings")
    for name, entry in value.items():
        if len(name) > MAX_METADATA_NAME_CHARS:
            raise invalid_value(path, name, f"an object whose names have at most {MAX_METADATA_NAME_CHARS} characters")
        text(MAX_HINT_CHARS)(entry, f"{path}.{name}")


def logit_bias(value: Any, path: str) -> None:
    """Token ids with a bias of -100 to 100 each."""
    if not isinstance(value, dict) or len(value) > MAX_LOGIT_BIAS:
        raise invalid_value(path, value, f"an object of at most {MAX_LOGIT_BIAS} token ids")
    bias = number(-100, 100)
    for token, entry in value.items():
        if not (token.isascii() and token.isdigit()):
            raise invalid_value(path, token, "an object whose keys are token ids")
        bias(entry, f"{path}.{token}")


def response_format(value: Any, path: str) -> None:
    """OpenAI's response format, and vLLM's structural tag."""
    mapping(value, path)
    one_of("text", "json_object", "json_schema", "structural_tag")(value.get("type"), f"{path}.type")
    if value["type"] == "json_schema":
        mapping(value.get("json_schema"), f"{path}.json_schema")


def structured_outputs(max_bytes: int) -> Check:
    """vLLM's structured outputs; its grammars and schemas have at most ``max_bytes`` bytes."""
    choices = list_of(text(max_bytes), min_items=1)
    known: dict[str, Check] = dict.fromkeys(
        ("regex", "grammar", "whitespace_pattern", "structural_tag"), text(max_bytes)
    )
    known |= dict.fromkeys(("json_object", "disable_any_whitespace", "disable_additional_properties"), boolean)
    return fields(known | {"choice": choices, "json": anything})


_FUNCTION = fields(
    {"name": tool_name, "description": text(), "parameters": parameters_schema, "strict": boolean}, required=("name",)
)


def tool(value: Any, path: str) -> None:
    """A function that the model may call."""
    mapping(value, path)
    one_of("function")(value.get("type"), f"{path}.type")
    fields({"type": text(), "function": _FUNCTION}, required=("function",))(value, path)


def tool_choice(value: Any, path: str) -> None:
    """A mode, or the name of one function."""
    if isinstance(value, str):
        one_of("none", "auto", "required")(value, path)
        return
    function = fields({"name": text(256)}, required=("name",))
    named = fields({"type": one_of("function"), "function": function}, required=("type", "function"))
    named(value, path)


def template_kwargs(value: Any, path: str) -> None:
    """Variables of the chat template: a few plain values, none that the renderer itself takes."""
    if not isinstance(value, dict) or len(value) > MAX_TEMPLATE_KWARGS:
        raise invalid_value(path, value, f"an object of at most {MAX_TEMPLATE_KWARGS} values")
    for name, entry in value.items():
        if name in RENDERER_NAMES or not name.isidentifier() or name.startswith("_"):
            raise FieldRefused(f"`{path}` may not set {describe(name)}", param=f"{path}.{name[:100]}")
        if not isinstance(entry, (str, bool, int, float)) or (isinstance(entry, str) and len(entry) > MAX_HINT_CHARS):
            raise invalid_value(
                f"{path}.{name}", entry, f"a number, a boolean or a string of at most {MAX_HINT_CHARS} characters"
            )


def token_ids(*, min_items: int = 0, max_items: int | None = None) -> Check:
    """An array of token ids."""
    check_each = list_of(integer(0, MAX_TOKEN_ID), min_items=min_items, max_items=max_items)

    def check(value: Any, path: str) -> None:
        # millions fit into a body: looked at one by one only where something is wrong
        if not isinstance(value, list) or not min_items <= len(value) <= (max_items or INT64) or not _all_ids(value):
            check_each(value, path)

    return with_schema(check, schema_of(check_each))


def _all_ids(values: list[Any]) -> bool:
    return set(map(type, values)) <= {int} and min(values, default=0) >= 0 and max(values, default=0) <= MAX_TOKEN_ID


def texts_or_tokens(what: str, max_items: int) -> Check:
    """A string, token ids, or an array of at most ``max_items`` of either."""
    ids = token_ids(min_items=1)
    single = either((str, text()), (list, ids), allowed=f"{what}: a string or an array of token ids")
    many = list_of(single, min_items=1, max_items=max_items)

    def check(value: Any, path: str) -> None:
        if isinstance(value, str):
            return
        if isinstance(value, list) and value and type(value[0]) is int:
            ids(value, path)
        else:
            many(value, path)

    return with_schema(check, {"anyOf": [schema_of(single), schema_of(many)]})


def plain_texts(max_items: int) -> Check:
    """A string, or an array of at most ``max_items`` strings, none of them empty; token ids are refused by name."""
    one = with_schema(_text, {"type": "string", "minLength": 1})
    many = list_of(one, min_items=1, max_items=max_items)

    def check(value: Any, path: str) -> None:
        if isinstance(value, list) and value and isinstance(value[0], int | list):
            raise FieldRefused(
                f"`{path}` cannot be token ids here: this model has a tokenizer of its own; send text "
                "(LangChain: `check_embedding_ctx_length=False`)",
                param=path,
            )
        (many if isinstance(value, list) else one)(value, path)

    return with_schema(check, {"anyOf": [schema_of(one), schema_of(many)]})


def _text(value: Any, path: str) -> None:
    if not isinstance(value, str):
        raise invalid_value(path, value, "a string")
    if not value:
        raise BadRequest(f"`{path}` must not be empty", param=path)


with_schema(
    metadata,
    {
        "type": "object",
        "maxProperties": MAX_METADATA,
        "additionalProperties": {"type": "string", "maxLength": MAX_HINT_CHARS},
    },
)
with_schema(
    logit_bias,
    {
        "type": "object",
        "maxProperties": MAX_LOGIT_BIAS,
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
    },
)
with_schema(response_format, {"type": "object", "required": ["type"]})
with_schema(tool, {"type": "object", "properties": {"type": {"const": "function"}, "function": schema_of(_FUNCTION)}})
with_schema(tool_choice, {"anyOf": [{"type": "string", "enum": ["none", "auto", "required"]}, {"type": "object"}]})
with_schema(
    template_kwargs,
    {
        "type": "object",
        "maxProperties": MAX_TEMPLATE_KWARGS,
        "additionalProperties": {"type": ["string", "boolean", "integer", "number"]},
    },
)
