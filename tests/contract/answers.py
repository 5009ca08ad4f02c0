"""What the gateway answers to a list of requests: status, code, headers and the shape of the JSON, but no values."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from adapters.base import describe
from tests.contract.derived import Document
from tests.contract.gateway import ADMIN_KEY, BASE, WAIT_S, ContractGateway
from tests.support.adapters import AdapterFiles, make_adapter

UNTOLD: Final = frozenset({"date", "content-length", "connection", "transfer-encoding"})
"""Headers of HTTP's own."""
TRAINING: Final = b'{"prompt": "q", "completion": "a"}\n' * 12
CHAT: Final = [{"role": "user", "content": "hello"}]


def shape_of(value: Any) -> Any:
    """Keys and types; of an array, what its entries have together."""
    if isinstance(value, dict):
        return {name: shape_of(entry) for name, entry in sorted(value.items())}
    if isinstance(value, list):
        shapes = [shape_of(entry) for entry in value]
        return [_merged(shapes)] if shapes else []
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, (int, float)) else "string"


def _merged(shapes: list[Any]) -> Any:
    if all(isinstance(shape, dict) for shape in shapes):
        names = sorted({name for shape in shapes for name in shape})
        return {name: _merged([shape[name] for shape in shapes if name in shape]) for name in names}
    if all(isinstance(shape, list) for shape in shapes):
        entries = [entry for shape in shapes for entry in shape]
        return [_merged(entries)] if entries else []
    plain = sorted({shape if isinstance(shape, str) else json.dumps(shape) for shape in shapes})
    return "|".join(plain) if len(plain) > 1 or isinstance(shapes[0], str) else shapes[0]


@dataclass
class Recorder:
    """Sends requests and keeps what came of them, by name."""

    gateway: ContractGateway
    found: Document = field(default_factory=dict)
    key: str = ADMIN_KEY

    async def send(self, name: str, method: str, path: str, *, headers: Any = None, **options: Any) -> Any:
        """One request; returns the answer's JSON, or None."""
        if name in self.found:
            raise ValueError(f"two requests of the contract are called {name!r}")
        sent = {"authorization": f"Bearer {self.key}"} | (headers or {})
        answer = await self.gateway.http.request(method, path, headers=sent, **options)
        kind = answer.headers.get("content-type", "")
        body = answer.json() if kind.startswith("application/json") and answer.content else None
        told: Document = {"status": answer.status_code, "headers": _headers(answer.headers)}
        if answer.status_code >= 400 and isinstance(body, dict) and isinstance(body.get("error"), dict):
            told["error"] = {part: body["error"].get(part) for part in ("type", "code", "param")}
        if body is not None:
            told["body"] = shape_of(body)
        elif kind.startswith("text/event-stream"):
            told["events"] = _events(answer.text)
        self.found[name] = told
        return body

    async def until(self, path: str, true: Callable[[Any], Any]) -> Any:
        """Ask, unrecorded, until the answer is as it should be."""
        async with asyncio.timeout(WAIT_S):
            while True:
                answer = await self.gateway.http.get(path, headers={"authorization": f"Bearer {self.key}"})
                if answer.status_code == 200 and true(answer.json()):
                    return answer.json()
                await asyncio.sleep(0.02)


def _headers(headers: httpx.Headers) -> list[str]:
    """Their names, and of the type its value."""
    names = sorted(set(headers) - UNTOLD)
    return [f"content-type: {headers[name]}" if name == "content-type" else name for name in names]


def _events(text: str) -> list[Any]:
    """The shapes of a stream's events, each once, in their order."""
    shapes: list[Any] = []
    for line in text.splitlines():
        if line.startswith("data: "):
            shape = "[DONE]" if line == "data: [DONE]" else shape_of(json.loads(line[6:]))
            if shape not in shapes:
                shapes.append(shape)
    return shapes


async def answers(gateway: ContractGateway) -> Document:
    """All answers by their requests' names."""
    recorder = Recorder(gateway)
    parts = (_public, _keys, _adapters, _inference, _files, _datasets, _stores, _jobs, _evaluations, _observed)
    for part in (*parts, _batches, _deletions):
        await part(recorder)
    return recorder.found


async def _public(ask: Recorder) -> None:
    await ask.send("health", "GET", "/healthz")
    await ask.send("readiness", "GET", "/readyz")
    await ask.send("no such route", "GET", "/v1/nothing")
    await ask.send("no such method", "PATCH", "/v1/keys")


async def _keys(ask: Recorder) -> None:
    limits = {"requests_per_minute": 60, "tokens_per_minute": 6000, "concurrent": 4, "tokens_per_day": 10_000}
    made = await ask.send("key made", "POST", "/v1/keys", json={"name": "k", "adapters": ["v*"], "limits": limits})
    await ask.send("key", "GET", f"/v1/keys/{made['id']}")
    await ask.send("keys", "GET", "/v1/keys")
    await ask.send("key with an unknown field", "POST", "/v1/keys", json={"name": "k", "colour": "red"})
    await ask.send("key without a name", "POST", "/v1/keys", json={})
    await ask.send("key with a wrong limit", "POST", "/v1/keys", json={"name": "k", "limits": {"concurrent": 0}})
    await ask.send("key that is not there", "GET", "/v1/keys/key_nothing")
    ask.key = made["key"]
    await ask.send("keys, without the scope", "GET", "/v1/keys")
    await ask.send("in another project", "GET", "/v1/models", headers={"openai-project": "other"})
    await ask.send("model outside the globs", "GET", "/v1/models/secret")
    ask.key = ADMIN_KEY
    await ask.send("admin key revoked", "DELETE", "/v1/keys/current")


def upload_of(files: AdapterFiles, **fields: Any) -> dict[str, Any]:
    return {
        "data": {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()},
        "files": {
            "config": ("adapter_config.json", files.config),
            "weights": ("adapter_model.safetensors", files.weights),
        },
    }


async def _adapters(ask: Recorder) -> None:
    base = describe(
        ask.gateway.scratch / BASE, served_name=BASE, dtype="bfloat16", quantization=None, engine_version="0"
    )

    def adapter(seed: int, **more: Any) -> AdapterFiles:
        return make_adapter(Path(ask.gateway.scratch / f"adapter-{len(ask.found)}"), base, seed=seed, **more)

    settings = {"system_prompt": "You serve.", "sampling": {"temperature": 0.3}}
    first = upload_of(adapter(1), name="voice", metadata={"team": "web"}, settings=settings)
    await ask.send("adapter pushed", "POST", "/v1/adapters", **first)
    await ask.send("adapter pushed again", "POST", "/v1/adapters", **first)
    await ask.send("second version pushed", "POST", "/v1/adapters", **upload_of(adapter(2), name="voice"))
    await ask.send("adapter not finite", "POST", "/v1/adapters", **upload_of(adapter(3, variant="nan"), name="voice"))
    await ask.send("adapter of DoRA", "POST", "/v1/adapters", **upload_of(adapter(3, variant="dora"), name="voice"))
    await ask.send("adapter of too high a rank", "POST", "/v1/adapters", **upload_of(adapter(3, rank=64), name="voice"))
    await ask.send("adapter with a bad name", "POST", "/v1/adapters", **upload_of(adapter(4), name="No Name"))
    await ask.send("adapter that is no form", "POST", "/v1/adapters", json={})
    await ask.send("no version before it", "POST", "/v1/adapters/voice/aliases/live/rollback")
    await ask.send("promoted", "PUT", "/v1/adapters/voice/aliases/live", json={"version": 2})
    await ask.send("rolled back", "POST", "/v1/adapters/voice/aliases/live/rollback")
    await ask.send("split", "PUT", "/v1/adapters/voice/aliases/canary", json={"split": {"1": 90, "2": 10}})
    await ask.send("alias", "GET", "/v1/adapters/voice/aliases/live")
    await ask.send("split alias", "GET", "/v1/adapters/voice/aliases/canary")
    await ask.send("pinned", "PUT", "/v1/adapters/voice/pin")
    await ask.send("adapter", "GET", "/v1/adapters/voice")
    await ask.send("adapters", "GET", "/v1/adapters")
    await ask.send("version", "GET", "/v1/adapters/voice/versions/1")
    await ask.send("version's config", "GET", "/v1/adapters/voice/versions/1/files/config")
    await ask.send("version's weights", "GET", "/v1/adapters/voice/versions/1/files/weights")
    await ask.send("proven again", "POST", "/v1/adapters/voice/versions/1/prove")
    await ask.send("unpinned", "DELETE", "/v1/adapters/voice/pin")
    await ask.send("version in use deleted", "DELETE", "/v1/adapters/voice/versions/1")
    for what, path in (("adapter", "nobody"), ("version", "voice/versions/9"), ("alias", "voice/aliases/none")):
        await ask.send(f"no such {what}", "GET", f"/v1/adapters/{path}")
    await ask.send("revalidated, never judged", "POST", "/v1/adapters/voice/versions/2/revalidate")
    verdict = {"kind": "evaluation", "verdict": "pass", "sentence": "So.", "metric": "exact_match", "examples": 40}
    await ask.send("verdict recorded", "POST", "/v1/adapters/voice/versions/1/verdicts", json=verdict)
    await ask.send("verdicts", "GET", "/v1/adapters/voice/versions/1/verdicts")
    await ask.send("judged version", "GET", "/v1/adapters/voice/versions/1")
    await ask.send("revalidations", "POST", "/v1/revalidations", json={"all": True})


async def _inference(ask: Recorder) -> None:
    await ask.send("models", "GET", "/v1/models")
    await ask.send("model", "GET", "/v1/models/voice")
    await ask.send("no such model", "GET", "/v1/models/nobody")
    chat = "/v1/chat/completions"
    await ask.send("chat", "POST", chat, json={"model": "voice", "messages": CHAT})
    await ask.send("chat with the base", "POST", chat, json={"model": BASE, "messages": CHAT})
    await ask.send("chat streamed", "POST", chat, json={"model": "voice", "messages": CHAT, "stream": True})
    broken = [{"role": "user", "content": "break"}]
    await ask.send("stream that breaks", "POST", chat, json={"model": "voice", "messages": broken, "stream": True})
    await ask.send("completion", "POST", "/v1/completions", json={"model": "voice", "prompt": "a"})
    await ask.send("prompt rendered", "POST", f"{chat}/render", json={"model": "voice", "messages": CHAT})
    await ask.send("tokenized", "POST", "/tokenize", json={"model": "voice", "prompt": "a"})
    await ask.send("detokenized", "POST", "/detokenize", json={"model": "voice", "tokens": [1]})
    for name, body in {
        "chat without a model": {"messages": CHAT},
        "chat with an unknown model": {"model": "nobody", "messages": CHAT},
        "chat with an unknown version": {"model": "voice@9", "messages": CHAT},
        "chat without messages": {"model": "voice"},
        "chat with an unknown field": {"model": "voice", "messages": CHAT, "colour": "red"},
        "chat with a refused field": {"model": "voice", "messages": CHAT, "cache_salt": "s"},
        "chat with a wrong value": {"model": "voice", "messages": CHAT, "temperature": 9},
        "chat with a store that is not there": {
            "model": "voice", "messages": CHAT, "grounding": {"vector_store_ids": ["vs_none"]}
        },
    }.items():  # fmt: skip
        await ask.send(name, "POST", chat, json=body)
    await ask.send("chat that is no JSON", "POST", chat, content=b"{", headers={"content-type": "application/json"})
    await ask.send("chat of no type", "POST", chat, content=b"{}")
    await ask.send("chat by GET", "GET", chat)
    await ask.send("embeddings of what cannot", "POST", "/v1/embeddings", json={"model": BASE, "input": "a"})
    await ask.send("embeddings", "POST", "/v1/embeddings", json={"model": "e", "input": ["a", "b"]})
    await ask.send("embeddings of token ids", "POST", "/v1/embeddings", json={"model": "e", "input": [1, 2]})
    await ask.send("chat with the embedder", "POST", chat, json={"model": "e", "messages": CHAT})
    await ask.send("Anthropic's with an unknown model", "POST", "/v1/messages", json={
        "model": "nobody", "max_tokens": 4, "messages": CHAT
    })  # fmt: skip
    await ask.send("Anthropic's, no such route", "GET", "/v1/messages/nothing")
    await ask.send("Responses that store", "POST", "/v1/responses", json={"model": BASE, "input": "a", "store": True})


async def _file(ask: Recorder, name: str, content: bytes, purpose: str, filename: str) -> str:
    body = await ask.send(
        name, "POST", "/v1/files", data={"purpose": purpose}, files={"file": (filename, content)}
    )  # fmt: skip
    return str(body.get("id"))


async def _files(ask: Recorder) -> None:
    file = await _file(ask, "file uploaded", TRAINING, "fine-tune", "t.jsonl")
    await _file(ask, "bad training file", b"{\n", "fine-tune", "t.jsonl")
    await _file(ask, "bad purpose", b"a", "nothing", "t.txt")
    await _file(ask, "empty file", b"", "assistants", "t.txt")
    await ask.send("file", "GET", f"/v1/files/{file}")
    await ask.send("files", "GET", "/v1/files")
    await ask.send("file's content", "GET", f"/v1/files/{file}/content")
    await ask.send("no such file", "GET", "/v1/files/file-nothing")
    await ask.send("file deleted", "DELETE", f"/v1/files/{file}")


async def _datasets(ask: Recorder) -> None:
    first = await _file(ask, "first rows uploaded", TRAINING, "fine-tune", "t.jsonl")
    second = await _file(ask, "more rows uploaded", TRAINING + TRAINING, "fine-tune", "t.jsonl")
    pushed = {"name": "support", "file": first, "note": "the first"}
    await ask.send("dataset pushed", "POST", "/v1/datasets", json=pushed)
    await ask.send("dataset pushed again", "POST", "/v1/datasets", json=pushed)
    await ask.send("second version of a dataset", "POST", "/v1/datasets", json={"name": "support", "file": second})
    await ask.send("dataset with a bad name", "POST", "/v1/datasets", json={"name": "No Name", "file": first})
    await ask.send("dataset", "GET", "/v1/datasets/support")
    await ask.send("datasets", "GET", "/v1/datasets")
    await ask.send("dataset's version", "GET", "/v1/datasets/support/versions/1")
    await ask.send("versions compared", "GET", "/v1/datasets/support/versions/2/diff?against=1")
    await ask.send("no such dataset", "GET", "/v1/datasets/nobody")
    await ask.send("no such version of a dataset", "GET", "/v1/datasets/support/versions/9")
    await ask.send("file of a dataset deleted", "DELETE", f"/v1/files/{first}")
    await ask.send("dataset's version deleted", "DELETE", "/v1/datasets/support/versions/1")
    await ask.send("dataset deleted", "DELETE", "/v1/datasets/support")


async def _batches(ask: Recorder) -> None:
    request = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": BASE}}
    good = json.dumps(request | {"body": {"model": BASE, "messages": CHAT}}).encode()
    file = await _file(ask, "requests uploaded", good, "batch", "r.jsonl")
    wanted = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = (await ask.send("batch created", "POST", "/v1/batches", json=wanted))["id"]
    await ask.until(f"/v1/batches/{batch}", lambda body: body["status"] == "completed")
    await ask.send("batch of requests", "GET", f"/v1/batches/{batch}")
    await ask.send("batch that has ended cancelled", "POST", f"/v1/batches/{batch}/cancel")
    bad = await _file(ask, "bad requests uploaded", json.dumps(request).encode(), "batch", "r.jsonl")
    refused = (await ask.send("batch of bad requests", "POST", "/v1/batches", json=wanted | {"input_file_id": bad}))[
        "id"
    ]
    await ask.until(f"/v1/batches/{refused}", lambda body: body["status"] == "failed")
    await ask.send("batch with faults", "GET", f"/v1/batches/{refused}")
    await ask.send("batches", "GET", "/v1/batches")
    await ask.send("batch with a bad endpoint", "POST", "/v1/batches", json=wanted | {"endpoint": "/v1/images"})
    await ask.send("no such batch", "GET", "/v1/batches/batch_nothing")


async def _stores(ask: Recorder) -> None:
    body = {"name": "handbook", "metadata": {"of": "shop"}}
    store = await ask.send("store made", "POST", "/v1/vector_stores", json=body)
    under = f"/v1/vector_stores/{store['id']}"
    file = await _file(ask, "document uploaded", b"Boots may be returned within a month.", "assistants", "r.txt")
    await ask.send("document added", "POST", f"{under}/files", json={"file_id": file, "attributes": {"kind": "r"}})
    await ask.until(f"{under}/files/{file}", lambda found: found["status"] == "completed")
    await ask.send("store", "GET", under)
    await ask.send("stores", "GET", "/v1/vector_stores")
    await ask.send("store changed", "POST", under, json={"name": "book"})
    await ask.send("store's file", "GET", f"{under}/files/{file}")
    await ask.send("store's files", "GET", f"{under}/files")
    await ask.send("store's file's text", "GET", f"{under}/files/{file}/content")
    await ask.send("attributes set", "POST", f"{under}/files/{file}", json={"attributes": {"kind": "s"}})
    await ask.send("store searched", "POST", f"{under}/search", json={"query": "boots"})
    grounded = {"model": "voice", "messages": CHAT, "grounding": {"vector_store_ids": [store["id"]]}}
    await ask.send("chat that is grounded", "POST", "/v1/chat/completions", json=grounded)
    batch = await ask.send("batch made", "POST", f"{under}/file_batches", json={"file_ids": [file]})
    await ask.until(f"{under}/file_batches/{batch['id']}", lambda found: found["status"] == "completed")
    await ask.send("batch", "GET", f"{under}/file_batches/{batch['id']}")
    await ask.send("batch's files", "GET", f"{under}/file_batches/{batch['id']}/files")
    await ask.send("store that expires", "POST", "/v1/vector_stores", json={"expires_after": {"days": 1}})
    await ask.send("no such store", "GET", "/v1/vector_stores/vs_nothing")
    await ask.send("store's file removed", "DELETE", f"{under}/files/{file}")
    await ask.send("store deleted", "DELETE", under)


async def _jobs(ask: Recorder) -> None:
    file = await _file(ask, "training file uploaded", TRAINING, "fine-tune", "t.jsonl")
    jobs, wanted = "/v1/fine_tuning/jobs", {"model": BASE, "training_file": file, "suffix": "trained", "seed": 1}
    once = {"idempotency-key": "once"}
    made = await ask.send("job made", "POST", jobs, json=wanted, headers=once)
    job = f"{jobs}/{made['id']}"
    await ask.until(job, lambda found: found["status"] == "succeeded")
    await ask.send("job made again", "POST", jobs, json=wanted, headers=once)
    await ask.send("key reused", "POST", jobs, json=wanted | {"seed": 2}, headers=once)
    await ask.send("job", "GET", job)
    await ask.send("jobs", "GET", jobs)
    await ask.send("job's events", "GET", f"{job}/events")
    await ask.send("job's events streamed", "GET", f"{job}/events?stream=true")
    await ask.send("job's checkpoints", "GET", f"{job}/checkpoints")
    await ask.send("job's report", "GET", f"{job}/report")
    await ask.send("job that is over paused", "POST", f"{job}/pause")
    await ask.send("no such job", "GET", f"{jobs}/ftjob-nothing")
    await ask.send("job of reinforcement", "POST", jobs, json=wanted | {"method": {"type": "reinforcement"}})
    await ask.send("job of a wrong value estimated", "POST", f"{jobs}/estimate", json=wanted | {"seed": "one"})
    await ask.send("job without its file", "POST", jobs, json=wanted | {"training_file": "file-nothing"})
    bad = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 0}}}
    await ask.send("job with a wrong value", "POST", jobs, json=wanted | {"method": bad})
    held = await ask.send("job that waits made", "POST", jobs, json=wanted | {"metadata": {"hold": "1"}})
    held_job = f"{jobs}/{held['id']}"
    await ask.until(held_job, lambda found: found["status"] == "running")
    await ask.send("job cancelled", "POST", f"{held_job}/cancel")


async def _evaluations(ask: Recorder) -> None:
    held_out = await _file(ask, "held-out file uploaded", TRAINING, "evals", "h.jsonl")
    wanted = {"model": "voice@1", "held_out": held_out}
    made = await ask.send("evaluation made", "POST", "/v1/evaluations", json=wanted)
    evaluation = f"/v1/evaluations/{made['id']}"
    await ask.until(evaluation, lambda found: found["status"] == "succeeded")
    await ask.send("evaluation", "GET", evaluation)
    await ask.send("evaluations", "GET", "/v1/evaluations")
    await ask.send("evaluation's page", "GET", f"{evaluation}/report.html")
    await ask.send("evaluation without a held-out file", "POST", "/v1/evaluations", json={"model": "voice@1"})
    await ask.send("evaluation of nothing", "POST", "/v1/evaluations", json=wanted | {"model": "nobody"})
    held = await ask.send("evaluation that waits", "POST", "/v1/evaluations", json=wanted | {"metadata": {"hold": "1"}})
    await ask.send("reviews of what has no verdict", "POST", "/v1/reviews", json={"evaluation": made["id"]})
    await ask.send("reviews of what has not ended", "POST", "/v1/reviews", json={"evaluation": held["id"]})
    await ask.send("report that is not there yet", "GET", f"/v1/evaluations/{held['id']}/report")
    await ask.send("evaluation cancelled", "POST", f"/v1/evaluations/{held['id']}/cancel")
    await ask.send("no such evaluation", "GET", "/v1/evaluations/eval-nothing")
    await ask.send("reviews", "GET", "/v1/reviews")
    await ask.send("no next review", "GET", "/v1/reviews/next")


async def _observed(ask: Recorder) -> None:
    await ask.send("load", "GET", "/v1/load")
    await ask.send("usage", "GET", "/v1/usage")
    await ask.send("usage in one row", "GET", "/v1/usage?group_by=")
    await ask.send("usage by nothing known", "GET", "/v1/usage?group_by=colour")
    await ask.send("costs", "GET", "/v1/costs")
    await ask.send("costs by key and version", "GET", "/v1/costs?group_by=key,version")
    await ask.send("costs by nothing known", "GET", "/v1/costs?group_by=colour")
    await ask.send("year", "GET", "/v1/costs/year?adapter=voice")
    await ask.send("year of nothing", "GET", "/v1/costs/year?adapter=nobody")
    await ask.send("budgets", "GET", "/v1/budgets")
    await ask.send("budget without a price", "PUT", "/v1/budgets/default", json={"monthly": 5})
    await ask.send("no budget", "DELETE", "/v1/budgets/default")
    await ask.send("audit", "GET", "/v1/audit?action=alias.promote")
    await ask.send("metrics", "GET", "/metrics")


async def _deletions(ask: Recorder) -> None:
    await ask.send("alias deleted", "DELETE", "/v1/adapters/voice/aliases/canary")
    await ask.send("version deleted", "DELETE", "/v1/adapters/voice/versions/2")
    await ask.send("adapter in use deleted", "DELETE", "/v1/adapters/voice")
    await ask.send("adapter deleted", "DELETE", "/v1/adapters/voice?force=true")
    await ask.send("admin key rotated", "POST", "/v1/keys/rotate-admin")
