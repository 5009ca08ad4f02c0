"""Every route that returns or changes an object refuses the keys that may not see it, and changes nothing.

The walk follows the recorded routes of gateway and trainer: one that is new fails here until it stands in a table.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from adapters.base import describe
from tests.contract.answers import CHAT, TRAINING, Recorder, upload_of
from tests.contract.gateway import ADMIN_KEY, BASE, ContractGateway, running
from tests.contract.snapshot import HERE
from tests.support.adapters import make_adapter

SCOPES: Final = ["infer", "train", "adapters", "knowledge"]
JOBS: Final = "/v1/fine_tuning/jobs"
REFUSED: Final = frozenset({401, 403, 404})
HELD: Final = {"metadata": {"hold": "1"}}
NAMED: Final = {
    "POST /v1/batches": {
        "input_file_id": "{requests}",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    },
    "POST /v1/datasets": {"name": "stolen", "file": "{file}"},
    "POST /v1/evaluations": {"model": "secret-voice@1", "held_out": "{held_out}"},
    f"POST {JOBS}": {"model": BASE, "training_file": "{file}", "suffix": "stolen"},
    f"POST {JOBS}/estimate": {"model": BASE, "training_file": "{file}", "suffix": "stolen"},
    "POST /v1/ladders": {"training_file": "{file}", "adapter": "else-stolen"},
    "POST /v1/reviews": {"evaluation": "{evaluation}"},
}
"""Routes whose body names an object: with it, as the owner would send it."""
BODIES: Final[dict[str, Any]] = {
    "POST /v1/adapters/{name}/versions/{number}/verdicts": {
        "kind": "evaluation", "verdict": "fail", "sentence": "No.", "metric": "exact_match", "examples": 40
    },
    "PUT /v1/adapters/{name}/aliases/{alias}": {"version": 2},
    "PUT /v1/budgets/{project}": {"monthly": 5},
    "POST /v1/reviews/{review_id}": {"choice": "tie"},
    "POST /v1/vector_stores/{store_id}": {"name": "stolen"},
    "POST /v1/vector_stores/{store_id}/search": {"query": "boots"},
    "POST /v1/vector_stores/{store_id}/files": {"file_id": "{document}"},
    "POST /v1/vector_stores/{store_id}/file_batches": {"file_ids": ["{document}"]},
    "POST /v1/vector_stores/{store_id}/files/{file_id}": {"attributes": {"kind": "stolen"}},
}  # fmt: skip
"""Bodies of routes whose path names an object; the others have none."""
LISTS: Final = frozenset(
    f"GET /v1/{name}"
    for name in (
        "adapters", "audit", "batches", "budgets", "costs", "costs/year", "datasets", "evaluations", "files",
        "fine_tuning/jobs", "keys", "ladders", "load", "reviews", "reviews/next", "storage", "usage", "vector_stores",
    )
)  # fmt: skip
"""What they show of an object nobody else may see: not one of its names."""
SHOPPER: Final = "of a shopper"
SEARCH: Final = "POST /v1/vector_stores/{store_id}/search"
"""A shopper's key may search every store, and finds what its filter lets through: nothing here."""
UNMADE: Final = (
    "/v1/reviews/{review_id}",
    "/v1/reviews/{evaluation}/end",
    "/v1/ladders/{ladder_id}/report",
    "DELETE /v1/budgets/{project}",
)
"""What there is none of here: workers that ask no model make no reviews and no reports of ladders, whose own tests have
them, and a budget needs a price."""
DOCUMENT: Final = "Boots may be returned within a month."
NO_OBJECT: Final = {
    "nothing but the program": (
        "GET /", "GET /console", "GET /docs", "GET /docs/favicon.png", "GET /docs/start.js",
        "GET /docs/swagger-ui-bundle.js", "GET /docs/swagger-ui.css", "GET /health", "GET /healthz", "GET /metrics",
        "GET /openapi.json", "GET /readyz",
    ),
    "the caller's own key": ("DELETE /v1/keys/current",),
    "what the request brings": ("POST /v1/fine_tuning/data_check",),
    "a new object of the caller's own": (
        "POST /v1/adapters", "POST /v1/files", "POST /v1/keys", "POST /v1/keys/rotate-admin", "POST /v1/vector_stores",
    ),
    "each of the versions that the caller may see": ("POST /v1/revalidations",),
    "the operator's": ("GET /v1/teachers", "POST /v1/teachers/{name}"),
    "asked by the gateway alone, with a secret": (
        "GET /internal/costs/device_time", "GET /internal/costs/last_training", "POST /internal/costs/estimate",
        "POST /internal/jobs/claim/{job_key_id}", "POST /internal/jobs/replay", "POST /internal/keys/unused",
    ),
}  # fmt: skip
PASSED_ON: Final = ("evaluations", "fine_tuning", "ladders", "reviews", "teachers")
"""What the gateway passes on to the trainer whatever follows: the trainer's routes are walked in their place."""


def recorded() -> set[str]:
    """The routes of gateway and trainer, as clients of the gateway reach them."""
    of_gateway, of_trainer = (
        set(json.loads((HERE / name).read_text())) for name in ("routes.json", "trainer_routes.json")
    )
    passed_on = {route for route in of_gateway if route.endswith("/{rest:path}")}
    passed_on |= {f"{verb} /v1/{name}" for name in PASSED_ON for verb in ("DELETE", "GET", "POST")} - of_trainer
    verbs = {route for route in of_gateway if route.endswith("/{verb}")}
    return (of_gateway - passed_on - verbs) | of_trainer


def walked() -> list[str]:
    """The routes that return or change an object, what deletes last."""
    without = {route for routes in NO_OBJECT.values() for route in routes}
    return sorted(recorded() - without, key=lambda route: (route.startswith("DELETE"), -route.count("/"), route))


def is_unmade(route: str) -> bool:
    return any(path in route for path in UNMADE)


def test_each_route_has_an_entry() -> None:
    """A new route with an object in its path is walked; one without says here what it returns."""
    plain = {route for route in walked() if "{" not in route}
    assert plain - LISTS - set(NAMED) == set(), "add them to NAMED, LISTS or NO_OBJECT"
    entries = {*LISTS, *NAMED, *BODIES, *(route for routes in NO_OBJECT.values() for route in routes)}
    assert entries - recorded() == set(), "these routes are no more"


@dataclass
class Objects:
    """One object of each kind, by the name of its place in a path, and what nobody else may read of them."""

    ids: dict[str, str] = field(default_factory=dict)

    @property
    def secrets(self) -> list[str]:
        """Their ids and names, and a document's text."""
        return [DOCUMENT, *(value for value in self.ids.values() if len(value) > 8)]

    def path(self, route: str) -> str:
        """The path to the object of a route."""
        path = route.partition(" ")[2]
        kind = path.split("/")[2]
        special = {
            "datasets": {"name": "dataset"},
            "vector_stores": {"file_id": "document", "batch_id": "file_batch"},
        }.get(kind, {})
        for place, value in {**self.ids, **{place: self.ids[name] for place, name in special.items()}}.items():
            path = path.replace(f"{{{place}}}", value)
        assert "{" not in path, f"no object for {route}"
        return path

    def body(self, route: str) -> Any:
        """The body for a route, which names the objects."""
        text = json.dumps(NAMED.get(route, BODIES.get(route)))
        for place, value in self.ids.items():
            text = text.replace(f"{{{place}}}", value)
        return json.loads(text)


@dataclass
class Walk:
    """Sends the requests of the walk."""

    http: httpx.AsyncClient
    objects: Objects

    async def ask(self, route: str, key: str) -> httpx.Response:
        method, body = route.partition(" ")[0], self.objects.body(route)
        query = {"adapter": "secret-voice"} if route == "GET /v1/costs/year" else {}
        query |= {"against": "1"} if route.endswith("/diff") else {}
        more = {} if body is None else {"json": body}
        headers = {"authorization": f"Bearer {key}"}
        return await self.http.request(method, self.objects.path(route), params=query, headers=headers, **more)

    async def seen(self) -> dict[str, Any]:
        """What the owner sees of every object, without when a store was last searched: the shopper may search."""
        found = {}
        for route in walked():
            if route.startswith("GET") and "{" in route and not is_unmade(route):
                answer = await self.ask(route, ADMIN_KEY)
                found[route] = (answer.status_code, re.sub(r'"last_active_at":\d+', "", answer.text))
        return found


async def make_objects(gateway: ContractGateway) -> Objects:
    ask, made = Recorder(gateway), Objects()
    ids = made.ids
    base = describe(gateway.scratch / BASE, served_name=BASE, dtype="bfloat16", quantization=None, engine_version="0")
    for seed in (1, 2):
        files = make_adapter(gateway.scratch / f"adapter-{seed}", base, seed=seed)
        await ask.send(f"adapter {seed}", "POST", "/v1/adapters", **upload_of(files, name="secret-voice"))
    await ask.send("promoted", "PUT", "/v1/adapters/secret-voice/aliases/live", json={"version": 1})
    await ask.send("again", "PUT", "/v1/adapters/secret-voice/aliases/live", json={"version": 2})
    ids |= {"name": "secret-voice", "number": "1", "alias": "live", "project": "default", "review_id": "review-none"}

    async def upload(name: str, content: bytes, purpose: str) -> str:
        form: dict[str, Any] = {"data": {"purpose": purpose}, "files": {"file": (f"secret-{name}.txt", content)}}
        return str((await ask.send(name, "POST", "/v1/files", **form))["id"])

    ids["file"] = ids["file_id"] = await upload("file", TRAINING, "fine-tune")
    ids["held_out"] = await upload("held-out", TRAINING, "evals")
    ids["document"] = await upload("document", DOCUMENT.encode(), "assistants")
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
    ids["requests"] = await upload(
        "requests", json.dumps(line | {"body": {"model": "secret-voice", "messages": CHAT}}).encode(), "batch"
    )
    await ask.send("dataset", "POST", "/v1/datasets", json={"name": "secret-data", "file": ids["file"]})
    ids["dataset"] = "secret-data"
    store = await ask.send("store", "POST", "/v1/vector_stores", json={"name": "secret-store"})
    ids["store_id"] = store["id"]
    under = f"/v1/vector_stores/{store['id']}"
    await ask.send("added", "POST", f"{under}/files", json={"file_id": ids["document"]})
    await ask.until(f"{under}/files/{ids['document']}", lambda found: found["status"] == "completed")
    file_batch = await ask.send("file batch", "POST", f"{under}/file_batches", json={"file_ids": [ids["document"]]})
    ids["file_batch"] = file_batch["id"]
    await ask.until(f"{under}/file_batches/{file_batch['id']}", lambda found: found["status"] == "completed")
    batch = await ask.send("batch", "POST", "/v1/batches", json=made.body("POST /v1/batches"))
    ids["batch_id"] = batch["id"]
    await ask.until(f"/v1/batches/{batch['id']}", lambda found: found["status"] == "completed")
    job = await ask.send("job", "POST", JOBS, json=made.body(f"POST {JOBS}") | {"suffix": "secret-trained"})
    ids["job_id"] = job["id"]
    await ask.until(f"{JOBS}/{job['id']}", lambda found: found["status"] == "succeeded")
    evaluation = await ask.send("evaluation", "POST", "/v1/evaluations", json=made.body("POST /v1/evaluations"))
    ids["evaluation_id"] = ids["evaluation"] = evaluation["id"]
    await ask.until(f"/v1/evaluations/{evaluation['id']}", lambda found: found["status"] == "succeeded")
    ladder = await ask.send(
        "ladder", "POST", "/v1/ladders", json=made.body("POST /v1/ladders") | {"adapter": "secret-ladder"}
    )
    assert "id" in ladder, ladder
    ids["ladder_id"] = ladder["id"]
    await ask.send("cancelled", "POST", f"/v1/ladders/{ladder['id']}/cancel")
    await ask.until(f"/v1/ladders/{ladder['id']}", lambda found: found["status"] == "cancelled")
    key = await ask.send("key", "POST", "/v1/keys", json={"name": "secret-key"})
    ids["key_id"] = key["id"]
    faults = {name: each["error"] for name, each in ask.found.items() if "error" in each}
    assert not faults, faults
    return made


async def keys_of_others(gateway: ContractGateway) -> dict[str, str]:
    """Keys that may see none of the objects, by what keeps them out."""
    drafts: dict[str, dict[str, Any]] = {
        "of another project": {"scopes": SCOPES, "project": "theirs"},
        "with globs that exclude it": {"scopes": SCOPES, "adapters": ["else-*"], "stores": ["else-*"]},
        SHOPPER: {"scopes": ["infer"], "filters": {"customer": "7"}, "adapters": ["else-*"]},
        "expired": {"scopes": SCOPES, "expires_at": int(time.time()) + 1},
    }
    keys = {}
    for name, draft in drafts.items():
        answer = await gateway.http.post(
            "/v1/keys", json={"name": name, **draft}, headers={"authorization": f"Bearer {ADMIN_KEY}"}
        )
        assert answer.status_code == 201, answer.text
        keys[name] = answer.json()["key"]
    await asyncio.sleep(2.1)
    return keys


async def test_a_key_that_may_not_see_an_object_neither_reads_nor_changes_it(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        walk = Walk(gateway.http, await make_objects(gateway))
        keys = await keys_of_others(gateway)
        before = await walk.seen()
        assert {route: status for route, (status, _) in before.items() if status != 200} == {}
        faults = []
        for route in walked():
            answers = await asyncio.gather(*(walk.ask(route, key) for key in keys.values()))
            for name, answer in zip(keys, answers, strict=True):
                is_list = route in LISTS or (name, route) == (SHOPPER, SEARCH)
                if is_list and name != "expired":
                    shown = [secret for secret in walk.objects.secrets if secret in answer.text]
                    faults += [f"{name}: {route} shows {shown}"] if answer.status_code == 200 and shown else []
                elif answer.status_code not in REFUSED:
                    faults.append(f"{name}: {route} answers {answer.status_code} {answer.text[:200]}")
        assert faults == [], "\n".join(faults)
        assert await walk.seen() == before, "nothing was changed"
        owned = {route: (await walk.ask(route, ADMIN_KEY)) for route in walked() if not is_unmade(route)}
        refused = {route: answer.text for route, answer in owned.items() if answer.status_code in REFUSED}
        assert refused == {}, "the walk is none: what was refused to others is refused to the owner, too"
