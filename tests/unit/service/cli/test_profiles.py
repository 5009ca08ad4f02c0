"""`hatrack login` and what it saves: which gateway and key count, and that a key goes nowhere else."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli.main import app
from service.client import ClientError, HatrackClient
from service.client.settings import ClientSettings
from tests.unit.service.wire import KEY, Gateway, running


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without variables, far from any clone; the file in which profiles are saved."""
    for name in ("URL", "KEY", "PROJECT", "PROFILE", "HOME"):
        monkeypatch.delenv(f"HATRACK_{name}", raising=False)
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "config" / "hatrack" / "profiles.json"


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with running() as server:
        yield server


def hatrack(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def test_login_makes_every_other_command_work(config: Path, gateway: Gateway) -> None:
    result = hatrack("login", f"{gateway.url}/v1", stdin=f"{KEY}\n")
    assert result.exit_code == 0, result.output
    assert f"Logged in to {gateway.url}, which serves tiny-base" in result.stdout
    assert KEY not in result.output
    gateway.add("voice")
    assert "voice" in hatrack("ls").stdout
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert stat.S_IMODE(config.parent.stat().st_mode) == 0o700
    assert [path.name for path in config.parent.iterdir()] == ["profiles.json"]


def test_a_key_that_is_refused_is_not_saved(config: Path, gateway: Gateway) -> None:
    refused = hatrack("login", gateway.url, stdin="hk-wrong\n")
    assert (refused.exit_code, "[invalid_api_key]" in refused.stderr) == (1, True)
    assert hatrack("login", "http://127.0.0.1:9", stdin=KEY).exit_code == 3
    nothing = hatrack("login", gateway.url, stdin="")
    assert (nothing.exit_code, "[key_missing]" in nothing.stderr) == (1, True)
    assert not config.exists()


def test_the_key_may_come_from_the_environment(config: Path, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_KEY", KEY)
    shown = json.loads(hatrack("login", gateway.url, "--project", "acme", "--json").stdout)
    assert (shown["profile"], shown["project"], shown["current"]) == ("default", "acme", True)
    monkeypatch.delenv("HATRACK_KEY")
    hatrack("ls")
    headers = gateway.requests[-1][2]
    assert (headers["authorization"], headers["openai-project"]) == (f"Bearer {KEY}", "acme")


def test_variables_count_before_the_profile_and_the_option_before_both(
    config: Path, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    hatrack("login", gateway.url, "--profile", "here", stdin=KEY)
    hatrack("login", gateway.url, "--profile", "other", "--project", "acme", stdin=KEY)
    monkeypatch.setenv("HATRACK_URL", "http://127.0.0.1:9")
    assert hatrack("ls").exit_code == 3
    monkeypatch.setenv("HATRACK_KEY", "hk-wrong")
    assert hatrack("--profile", "here", "ls").exit_code == 0
    monkeypatch.delenv("HATRACK_URL")
    assert hatrack("ls").exit_code == 1, "the wrong key of the environment, at the profile's address"
    monkeypatch.delenv("HATRACK_KEY")
    monkeypatch.setenv("HATRACK_PROFILE", "other")
    hatrack("ls")
    assert gateway.requests[-1][2]["openai-project"] == "acme"


def test_a_saved_key_goes_to_its_own_gateway_only(
    config: Path, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    hatrack("login", gateway.url, "--project", "acme", stdin=KEY)
    assert ClientSettings().gateway_key(gateway.url) == KEY
    assert ClientSettings().gateway_key("https://elsewhere.example.com") is None
    assert ClientSettings().gateway_project("https://elsewhere.example.com") is None
    with running() as other:
        monkeypatch.setenv("HATRACK_URL", other.url)
        assert hatrack("ls").exit_code == 1
        assert "authorization" not in other.requests[-1][2]


def test_the_openai_variables_count_after_the_profile(
    config: Path, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "https://api.example.com/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-theirs")
    assert ClientSettings().gateway_url == "https://api.example.com/v1"
    hatrack("login", gateway.url, stdin=KEY)
    settings = ClientSettings()
    assert settings.gateway_url == gateway.url
    assert settings.gateway_key("https://api.example.com") == "sk-theirs"


def test_profiles_lists_switches_and_forgets(config: Path, gateway: Gateway) -> None:
    assert "No profile is saved" in hatrack("profiles").stdout
    hatrack("login", gateway.url, "--profile", "a", stdin=KEY)
    hatrack("login", gateway.url, "--profile", "b", "--project", "acme", stdin=KEY)
    rows = [row.split() for row in hatrack("profiles").stdout.splitlines()[1:]]
    assert rows == [["a", gateway.url, "-", "…"], ["*", "b", gateway.url, "acme", "…"]]
    assert KEY not in hatrack("profiles", "--json").stdout
    assert json.loads(hatrack("profiles", "--use", "a", "--json").stdout)[0]["current"] is True
    assert hatrack("profiles", "--use", "c").exit_code == 1
    assert hatrack("logout").stdout.startswith("Deleted the profile a.")
    assert hatrack("logout").exit_code == 1, "none is the current one"
    assert hatrack("logout", "--profile", "b").exit_code == 0
    assert KEY not in config.read_text()


def test_a_profile_that_is_not_there_is_named(config: Path, gateway: Gateway) -> None:
    hatrack("login", gateway.url, "--profile", "here", stdin=KEY)
    missing = hatrack("--profile", "there", "ls")
    assert missing.exit_code == 1
    assert "There is no profile there (saved: here)" in missing.stderr
    assert hatrack("--profile", "not a name", "ls").exit_code == 2


def test_a_damaged_file_is_named_and_what_needs_none_goes_on(
    config: Path, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.parent.mkdir(parents=True)
    current = '{"current": ["a"], "profiles": {}}'
    for text in ("{", "[]", '{"profiles": {"a": {"url": 1}}}', '{"profiles": {"a": []}}', current):
        config.write_text(text)
        damaged = hatrack("ls")
        assert (damaged.exit_code, str(config) in damaged.stderr) == (1, True), text
    with pytest.raises(ClientError, match="damaged"):
        HatrackClient()
    monkeypatch.setenv("HATRACK_URL", gateway.url)
    monkeypatch.setenv("HATRACK_KEY", KEY)
    assert hatrack("ls").exit_code == 0


def test_a_user_without_a_home_has_no_profiles(config: Path, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(_cls: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(Path, "home", classmethod(homeless))
    assert ClientSettings().gateway_url == "http://127.0.0.1:8000"
    refused = hatrack("login", gateway.url, stdin=KEY)
    assert (refused.exit_code, "[profiles_not_writable]" in refused.stderr) == (1, True)


def test_what_is_given_needs_no_profile(config: Path, gateway: Gateway) -> None:
    config.parent.mkdir(parents=True)
    config.write_text("{")
    with HatrackClient(gateway.url, KEY) as client:
        assert client.project is None
        assert next(client.models.list())["id"] == "tiny-base"


def test_it_works_from_a_folder_of_its_own_in_a_process_of_its_own(config: Path, gateway: Gateway) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    command = [sys.executable, "-m", "service.cli"]
    subprocess.run([*command, "login", gateway.url], input=KEY.encode(), env=environment, check=True, timeout=240)
    done = subprocess.run([*command, "status"], capture_output=True, env=environment, check=False, timeout=240)
    assert (done.returncode, gateway.url.encode() in done.stdout) == (0, True)


def offered(words: str) -> list[str]:
    """What the shell offers for the last of these words; a space at the end begins the next one."""
    number = str(len(words.split(" ")) - 1)
    completing = {"_HATRACK_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": number}
    return CliRunner().invoke(app, [], env=completing, prog_name="hatrack").stdout.split()


def test_the_shell_completes_names_of_adapters(config: Path, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_URL", "http://127.0.0.1:9")
    assert offered("hatrack show ") == [], "no gateway, no names, and no error"
    monkeypatch.setenv("HATRACK_URL", gateway.url)
    monkeypatch.setenv("HATRACK_KEY", KEY)
    gateway.models = ["tiny-base", "tidy-base", "tidewater", "pemberton"]
    gateway.add("tidewater")
    gateway.add("tides", alias="candidate")
    assert offered("hatrack show t") == ["tides", "tidewater"], "no base, whatever is live"
    assert offered("hatrack chat t") == ["tiny-base", "tidy-base", "tidewater"]
    gateway.models.append("embedder")
    assert offered("hatrack chat e") == [], "it cannot chat"


def test_the_shell_completes_names_of_stores(config: Path, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_URL", "http://127.0.0.1:9")
    assert offered("hatrack kb add ") == [], "no gateway, no names, and no error"
    monkeypatch.setenv("HATRACK_URL", gateway.url)
    monkeypatch.setenv("HATRACK_KEY", KEY)
    for name in ("policies", "orders", "postage"):
        assert hatrack("kb", "create", name).exit_code == 0
    for words in ("hatrack kb search", "hatrack chat --kb", "hatrack push --kb", "hatrack train --kb"):
        assert sorted(offered(f"{words} po")) == ["policies", "postage"], words
