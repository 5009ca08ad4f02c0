"""What is measured: a gateway, agents and fronts over stubs, and adapters in it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from adapters.base import describe
from tests.support.adapters import make_adapter, make_base
from tests.support.cluster import ENGINES, ClusterOfProcesses, Process, until
from tests.support.gateway import ADMIN_KEY, Gateway
from tests.support.postgresql import TEMPLATE, migrate_template, running_server
from tests.support.s3 import running_server as running_s3_server

SLOTS = 8
SETTINGS = {
    "HATRACK_ENGINE_SLOTS": str(SLOTS),
    "HATRACK_ENGINE_RESIDENT": "16",
    "HATRACK_ENGINE_DEVICE": "cpu",
    "HATRACK_QUEUE_TIMEOUT_S": "600",
    "HATRACK_TRAINER": "off",
    "HATRACK_KNOWLEDGE": "false",
}
HEADERS = {"authorization": f"Bearer {ADMIN_KEY}"}


@dataclass
class Installation:
    """All of it, running."""

    cluster: ClusterOfProcesses
    single: Gateway | None
    """A gateway with an engine of its own; None: it was not asked for."""
    digests: dict[str, str] = field(default_factory=dict)
    """Of the adapters, by name."""

    @property
    def fronts(self) -> list[str]:
        return [f"http://127.0.0.1:{front.port}" for front in self.cluster.fronts]

    def asked(self) -> dict[str, list[str]]:
        """The models that each engine was asked for so far, in their order."""
        return {name: self._file(name).read_text().splitlines() for name in ENGINES}

    def _file(self, engine: str) -> Path:
        return self.cluster.home / f"asked-{engine}"

    def push(self, *names: str) -> None:
        """Make adapters, and push a version of each to the gateways."""
        about = describe(
            self.cluster.base_dir, served_name="x", dtype="bfloat16", quantization=None, engine_version="0"
        )
        for name in names:
            folder = self.cluster.home / "made" / f"{len(self.digests)}-{name}"
            make_adapter(folder, about, seed=len(self.digests), scale=0.02)
            for gateway in (self.cluster.gateway, self.single):
                if gateway is not None:
                    pushed = gateway.push(name, folder)
                    assert pushed.status_code == 201, pushed.text
                    self.digests[name] = pushed.json()["digest"]


@contextmanager
def installation(*, postgresql: bool = False, s3: bool = False, single: bool = False) -> Iterator[Installation]:
    """Start it, and end it."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fronts-")))
        settings = dict(SETTINGS)
        if postgresql:
            server = stack.enter_context(running_server())
            server.execute(f"CREATE DATABASE {TEMPLATE}")
            migrate_template(server)
            settings["HATRACK_DATABASE_URL"] = server.url_for(home / "hatrack.db")
        if s3:
            bucket = stack.enter_context(running_s3_server(home / "s3.log"))
            settings |= {"HATRACK_STORE_URL": f"s3://{bucket.bucket()}/hatrack", **bucket.environment()}
        cluster = ClusterOfProcesses(home, make_base(home / "tiny"), settings, is_real=False)
        made = Installation(cluster, _single(home, cluster.base_dir, stack) if single else None)
        for name, stub in cluster.stubs.items():
            made._file(name).touch()
            stub.module, stub.arguments = "loadtests.fronts.engine", (*stub.arguments, str(made._file(name)))
        stack.callback(cluster.stop)
        cluster.start()
        yield made


def _single(home: Path, base_dir: Path, stack: ExitStack) -> Gateway:
    """A gateway over a stub, as one process."""
    own, socket = home / "single", home / "single.sock"
    gateway = Gateway(own, base_dir, settings=SETTINGS | {"HATRACK_ENGINE_URL": f"unix:{socket}"})
    own.mkdir()
    stub = Process((str(socket),), gateway.environment, own / "engine.log", module="tests.support.stub_engine")
    stub.start()
    stack.callback(stub.stop)
    until(socket.exists, stub)
    gateway.start(wait=False)
    stack.callback(gateway.stop)
    until(gateway.listens)
    return gateway


async def complete(http: aiohttp.ClientSession, url: str, model: str, tokens: int) -> tuple[int, str | None]:
    """One answer, read to its end: its status, and the adapter's version that answered."""
    body = {"model": model, "prompt": "Once upon a time", "max_tokens": tokens, "stream": tokens > 1}
    async with http.post(f"{url}/v1/completions", json=body) as answer:
        await answer.read()
        return answer.status, answer.headers.get("x-hatrack-adapter")
