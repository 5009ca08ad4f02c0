"""The Python client against a gateway in a thread."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service.client import AdapterDirectory, CannotConnect, ClientError, HatrackClient
from tests.unit.service.wire import KEY, Gateway, running

VARIABLES = ("HATRACK_URL", "HATRACK_KEY", "OPENAI_BASE_URL", "OPENAI_API_KEY", "HATRACK_HOME")
WEIGHTS = bytes(range(256)) * 1024


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with running() as server:
        yield server


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HATRACK_HOME", str(tmp_path / "home"))


@pytest.fixture
def client(gateway: Gateway) -> Iterator[HatrackClient]:
    with HatrackClient(gateway.url + "/v1/", KEY) as opened:
        yield opened


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "adapter"
    root.mkdir()
    (root / "adapter_config.json").write_bytes(b'{"r": 8}')
    (root / "adapter_model.safetensors").write_bytes(WEIGHTS)
    return root


def test_push_streams_the_directory_and_reports_every_byte(
    client: HatrackClient, gateway: Gateway, directory: Path
) -> None:
    (directory / "README.md").write_text("# Märchen", encoding="utf-8")
    (directory / "metadata.json").write_text('{"proof": {"base": [-1.5]}}')
    (directory / "settings.json").write_text('{"system_prompt": "Grüß Gott"}', encoding="utf-8")
    seen: list[int] = []
    version = client.adapters.push("brand-voice", directory, progress=seen.append)
    assert version["version"] == 1
    assert version["aliases"] == ["live"]
    assert sum(seen) == len(WEIGHTS)
    assert len(seen) > 2
    assert gateway.parts["weights"] == WEIGHTS
    assert gateway.parts["config"] == b'{"r": 8}'
    assert gateway.parts["readme"].decode() == "# Märchen"
    assert json.loads(gateway.parts["metadata"]) == {"proof": {"base": [-1.5]}}
    assert json.loads(gateway.parts["settings"]) == {"system_prompt": "Grüß Gott"}
    assert "alias" not in gateway.parts
    body = gateway.requests[-1][3]
    assert body.index(b'name="name"') < body.index(b'name="config"') < body.index(b'name="weights"')


def test_push_arguments_win_over_the_directory(client: HatrackClient, gateway: Gateway, directory: Path) -> None:
    (directory / "settings.json").write_text('{"system_prompt": "file"}')
    version = client.adapters.push(
        "a", directory, settings={"system_prompt": "given"}, metadata={"run": 1}, alias="", wait=False
    )
    assert version["state"] == "proving"
    assert version["aliases"] == []
    assert gateway.parts["alias"] == b""
    assert json.loads(gateway.parts["settings"]) == {"system_prompt": "given"}
    assert json.loads(gateway.parts["metadata"]) == {"run": 1}
    assert gateway.requests[-1][1] == "/v1/adapters?wait=false"


def test_push_without_a_directory_sends_the_settings_alone(client: HatrackClient, gateway: Gateway) -> None:
    version = client.adapters.push("support", settings={"system_prompt": "Hi"}, metadata={"run": 7}, alias="canary")
    assert (version["digest"], version["rank"], version["aliases"]) == (None, None, ["canary"])
    assert json.loads(gateway.requests[-1][3]) == {
        "name": "support",
        "settings": {"system_prompt": "Hi"},
        "metadata": {"run": 7},
        "alias": "canary",
    }
    assert client.adapters.push("support", settings={"system_prompt": "Ho"}, wait=False)["state"] == "proving"


def test_push_hands_on_the_reason_of_a_refusal(client: HatrackClient, directory: Path) -> None:
    (directory / "adapter_model.safetensors").write_bytes(b"nan")
    with pytest.raises(ClientError) as refused:
        client.adapters.push("a", directory)
    error = refused.value
    assert (error.status, error.code, error.param) == (422, "weights_not_finite", "weights")
    assert str(error) == "A weight is not a number."


@pytest.mark.parametrize(
    ("break_it", "code", "says"),
    [
        (lambda root: (root / "adapter_config.json").unlink(), "not_an_adapter", "no adapter_config.json"),
        (
            lambda root: (root / "adapter_model.safetensors").rename(root / "adapter_model.bin"),
            "not_an_adapter",
            "safe_serialization",
        ),
        (lambda root: (root / "settings.json").write_text("{"), "json_invalid", "settings.json"),
        (lambda root: (root / "metadata.json").write_text("[]"), "json_invalid", "not contain a JSON object"),
    ],
)
def test_a_directory_that_is_no_adapter_is_refused_unsent(
    directory: Path, break_it: Callable[[Path], object], code: str, says: str
) -> None:
    break_it(directory)
    with pytest.raises(ClientError) as refused:
        AdapterDirectory.read(directory)
    assert refused.value.code == code
    assert says in refused.value.message


def test_a_file_that_cannot_be_read_is_not_sent(client: HatrackClient, gateway: Gateway, tmp_path: Path) -> None:
    for send in (client.files.create, client.fine_tuning.check_data):
        with pytest.raises(ClientError, match=r"absent\.jsonl cannot be read") as refused:
            send(tmp_path / "absent.jsonl")
        assert refused.value.code == "not_readable"
    assert gateway.requests == []


def test_adapters_come_page_after_page(client: HatrackClient, gateway: Gateway) -> None:
    gateway.page = 2
    for name in "abcde":
        gateway.add(name)
    assert [adapter["name"] for adapter in client.adapters.list()] == list("abcde")


def test_aliases_move_and_move_back(client: HatrackClient, gateway: Gateway) -> None:
    gateway.add("a")
    gateway.add("a")
    assert client.adapters.promote("a@2")["version"] == 2
    assert client.adapters.retrieve("a")["aliases"] == {"live": 2}
    assert client.adapters.rollback("a")["version"] == 1
    assert client.adapters.promote("a@2", "canary")["version"] == 2
    assert client.adapters.versions.retrieve("a", 2)["aliases"] == ["canary"]
    with pytest.raises(ClientError, match="Name a version"):
        client.adapters.promote("a:canary")


def test_delete_takes_a_version_or_an_adapter_never_an_alias(client: HatrackClient, gateway: Gateway) -> None:
    gateway.add("a")
    gateway.add("a")
    client.adapters.delete("a@2")
    assert list(gateway.versions["a"]) == [1]
    with pytest.raises(ClientError) as refused:
        client.adapters.delete("a")
    assert refused.value.code == "alias_points_here"
    with pytest.raises(ClientError, match="is an alias"):
        client.adapters.delete("a:live")
    client.adapters.delete("a", force=True)
    assert gateway.versions == {}


def test_download_is_whole_or_absent(client: HatrackClient, gateway: Gateway, tmp_path: Path) -> None:
    gateway.files["weights"] = WEIGHTS
    target = tmp_path / "w.safetensors"
    assert client.adapters.versions.download("a", 1, "weights", target) == len(WEIGHTS)
    assert target.read_bytes() == WEIGHTS
    with pytest.raises(ClientError) as refused:
        client.adapters.versions.download("a", 1, "config", tmp_path / "c.json")
    assert refused.value.status == 404
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_chat_yields_text_also_with_unicode_line_ends(client: HatrackClient, gateway: Gateway) -> None:
    gateway.say("Hel", "lo\u2028wor\x85ld", "")
    pieces = list(client.chat.stream("tiny-base", [{"role": "user", "content": "hi"}], max_tokens=5))
    assert pieces == ["Hel", "lo\u2028wor\x85ld"]
    sent = json.loads(gateway.requests[-1][3])
    assert (sent["stream"], sent["max_tokens"]) == (True, 5)


@pytest.mark.parametrize(
    ("end", "code"),
    [(b"", "stream_cut"), (b'data: {"error": {"message": "gone", "code": "engine_died"}}\n\n', "engine_died")],
)
def test_chat_that_breaks_off_is_an_error(client: HatrackClient, gateway: Gateway, end: bytes, code: str) -> None:
    gateway.say("Hel", end=end)
    stream = client.chat.stream("tiny-base", [])
    assert next(stream) == "Hel"
    with pytest.raises(ClientError) as broken:
        next(stream)
    assert broken.value.code == code


def test_ready_is_a_report_whether_yes_or_no(client: HatrackClient, gateway: Gateway) -> None:
    assert client.ready()["status"] == "ready"
    gateway.readiness = (503, {"status": "starting", "engine": {"state": "starting", "reason": "loading"}})
    assert client.ready()["engine"]["reason"] == "loading"
    assert client.health() == {"status": "ok"}
    assert list(client.models.list()) == [{"id": "tiny-base"}]


def test_wait_ready_asks_until_yes_or_the_time_is_up() -> None:
    answers = [httpx.ConnectError("refused"), {"status": "starting", "engine": {"state": "starting"}}]
    ready = {"status": "ready"}

    def answer(_request: httpx.Request) -> httpx.Response:
        found = answers.pop(0) if answers else ready
        if isinstance(found, httpx.ConnectError):
            raise found
        return httpx.Response(200 if found == ready else 503, json=found)

    with HatrackClient("http://x", transport=httpx.MockTransport(answer)) as client:
        assert client.wait_ready(60) == ready
        answers.append({"status": "starting", "engine": {"state": "starting", "reason": "loading"}})
        with pytest.raises(ClientError, match="loading") as late:
            client.wait_ready(0)
    assert late.value.code == "not_ready"


def test_nobody_listening_says_where_and_what_to_do() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, not listening: the port refuses and nobody else can take it
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with HatrackClient(url) as client, pytest.raises(CannotConnect) as refused:
            client.health()
    assert url in refused.value.message
    assert "hatrack up" in refused.value.message


@pytest.mark.parametrize(("status", "body"), [(502, b"<html>"), (200, b"<html>"), (200, b"[]")])
def test_another_server_is_told_apart(status: int, body: bytes) -> None:
    transport = httpx.MockTransport(lambda _request: httpx.Response(status, content=body))
    with HatrackClient("http://gateway.test", transport=transport) as client, pytest.raises(ClientError) as refused:
        client.health()
    assert refused.value.code == "not_hatrack"


@pytest.mark.parametrize(
    ("failure", "code"), [(httpx.ReadTimeout("slow"), "timeout"), (httpx.ReadError("reset"), "connection_lost")]
)
def test_a_connection_that_fails_has_a_code(failure: httpx.TransportError, code: str) -> None:
    def fail(_request: httpx.Request) -> httpx.Response:
        raise failure

    with HatrackClient("http://x", transport=httpx.MockTransport(fail)) as client, pytest.raises(ClientError) as error:
        client.health()
    assert error.value.code == code


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host", "http://", "http://[::1"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ClientError) as refused:
        HatrackClient(url)
    assert refused.value.code == "url_invalid"


def sent_key(url: str | None = None) -> tuple[str, str | None]:
    """Where a client made from the environment sends its first request, and with which key."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={})

    with HatrackClient(url, transport=httpx.MockTransport(answer)) as client:
        client.health()
    return str(seen[0].url), seen[0].headers.get("authorization")


def test_address_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert sent_key() == ("http://127.0.0.1:8000/healthz", None)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "admin.key").write_text("hk-admin\n")
    assert sent_key() == ("http://127.0.0.1:8000/healthz", "Bearer hk-admin")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://hats.test/v1/")
    monkeypatch.setenv("OPENAI_API_KEY", "hk-openai")
    assert sent_key() == ("http://hats.test/healthz", "Bearer hk-openai")
    monkeypatch.setenv("HATRACK_URL", "https://other.test")
    monkeypatch.setenv("HATRACK_KEY", "hk-own")
    assert sent_key() == ("https://other.test/healthz", "Bearer hk-own")


def test_a_key_is_not_sent_where_it_does_not_belong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "admin.key").write_text("hk-admin")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-somebody-elses")
    assert sent_key()[1] == "Bearer hk-admin"  # not the other service's key
    assert sent_key("http://elsewhere.test")[1] is None  # nor this machine's admin key
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere.test:80001/v1")
    assert sent_key("http://elsewhere.test:8000")[1] is None


@pytest.mark.parametrize("openai_key", ["sk-theirs", None])
def test_an_own_key_is_not_sent_to_an_address_that_only_openais_variable_names(
    monkeypatch: pytest.MonkeyPatch, openai_key: str | None
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "https://eu.api.openai.com/v1")
    if openai_key is not None:
        monkeypatch.setenv("OPENAI_API_KEY", openai_key)
    monkeypatch.setenv("HATRACK_KEY", "hk-admin")
    assert sent_key() == ("http://127.0.0.1:8000/healthz", "Bearer hk-admin")
    assert sent_key("https://eu.api.openai.com/v1")[1] == "Bearer hk-admin", "the caller has named it"


def test_the_admin_key_of_this_machine_is_not_sent_to_another_local_service(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "admin.key").write_text("hk-admin")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:11434/v1")
    assert sent_key() == ("http://127.0.0.1:8000/healthz", "Bearer hk-admin")
