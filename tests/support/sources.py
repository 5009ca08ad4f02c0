"""Stand-ins for what adapters are fetched from: a web server, a hub with its CDN, a bucket. All over HTTP, on loopback.

The hub answers as Hugging Face's does to `huggingface_hub`: `resolve/` redirects small files inside of the hub and
large ones to the CDN, with the commit and the digest in headers. `tests/unit/trainer/test_base_hub.py` has the real
client download from it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from tests.support.http import QuietHandler

TOKEN: Final = "hf_a-token-of-the-tests"
_CHUNK: Final = 16 * 1024


@dataclass
class Faults:
    """What goes wrong with the bodies of a file server. All bytes unless it says otherwise."""

    cuts: list[int] = field(default_factory=list)
    """Of each of the next large answers, how much is sent before the connection is closed."""
    came: threading.Event = field(default_factory=threading.Event)
    """The client has kept something: what lies unread in its buffers when a connection is cut, it loses."""
    waits: bool = True
    """Whether a cut waits for that."""
    statuses: list[int] = field(default_factory=list)
    """Of each of the next answers, the status instead of the file."""
    stalls: threading.Event | None = None
    """Set: the server waits for it in the middle of each body."""
    stall_at: int = 0
    flips: bool = False
    """The last byte is another one."""
    etag: Callable[[bytes], str | None] = lambda content: f'"{hashlib.md5(content).hexdigest()}"'
    ignores_ranges: bool = False
    shifts_ranges: int = 0
    """Where a range begins, too late by so much."""
    no_length: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """A request: its path without the query, and its headers in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


class Server(ABC):
    """A server on a free port of this machine."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.url = ""

    @abstractmethod
    def answer(self, request: QuietHandler) -> None:
        """Answer one request."""

    def paths(self) -> list[str]:
        return [seen.path for seen in self.seen]


@contextmanager
def running(*servers: Server) -> Iterator[None]:
    """Run servers; their `url` is set."""
    started = []
    for server in servers:
        listening = _listen(server)
        server.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
        thread.start()
        started.append((listening, thread))
    try:
        yield
    finally:
        for listening, thread in started:
            listening.shutdown()
            thread.join()
            listening.server_close()


class _Listening(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that leaves in the middle
            super().handle_error(request, client_address)


def _listen(server: Server) -> ThreadingHTTPServer:
    class Handler(QuietHandler):
        def _serve(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            server.seen.append(Seen(self.command, urlsplit(self.path).path, headers))
            try:
                server.answer(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        do_GET = do_HEAD = _serve

    return _Listening(("127.0.0.1", 0), Handler)


def reply(request: QuietHandler, status: int, headers: Mapping[str, str], content: bytes = b"") -> None:
    """A whole answer."""
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("content-length", str(len(content)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)


class FileServer(Server):
    """Files by path, whole or in part: `Range` and `If-Range` as in RFC 9110.

    Args:
        refuses: Of a request, the status to answer with instead; None: it is answered.
    """

    def __init__(self, refuses: Callable[[QuietHandler], int | None] = lambda _request: None) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.faults = Faults()
        self._refuses = refuses

    def answer(self, request: QuietHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        status = self.faults.statuses.pop(0) if self.faults.statuses else self._refuses(request)
        if status is not None:
            reply(request, status, {}, b"no")
        elif path in self.redirects:
            reply(request, 302, {"location": self.redirects[path]})
        elif path not in self.files:
            reply(request, 404, {}, b"no such file")
        else:
            self._send(request, self.files[path])

    def _send(self, request: QuietHandler, content: bytes) -> None:
        faults, etag = self.faults, self.faults.etag(content)
        start = self._start(request, content, etag)
        if start is not None and start >= len(content):
            reply(request, 416, {"content-range": f"bytes */{len(content)}"})
            return
        request.send_response(200 if start is None else 206)
        body = content[start or 0 :]
        headers = {"content-length": str(len(body)), **({"etag": etag} if etag else {}), **faults.headers}
        if start is not None:
            first = start + faults.shifts_ranges
            headers["content-range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        if faults.no_length:
            del headers["content-length"]
            headers["connection"] = "close"
            request.close_connection = True
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            self._write(request, body)

    def _start(self, request: QuietHandler, content: bytes, etag: str | None) -> int | None:
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range") or "")
        if asked is None or self.faults.ignores_ranges:
            return None
        condition = request.headers.get("if-range")
        return None if condition is not None and condition != etag else int(asked[1])

    def _write(self, request: QuietHandler, body: bytes) -> None:
        faults = self.faults
        if faults.flips:
            body = body[:-1] + bytes([body[-1] ^ 1])
        is_large = len(body) > _CHUNK
        if is_large and faults.cuts:
            faults.came.clear()
            request.wfile.write(body[: faults.cuts.pop(0)])
            request.wfile.flush()
            if faults.waits:
                faults.came.wait(60)
            request.close_connection = True
            return
        if is_large and faults.stalls is not None:
            request.wfile.write(body[: faults.stall_at])
            request.wfile.flush()
            faults.stalls.wait(60)
            body = body[faults.stall_at :]
        for at in range(0, len(body), _CHUNK):
            request.wfile.write(body[at : at + _CHUNK])


@dataclass
class Repository:
    """Files by commit, and the commits of its branches."""

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    is_private: bool = False
    moved_to: str | None = None


def git_hash(content: bytes) -> str:
    """The name that Git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Hub(Server):
    """A hub, and beside it the CDN, which must be run, too.

    Weights are kept by Git LFS, all other files by Git.
    """

    def __init__(self) -> None:
        super().__init__()
        self.repositories: dict[str, Repository] = {}
        self.cdn = FileServer(lambda request: 400 if request.headers.get("authorization") else None)
        self.digests: dict[str, str] = {}
        """By path, what is said instead of a file's digest."""
        self.names_commit = True

    def put(self, repository: str, files: Mapping[str, bytes], *, branch: str = "main", private: bool = False) -> str:
        """Commit files to a branch; returns the commit."""
        commit = hashlib.sha1(json.dumps({name: sha256(data) for name, data in files.items()}).encode()).hexdigest()
        kept = self.repositories.setdefault(repository, Repository({}, {}, private))
        kept.commits[commit] = dict(files)
        kept.branches[branch] = commit
        for data in files.values():
            self.cdn.files[f"/lfs/{sha256(data)}"] = data
        return commit

    def answer(self, request: QuietHandler) -> None:
        path = urlsplit(request.path).path
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self._describe(request, found[1], unquote(found[2] or "main"))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._tree(request, found[1], unquote(found[2]))
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(request, found[1], unquote(found[2]), found[3])
        elif found := re.fullmatch(r"/api/resolve-cache/models/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", path):
            content = self.repositories[found[1]].commits[found[2]][found[3]]
            reply(request, 200, self._headers(found[2], found[3], content), content)
        else:
            reply(request, 404, {}, b"Not Found")

    def _find(self, request: QuietHandler, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.repositories.get(name)
        if repository is None or (repository.is_private and request.headers.get("authorization") != f"Bearer {TOKEN}"):
            reply(request, 401, {"x-error-code": "RepoNotFound"}, b"Invalid username or password.")
            return None
        if repository.moved_to is not None:
            reply(request, 307, {"location": urlsplit(request.path).path.replace(name, repository.moved_to, 1)})
            return None
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            reply(request, 404, {"x-error-code": "RevisionNotFound"}, b"Invalid rev id")
            return None
        return commit, repository.commits[commit]

    def _resolve(self, request: QuietHandler, name: str, revision: str, path: str) -> None:
        found = self._find(request, name, revision)
        if found is None:
            return
        commit, files = found
        if path not in files:
            headers = {"x-error-code": "EntryNotFound", "x-repo-commit": commit}
            reply(request, 404, headers, b"Entry not found")
            return
        headers = self._headers(commit, path, files[path])
        if path.endswith(".safetensors"):
            headers |= {"x-linked-etag": headers.pop("etag"), "x-linked-size": str(len(files[path]))}
            location = f"{self.cdn.url}/lfs/{sha256(files[path])}?Expires=1&Signature=a%2Fb~c&Key-Pair-Id=K"
            reply(request, 302, headers | {"location": location})
        else:
            reply(request, 307, headers | {"location": f"/api/resolve-cache/models/{name}/{commit}/{quote(path)}"})

    def _headers(self, commit: str, path: str, content: bytes) -> dict[str, str]:
        digest = sha256(content) if path.endswith(".safetensors") else git_hash(content)
        headers = {"etag": f'"{self.digests.get(path, digest)}"'}
        return headers | ({"x-repo-commit": commit} if self.names_commit else {})

    def _describe(self, request: QuietHandler, name: str, revision: str) -> None:
        found = self._find(request, name, revision)
        if found is not None:
            _json(request, {"id": name, "sha": found[0], "private": False, "tags": [], "siblings": []})

    def _tree(self, request: QuietHandler, name: str, revision: str) -> None:
        found = self._find(request, name, revision)
        if found is None:
            return
        entries: list[dict[str, Any]] = []
        for path, data in found[1].items():
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_hash(data)}
            if path.endswith(".safetensors"):
                oid = self.digests.get(path, sha256(data))
                entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 134}
            entries.append(entry)
        _json(request, entries)


def _json(request: QuietHandler, value: Any) -> None:
    reply(request, 200, {"content-type": "application/json"}, json.dumps(value).encode())


ACCESS_KEY: Final = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY: Final = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


def presigned_signature(method: str, host: str, url: str, secret: str) -> str:
    """The signature that a presigned URL must have: "Authenticating Requests: Using Query Parameters (AWS Signature
    Version 4)" in Amazon S3's API reference."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    query.pop("X-Amz-Signature", None)
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in query.items())
    canonical_query = "&".join(f"{name}={value}" for name, value in pairs)
    canonical = f"{method}\n{parts.path}\n{canonical_query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
    scope = query["X-Amz-Credential"].partition("/")[2]
    hashed = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = f"AWS4-HMAC-SHA256\n{query['X-Amz-Date']}\n{scope}\n{hashed}"
    key = b"AWS4" + secret.encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, to_sign.encode(), "sha256").hex()


def bucket() -> FileServer:
    """A server of S3: `/BUCKET/KEY`, for requests that are signed with ACCESS_KEY and SECRET_KEY."""

    def refuses(request: QuietHandler) -> int | None:
        query = dict(parse_qsl(urlsplit(request.path).query, keep_blank_values=True))
        known = query.get("X-Amz-Credential", "").startswith(f"{ACCESS_KEY}/")
        host = request.headers["host"]
        right = known and presigned_signature(request.command, host, request.path, SECRET_KEY)
        return None if right == query.get("X-Amz-Signature") else 403

    return FileServer(refuses)
