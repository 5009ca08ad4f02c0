"""`hatrack apply`: what a file says comes to be, once; what it does not say stays; and its mistakes are named."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from service.cli.apply.document import read_document
from service.cli.main import app
from service.client import ClientError
from tests.support.adapters import describe_base, make_adapter, make_base
from tests.support.asgi import web_server
from tests.unit.service.gateway_app import ADMIN_KEY, BASE, GatewayApp, running

Apply = Callable[..., Awaitable[Result]]

WHOLE = """
stores:
  policies: {description: Shop rules}
  empty:
adapters:
  voice:
    weights: out
    system_prompt: You are the voice of the shop.
    sampling: {temperature: 0.2}
    grounding: {stores: [policies], max_num_results: 3}
    aliases:
      live: this
    pinned: true
keys:
  shop:
    adapters: ["voice*"]
    limits: {tokens_per_minute: 1000}
    expires_at: 2030-01-31
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the file is, beside an adapter's weights."""
    base = make_base(tmp_path / "base")
    make_adapter(tmp_path / "files" / "out", describe_base(base))
    return tmp_path / "files"


@pytest.fixture
async def gateway(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[GatewayApp]:
    """The whole gateway on a socket, which the command uses as an admin."""
    async with running(tmp_path / "home", tmp_path / "base") as gateway:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = web_server(gateway.app, lifespan="off", log_level="warning")
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            monkeypatch.setenv("HATRACK_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
            monkeypatch.setenv("HATRACK_KEY", ADMIN_KEY)
            yield gateway
            server.should_exit = True
            await serving


@pytest.fixture
def apply(folder: Path) -> Apply:
    """Write the file and apply it."""

    async def run(text: str, *options: str) -> Result:
        (folder / "hatrack.yaml").write_text(text)
        return await asyncio.to_thread(CliRunner().invoke, app, ["apply", str(folder / "hatrack.yaml"), *options])

    return run


async def get(gateway: GatewayApp, path: str) -> Any:
    answer = await gateway.http.get(f"/v1/{path}")
    return answer.json() if answer.status_code == 200 else None


async def test_a_file_is_applied_once(gateway: GatewayApp, apply: Apply) -> None:
    shown = await apply(WHOLE, "--dry-run")
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[:-1]] == [
        "+ store policies", "+ store empty", "+ adapter voice", "+ alias voice:live", "~ pin voice", "+ key shop",
    ]  # fmt: skip
    assert lines[-1].startswith("6 changes at http://127.0.0.1:")
    assert await get(gateway, "adapters/voice") is None
    assert (await get(gateway, "vector_stores"))["data"] == []


async def test_the_diff_says_what_a_new_key_may_reach(gateway: GatewayApp, apply: Apply) -> None:
    reach = "adapters: ['brand-*', helper], stores: [], filters: {customer: c-1}"
    text = f"keys: {{shop: {{{reach}, limits: {{tokens_per_minute: 9}}}}}}"
    shown = await apply(text, "--dry-run")
    [line, _] = shown.stdout.splitlines()
    assert line == "+ key shop  infer, adapters brand-* helper, stores none, only customer=c-1, tokens_per_minute=9"
    assert "adapters" not in (await apply("keys: {shop: {}}", "--dry-run")).stdout


async def test_what_is_there_is_left_alone(gateway: GatewayApp, apply: Apply) -> None:
    first = WHOLE
    done = await apply(first, "--yes", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["made"], list(result["keys"])) == (6, ["shop"])
    adapter = await get(gateway, "adapters/voice")
    assert (adapter["aliases"], adapter["pinned"]) == ({"live": 1}, True)
    settings = adapter["versions"][0]["settings"]
    assert settings["grounding"]["vector_store_ids"] == [
        store["id"] for store in (await get(gateway, "vector_stores"))["data"] if store["name"] == "policies"
    ]
    own = {"authorization": f"Bearer {result['keys']['shop']}"}
    assert (await gateway.http.get("/v1/models", headers=own)).status_code == 200
    again = await apply(first, "--yes")
    assert again.stdout.startswith("Nothing to change at"), again.stdout
    assert "6 unchanged" in again.stdout
    # another prompt is another version; `this` follows it
    more = await apply(first.replace("the voice of", "the ear of"), "--yes")
    assert more.exit_code == 0, more.output
    assert "~ adapter voice  another version" in more.stdout
    assert "~ alias voice:live  live→1 becomes live→this" in more.stdout
    assert "done: adapter voice@2" in more.stdout
    split = await apply(first.replace("live: this", "live: {1: 90, this: 10}").replace("pinned: true", ""), "--yes")
    assert "live→2 becomes live→1:90+1:10" not in split.stdout
    assert split.exit_code == 1, "`this` is version 1 here, which cannot be split with itself"
    assert "adapters.voice.aliases.live: `this` is version 1, which the split names, too" in split.stderr
    assert "changes were made" not in split.stderr, "it is refused before anything changes"
    split = await apply(
        first.replace("the voice of", "the ear of").replace("live: this", "live: {1: 90, this: 10}")
        .replace("pinned: true", "pinned: false"), "--yes",
    )  # fmt: skip
    assert split.exit_code == 0, split.output
    assert (await get(gateway, "adapters/voice"))["splits"] == {"live": {"1": 90, "2": 10}}


async def test_a_store_is_described_anew_and_keeps_what_the_file_does_not_say(
    gateway: GatewayApp, apply: Apply
) -> None:
    async def described() -> str | None:
        [store] = (await get(gateway, "vector_stores"))["data"]
        return store["description"]

    assert (await apply("stores: {policies: {description: Rules}}", "--yes")).exit_code == 0
    assert "Nothing to change" in (await apply("stores: {policies: {description: Rules}}", "--yes")).stdout
    assert "Nothing to change" in (await apply("stores: {policies: }", "--yes")).stdout
    changed = await apply("stores: {policies: {description: Rules of the shop}}", "--yes")
    assert "~ store policies  its description" in changed.stdout
    assert await described() == "Rules of the shop"


async def test_prune_deletes_what_named_sections_do_not_name(gateway: GatewayApp, apply: Apply) -> None:
    whole = WHOLE.replace("    pinned: true\n", "")
    assert (await apply(whole, "--yes")).exit_code == 0
    assert (await apply("adapters: {voice: {aliases: {canary: 1}}}", "--yes")).exit_code == 0
    ours = await gateway.key("infer")
    less = "stores: {policies: }\nadapters: {voice: {aliases: {live: 1}}}\n"
    untouched = await apply(less, "--yes")
    assert "Nothing to change" in untouched.stdout
    pruned = await apply(less, "--yes", "--prune")
    assert pruned.exit_code == 0, pruned.output
    assert "- alias voice:canary" in pruned.stdout
    assert "- store empty" in pruned.stdout
    assert "key" not in pruned.stdout, "the file has no section of keys"
    assert (await get(gateway, "adapters/voice"))["aliases"] == {"live": 1}
    assert [store["name"] for store in (await get(gateway, "vector_stores"))["data"]] == ["policies"]
    everything = await apply("adapters: {}\nkeys: {}\n", "--yes", "--prune")
    assert everything.exit_code == 0, everything.output
    assert await get(gateway, "adapters/voice") is None
    refused = await gateway.http.get("/v1/models", headers={"authorization": f"Bearer {ours}"})
    assert refused.status_code == 401


async def test_the_settings_beside_the_weights_count_where_the_file_gives_none(
    gateway: GatewayApp, apply: Apply, folder: Path
) -> None:
    beside = {"system_prompt": "Aye.", "sampling": {"top_p": 0.5}}
    (folder / "out" / "settings.json").write_text(json.dumps(beside))
    first = await apply("adapters: {voice: {weights: out}}", "--yes")
    assert first.exit_code == 0, first.output
    pushed = (await get(gateway, "adapters/voice"))["versions"]
    assert [version["settings"] for version in pushed] == [beside]
    assert "Nothing to change" in (await apply("adapters: {voice: {weights: out}}", "--yes")).stdout
    prompted = "adapters: {voice: {weights: out, system_prompt: Nay.}}"
    assert (await apply(prompted, "--yes")).exit_code == 0
    assert "Nothing to change" in (await apply(prompted, "--yes")).stdout
    emptied = "adapters: {voice: {weights: out, system_prompt: Nay., sampling: {}}}"
    assert (await apply(emptied, "--yes")).exit_code == 0
    versions = {each["version"]: each["settings"] for each in (await get(gateway, "adapters/voice"))["versions"]}
    assert versions[2] == beside | {"system_prompt": "Nay."}
    assert versions[3] == beside | {"system_prompt": "Nay.", "sampling": {}}


@pytest.mark.parametrize("fault", ["damaged", "corrupt"])
async def test_a_version_that_cannot_serve_is_pushed_again(gateway: GatewayApp, apply: Apply, fault: str) -> None:
    text = "adapters: {voice: {weights: out, aliases: {live: this}}}"
    assert (await apply(text, "--yes")).exit_code == 0
    digest = (await get(gateway, "adapters/voice/versions/1"))["digest"]
    if fault == "corrupt":
        await gateway.api.state.registry._proving.mark_corrupt(digest, BASE)
    else:
        (gateway.settings.store_dir / digest / "adapter_model.safetensors").write_bytes(b"short")
    done = await apply(text, "--yes")
    assert done.stdout.startswith(f"~ adapter voice  version 1 again, which is {fault}: weights of out\n1 change at")
    assert [each["servable"] for each in (await get(gateway, "adapters/voice"))["versions"]] == ["ok"]
    assert "Nothing to change" in (await apply(text, "--yes")).stdout


async def test_prune_keeps_the_stores_that_ground_what_stays(gateway: GatewayApp, apply: Apply, folder: Path) -> None:
    shutil.copytree(folder / "out", folder / "ear")
    stores = "stores: {policies: , old: , of-weights: , unused: }\n"
    grounded = "adapters: {voice: {weights: out, grounding: {stores: [%s]}}}"
    made = await apply(stores + grounded % "old", "--yes")
    assert made.exit_code == 0, made.output
    ids = {store["name"]: store["id"] for store in (await get(gateway, "vector_stores"))["data"]}

    async def left() -> set[str]:
        return {store["name"] for store in (await get(gateway, "vector_stores"))["data"]}

    # `policies` by the version that the file describes, `old` by the one before it, the third by settings.json
    settings = {"grounding": {"vector_store_ids": [ids["of-weights"]]}}
    (folder / "ear" / "settings.json").write_text(json.dumps(settings))
    newer = "stores: {}\n" + (grounded % "policies")[:-1] + ", ear: {weights: ear}}"
    pruned = await apply(newer, "--yes", "--prune")
    assert pruned.exit_code == 0, pruned.output
    assert await left() == {"policies", "old", "of-weights"}
    pruned = await apply("stores: {}", "--yes", "--prune")
    assert "Nothing to change" in pruned.stdout, "adapters are none of this file's business, and stay"
    pruned = await apply("stores: {}\nadapters: {ear: }", "--yes", "--prune")
    assert pruned.exit_code == 0, pruned.output
    assert await left() == {"of-weights"}, "with `voice`, what grounds only `voice` goes"


async def test_an_expiry_that_a_key_has_of_its_creator_is_no_difference(
    gateway: GatewayApp, apply: Apply, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = int(time.time()) + 86400
    monkeypatch.setenv("HATRACK_KEY", await gateway.key("admin", expires_at=soon))
    text = "project: acme\nkeys: {shop: {}}"
    assert (await apply(text, "--yes")).exit_code == 0
    assert [key["expires_at"] for key in (await get(gateway, "keys?project=acme"))["data"]] == [soon]
    again = await apply(text, "--yes")
    assert "Nothing to change" in again.stdout, again.output
    # another key, which expires earlier, would not have given it this one
    monkeypatch.setenv("HATRACK_KEY", await gateway.key("admin", expires_at=soon - 3600))
    assert "keys.shop: differs from the file in expires_at" in (await apply(text, "--yes")).stderr
    monkeypatch.setenv("HATRACK_KEY", ADMIN_KEY)
    assert "keys.shop: differs from the file in expires_at" in (await apply(text, "--yes")).stderr


async def test_the_key_in_use_is_not_replaced(
    gateway: GatewayApp, apply: Apply, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = await gateway.key("admin")
    monkeypatch.setenv("HATRACK_KEY", own)
    text = "keys: {first: {}, test: {scopes: [admin, infer]}}"
    refused = await apply(text, "--yes", "--replace-keys", "--json")
    assert refused.exit_code == 1
    error = json.loads(refused.stderr)["error"]
    assert (error["code"], error["param"]) == ("key_in_use", "keys.test.scopes")
    assert "keys.test: differs from the file in scopes. It is the key that this command uses" in error["message"]
    names = [key["name"] for key in (await get(gateway, "keys"))["data"]]
    assert names == ["test"], "nothing was made before"
    monkeypatch.setenv("HATRACK_KEY", ADMIN_KEY)
    assert (await apply(text, "--yes", "--replace-keys")).exit_code == 0
    refused_now = await gateway.http.get("/v1/models", headers={"authorization": f"Bearer {own}"})
    assert refused_now.status_code == 401


async def test_an_admins_key_in_a_project_is_refused_before_anything_changes(
    gateway: GatewayApp, apply: Apply, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "stores: {policies: }\nkeys: {first: {}, boss: {scopes: [infer, admin]}}"
    for applied, environment in ((f"project: acme\n{text}", None), (text, "acme")):
        if environment is not None:
            monkeypatch.setenv("HATRACK_PROJECT", environment)
        refused = await apply(applied, "--yes", "--json")
        assert refused.exit_code == 1
        error = json.loads(refused.stderr)["error"]
        assert (error["code"], error["param"]) == ("file_invalid", "keys.boss.scopes")
        assert "acts in every project, and this file is applied to the project acme" in error["message"]
        assert (await get(gateway, "keys"))["data"] == []
        assert (await get(gateway, "vector_stores"))["data"] == []
    monkeypatch.delenv("HATRACK_PROJECT")
    done = await apply(f"project: default\n{text}", "--yes", "--json")
    assert done.exit_code == 0, done.output
    assert sorted(json.loads(done.stdout)["keys"]) == ["boss", "first"]


async def test_a_key_is_the_same_whatever_the_order_of_its_globs(gateway: GatewayApp, apply: Apply) -> None:
    text = "keys: {shop: {adapters: [%s], filters: {open: %s}}}"
    assert (await apply(text % ("brand-*, helper-*", "true"), "--yes")).exit_code == 0
    assert "Nothing to change" in (await apply(text % ("helper-*, brand-*", "true"), "--yes")).stdout
    changed = await apply(text % ("brand-*, helper-*", "1"), "--yes")
    assert "differs from the file in filters" in changed.stderr, "1 is not true"


async def test_a_key_that_differs_is_replaced_only_if_asked(gateway: GatewayApp, apply: Apply) -> None:
    first = json.loads((await apply("keys: {shop: {}}", "--yes", "--json")).stdout)["keys"]["shop"]
    changed = "keys: {shop: {limits: {concurrent: 2}}}"
    refused = await apply(changed, "--yes")
    assert refused.exit_code == 1
    assert "keys.shop: differs from the file in limits" in refused.stderr
    done = await apply(changed, "--yes", "--replace-keys", "--json")
    second = json.loads(done.stdout)["keys"]["shop"]
    statuses = [
        (await gateway.http.get("/v1/models", headers={"authorization": f"Bearer {key}"})).status_code
        for key in (first, second)
    ]
    assert statuses == [401, 200]
    assert "Nothing to change" in (await apply(changed, "--yes")).stdout


async def test_a_change_that_fails_leaves_what_was_done(gateway: GatewayApp, apply: Apply) -> None:
    text = "keys: {first: {}, second: {expires_at: 2001-01-01}}"
    failed = await apply(text, "--yes", "--json")
    assert failed.exit_code == 1
    result = json.loads(failed.stdout)
    assert (result["made"], list(result["keys"])) == (1, ["first"]), "a key that was made is not lost"
    assert "key second:" in json.loads(failed.stderr)["error"]["message"]
    assert "1 of 2 changes were made" in json.loads(failed.stderr)["error"]["message"]


async def test_without_a_terminal_it_needs_yes(gateway: GatewayApp, apply: Apply) -> None:
    result = await apply("stores: {policies: }")
    assert result.exit_code == 2
    assert "+ store policies" in result.stdout
    assert (await get(gateway, "vector_stores"))["data"] == []


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ("[", None, "is not YAML"),
        ("- a", None, "must have `stores`, `adapters` or `keys`"),
        ("stores: {a: }\nstores: {b: }", None, "`stores` is given twice"),
        ("shops: {}", "shops", "shops: no such field"),
        ("adapters: {voice: {wieghts: out}}", "adapters.voice.wieghts", "no such field"),
        ("adapters: {Voice: {weights: out}}", "adapters", "is not a valid adapter name"),
        ("adapters: {voice: {aliases: {live: that}}}", "adapters.voice.aliases.live", "got 'that'"),
        ("adapters: {voice: {aliases: {live: this}}}", "adapters.voice", "neither `weights` nor settings"),
        ("adapters: {voice: {aliases: {Live: 1}}}", "adapters.voice.aliases", "is not a valid alias"),
        ("adapters: {voice: {weights: out, aliases: {live: {1: 5}}}}", "adapters.voice.aliases.live", "at least 2"),
        ("adapters: {voice: {grounding: {max_num_results: 99}}}", "adapters.voice.grounding", "`max_num_results`"),
        ("adapters: {voice: {system_prompt: a, system_prompt_file: b}}", "adapters.voice", "conflict; give one"),
        ("keys: {shop: {scopes: [everything]}}", "keys.shop.scopes.0", "got 'everything'"),
        ("keys: {shop: {limits: {tokens: 5}}}", "keys.shop.limits.tokens", "no such field"),
        ("keys: {shop: {expires_at: soon}}", "keys.shop.expires_at", "got 'soon'"),
        ("stores: [policies]", "stores", "got an array of 1"),
    ],
)
def test_a_mistake_names_its_field(tmp_path: Path, text: str, field: str | None, said: str) -> None:
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(ClientError) as caught:
        read_document(tmp_path / "f.yaml")
    assert caught.value.code == "file_invalid"
    assert caught.value.param == field, caught.value.message
    assert said in caught.value.message


async def test_what_the_file_names_and_nobody_has_is_named(gateway: GatewayApp, apply: Apply, folder: Path) -> None:
    for text, said in (
        ("adapters: {voice: {aliases: {live: 1}}}", "adapters.voice: there is no such adapter"),
        ("adapters: {voice: {weights: out, aliases: {live: 3}}}", "aliases.live: voice has no version 3"),
        ("adapters: {voice: {weights: elsewhere}}", "elsewhere is not a directory"),
        ("adapters: {voice: {weights: out, grounding: {stores: [nope]}}}", "no store is named nope"),
        ("adapters: {voice: {system_prompt_file: prompt.txt}}", "prompt.txt cannot be read"),
        ("adapters: {voice: {weights: out, sampling: {temperature: hot}}}", "temperature"),
    ):
        result = await apply(text, "--yes")
        assert result.exit_code == 1, text
        assert said in result.stderr, result.stderr
    assert (await get(gateway, "adapters"))["data"] == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (None, "out is not a directory"),
        ("{", "settings.json cannot be read as JSON"),
        ('{"prompt": "Aye."}', "out/settings.json: prompt: "),
    ],
)
async def test_what_is_wrong_with_the_weights_names_their_field(
    gateway: GatewayApp, apply: Apply, folder: Path, settings: str | None, said: str
) -> None:
    if settings is None:
        (folder / "out").rename(folder / "moved")
    else:
        (folder / "out" / "settings.json").write_text(settings)
    result = await apply("adapters: {voice: {weights: out}}", "--yes", "--json")
    error = json.loads(result.stderr)["error"]
    assert error["param"] == "adapters.voice.weights"
    assert error["message"].startswith("adapters.voice.weights: ")
    assert said in error["message"]
