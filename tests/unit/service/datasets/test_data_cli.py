"""`hatrack data`, `train` and `evaluate` with datasets and recipes, against the real routes on a real socket; a small
server stands in the trainer's place."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
import threading
import tomllib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import uvicorn
from fastapi import FastAPI
from typer.testing import CliRunner, Result

from service.cli import recipe as recipes
from service.cli.datasets import DataSource
from service.cli.main import app
from service.cli.recipe import Recipe, read_recipe, recipe_text
from service.client import ClientError, HatrackClient
from service.datasets.routes import router
from service.datasets.service import Datasets
from service.error_handlers import RequestIds
from service.http.schema import add_routes
from service.training.request_schemas import HyperparametersBody
from tests.support.asgi import web_server
from tests.unit.service.datasets.datasets_app import rows
from tests.unit.service.files.files_app import ADMIN_KEY
from tests.unit.service.training.training_gateway import BASE, JOB, TrainingGateway

Hatrack: TypeAlias = Callable[..., Result]
FIRST, SECOND = rows(("a", "1"), ("b", "2")), rows(("a", "1"), ("b", "22"), ("c", "3"))
NASTY = 'Say "no".\n\tBack\\slash, \x7f, \x00 and """ é \u2028\r\n'


class Served(TrainingGateway):
    """The gateway's routes for files, datasets and training, in a thread of their own."""

    def app(self) -> FastAPI:
        api = super().app()
        api.state.datasets = Datasets(self.database, self.files)
        add_routes(api, router)
        api.add_api_route("/readyz", lambda: {"status": "ready", "base": BASE})
        return api

    def sent(self) -> dict[str, Any]:
        """The latest job or evaluation, as the trainer was asked for it."""
        found: dict[str, Any] = self.trainer.asked[-1].json
        return found


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Served, str]]:
    servers: list[uvicorn.Server] = []
    opened = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))  # who connects before the server accepts waits
    with tempfile.TemporaryDirectory(prefix="hatrack-") as home:
        gateway = Served(Path(home))
        gateway.trainer.body = JOB | {"seed": 4711, "hatrack": {}}

        async def serve() -> None:
            async with gateway.run(), gateway.trainer.on(gateway.trainer_socket):
                servers.append(web_server(RequestIds(gateway.app()), lifespan="off", log_level="warning"))
                opened.set()
                await servers[0].serve(sockets=[listener])
                await gateway.training.close()

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        try:
            assert opened.wait(60)
            yield gateway, f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for server in servers:
                server.should_exit = True
            thread.join()


@pytest.fixture
def served(shared: tuple[Served, str], monkeypatch: pytest.MonkeyPatch) -> Served:
    gateway, url = shared
    monkeypatch.setenv("HATRACK_URL", url)
    monkeypatch.setenv("HATRACK_KEY", ADMIN_KEY)
    monkeypatch.delenv("HATRACK_PROJECT", raising=False)
    return gateway


@pytest.fixture
def hatrack(served: Served) -> Hatrack:
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def two(hatrack: Hatrack, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """The name of a dataset with two versions, the test's own."""
    name = f"d{zlib.crc32(request.node.name.encode())}"
    for number, content in enumerate((FIRST, SECOND), start=1):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(content)
        assert hatrack("data", "push", name, path, "--note", f"note {number}").exit_code == 0
    return name


def ok(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_file_is_pushed_once(hatrack: Hatrack, served: Served, tmp_path: Path) -> None:
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    first.write_bytes(FIRST)
    second.write_bytes(SECOND)
    assert ok(hatrack("data", "push", "once", first)) == f"once@1: 2 rows, {len(FIRST)} B\n"
    stored = served.on_disk()
    assert ok(hatrack("data", "push", "once", first)) == "once@1 already has these bytes; nothing was changed\n"
    assert served.on_disk() == stored  # the bytes were not even sent
    assert ok(hatrack("data", "push", "once", second)).startswith("once@2: 3 rows")
    both = served.on_disk()
    assert json.loads(ok(hatrack("data", "push", "once", first, "--json")))["version"] == 3
    assert served.on_disk() == both  # an earlier version's bytes are there already
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text("no json\n")
    refused = hatrack("data", "push", "once", wrong)
    assert refused.exit_code == 1
    assert "[invalid_training_file]" in refused.stderr


def test_datasets_are_listed_shown_and_compared(hatrack: Hatrack, two: str) -> None:
    listed = [line.split()[:4] for line in ok(hatrack("data", "list")).splitlines()]
    assert [two, "2", f"{two}@2", "3"] in listed
    shown = ok(hatrack("data", "show", two)).splitlines()
    assert [line.split()[0] for line in shown[1:]] == [f"{two}@1", f"{two}@2"]
    assert shown[2].endswith("note 2")
    assert json.loads(ok(hatrack("data", "show", f"{two}@1", "--json")))["rows"] == 2
    assert "note 1" in ok(hatrack("data", "show", f"{two}@1"))
    assert ok(hatrack("data", "diff", f"{two}@1", f"{two}@2")).splitlines() == [
        f"{two}@1 to {two}@2: 1 added, 0 removed, 1 changed, 1 unchanged",
        "+ line 3: c: 3",
        "~ line 2: b",
        f"    was 2 (line 2 of {two}@1)",
        "    is  22",
    ]
    assert "  and 1 more removed" in ok(hatrack("data", "diff", f"{two}@2", f"{two}@1", "-n", 0))


def test_a_version_is_pulled_byte_for_byte(hatrack: Hatrack, two: str, tmp_path: Path) -> None:
    target = tmp_path / "pulled.jsonl"
    ok(hatrack("data", "pull", f"{two}@1", target))
    assert target.read_bytes() == FIRST
    refused = hatrack("data", "pull", two, target)
    assert (refused.exit_code, target.read_bytes()) == (2, FIRST)
    assert json.loads(ok(hatrack("data", "pull", two, target, "--force", "--json")))["version"] == 2
    assert target.read_bytes() == SECOND
    assert hatrack("data", "pull", two, tmp_path / "none" / "x").exit_code == 1


def test_a_deleted_version_takes_its_file_along(hatrack: Hatrack, served: Served, two: str, tmp_path: Path) -> None:
    first = json.loads(ok(hatrack("data", "show", f"{two}@1", "--json")))["file"]
    assert ok(hatrack("data", "delete", f"{two}@1", "--yes")) == f"Deleted {two}@1.\n"
    assert first not in served.on_disk()
    second = json.loads(ok(hatrack("data", "show", two, "--json")))["versions"][0]["file"]
    ok(hatrack("data", "push", f"{two}b", tmp_path / "2.jsonl"))
    assert ok(hatrack("data", "delete", two, "--keep-files")) == f"Deleted {two} and all its versions.\n"
    assert second in served.on_disk()
    gone = hatrack("data", "show", two, "--json")
    assert (gone.exit_code, json.loads(gone.stderr)["error"]["code"]) == (1, "dataset_not_found")


@pytest.mark.parametrize(
    "arguments",
    [
        ("data", "push", "Bad Name", __file__),
        ("data", "push", "support@2", __file__),
        ("data", "push", "support", "none.jsonl"),
        ("data", "diff", "a@1", "b@2"),
        ("data", "diff", "a", "a@2"),
        ("data", "show", "file-1"),
        ("train", "missing.jsonl", "--name", "voice"),
        ("train", "no/such/dataset", "--name", "voice"),
        ("train", "support@0", "--name", "voice"),
        ("train", "support@1", "--name", "voice", "--held-out", "No Name"),
        ("train", "support@1"),
        ("train", "--name", "voice"),
        ("train", "support@1", "--name", "voice", "--save-recipe", "/no/such/directory/r.toml"),
        ("evaluate", "voice@1", "--held-out", "missing.jsonl"),
    ],
)
def test_wrong_usage_is_told_without_asking(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, list(arguments), env={"HATRACK_URL": "http://127.0.0.1:1"})
    assert (result.exit_code, result.stdout) == (2, "")


def test_a_job_and_an_evaluation_name_a_dataset(hatrack: Hatrack, served: Served, two: str) -> None:
    files = [version["file"] for version in json.loads(ok(hatrack("data", "show", two, "--json")))["versions"]]
    out = ok(hatrack("train", two, "--name", "voice", "--held-out", f"{two}@1", "--no-follow"))
    assert f"ftjob-1 trains voice on {two}@2" in out
    sent = served.sent()
    assert (sent["request"]["training_file"], sent["request"]["validation_file"]) == (f"{two}@2", f"{two}@1")
    context = sent["context"]
    assert [context[field]["id"] for field in ("training_file", "validation_file")] == [files[1], files[0]]
    assert context["datasets"] == {"training_file": f"{two}@2", "validation_file": f"{two}@1"}
    ok(hatrack("evaluate", "voice@1", "--held-out", f"{two}@1", "--no-wait", "--json"))
    assert served.sent()["context"]["held_out"]["id"] == files[0]
    missing = hatrack("train", f"{two}@9", "--name", "voice", "--json")
    assert json.loads(missing.stderr)["error"]["code"] == "dataset_version_not_found"


def test_a_name_that_is_neither_a_file_nor_a_dataset(served: Served, two: str) -> None:
    with HatrackClient() as client:
        for text, code in {
            "nobody": "file_not_found",
            "nobody@1": "dataset_not_found",
            f"{two}@7": "dataset_version_not_found",
            f"{two}:live": "file_not_found",
            "file-" + "0" * 24: "file_not_found",
        }.items():
            for field in ("training_file", "validation_file"):
                files = {"training_file": two, field: text}
                with pytest.raises(ClientError) as refused:
                    client.fine_tuning.jobs.create(model=BASE, adapter="voice", **files)
                assert (refused.value.status, refused.value.code, refused.value.param) == (404, code, field)
            with pytest.raises(ClientError) as refused:
                client.evaluations.create(text, model="voice@1")
            assert (refused.value.code, refused.value.param) == (code, "held_out")


def test_an_unnamed_adapter_is_named_after_the_dataset_whatever_the_version(served: Served, two: str) -> None:
    names = set()
    with HatrackClient() as client:
        for text in (two, f"{two}@1", f"{two}@2"):
            body = {"model": BASE, "training_file": text}
            client._connection.request(dict[str, Any], "POST", "/v1/fine_tuning/jobs", json=body)
            names.add(served.sent()["context"]["adapter"])
    assert len(names) == 1


def test_a_job_keeps_its_dataset_from_being_deleted(hatrack: Hatrack, served: Served, two: str) -> None:
    ok(hatrack("train", f"{two}@1", "--name", "voice", "--no-follow"))
    refused = hatrack("data", "delete", two, "--yes")
    assert refused.exit_code == 1
    assert "[dataset_in_use]" in refused.stderr
    ok(hatrack("data", "delete", f"{two}@2", "--yes"))


ASKED = (
    *("--set", "n_epochs=2", "--set", "learning_rate=1e-05", "--set", 'target_modules=["q_proj"]'),
    *("--metric", '{"name": "json_schema", "schema": {"enum": [null, 1]}}', "--suites", "none", "--promote", "never"),
    *("--judge", "oracle", "--strict", "--system-prompt", NASTY),
)


def test_a_recipe_asks_for_the_same_job_again(hatrack: Hatrack, served: Served, two: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    ok(hatrack("train", two, "--name", "voice", *ASKED, "--save-recipe", path, "--no-follow"))
    first = served.sent()
    assert "seed" not in first["request"]
    saved = tomllib.loads(path.read_text())
    assert (saved["data"]["dataset"], saved["model"], saved["adapter"]) == (f"{two}@2", BASE, "voice")
    assert saved["seed"] == 4711  # the one that the trainer chose
    assert saved["hyperparameters"] == {"n_epochs": 2, "learning_rate": 1e-05, "target_modules": ["q_proj"]}
    again = tmp_path / "again.toml"
    ok(hatrack("train", "--recipe", path, "--save-recipe", again, "--no-follow"))
    assert served.sent()["request"] == first["request"] | {"seed": 4711}
    assert served.sent()["context"] == first["context"]
    assert again.read_text() == path.read_text()


def test_a_recipe_of_files_follows_them_and_refuses_others(hatrack: Hatrack, served: Served, tmp_path: Path) -> None:
    data, held_out = tmp_path / "data" / "f.jsonl", tmp_path / "data" / "h.jsonl"
    data.parent.mkdir()
    data.write_bytes(FIRST)
    held_out.write_bytes(SECOND)
    path = tmp_path / "recipe.toml"
    saving = ("--seed", 7, "--drop-long", "--save-recipe", path, "--no-follow")
    ok(hatrack("train", data, "--name", "voice", "--held-out", held_out, "--from", "voice@1", *saving))
    first = served.sent()
    saved = tomllib.loads(path.read_text())
    assert (saved["data"]["file"], saved["held_out"]["file"]) == ("data/f.jsonl", "data/h.jsonl")
    assert (saved["model"], saved["seed"], saved["drop_long"]) == ("voice@1", 7, True)
    ok(hatrack("train", "--recipe", path, "--no-follow"))
    fields = ("training_file", "validation_file")
    known = {name: value for name, value in served.sent()["request"].items() if name not in fields}
    assert known == {name: value for name, value in first["request"].items() if name not in fields}
    assert served.sent()["context"]["training_file"]["sha256"] == first["context"]["training_file"]["sha256"]
    count = len(served.trainer.asked)
    held_out.write_bytes(FIRST)
    changed = hatrack("train", "--recipe", path, "--no-follow", "--json")
    assert (changed.exit_code, json.loads(changed.stderr)["error"]["code"]) == (1, "data_changed")
    held_out.unlink()
    assert hatrack("train", "--recipe", path, "--no-follow").exit_code == 1
    assert len(served.trainer.asked) == count


def test_a_dataset_of_another_gateway_is_not_taken_for_the_recipe_s(
    hatrack: Hatrack, served: Served, two: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    ok(hatrack("train", two, "--name", "voice", "--save-recipe", path, "--no-follow"))
    sha256 = tomllib.loads(path.read_text())["data"]["sha256"]
    path.write_text(path.read_text().replace(sha256, "0" * 64))
    refused = hatrack("train", "--recipe", path, "--no-follow")
    assert refused.exit_code == 1
    assert "[data_changed]" in refused.stderr
    assert sha256 in refused.stderr


def test_nothing_is_given_beside_a_recipe(hatrack: Hatrack, two: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    ok(hatrack("train", two, "--name", "voice", "--save-recipe", path, "--no-follow"))
    for more in ((two,), ("--seed", 1), ("--name", "voice"), ("--set", "n_epochs=1"), ("--promote", "auto")):
        refused = hatrack("train", *more, "--recipe", path)
        assert refused.exit_code == 2, more
        assert "edit the recipe" in " ".join(refused.stderr.split()), more


SOUND = """format = 1
adapter = "voice"
model = "tiny-base"
[data]
dataset = "support@1"
sha256 = "{}"
""".format("a" * 64)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("adapter", "adaptor", "unknown key `adaptor`; did you mean `adapter`?"),
        ("dataset =", "datset =", "unknown key `data.datset`; did you mean `data.dataset`?"),
        ("[data]", "[hyperparameters]\nn_epoch = 2\n[data]", "`hyperparameters.n_epoch`; did you mean"),
        ("format = 1", "format = 1\nxyzzy = 1", "unknown key `xyzzy`; known are format, adapter,"),
        ("format = 1", "format = 2", "`format` must be 1; got 2"),
        ("format = 1", "", "`format` must be 1; got None"),
        ('model = "tiny-base"', "", "`model` is missing"),
        ('model = "tiny-base"', "model = 3", "`model` must be a string; got 3"),
        ("format = 1", "format = 1\nseed = true", "`seed` must be an integer; got True"),
        ("format = 1", 'format = 1\npromote = "often"', "`promote` must be"),
        ('"voice"', '"No Name"', "`adapter`: 'No Name' is not a valid adapter name"),
        ('"support@1"', '"support"', "`data.dataset` must name a version, such as support@1"),
        ("sha256", 'file = "f.jsonl"\nsha256', "`data.file` or `data.dataset` must be set, and not both"),
        ("a" * 64, "abc", "`data.sha256` must be 64 hex digits; got 'abc'"),
        ("[data]", "[hyperparameters]\nn_epochs = 2026-01-01\n[data]", "`hyperparameters.n_epochs` must be a value"),
        ("format = 1", "format = ", "it is not TOML"),
    ],
)  # fmt: skip
def test_a_recipe_that_says_something_else_is_refused(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(SOUND)
    assert read_recipe(path).data == DataSource("a" * 64, dataset="support@1")
    path.write_text(SOUND.replace(old, new, 1))
    with pytest.raises(ClientError) as refused:
        read_recipe(path)
    assert refused.value.code == "recipe_invalid"
    assert told in refused.value.message


@pytest.mark.parametrize(
    "value",
    [NASTY, "", "\n", 'ends with "', "a\\", True, -3, 1e-05, 1e22, [1, ["x"], True], {"a b": {"é": 'q"'}, "c": []}],
)
def test_a_value_comes_back_as_it_was(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "recipe.toml"
    text = value if isinstance(value, str) else None
    data = DataSource("b" * 64, path=tmp_path / 'odd "name"\\.jsonl')
    recipe = Recipe("voice", BASE, data, hyperparameters={"metric": value}, system_prompt=text)
    path.write_text(recipe_text(recipe, tmp_path, "ftjob-1"), encoding="utf-8", newline="")
    assert read_recipe(path) == recipe


def test_what_a_recipe_cannot_hold_is_refused_before_there_is_a_job(
    hatrack: Hatrack, served: Served, two: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    count = len(served.trainer.asked)
    refused = hatrack("train", two, "--name", "voice", "--set", "lora_rank=null", "--save-recipe", path)
    assert refused.exit_code == 1
    assert "[recipe_invalid]" in refused.stderr
    assert (len(served.trainer.asked), path.exists()) == (count, False)


def test_the_recipe_knows_the_hyperparameters_of_the_api() -> None:
    assert set(recipes.HYPERPARAMETERS) == set(HyperparametersBody.model_fields)
