"""Every field that a client may send: passed, dropped or refused, each by name."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_create_params as beta_create_params
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from service.config import Settings
from service.errors import BadRequest, UnknownField
from service.http.json_text import MAX_CONTAINERS
from service.inference import fields, messages
from service.inference.anthropic_fields import count_tokens_table, messages_table
from service.inference.responses_fields import responses_table
from service.inference.routes import build_routes
from tests.unit.service.inference.fakes import World, chat_body, completion

SETTINGS = Settings(engine_device="cpu", engine_context=2048)
MODELLED = {"model", "adapter"}
IN_HEADERS = {"betas"}
"""Anthropic's client takes it as an argument and sends it in a header."""


def vllm_fields(module: str, *classes: str) -> set[str]:
    """The fields of vLLM's request classes, read from its source: importing it takes seconds."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "entrypoints" / module).read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name in classes:
            found |= {n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    return {name for name in found if not name.startswith("_")} - MODELLED


@pytest.mark.parametrize(
    ("table", "params"),
    [
        (fields.chat_table, chat_create_params.CompletionCreateParamsNonStreaming),
        (fields.completions_table, completion_create_params.CompletionCreateParamsNonStreaming),
        (fields.embeddings_table, embedding_create_params.EmbeddingCreateParams),
        (responses_table, response_create_params.ResponseCreateParamsNonStreaming),
        (messages_table, message_create_params.MessageCreateParamsNonStreaming),
        (messages_table, beta_create_params.MessageCreateParamsNonStreaming),
        (count_tokens_table, message_count_tokens_params.MessageCountTokensParams),
    ],
)
def test_every_documented_field_stands_in_a_table(table: Any, params: Any) -> None:
    documented = {name for base in (params, *params.__orig_bases__) for name in getattr(base, "__annotations__", {})}
    assert len(documented) >= 4
    assert documented - MODELLED - IN_HEADERS <= table(SETTINGS).keys()


@pytest.mark.parametrize(
    ("table", "module", "classes"),
    [
        (fields.chat_table, "openai/chat_completion/protocol.py", ("ChatCompletionRequest",)),
        (fields.completions_table, "openai/completion/protocol.py", ("CompletionRequest",)),
        (
            fields.tokenize_table,
            "serve/tokenize/protocol.py",
            ("TokenizeChatRequest", "TokenizeCompletionRequest"),
        ),
        (fields.detokenize_table, "serve/tokenize/protocol.py", ("DetokenizeRequest",)),
        (
            fields.embeddings_table,
            "pooling/base/protocol.py",
            ("PoolingBasicRequestMixin", "CompletionRequestMixin", "EncodingRequestMixin", "EmbedRequestMixin"),
        ),
        (responses_table, "openai/responses/protocol.py", ("ResponsesRequest",)),
        (messages_table, "anthropic/protocol.py", ("AnthropicMessagesRequest",)),
        (count_tokens_table, "anthropic/protocol.py", ("AnthropicCountTokensRequest",)),
    ],
)
def test_every_field_of_vllm_stands_in_a_table(table: Any, module: str, classes: tuple[str, ...]) -> None:
    known = vllm_fields(module, *classes)
    assert known
    assert known <= table(SETTINGS).keys()


@pytest.mark.parametrize(
    "name",
    [
        *("lora_path", "chat_template", "kv_transfer_params", "ec_transfer_params", "mm_processor_kwargs"),
        *("media_io_kwargs", "cache_salt", "priority", "prompt_embeds", "vllm_xargs", "request_id", "session_id"),
        *("mm_payload", "return_mm_kwargs", "routed_experts_prompt_start", "documents", "guided_json"),
        *("web_search_options", "functions", "audio", "moderation", "best_of"),
    ],
)
async def test_what_reaches_into_the_engine_is_refused_by_name(name: str) -> None:
    world = World(unknown_fields="pass")  # refused all the same
    answer = await world.chat(**{name: {"a": 1}})
    assert answer.status == 400
    assert answer.error["code"] == "parameter_refused"
    assert answer.error["param"] == name
    assert world.engine.asked == []


async def test_an_unknown_field_is_refused_by_name_or_passed_where_the_operator_says_so() -> None:
    refusing, passing = World(), World(unknown_fields="pass")
    answer = await refusing.chat(temprature=0.1)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "unknown_parameter", "temprature")
    passing.engine.chunks = [completion("hi")]
    assert (await passing.chat(temprature=0.1)).status == 200
    assert passing.engine.last.body["temprature"] == 0.1


@pytest.mark.parametrize("path", sorted(build_routes(SETTINGS)))
def test_what_the_gateway_reads_itself_is_never_passed_unchecked(path: str) -> None:
    route = build_routes(SETTINGS)[path]
    for name in fields.READ_BY_GATEWAY - set(route.table):
        with pytest.raises(UnknownField, match=name):
            fields.check_body({name: "x"}, route.table, (), pass_unknown=True)
        absent = {name: None}
        fields.check_body(absent, route.table, (), pass_unknown=True)
        assert absent == {}


async def test_an_estimate_reads_no_unchecked_field() -> None:
    answer = await World(unknown_fields="pass").chat(tokens=[1])
    assert (answer.status, answer.error["param"]) == (400, "tokens")


HARMLESS = {
    "store": False,
    "metadata": {"run": "7"},
    "service_tier": "auto",
    "user": "u1",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "prediction": {"type": "content", "content": "x"},
    "modalities": ["text"],
    "verbosity": "medium",
    "use_beam_search": False,
    "functions": [],
    "function_call": "none",
    "audio": None,
    "ignore_eos": None,
}


async def test_fields_without_effect_are_dropped() -> None:
    world = World()
    world.engine.chunks = [completion("hi")]
    assert (await world.chat(**HARMLESS)).status == 200
    assert HARMLESS.keys().isdisjoint(world.engine.last.body)


@pytest.mark.parametrize(
    ("name", "value"),
    [("store", True), ("store", 0), ("service_tier", "flex"), ("modalities", ["audio"]), ("verbosity", "low")],
)
async def test_asking_for_what_cannot_be_done_is_refused(name: str, value: Any) -> None:
    answer = await World().chat(**{name: value})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "parameter_refused", name)


GOOD: dict[str, Any] = {
    "n": 8,
    "max_tokens": 2048,
    "stop": ["a"] * 16,
    "top_logprobs": 20,
    "logprobs": True,
    "seed": -(2**63),
    "logit_bias": {"5": -100},
    "temperature": 0,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": "auto",
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
    "structured_outputs": {"choice": ["a", "b"]},
    "chat_template_kwargs": {"enable_thinking": False},
    "repetition_detection": {"max_pattern_size": 8, "min_count": 3},
    "stop_token_ids": [1, 2],
}


@pytest.mark.parametrize(("name", "value"), GOOD.items())
async def test_a_value_within_its_bounds_passes_unchanged(name: str, value: Any) -> None:
    world = World()
    world.engine.chunks = [completion("hi")]
    assert (await world.chat(**{name: value})).status == 200
    assert world.engine.last.body[name] == value


BAD = [
    ("n", 9, "n"),
    ("n", True, "n"),
    ("n", 1.0, "n"),
    ("n", "2", "n"),
    ("max_tokens", 0, "max_tokens"),
    ("max_tokens", 2049, "max_tokens"),
    ("max_completion_tokens", 2049, "max_completion_tokens"),
    ("stop", ["a"] * 17, "stop"),
    ("stop", "a" * 257, "stop"),
    ("stop", ["ok", 3], "stop.1"),
    ("stop", 3, "stop"),
    ("top_logprobs", 21, "top_logprobs"),
    ("prompt_logprobs", -1, "prompt_logprobs"),
    ("logprobs", 5, "logprobs"),
    ("seed", 2**63, "seed"),
    ("temperature", 2.5, "temperature"),
    ("temperature", "hot", "temperature"),
    ("logit_bias", {"x": 1}, "logit_bias"),
    ("logit_bias", {"5": 101}, "logit_bias.5"),
    ("stream_options", {"include_usage": True}, "stream_options"),
    ("stream", "yes", "stream"),
    ("bad_words", ["w"] * 17, "bad_words"),
    ("tools", [{"type": "custom", "custom": {"name": "f"}}], "tools.0.type"),
    ("tools", [{"type": "function"}], "tools.0.function"),
    ("tools", [{"type": "function", "function": {"name": "f", "parameters": {"x": "y" * 65536}}}], "tools"),
    ("tool_choice", "maybe", "tool_choice"),
    ("response_format", {"type": "xml"}, "response_format.type"),
    ("response_format", {"type": "json_schema", "json_schema": {"s": "y" * 65536}}, "response_format"),
    ("structured_outputs", {"grammar": "g" * 65536}, "structured_outputs"),
    ("structured_outputs", {"_backend": "x"}, "structured_outputs._backend"),
    ("chat_template_kwargs", {"chat_template": "{{ x }}"}, "chat_template_kwargs.chat_template"),
    ("chat_template_kwargs", {"a": {"b": 1}}, "chat_template_kwargs.a"),
    ("repetition_detection", {"max_pattern_size": 257}, "repetition_detection.max_pattern_size"),
    ("messages", [], "messages"),
    ("messages", "hi", "messages"),
    ("messages", None, "messages"),
]


@pytest.mark.parametrize(("name", "value", "param"), BAD)
async def test_a_value_out_of_its_bounds_names_the_field(name: str, value: Any, param: str) -> None:
    world = World()
    answer = await world.chat(**{name: value})
    assert (answer.status, answer.error["param"]) == (400, param)
    assert answer.error["type"] == "invalid_request_error"
    assert world.engine.asked == []


COMPLETIONS = [
    ({"prompt": "a"}, 200),
    ({"prompt": ["a", "b"]}, 200),
    ({"prompt": [1, 2]}, 200),
    ({"prompt": [[1], [2]]}, 200),
    ({"prompt": "a", "max_tokens": 0, "echo": True}, 200),
    ({"prompt": "a", "n": 2, "best_of": 2}, 200),
    ({"prompt": "a", "suffix": ""}, 200),
    ({"prompt": []}, 400),
    ({"prompt": [1, "a"]}, 400),
    ({"prompt": ["a"] * 257}, 400),
    ({"prompt": {"a": 1}}, 400),
    ({"prompt": "a", "best_of": 2}, 400),
    ({"prompt": "a", "best_of": 9, "n": 9}, 400),
    ({"prompt": "a", "logprobs": 21}, 400),
    ({"prompt": "a", "suffix": "b"}, 400),
    ({}, 400),
]


@pytest.mark.parametrize(("body", "status"), COMPLETIONS)
async def test_completions(body: dict[str, Any], status: int) -> None:
    world = World()
    world.engine.chunks = [completion("hi")]
    assert (await world.ask("/v1/completions", {"model": "voice", **body})).status == status
    assert len(world.engine.asked) == (status == 200)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": {"url": "/etc/passwd"}},
        {"type": "audio_url", "audio_url": {"url": "http://169.254.169.254/"}},
        {"type": "video_url", "video_url": {"url": "s3://b/k"}},
        {"type": "text", "text": "x", "uuid": "1", "image_url": "http://example.com"},
        {"type": "image_url", "image_url": {"url": "data:,x"}, "uuid": "1"},
        {"type": "file", "file": {"file_id": "f"}},
        {"type": "prompt_embeds", "data": "AAAA"},
        {"type": "image_embeds", "image_embeds": "AAAA"},
        {"type": ["text"], "text": "x"},
        {"image_url": "http://example.com/a.png"},
    ],
)
async def test_a_part_that_names_a_url_or_file_is_refused(part: dict[str, Any]) -> None:
    world = World(unknown_fields="pass")
    answer = await world.chat(messages=[{"role": "user", "content": [{"type": "text", "text": "see"}, part]}])
    assert (answer.status, answer.error["code"]) == (400, "parameter_refused")
    assert answer.error["param"].startswith("messages.0.content.1")
    assert world.engine.asked == []


async def test_data_urls_and_histories_pass() -> None:
    world = World()
    world.engine.chunks = [completion("hi")]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    history = {"role": "assistant", "content": None, "tool_calls": [call], "audio": None, "function_call": None}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}
    messages = [
        {"role": "user", "content": [image, {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
        {**history, "annotations": []},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ]
    assert (await world.chat(model="smol", messages=messages)).status == 200
    sent = world.engine.last.body["messages"]
    assert sent[0]["content"] == [image, {"type": "text", "text": "x"}]
    assert sent[1] == {"role": "assistant", "content": None, "tool_calls": [call]}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "robot", "content": "x"}, "messages.0.role"),
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": 3}, "messages.0.content"),
        ({"role": "user", "content": "x", "function_call": {"name": "f"}}, "messages.0.function_call"),
        ({"role": "user", "content": "x", "mood": "good"}, "messages.0.mood"),
        ({"role": "assistant", "content": "x", "tool_calls": "f"}, "messages.0.tool_calls"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "A", "format": "a/b"}}]}, None),
        ("hello", "messages.0"),
    ],
)
async def test_a_malformed_message_is_refused(message: Any, param: str | None) -> None:
    answer = await World().chat(messages=[message])
    assert answer.status == 400
    assert param is None or answer.error["param"] == param


def test_only_messages_that_are_more_than_a_role_and_a_text_are_checked_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain: list[Any] = [{"role": role, "content": "x"} for role in sorted(messages.ROLES)]
    odd: list[Any] = [
        *({"role": role, "content": "x"} for role in (None, "robot", [], {}, 1)),
        *({"role": "assistant", "content": content} for content in (None, [], {}, 1)),
        *({"role": "user", "content": "x", name: None} for name in ("name", "tool_calls", "mood")),
        *({"role": "user"}, {"content": "x"}, {"role": "user", "name": "x"}, [], "x", None),
    ]
    checked: list[tuple[Any, str]] = []
    monkeypatch.setattr(messages, "_check_message", lambda message, path: checked.append((message, path)))
    messages.check_messages(plain, "messages")
    assert checked == []
    for message in odd:
        messages.check_messages([plain[0], message], "messages")
    assert checked == [(message, "messages.1") for message in odd]


def test_the_arguments_of_all_calls_are_bounded_before_any_message_is_checked() -> None:
    call = {"function": {"name": "f", "arguments": "[" * (MAX_CONTAINERS // 2 + 1)}}
    caller = {"role": "assistant", "content": None, "tool_calls": [call]}
    with pytest.raises(BadRequest, match="the arguments of all tool calls in `messages`"):
        messages.check_messages(["no message", caller, {"role": "user", "content": "x"}, caller], "messages")


def test_sampling_defaults_of_a_version_have_the_bounds_of_a_request() -> None:
    fields.check_sampling({"temperature": 0.7, "max_tokens": 100}, SETTINGS)
    with pytest.raises(BadRequest, match="temperature"):
        fields.check_sampling({"temperature": 9}, SETTINGS)
    with pytest.raises(UnknownField, match="cache_salt"):
        fields.check_sampling({"cache_salt": "x"}, SETTINGS)


def test_every_sampling_default_stands_in_the_chat_table() -> None:
    table = build_routes(SETTINGS)["/v1/chat/completions"].table
    assert all(table[name].forward and table[name].refuse is None for name in fields.SAMPLING_FIELDS)


async def test_a_context_that_only_the_model_knows_is_no_bound() -> None:
    world = World()
    free = Settings(engine_device="cuda")
    assert free.context is None
    body = chat_body(max_tokens=10**6)
    del body["model"]
    fields.check_body(body, fields.chat_table(free), ("messages",), pass_unknown=False)
    assert (await world.chat(max_tokens=10**6)).status == 400
