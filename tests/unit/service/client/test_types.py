"""The client's types against the gateway's OpenAPI document: the objects field by field, the methods route by route;
and what the documents say of the client."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints, is_typeddict

import httpx
import pytest

import service.client.types
from service.client import HatrackClient
from service.client.chat import ChatStream
from service.client.connection import Resource
from service.client.types.gateway import Citation
from service.grounding.attribution import Span
from service.grounding.citations import Citations
from service.grounding.provider import Passage
from tests.support.adapters import make_base
from tests.unit.service.gateway_app import running

REPO: Final = Path(__file__).parents[4]
Document: TypeAlias = dict[str, Any]
Shape: TypeAlias = frozenset[Any]
"""What JSON a value may be: names of types and objects, constants, and tuples for arrays and maps."""

MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.iter_modules(service.client.types.__path__, "service.client.types.")
]
TYPES: dict[str, Any] = {
    name: value
    for module in MODULES
    for name, value in vars(module).items()
    if is_typeddict(value) and value.__module__ == module.__name__
}
SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null", Any: "anything"}
CALLS: dict[str, tuple[Any, ...]] = {
    "health": (),
    "ready": (),
    "wait_ready": (1,),
    "metrics": (),
    "adapters.list": (),
    "adapters.retrieve": ("voice",),
    "adapters.push": ("voice", "ADAPTER"),
    "adapters.delete": ("voice@1",),
    "adapters.promote": ("voice@1",),
    "adapters.split": ("voice", {1: 1, 2: 1}),
    "adapters.rollback": ("voice",),
    "adapters.delete_alias": ("voice", "canary"),
    "adapters.pin": ("voice",),
    "adapters.unpin": ("voice",),
    "adapters.versions.retrieve": ("voice", 1),
    "adapters.versions.verdicts": ("voice", 1),
    "adapters.versions.revalidate": ("voice", 1),
    "adapters.versions.download": ("voice", 1, "weights", "FILE"),
    "audit.list": (),
    "batches.create": ("file-1", "/v1/chat/completions"),
    "batches.list": (),
    "batches.retrieve": ("batch_1",),
    "batches.cancel": ("batch_1",),
    "batches.poll": ("batch_1",),
    "budgets.list": (),
    "budgets.set": ("acme", 5.0),
    "budgets.delete": ("acme",),
    "costs.retrieve": (),
    "costs.year": ("voice",),
    "chat.render": ("voice", []),
    "chat.stream": ("voice", []),
    "datasets.create": ("support", "file-1"),
    "datasets.list": (),
    "datasets.retrieve": ("support",),
    "datasets.delete": ("support@2",),
    "datasets.versions.retrieve": ("support", 1),
    "datasets.push": ("support", "FILE"),
    "datasets.versions.diff": ("support", 2, 1),
    "datasets.versions.download": ("support", 2, "FILE"),
    "embeddings.create": ("minilm", "a text"),
    "evaluations.create": ("file-1",),
    "evaluations.list": (),
    "evaluations.retrieve": ("eval-1",),
    "evaluations.cancel": ("eval-1",),
    "evaluations.report": ("eval-1",),
    "evaluations.report_html": ("eval-1",),
    "ladders.create": ("file-1", "support"),
    "ladders.list": (),
    "ladders.retrieve": ("ladder-1",),
    "ladders.cancel": ("ladder-1",),
    "ladders.pause": ("ladder-1",),
    "ladders.resume": ("ladder-1",),
    "ladders.events": ("ladder-1",),
    "ladders.report": ("ladder-1",),
    "ladders.report_html": ("ladder-1",),
    "files.create": ("FILE",),
    "files.list": (),
    "files.retrieve": ("file-1",),
    "files.content": ("file-1",),
    "files.download": ("file-1", "FILE"),
    "files.delete": ("file-1",),
    "fine_tuning.check_data": ("FILE",),
    "fine_tuning.jobs.list": (),
    "fine_tuning.jobs.retrieve": ("ftjob-1",),
    "fine_tuning.jobs.cancel": ("ftjob-1",),
    "fine_tuning.jobs.pause": ("ftjob-1",),
    "fine_tuning.jobs.resume": ("ftjob-1",),
    "fine_tuning.jobs.report": ("ftjob-1",),
    "fine_tuning.jobs.list_checkpoints": ("ftjob-1",),
    "fine_tuning.jobs.list_events": ("ftjob-1",),
    "fine_tuning.jobs.stream_events": ("ftjob-1",),
    "keys.list": (),
    "keys.retrieve": ("key_1",),
    "keys.create": ("shop",),
    "keys.delete": ("key_1",),
    "keys.rotate_admin": (),
    "models.list": (),
    "models.retrieve": ("voice",),
    "revalidations.create": (),
    "reviews.create": ("eval-1",),
    "reviews.end": ("eval-1",),
    "reviews.list": (),
    "reviews.next": (),
    "reviews.retrieve": ("rev-1",),
    "reviews.choose": ("rev-1", "tie"),
    "teachers.list": (),
    "usage.list": (),
    "usage.storage": (),
    "vector_stores.create": ("docs",),
    "vector_stores.list": (),
    "vector_stores.retrieve": ("vs_1",),
    "vector_stores.update": ("vs_1",),
    "vector_stores.find": ("vs_1",),
    "vector_stores.delete": ("vs_1",),
    "vector_stores.search": ("vs_1", "parcels"),
    "vector_stores.files.list": ("vs_1",),
    "vector_stores.files.retrieve": ("vs_1", "file-1"),
    "vector_stores.files.delete": ("vs_1", "file-1"),
    "vector_stores.file_batches.create": ("vs_1", {"file-1": {}}),
    "vector_stores.file_batches.list_files": ("vs_1", "batch-1"),
    "vector_stores.file_batches.poll": ("vs_1", "batch-1"),
}
"""Every method that needs no keywords, with arguments; `FILE` and `ADAPTER` stand for paths."""
LAST = {"datasets.push", "datasets.versions.download"}
"""Methods that return what their last request answers, not their first."""
NEW_JOB = {"training_file": "file-1", "model": "base", "adapter": "voice"}
KEYWORDS = {"fine_tuning.jobs.create": NEW_JOB, "fine_tuning.jobs.estimate": NEW_JOB}

COMPOSED = {
    *("fine_tuning.jobs.repeat", "teacher_client"),
    *("adapters.push_from", "adapters.versions.export_merged", "adapters.versions.pull"),
}
"""Methods of several requests, or of none, each with a file of tests of its own."""


@pytest.fixture(scope="module")
async def document(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Document]:
    root = tmp_path_factory.mktemp("gateway")
    async with running(root / "home", make_base(root / "base")) as gateway:
        yield (await gateway.http.get("/openapi.json")).json()


def shape_of_type(hint: Any, named: set[str]) -> Shape:
    """The JSON that an annotation allows; ``named`` are the objects that count as equal by their name."""
    if is_typeddict(hint):
        if hint.__name__ in named:
            return frozenset({hint.__name__})
        fields = get_type_hints(hint)
        return frozenset(
            {(name, name in hint.__required_keys__, shape_of_type(field, named)) for name, field in fields.items()}
        )
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return frozenset(json.dumps(value) for value in arguments)
    if origin in (Union, UnionType):
        return frozenset().union(*(shape_of_type(each, named) for each in arguments))
    if origin in (list, dict):
        return frozenset({(origin.__name__, *(shape_of_type(each, named) for each in arguments))})
    return frozenset({SCALARS[hint]})


def shape_of_schema(schema: Document, components: Document) -> Shape:
    """The JSON that a schema allows, without its bounds."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return frozenset({name}) if "properties" in components[name] else shape_of_schema(components[name], components)
    if "anyOf" in schema:
        return frozenset().union(*(shape_of_schema(each, components) for each in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return frozenset(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    kinds = schema.get("type", "anything")
    if isinstance(kinds, list):
        return frozenset(kinds)
    if kinds == "array":
        return frozenset({("list", shape_of_schema(schema.get("items", {}), components))})
    if kinds == "object" and "properties" in schema:
        return fields_of_schema(schema, components)
    if kinds == "object":
        values = schema.get("additionalProperties", {})
        keys = {"type": "string"} | schema.get("propertyNames", {})
        values = {} if values is True else values
        return frozenset({("dict", shape_of_schema(keys, components), shape_of_schema(values, components))})
    return frozenset({kinds})


def fields_of_schema(schema: Document, components: Document) -> Shape:
    required = schema.get("required", ())
    return frozenset(
        {(name, name in required, shape_of_schema(field, components)) for name, field in schema["properties"].items()}
    )


def test_a_changed_schema_is_noticed() -> None:
    """What the comparison below rests on."""
    schema = {"properties": {"a": {"type": "integer"}, "b": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}
    kept = fields_of_schema(schema | {"required": ["a"]}, {})
    assert kept == {("a", True, frozenset({"integer"})), ("b", False, frozenset({"string", "null"}))}
    assert fields_of_schema(schema, {}) != kept
    for changed in ({"type": "number"}, {"type": "array", "items": {"type": "integer"}}, {"enum": [1, 2]}, {}):
        properties = schema["properties"] | {"a": changed}
        assert fields_of_schema({"properties": properties, "required": ["a"]}, {}) != kept


@pytest.mark.parametrize("name", sorted(TYPES))
async def test_an_object_has_the_fields_of_its_schema(document: Document, name: str) -> None:
    components = document["components"]["schemas"]
    unnamed = {"Sampling": components["AdapterSettings"]["properties"]["sampling"]}
    schema = unnamed.get(name) or components[name]
    assert shape_of_type(TYPES[name], TYPES.keys() & components.keys() - {name}) == fields_of_schema(schema, components)


def test_a_citation_has_the_fields_that_the_gateway_writes() -> None:
    passage = Passage(id="p", text="t", score=0.5, source="s", store_id="vs_1", file_id=None, attributes={})
    citations = Citations((passage,), ("t",))
    [written] = citations.listed([Span(0, 1)])
    assert list(written) == list(Citation.__annotations__)
    assert written["used"] is True
    assert citations.listed() == [{name: value for name, value in written.items() if name != "used"}]


def methods(owner: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """All public methods of the client and its groups, by dotted name."""
    for name in dir(type(owner)) + list(vars(owner)):
        if name.startswith("_") or name in ("close", "url"):
            continue
        value = getattr(owner, name)
        if isinstance(value, Resource):
            yield from methods(value, f"{path}{name}.")
        elif inspect.ismethod(value):
            yield f"{path}{name}", value


class Recorder(httpx.MockTransport):
    """Answers every request in some way that the client takes, and keeps the first."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.asked: list[httpx.Request] = []

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        if request.url.params.get("stream") or request.url.path == "/v1/chat/completions":
            return httpx.Response(200, content=b"data: [DONE]\n\n")
        if request.url.path.endswith("/content"):
            return httpx.Response(200)
        some: dict[str, Any] = {"id": "x", "status": "ready", "base": "tiny", "version": 1}
        some |= {"versions": [], "file": "file-1", "bytes": 0, "sha256": hashlib.sha256().hexdigest()}
        return httpx.Response(200, json=some | {"data": [], "has_more": False})


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("{}")
    return {"FILE": tmp_path / "adapter_config.json", "ADAPTER": tmp_path}


def operation(document: Document, request: httpx.Request) -> Document:
    """What the document says of a request's route."""
    for template in sorted(document["paths"], key=lambda path: path.count("{")):
        pattern = re.sub(r"\\{[^}]+\\}", "[^/]+", re.escape(template))
        if re.fullmatch(pattern, request.url.path) and request.method.lower() in document["paths"][template]:
            found: Document = document["paths"][template][request.method.lower()]
            return found
    pytest.fail(f"{request.method} {request.url.path} is not in the document")


def item_of(hint: Any) -> Any:
    """What is in an iterator or a sequence, or in one of those."""
    return hint if is_typeddict(hint) or not get_args(hint) else item_of(get_args(hint)[0])


def test_every_method_is_looked_at() -> None:
    with HatrackClient("http://x") as client:
        assert {name for name, _ in methods(client)} == CALLS.keys() | KEYWORDS.keys() | COMPOSED


@pytest.mark.parametrize("name", [*CALLS, *KEYWORDS])
async def test_a_method_returns_what_its_route_answers(document: Document, paths: dict[str, Path], name: str) -> None:
    recorder = Recorder()
    with HatrackClient("http://x", transport=recorder) as client:
        method = dict(methods(client))[name]
        arguments = [paths.get(each, each) if isinstance(each, str) else each for each in CALLS.get(name, ())]
        returned = method(*arguments, **KEYWORDS.get(name, {}))
        if isinstance(returned, Iterator):
            list(returned)
    answers = operation(document, recorder.asked[-1 if name in LAST else 0])["responses"]
    contents = [answer.get("content", {}) for status, answer in answers.items() if status.startswith("2")]
    hint = get_type_hints(method, localns=TYPES)["return"]
    if hint is NoneType:
        assert contents == [{}]
    elif hint in (str, bytes, int, ChatStream):
        assert all(content.keys() - {"application/json"} for content in contents)
    else:
        components = document["components"]["schemas"]
        schemas = [content["application/json"]["schema"] for content in contents]
        shape = shape_of_type(item_of(hint), set(TYPES))
        if get_args(hint):
            schemas += [_resolved(schema, components)["properties"].get("data", {}).get("items") for schema in schemas]
        assert shape in [shape_of_schema(schema, components) for schema in schemas if schema], (hint, schemas)


def _resolved(schema: Document, components: Document) -> Document:
    found: Document = components[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    return found


def test_the_example_of_the_api_page_runs(paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (REPO / "service/API.md").read_text(), re.DOTALL)
    (example,) = [block for block in blocks if "HatrackClient" in block]
    recorder = Recorder()
    monkeypatch.setattr("service.client.HatrackClient", partial(HatrackClient, "http://x", transport=recorder))
    monkeypatch.chdir(paths["ADAPTER"])
    (paths["ADAPTER"] / "examples.jsonl").write_text("{}")
    exec(example, {})  # noqa: S102 (our own document)
    assert len(recorder.asked) >= 3


def test_the_api_s_document_names_every_method() -> None:
    section = (REPO / "service/API.md").read_text().partition("## From Python")[2].partition("\n## ")[0]
    named = set()
    for groups, calls in re.findall(r"^\| (`.+?) \| (`.+) \|$", section, re.MULTILINE):
        for group in re.findall(r"`(.+?)`", groups):
            prefix = "" if group == "client" else f"{group[1:]}."
            named |= {prefix + call for call in re.findall(r"`(\w+)`", calls)}
    assert named == CALLS.keys() | KEYWORDS.keys() | COMPOSED
