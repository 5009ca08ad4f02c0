"""Two projects on one gateway: each has its own adapters and keys, and sees nothing of the other's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.support.gateway import TIMEOUT, Gateway
from tests.support.voices import held_out_questions, speaks

OWN = {"harbour": "tidewater", "manor": "pemberton"}
"""Project → the voice that its adapter `house-voice` has."""
PRIVATE = "harbour-only"
NOBODYS = "nobody-has-1"
EMBEDDER = "all-minilm-l6-v2"
ALL_SCOPES = ["infer", "adapters", "knowledge", "train"]


@dataclass
class Projects:
    """The two projects, each with a key that has every scope but `admin`."""

    gateway: Gateway
    keys: dict[str, dict[str, Any]]

    @contextmanager
    def client(self, key: str) -> Iterator[httpx.Client]:
        with httpx.Client(base_url=self.gateway.url, timeout=TIMEOUT, headers=bearer(key)) as client:
            yield client

    def make(self, **body: Any) -> dict[str, Any]:
        """A new key, made by the admin."""
        return self.gateway.create_key(**{"name": "test", **body})

    def chat(self, key: str, model: str, text: str = "hello", **more: Any) -> httpx.Response:
        messages = [{"role": "user", "content": text}]
        with self.client(key) as client:
            return client.post(
                "/v1/chat/completions",
                json={"model": model, "messages": messages, "max_tokens": 40, "temperature": 0, **more},
            )


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def push(client: httpx.Client, name: str, directory: Path) -> None:
    """Upload as `hatrack push` does; a voice's settings go with it."""
    answer = client.post(
        "/v1/adapters",
        data={"name": name, "settings": (directory / "settings.json").read_text()},
        files={
            "config": ("adapter_config.json", (directory / "adapter_config.json").read_bytes()),
            "weights": ("adapter_model.safetensors", (directory / "adapter_model.safetensors").read_bytes()),
        },
    )
    assert answer.status_code == 201, answer.text


@pytest.fixture(scope="module")
def projects(gateway: Gateway, voices: dict[str, Path]) -> Iterator[Projects]:
    created = Projects(gateway, {})
    for project, voice in OWN.items():
        created.keys[project] = created.make(name=f"{project} ops", project=project, scopes=ALL_SCOPES)
        with created.client(created.keys[project]["key"]) as client:
            push(client, "house-voice", voices[voice])
    with created.client(created.keys["harbour"]["key"]) as client:
        push(client, PRIVATE, voices["tidewater"])
    yield created
    with gateway.http() as admin:
        for project in OWN:
            for name in ("house-voice", PRIVATE):
                admin.delete(f"/v1/adapters/{name}?force=true", headers={"openai-project": project})


def test_each_project_gets_its_own_adapter_under_the_same_name(projects: Projects) -> None:
    for project, voice in OWN.items():
        key, questions = projects.keys[project]["key"], held_out_questions(voice)[:4]
        with ThreadPoolExecutor(len(questions)) as pool:
            answers = list(pool.map(lambda question, key=key: projects.chat(key, "house-voice", question), questions))
        assert {answer.headers["x-hatrack-adapter"] for answer in answers} == {"house-voice@1"}
        texts = [answer.json()["choices"][0]["message"]["content"] for answer in answers]
        assert sum(speaks(voice, text) for text in texts) >= 3, texts
    digests = {projects.chat(made["key"], "house-voice").headers["x-hatrack-digest"] for made in projects.keys.values()}
    assert len(digests) == 2


def same_except_for(name: str, hidden: httpx.Response, nonexistent: httpx.Response) -> bool:
    """Whether two answers differ in nothing but the name asked for, the request id and the date."""

    def rest(response: httpx.Response) -> list[tuple[str, str]]:
        return sorted((k, v) for k, v in response.headers.items() if k not in ("x-request-id", "date"))

    assert len(name) == len(NOBODYS), "or the lengths would differ"
    return (
        hidden.status_code == nonexistent.status_code == 404
        and hidden.content == nonexistent.content.replace(NOBODYS.encode(), name.encode())
        and rest(hidden) == rest(nonexistent)
    )


def responses_about(client: httpx.Client, name: str) -> list[httpx.Response]:
    """The answers to every request that names an adapter."""
    base = client.get("/v1/models").json()["data"][0]["id"]
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    answers = [
        client.post("/v1/chat/completions", json={"model": model, **more, **chat})
        for model, more in ((name, {}), (f"{name}@1", {}), (f"{name}:live", {}), (base, {"adapter": name}))
    ]
    answers.append(client.get(f"/v1/models/{name}"))
    under = ("", "/versions/1", "/versions/1/files/config", "/aliases/live")
    answers += [client.get(f"/v1/adapters/{name}{path}") for path in under]
    answers.append(client.put(f"/v1/adapters/{name}/aliases/live", json={"version": 1}))
    answers.append(client.post(f"/v1/adapters/{name}/aliases/live/rollback"))
    answers.append(client.post(f"/v1/adapters/{name}/versions/1/prove"))
    answers += [client.delete(f"/v1/adapters/{name}{path}") for path in ("/aliases/live", "/versions/1", "")]
    return answers


def test_another_projects_adapter_answers_exactly_like_one_that_does_not_exist(projects: Projects) -> None:
    with projects.client(projects.keys["manor"]["key"]) as manor:
        pairs = list(zip(responses_about(manor, PRIVATE), responses_about(manor, NOBODYS), strict=True))
        for hidden, nonexistent in pairs:
            assert same_except_for(PRIVATE, hidden, nonexistent), (hidden.request.url, hidden.text, nonexistent.text)
        assert len(pairs) == 15
        assert [item["name"] for item in manor.get("/v1/adapters").json()["data"]] == ["house-voice"]
        names = [model["id"] for model in manor.get("/v1/models").json()["data"]]
    assert names == [projects.gateway.base_name(), "house-voice", EMBEDDER]
    assert projects.chat(projects.keys["harbour"]["key"], PRIVATE).status_code == 200


def test_an_adapter_outside_a_keys_globs_answers_like_one_that_does_not_exist(projects: Projects) -> None:
    narrow = projects.make(project="harbour", scopes=["infer", "adapters"], adapters=["house-*"])
    with projects.client(narrow["key"]) as client:
        for hidden, nonexistent in zip(responses_about(client, PRIVATE), responses_about(client, NOBODYS), strict=True):
            assert same_except_for(PRIVATE, hidden, nonexistent), (hidden.request.url, hidden.text, nonexistent.text)
        assert [item["name"] for item in client.get("/v1/adapters").json()["data"]] == ["house-voice"]
        assert [card["type"] for card in client.get("/v1/models").json()["data"]] == ["chat", "chat", "embedding"]
    assert projects.chat(narrow["key"], "house-voice").status_code == 200
    assert projects.chat(narrow["key"], projects.gateway.base_name()).status_code == 200
    assert projects.chat(projects.keys["harbour"]["key"], PRIVATE).status_code == 200


def test_a_revoked_key_is_401_on_the_next_request(projects: Projects) -> None:
    made, other = projects.make(project="harbour"), projects.make(project="harbour")
    with projects.client(made["key"]) as client, projects.gateway.http() as admin:
        assert client.get("/v1/models").status_code == 200
        assert projects.chat(made["key"], "house-voice").status_code == 200
        assert admin.delete(f"/v1/keys/{made['id']}").status_code == 200
        for answer in (client.get("/v1/models"), projects.chat(made["key"], "house-voice")):
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"].startswith("Bearer")
    assert projects.chat(other["key"], "house-voice").status_code == 200


def test_an_expired_key_is_401_and_the_message_says_so(projects: Projects) -> None:
    with projects.gateway.http() as admin:
        for ahead_s in (2, 10, 60):  # where the gateway gets to it too late, the time is past, and that is refused
            body = {"name": "test", "project": "harbour", "expires_at": int(time.time()) + ahead_s}
            answer = admin.post("/v1/keys", json=body)
            if answer.status_code == 201:
                break
            assert "`expires_at`" in answer.text
    made = answer.json()
    time.sleep(max(0.0, made["expires_at"] - time.time()))
    answer = projects.chat(made["key"], "house-voice")
    assert (answer.status_code, "expired" in answer.json()["error"]["message"]) == (401, True)


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/v1/chat/completions", "infer"),
        ("POST", "/v1/completions", "infer"),
        ("POST", "/v1/adapters", "adapters"),
        ("GET", "/v1/adapters", "adapters"),
        ("PUT", "/v1/adapters/house-voice/aliases/live", "adapters"),
        ("DELETE", "/v1/adapters/house-voice", "adapters"),
        ("POST", "/v1/keys", "admin"),
        ("GET", "/v1/keys", "admin"),
        ("GET", "/v1/audit", "admin"),
    ],
)
def test_a_missing_scope_is_named_before_the_body_is_looked_at(
    projects: Projects, method: str, path: str, scope: str
) -> None:
    made = projects.make(project="harbour", scopes=[other for other in ALL_SCOPES if other != scope])
    with projects.client(made["key"]) as client:
        answer = client.request(method, path, content=b'{"broken')
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope")
    assert f"`{scope}`" in answer.json()["error"]["message"]


def test_refusals_raise_the_openai_clients_own_errors(projects: Projects) -> None:
    def client(key: str, **more: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{projects.gateway.url}/v1", api_key=key, max_retries=0, **more)

    harbour = projects.keys["harbour"]["key"]
    messages: Any = [{"role": "user", "content": "hello"}]
    with client("hk_nonsense") as openai_client, pytest.raises(openai.AuthenticationError) as no_key:
        openai_client.models.list()
    assert no_key.value.code == "invalid_api_key"
    adapters_only = projects.make(project="harbour", scopes=["adapters"])["key"]
    with client(adapters_only) as openai_client, pytest.raises(openai.PermissionDeniedError) as no_scope:
        openai_client.chat.completions.create(model="house-voice", messages=messages)
    assert (no_scope.value.code, "`infer`" in str(no_scope.value)) == ("insufficient_scope", True)
    with client(harbour, project="manor") as openai_client, pytest.raises(openai.PermissionDeniedError) as elsewhere:
        openai_client.models.list()
    assert elsewhere.value.code == "project_mismatch"
    with client(harbour) as openai_client, pytest.raises(openai.NotFoundError) as unknown:
        openai_client.chat.completions.create(model="tidewater", messages=messages)
    assert unknown.value.code == "model_not_found"
    with client(harbour, project="harbour") as openai_client:
        answer = openai_client.chat.completions.create(model="house-voice", messages=messages, max_tokens=5)
    assert answer.model == "house-voice"


def test_an_admin_acts_in_the_project_that_it_names(projects: Projects) -> None:
    base, key = projects.gateway.base_name(), projects.gateway.key
    for project, names in (("harbour", {"house-voice", PRIVATE}), ("manor", {"house-voice"}), ("empty", set())):
        with openai.OpenAI(base_url=f"{projects.gateway.url}/v1", api_key=key, project=project) as client:
            assert {model.id for model in client.models.list()} == {base, *names, EMBEDDER}
    with projects.gateway.http() as admin:
        assert "house-voice" not in {model["id"] for model in admin.get("/v1/models").json()["data"]}
        refused = admin.get("/v1/models", headers={"openai-project": "No Such Name"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "OpenAI-Project")
        given = admin.post("/v1/keys/rotate-admin")
        assert (given.status_code, given.json()["error"]["code"]) == (409, "admin_key_given")


def test_a_key_is_accepted_in_anthropics_header(projects: Projects) -> None:
    key = projects.keys["manor"]["key"]
    answer = httpx.get(f"{projects.gateway.url}/v1/models", headers={"x-api-key": key}, timeout=TIMEOUT)
    assert [model["id"] for model in answer.json()["data"]][1:] == ["house-voice", EMBEDDER]


def test_the_audit_names_who_changed_what(projects: Projects) -> None:
    manor = projects.keys["manor"]
    with projects.client(manor["key"]) as client:
        moved = client.put(
            "/v1/adapters/house-voice/aliases/canary", json={"version": 1}, headers={"x-request-id": "audited-1"}
        )
        assert moved.status_code == 200, moved.text
    with projects.gateway.http() as admin:
        entries = admin.get("/v1/audit?project=manor&limit=100").json()["data"]
    promoted = next(entry for entry in entries if entry["action"] == "alias.promote")
    assert promoted["target"] == "house-voice:canary"
    assert (promoted["key_id"], promoted["key_name"]) == (manor["id"], "manor ops")
    assert (promoted["request_id"], promoted["project"]) == ("audited-1", "manor")
    actions = [entry["action"] for entry in entries]
    assert actions.index("alias.promote") < actions.index("adapter.push") < actions.index("key.create")
    ids = [entry["id"] for entry in entries]
    assert ids == sorted(ids, reverse=True)
    assert not any(made["key"] in str(entries) for made in projects.keys.values())
