"""A gateway in a thread with a registry in memory: enough of the HTTP contract for the client and the command."""

from __future__ import annotations

import email
import email.policy
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.http import QuietHandler

KEY = "hk-test"


class Refusal(Exception):
    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        self.status, self.body = status, {"error": {"message": message, "type": "t", "param": param, "code": code}}


class Gateway(ThreadingHTTPServer):
    """State that a test reads and sets; `requests` has (method, path, headers, body) of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.versions: dict[str, dict[int, dict[str, Any]]] = {}
        self.aliases: dict[str, dict[str, list[int]]] = {}
        self.splits: dict[str, dict[str, dict[str, int]]] = {}
        self.pinned: set[str] = set()
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.parts: dict[str, bytes] = {}
        self.readiness: tuple[int, dict[str, Any]] = (200, {"status": "ready", "engine": {"state": "ready"}})
        self.stream: list[bytes] = []
        self.page = 100
        self.models = ["tiny-base"]
        self.answer_all: tuple[int, bytes] | None = None
        self.stores: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def say(self, *pieces: str, end: bytes = b"data: [DONE]\n\n") -> None:
        events = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
        self.stream = [f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode() for event in events] + [end]

    def add(self, name: str, alias: str | None = None, **more: Any) -> dict[str, Any]:
        versions = self.versions.setdefault(name, {})
        number = len(versions) + 1
        facts = {"digest": f"{number:064x}", "state": "ready", "servable": "ok", "rank": 8, "alpha": 16, "bytes": 2048}
        versions[number] = {"object": "adapter.version", "adapter": name, "version": number, "warnings": []}
        versions[number] |= facts | {"target_modules": ["q_proj"], "created_at": 1767225600} | more
        self.aliases.setdefault(name, {})
        chosen = ("live" if number == 1 else "") if alias is None else alias
        if chosen:
            self.aliases[name].setdefault(chosen, []).append(number)
        return self.version(name, number)

    def demand_not_held_back(self, name: str, body: dict[str, Any]) -> None:
        named = [int(number) for number in body.get("split") or [body["version"]]]
        if any(self.version(name, number).get("held_back") for number in named) and not body.get("force"):
            raise Refusal(409, "version_held_back", "It is held back.")

    def version(self, name: str, number: int) -> dict[str, Any]:
        if number not in self.versions.get(name, {}):
            raise Refusal(404, "not_found", f"There is no {name}@{number}.")
        pointing = [alias for alias, history in self.aliases[name].items() if history[-1] == number]
        return self.versions[name][number] | {"aliases": pointing}

    def adapter(self, name: str) -> dict[str, Any]:
        if name not in self.versions:
            raise Refusal(404, "not_found", f"There is no adapter {name}.")
        splits = self.splits.get(name, {})
        aliases = {alias: history[-1] for alias, history in self.aliases[name].items()} | dict.fromkeys(splits)
        versions = [self.version(name, number) for number in self.versions[name]]
        return {
            "object": "adapter",
            "name": name,
            "created_at": 1767225600,
            "aliases": aliases,
            "splits": splits,
            "pinned": name in self.pinned,
            "versions": versions,
        }


class _Handler(QuietHandler):
    server: Gateway

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        url = urlsplit(self.path)
        try:
            status, answer = self.server.answer_all or self._route(
                url.path, {k: v[0] for k, v in parse_qs(url.query).items()}, body
            )
        except Refusal as refusal:
            status, answer = refusal.status, refusal.body
        if status == 0:
            return
        data = answer if isinstance(answer, bytes) else b"" if status == 204 else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = _serve

    def _route(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        if path == "/healthz":
            return 200, {"status": "ok"}
        if path == "/readyz":
            return self.server.readiness
        if self.headers.get("authorization") != f"Bearer {KEY}":
            raise Refusal(401, "invalid_api_key", "This needs a key.")
        if path == "/v1/models":
            return 200, {"object": "list", "data": [_card(name) for name in self.server.models]}
        if path == "/v1/chat/completions":
            return self._chat(json.loads(body))
        if path == "/v1/chat/completions/render":
            return 200, _rendered(**json.loads(body))
        if path == "/v1/vector_stores":
            return self._stores(body)
        if path == "/v1/adapters":
            return self._push(query, body) if self.command == "POST" else self._list(query)
        return self._registry(path, query, body)

    def _list(self, query: dict[str, str]) -> tuple[int, Any]:
        names = [name for name in sorted(self.server.versions) if name > query.get("after", "")]
        data = [self.server.adapter(name) for name in names[: self.server.page]]
        return 200, {"object": "list", "data": data, "has_more": len(names) > self.server.page}

    def _push(self, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        if self.headers["content-type"] == "application/json":
            return self._push_settings(query, json.loads(body))
        head = f"content-type: {self.headers['content-type']}\r\n\r\n".encode()
        message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
        parts: dict[str, bytes] = {
            str(part.get_param("name", header="content-disposition")): bytes(part.get_payload(decode=True))
            for part in message.iter_parts()
        }
        self.server.parts = parts
        if parts["weights"].startswith(b"nan"):
            raise Refusal(422, "weights_not_finite", "A weight is not a number.", "weights")
        name, alias = parts["name"].decode(), parts.get("alias")
        state = "proving" if query.get("wait") == "false" else "ready"
        settings = json.loads(parts.get("settings", b"{}"))
        size = len(parts["weights"])
        added = self.server.add(name, None if alias is None else alias.decode(), state=state, settings=settings)
        return 201, added | {"bytes": size, "warnings": ["The config names another base."]}

    def _push_settings(self, query: dict[str, str], body: dict[str, Any]) -> tuple[int, Any]:
        state = "proving" if query.get("wait") == "false" else "ready"
        without = {"digest": None, "rank": None, "alpha": None, "bytes": 0, "target_modules": []}
        proof = {"format": 1, "kind": "settings", "prompt_tokens": 78, "context_tokens": 2048, "warnings": []}
        more = {"state": state, "settings": body["settings"], "metadata": body.get("metadata", {}), "proof": proof}
        return 201, self.server.add(body["name"], body.get("alias"), **without, **more)

    def _stores(self, body: bytes) -> tuple[int, Any]:
        if self.command == "GET":
            return 200, {"object": "list", "data": self.server.stores, "has_more": False}
        counts = {"total": 0}
        store = {"id": f"vs_{len(self.server.stores) + 1}", "status": "completed", "file_counts": counts}
        self.server.stores.append(store | json.loads(body))
        return 200, self.server.stores[-1]

    def _registry(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        gateway = self.server
        if match := re.fullmatch(r"/v1/adapters/([^/]+)", path):
            adapter = gateway.adapter(match[1])
            if self.command == "DELETE":
                self._may_delete(adapter["aliases"], query)
                del gateway.versions[match[1]], gateway.aliases[match[1]]
                return 204, None
            return 200, adapter
        if match := re.fullmatch(r"/v1/adapters/([^/]+)/versions/(\d+)", path):
            version = gateway.version(match[1], int(match[2]))
            if self.command == "DELETE":
                self._may_delete(version["aliases"], query)
                del gateway.versions[match[1]][int(match[2])]
                return 204, None
            return 200, version
        if match := re.fullmatch(r"/v1/adapters/([^/]+)/versions/(\d+)/files/(\w+)", path):
            if match[3] not in gateway.files:
                raise Refusal(404, "not_found", "There is no such file.")
            return 200, gateway.files[match[3]]
        if match := re.fullmatch(r"/v1/adapters/([^/]+)/pin", path):
            live = gateway.adapter(match[1])["aliases"].get("live")
            pinned = self.command == "PUT"
            (gateway.pinned.add if pinned else gateway.pinned.discard)(match[1])
            shown = [live] if pinned and live is not None else []
            return 200, {"object": "adapter.pin", "adapter": match[1], "pinned": pinned, "versions": shown}
        if match := re.fullmatch(r"/v1/adapters/([^/]+)/aliases/([^/]+)(/rollback)?", path):
            gateway.adapter(match[1])
            if self.command == "DELETE":
                if gateway.aliases[match[1]].pop(match[2], None) is None:
                    raise Refusal(404, "alias_not_found", f"{match[1]} has no alias {match[2]}.")
                return 200, {"object": "adapter.alias", "adapter": match[1], "alias": match[2], "deleted": True}
            if not match[3]:
                gateway.demand_not_held_back(match[1], json.loads(body))
            if not match[3] and "split" in json.loads(body):
                weights = json.loads(body)["split"]
                for number in weights:
                    gateway.version(match[1], int(number))
                gateway.splits.setdefault(match[1], {})[match[2]] = weights
                return 200, {"object": "adapter.alias", "alias": match[2], "version": None, "split": weights}
            target = 0 if match[3] else gateway.version(match[1], json.loads(body)["version"])["version"]
            history = gateway.aliases[match[1]].setdefault(match[2], [])
            if match[3]:
                if len(history) < 2:
                    raise Refusal(422, "nothing_to_roll_back", f"{match[2]} has pointed at one version only.")
                history.pop()
            else:
                history.append(target)
            return 200, {"object": "adapter.alias", "alias": match[2], "version": history[-1]}
        raise Refusal(404, "not_found", f"No route {path}.")

    def _may_delete(self, aliases: Any, query: dict[str, str]) -> None:
        if aliases and query.get("force") != "true":
            raise Refusal(422, "alias_points_here", "An alias points there.")

    def _chat(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["model"] not in ("tiny-base", *self.server.versions):
            raise Refusal(404, "model_not_found", f"The model {body['model']} does not exist.", "model")
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for chunk in self.server.stream:
            self.wfile.write(chunk)
            self.wfile.flush()
        self.close_connection = True
        return 0, None


def _card(name: str) -> dict[str, Any]:
    return {"id": name, "type": "embedding"} if name.startswith("embedder") else {"id": name}


def _rendered(model: str, messages: list[dict[str, Any]], **parameters: Any) -> dict[str, Any]:
    grounding = {"outcome": "ok", "citations": [{"index": 1}]} if parameters.pop("grounding", None) else None
    return {"model": model, "messages": messages, "tools": [], "parameters": parameters, "grounding": grounding}


@contextmanager
def running() -> Iterator[Gateway]:
    with Gateway() as gateway:
        thread = threading.Thread(target=gateway.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield gateway
        finally:
            gateway.shutdown()
            thread.join()
