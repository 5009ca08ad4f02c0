"""All parts of an installation at once: two fronts behind HAProxy, agents on two nodes of Ray's, PostgreSQL and S3."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from tests.cluster.ray_cluster import BASE_NAME, RayCluster
from tests.support import postgresql, s3
from tests.support.adapters import make_base
from tests.support.cluster import FRONT_KEY, Process, front_of, is_ready, until
from tests.support.gateway import ADMIN_KEY, TIMEOUT, held_port
from tests.support.system import program

NODES: Final = ("127.0.0.3", "127.0.0.4")
FRONTS: Final = 2
STOP_DELAY_S: Final = 5
"""HATRACK_STOP_DELAY_S of the fronts: ten of the balancer's looks."""
BALANCER: Final = """
global
    maxconn 200
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout check 5s
frontend statistics
    bind 127.0.0.1:{statistics}
    stats enable
    stats uri /
frontend callers
    bind 127.0.0.1:{port}
    default_backend hatrack
backend hatrack
    balance leastconn
    option httpchk GET /readyz
    option redispatch 1
    retries 5
    retry-on conn-failure
    default-server check inter 500 fall 2 rise 1
{servers}
"""
"""As `deploy/FRONTS.md` has it, with quicker looks."""


class DatabaseDoor:
    """A way to one database of PostgreSQL's that can be shut: what is connected is cut, and nothing comes in."""

    def __init__(self, server: postgresql.TestServer) -> None:
        self._server = server
        self._database = server.create()
        self.folder = Path(tempfile.mkdtemp(prefix="hatrack-door-"))
        self.open()

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/{self._database}?host={self.folder}"

    @property
    def _socket(self) -> Path:
        return self.folder / ".s.PGSQL.5432"

    def open(self) -> None:
        self._socket.symlink_to(self._server.folder / self._socket.name)

    def shut(self) -> None:
        self._socket.unlink()
        cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'"
        self._server.execute(cut.format(self._database))


@dataclass
class WholeCluster(RayCluster):
    """Every node has a home of its own, which the gateway does not see: adapters come to it from the bucket."""

    database: DatabaseDoor = field(kw_only=True)
    bucket: s3.Door = field(kw_only=True)
    store: dict[str, str] = field(kw_only=True)
    """Settings of the object store."""
    fronts: list[Process] = field(default_factory=list)
    balancer: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.gateway.settings |= self.store | {
            "HATRACK_DATABASE_URL": self.database.url,
            "HATRACK_FRONT_KEY": FRONT_KEY,
            "HATRACK_USAGE_FLUSH_S": "0.5",
            "HATRACK_STOP_DELAY_S": str(STOP_DELAY_S),
        }

    def start(self) -> None:
        """Start all but the agents; the fronts are ready when these are there."""
        super().start()
        for number in range(FRONTS):
            self.fronts.append(front_of(self.gateway, number))
            self.fronts[number].start()
        for name in ("balancer", "statistics"):
            with held_port() as held:
                self.ports[name] = int(held.getsockname()[1])
        servers = [f"    server front-{number} 127.0.0.1:{front.port}" for number, front in enumerate(self.fronts)]
        path = self.home / "haproxy.cfg"
        path.write_text(
            BALANCER.format(
                port=self.ports["balancer"], statistics=self.ports["statistics"], servers="\n".join(servers)
            )
        )
        with (self.home / "haproxy.log").open("wb") as log:
            self.balancer = subprocess.Popen([program("haproxy"), "-db", "-f", str(path)], stdout=log, stderr=log)

    def until_fronts_are_used(self) -> None:
        """Wait until all fronts are ready, and the balancer has seen it."""
        for front in self.fronts:
            until(lambda front=front: is_ready(front.port), front)  # type: ignore[misc]
        until(lambda: self._servers_up() == FRONTS)

    def _servers_up(self) -> int:
        """How many fronts the balancer sends requests to."""
        with suppress(httpx.TransportError):
            rows = httpx.get(f"http://127.0.0.1:{self.ports['statistics']}/;csv", timeout=TIMEOUT).text.splitlines()
            return sum(row.startswith("hatrack,front-") and ",UP," in row for row in rows)
        return 0

    def stop(self) -> None:
        """End everything."""
        if self.balancer is not None:
            self.balancer.terminate()
            self.balancer.wait()
        for front in self.fronts:
            front.stop()
        super().stop()

    def node_environment(self, address: str) -> dict[str, str]:
        return {"HATRACK_HOME": str(self.node_home(address))}

    def node_home(self, address: str) -> Path:
        return self.home / f"node-{address}"

    @property
    def agent_environment(self) -> dict[str, str]:
        return self.store

    @contextmanager
    def front(self, number: int, key: str = ADMIN_KEY) -> Iterator[httpx.Client]:
        """A client of whichever front the balancer chooses."""
        with self._client(self.ports["balancer"], key) as http:
            yield http

    @contextmanager
    def one_front(self, number: int) -> Iterator[httpx.Client]:
        """A client of this front."""
        with self._client(self.fronts[number].port, ADMIN_KEY) as http:
            yield http

    @staticmethod
    def _client(port: int, key: str) -> httpx.Client:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=TIMEOUT)


@contextmanager
def running(home: Path) -> Iterator[WholeCluster]:
    """All of it over `home`, its agents in use."""
    postgresql.require_server()
    with ExitStack() as stack:
        temporary = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        database = DatabaseDoor(stack.enter_context(postgresql.running_server()))
        stack.callback(shutil.rmtree, database.folder, ignore_errors=True)
        server = stack.enter_context(s3.running_server(home / "s3.log"))
        door = s3.Door(server.port)
        stack.callback(door.shut)
        store = {"HATRACK_STORE_URL": f"s3://{server.bucket()}/hatrack", **server.environment(door.endpoint)}
        base_dir = make_base(home / BASE_NAME)
        made = WholeCluster(home, base_dir, temporary, NODES, database=database, bucket=door, store=store)
        stack.callback(made.stop)
        made.start()
        made.up()
        made.until_fronts_are_used()
        yield made
