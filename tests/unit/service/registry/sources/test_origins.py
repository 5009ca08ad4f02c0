"""Where a fetch may go: the operator's list, redirects, private networks, credentials."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from adapters.errors import SourceInvalid
from adapters.sources import parse_prefix, parse_source
from service.config import Settings
from service.errors import SettingsError, SourceFailed, SourceNotAllowed, SourceNotFound
from service.registry.sources import origins
from service.registry.sources.fetch import SourceFetcher
from service.registry.sources.http import SourceClient
from service.registry.sources.origins import HubOrigin, Redirects, named_hosts
from tests.support.sources import (
    ACCESS_KEY,
    SECRET_KEY,
    TOKEN,
    FileServer,
    Hub,
    bucket,
    presigned_signature,
    running,
    sha256,
)
from tests.support.system import in_ci
from tests.unit.service.registry.sources.conftest import CONFIG, FILES, README, WEIGHTS, Fetching

COMMIT = "c" * 40

# the operator's list


def test_without_a_list_nothing_is_fetched_and_the_setting_is_named(tmp_path: Path) -> None:
    fetcher = SourceFetcher(Settings(home=tmp_path))
    for url in ("hf://acme/voice", "https://example.com/voice", "s3://models/voice"):
        with pytest.raises(SourceNotAllowed, match="HATRACK_SOURCES is empty"):
            fetcher.parse(url)


def test_what_the_list_does_not_cover_is_refused(tmp_path: Path) -> None:
    fetcher = SourceFetcher(Settings(home=tmp_path, sources=("hf://acme", "https://example.com/adapters")))
    for url in (
        "hf://acme-labs/voice",
        "https://example.com/adaptersx/voice",
        "https://example.com.evil.org/adapters/v",
    ):
        with pytest.raises(SourceNotAllowed, match="does not cover it"):
            fetcher.parse(url)
    with pytest.raises(SourceInvalid):
        fetcher.parse("https://example.com/adapters/../secret")


def test_a_bucket_on_the_list_needs_the_package_that_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origins, "S3_PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(SettingsError, match=r"hatrack\[s3\]"):
        SourceFetcher(Settings(home=tmp_path, sources=("s3://models",)))


# the hub


async def test_a_branch_is_pinned_to_its_commit_and_every_file_is_of_it(from_hub: Fetching, hub: Hub) -> None:
    commit = hub.repositories["acme/voice"].branches["main"]
    fetched = await from_hub.fetch("hf://acme/voice@main")
    assert (fetched.config, fetched.readme, bytes(from_hub.written)) == (CONFIG, README, WEIGHTS)
    assert fetched.record["url"] == f"hf://acme/voice@{commit}"
    assert (fetched.record["revision"], fetched.record["checked_by"]) == (commit, "source")
    resolved = [path.split("/")[4] for path in hub.paths() if "/resolve/" in path]
    assert resolved == ["main", commit, commit]


async def test_a_push_to_the_branch_meanwhile_does_not_mix_two_commits(from_hub: Fetching, hub: Hub) -> None:
    first = hub.repositories["acme/voice"].branches["main"]

    def push(_config: bytes) -> None:
        hub.put("acme/voice", FILES | {"adapter_model.safetensors": WEIGHTS[::-1]})

    fetched = await from_hub.fetch("hf://acme/voice", check_config=push)
    assert (fetched.record["revision"], bytes(from_hub.written)) == (first, WEIGHTS)


async def test_a_revision_with_slashes_and_a_folder(from_hub: Fetching, hub: Hub) -> None:
    hub.put("acme/voice", {f"sub/voice/{name}": data for name, data in FILES.items()}, branch="refs/pr/3")
    fetched = await from_hub.fetch("hf://acme/voice@refs/pr/3/sub/voice")
    assert (fetched.config, bytes(from_hub.written)) == (CONFIG, WEIGHTS)
    assert fetched.record["url"].endswith("/sub/voice")


async def test_a_fetch_from_the_hub_goes_on_where_the_cdn_broke_off(from_hub: Fetching, hub: Hub) -> None:
    hub.cdn.faults.cuts = [400_000]
    await from_hub.fetch("hf://acme/voice")
    assert bytes(from_hub.written) == WEIGHTS
    assert [bool(seen.range) for seen in hub.cdn.seen] == [False, True]


async def test_weights_that_git_keeps_itself_are_checked_by_their_blob(from_hub: Fetching, hub: Hub) -> None:
    hub.digests["adapter_model.safetensors"] = "0" * 40
    with pytest.raises(Exception, match="Git hash"):
        await from_hub.fetch("hf://acme/voice")


@pytest.mark.parametrize("missing", ["digest", "commit"])
async def test_a_hub_that_states_no_digest_or_commit_is_refused(from_hub: Fetching, hub: Hub, missing: str) -> None:
    if missing == "digest":
        hub.digests["adapter_config.json"] = "abc"
    hub.names_commit = missing != "commit"
    with pytest.raises(SourceFailed, match={"digest": "no digest", "commit": "no x-repo-commit"}[missing]):
        await from_hub.fetch("hf://acme/voice")


async def test_the_token_opens_private_repositories_and_never_reaches_the_cdn(from_hub: Fetching, hub: Hub) -> None:
    hub.repositories["acme/voice"].is_private = True
    with pytest.raises(SourceNotFound, match="401"):
        await from_hub.fetch("hf://acme/voice")
    from_hub.settings["hub_token"] = TOKEN
    await from_hub.fetch("hf://acme/voice")
    assert bytes(from_hub.written) == WEIGHTS
    assert {seen.headers.get("authorization") for seen in hub.cdn.seen} == {None}
    assert hub.seen[-1].headers["authorization"] == f"Bearer {TOKEN}"


async def test_a_repository_that_was_renamed_leads_nowhere(from_hub: Fetching, hub: Hub) -> None:
    hub.put("mallory/voice", FILES)
    hub.repositories["acme/voice"].moved_to = "mallory/voice"
    with pytest.raises(SourceNotAllowed, match="/mallory/voice/"):
        await from_hub.fetch("hf://acme/voice")


async def test_what_is_not_there(from_hub: Fetching, hub: Hub) -> None:
    hub.put("acme/bare", {"adapter_config.json": CONFIG})
    for url in ("hf://acme/nobody", "hf://acme/voice@no-such-branch", "hf://acme/voice/no/folder", "hf://acme/bare"):
        with pytest.raises(SourceNotFound):
            await from_hub.fetch(url)


async def test_a_readme_is_not_needed(from_hub: Fetching, hub: Hub) -> None:
    hub.put("acme/voice", {name: data for name, data in FILES.items() if name != "README.md"})
    assert (await from_hub.fetch("hf://acme/voice")).readme is None


@pytest.mark.parametrize(
    ("target", "allowed"),
    [
        ("https://hub.example/acme/voice/resolve/main/x", True),
        ("https://hub.example/api/resolve-cache/models/acme/voice/0/x", True),
        ("https://hub.example/acme/voice-2/resolve/main/x", False),
        ("https://hub.example/acme/voice/settings", False),
        ("http://hub.example/acme/voice/resolve/main/x", False),
        ("https://cdn-lfs-us-1.hf.co/x?sig=1", True),
        ("http://cdn-lfs-us-1.hf.co/x", False),
        ("https://hf.co.evil.org/x", False),
        ("https://evilhf.co/x", False),
        ("https://169.254.169.254/latest/meta-data", False),
        ("https://files.example/public/x", True),
        ("https://files.example/private/x", False),
    ],
)
def test_where_a_hub_may_redirect_to(target: str, allowed: bool) -> None:
    redirects = Redirects([parse_prefix("https://files.example/public")], ["*.hf.co"])
    origin = HubOrigin(parse_source("hf://acme/voice"), redirects, "https://hub.example", None)
    assert origin._may_follow(URL("https://hub.example/acme/voice/resolve/main/y"), URL(target)) is allowed


def test_an_answer_of_another_commit_is_refused() -> None:
    origin = HubOrigin(parse_source(f"hf://acme/voice@{COMMIT}"), Redirects([], []), "https://hub.example", None)
    with pytest.raises(SourceFailed, match="another commit"):
        origin.expected({"x-repo-commit": "d" * 40, "etag": f'"{"0" * 40}"'})


# web servers


async def test_a_redirect_is_followed_within_the_list_only(from_web: Fetching, web: FileServer) -> None:
    path = "/voices/brand/adapter_config.json"
    web.files["/voices/other.json"] = CONFIG
    web.redirects[path] = "/voices/other.json"
    assert (await from_web.fetch(f"{web.url}/voices/brand")).config == CONFIG
    for outside in ("/private/x", "http://127.0.0.1:1/voices/x", "http://localhost/voices/x"):
        web.redirects[path] = outside
        with pytest.raises(SourceNotAllowed, match="HATRACK_SOURCE_REDIRECTS"):
            await from_web.fetch(f"{web.url}/voices/brand")


@pytest.mark.parametrize("location", ["", "ftp://x/y", "http://user:pass@127.0.0.1/voices/x", "//"])
async def test_a_redirect_to_no_address(from_web: Fetching, web: FileServer, location: str) -> None:
    web.redirects["/voices/brand/adapter_config.json"] = location
    with pytest.raises((SourceFailed, SourceNotAllowed)):
        await from_web.fetch(f"{web.url}/voices/brand")


async def test_redirects_without_end(from_web: Fetching, web: FileServer) -> None:
    web.redirects["/voices/brand/adapter_config.json"] = "/voices/b"
    web.redirects["/voices/b"] = "/voices/brand/adapter_config.json"
    with pytest.raises(SourceFailed, match="more than 5 times"):
        await from_web.fetch(f"{web.url}/voices/brand")


# private networks


@pytest.mark.parametrize(
    ("host", "address", "allowed"),
    [
        ("cdn.hf.co", "93.184.216.34", True),
        ("cdn.hf.co", "10.0.0.5", False),
        ("cdn.hf.co", "127.0.0.1", False),
        ("cdn.hf.co", "::1", False),
        ("cdn.hf.co", "fd00::1", False),
        ("cdn.hf.co", "100.64.0.1", False),
        ("cdn.hf.co", "::ffff:10.0.0.5", False),
        ("cdn.hf.co", "64:ff9b::a00:5", False),
        ("cdn.hf.co", "2002:a00:5::1", False),
        ("cdn.hf.co", "169.254.169.254", False),
        ("files.corp.example", "10.0.0.5", True),
        ("FILES.corp.example", "127.0.0.1", True),
        ("files.corp.example", "169.254.169.254", False),
        ("files.corp.example", "fd00:ec2::254", False),
        ("10.0.0.7", "10.0.0.7", True),
        ("169.254.10.1", "169.254.10.1", True),
        ("10.0.0.8", "10.0.0.8", False),
    ],
)
def test_a_host_that_the_operator_names_may_be_private_and_no_other(host: str, address: str, allowed: bool) -> None:
    client = SourceClient(["files.corp.example", "10.0.0.7", "169.254.10.1"])
    assert client.may_call(host, address) is allowed


def test_which_hosts_are_named(tmp_path: Path) -> None:
    sources = ("hf://acme", "s3://models", "https://files.corp.example:8443/a", "http://10.0.0.7")
    given: dict[str, Any] = {"home": tmp_path, "sources": sources, "source_redirects": ("*.hf.co", "cdn.corp.example")}
    assert named_hosts(Settings(**given)) == {"files.corp.example", "10.0.0.7", "cdn.corp.example"}
    assert "hub.corp.example" in named_hosts(Settings(**given, hub_url="https://hub.corp.example"))


async def test_a_name_that_leads_into_the_private_network_is_not_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, web: FileServer
) -> None:
    """A CDN's name, by a pattern on the list, that resolves to this machine."""
    real, port = socket.getaddrinfo, int(web.url.rpartition(":")[2])

    def rebound(host: str, *arguments: Any, **options: Any) -> Any:
        return real("127.0.0.1" if host == "evil.hf.co" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebound)
    client = SourceClient([])
    try:
        outgoing = origins.Outgoing(URL(f"http://evil.hf.co:{port}/voices/brand/README.md"), {}, lambda _a, _b: True)
        with pytest.raises(SourceNotAllowed, match=r"evil\.hf\.co is in a private network"):
            async with client.get(outgoing, {}):
                pass
        literal = origins.Outgoing(URL(f"{web.url}/voices/brand/README.md"), {}, lambda _a, _b: True)
        with pytest.raises(SourceNotAllowed, match="private network"):
            async with client.get(literal, {}):
                pass
    finally:
        await client.close()
    assert web.seen == []


# buckets


def test_the_stand_in_checks_signatures_as_aws_documents_them() -> None:
    """The example of a presigned URL in Amazon S3's API reference."""
    url = (
        "https://examplebucket.s3.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential="
        "AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400"
        "&X-Amz-SignedHeaders=host"
    )
    expected = "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    assert presigned_signature("GET", "examplebucket.s3.amazonaws.com", url, SECRET_KEY) == expected


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The credentials of the gateway's environment."""
    if find_spec(origins.S3_PACKAGE) is None:
        (pytest.fail if in_ci() else pytest.skip)("s3:// needs obstore: deploy/setup.sh dev")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")


@pytest.mark.usefixtures("aws")
async def test_a_bucket_is_read_with_signed_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = bucket()
    server.files = {f"/models/voices/brand (1)/{name}": data for name, data in FILES.items()}
    with running(server):
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        fetching = Fetching(tmp_path / "home", {"sources": ("s3://models/voices",)}, server.faults)
        server.faults.cuts = [400_000]
        with pytest.raises(SourceInvalid):  # a space
            await fetching.fetch("s3://models/voices/brand (1)")
        server.files = {path.replace(" (1)", "-(1)"): data for path, data in server.files.items()}
        fetched = await fetching.fetch("s3://models/voices/brand-(1)", sha256=sha256(WEIGHTS))
        assert (fetched.config, bytes(fetching.written)) == (CONFIG, WEIGHTS)
        assert fetched.record["url"] == "s3://models/voices/brand-(1)"
        assert "X-Amz" not in str(fetched.record)
        assert server.seen[-1].range
        assert "authorization" not in server.seen[-1].headers
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        with pytest.raises(SourceNotFound, match="403"):
            await fetching.fetch("s3://models/voices/brand-(1)")


@pytest.mark.usefixtures("aws")
async def test_amazon_itself_is_not_taken_for_an_endpoint_of_the_operator() -> None:
    client = SourceClient([])
    outgoing = await origins.BucketOrigin(parse_source("s3://models/voice"), client).outgoing("README.md")
    assert outgoing.url.host == "s3.eu-west-1.amazonaws.com"
    assert not client.may_call("s3.eu-west-1.amazonaws.com", "10.0.0.5")
