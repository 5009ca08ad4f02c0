"""Writes of keys, projects, budgets, files, datasets, vector stores, batches and runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from loadtests.full_disk.state import GONE, UNCHECKED, Changes, Place, State
from loadtests.full_disk.writes import Workbench, Write, audited, created
from loadtests.kills.checks import until
from service.client.wire import ClientError

RUN_AUDIT: Final = [
    ("audit", action) for action in ("key.create", "key.delete", "evaluation.create", "evaluation.cancel")
]
"""A run's key is made before the trainer is asked, and revoked where that refuses."""


class AccessWrites:
    """Keys, projects and budgets; one method for each kind of request, which prepares what that needs."""

    def __init__(self, bench: Workbench) -> None:
        self._bench, self._client, self._reader = bench, bench.client, bench.reader
        self._key("team")

    def all(self) -> Sequence[Callable[[], Write]]:
        """The kinds."""
        return self.key, self.project, self.revocation, self.budget, self.budget_deletion

    def _key(self, project: str | None = None) -> Mapping[str, Any]:
        made = self._client.keys.create(self._bench.name("key"), project=project)
        self._reader.keys[made["id"]] = made["key"]
        return made

    def _creation(self, project: str | None, *places: Place) -> Write:
        name = self._bench.name("key")

        def send() -> Mapping[str, Any]:
            made = self._client.keys.create(name, project=project)
            self._reader.keys[made["id"]] = made["key"]
            return made

        def changes(before: State, answer: Any) -> Changes:
            works = {("key", answer["id"]): (name, answer["project"]), ("working key", answer["id"]): True}
            return {**works, **dict.fromkeys(places, True), **audited(before, "key.create")}

        return Write(send, changes)

    def key(self) -> Write:
        """A key of a project that is there."""
        return self._creation("team")

    def project(self) -> Write:
        """The first key of a project."""
        name = self._bench.name("project")
        self._reader.projects.add(name)
        return self._creation(name, ("project", name))

    def revocation(self) -> Write:
        """A revoked key."""
        key_id = self._key("team")["id"]
        return Write(
            lambda: self._client.keys.delete(key_id),
            lambda before, _: {
                ("key", key_id): GONE,
                ("working key", key_id): False,
                **audited(before, "key.delete"),
            },
        )

    def budget(self) -> Write:
        """Another budget."""
        monthly = 1000.0 + self._bench.number()
        return Write(
            lambda: self._client.budgets.set("team", monthly),
            lambda before, _: {("budget", "team"): monthly, **audited(before, "budget.set")},
        )

    def budget_deletion(self) -> Write:
        """No budget any more."""
        self._client.budgets.set("team", 1000.0)
        return Write(
            lambda: self._client.budgets.delete("team"),
            lambda before, _: {("budget", "team"): GONE, **audited(before, "budget.delete")},
        )


class DataWrites:
    """Files, datasets, batches and evaluations."""

    def __init__(self, bench: Workbench) -> None:
        self._bench, self._client = bench, bench.client
        self._requests, self._examples = bench.upload("batch"), bench.upload("evals")

    def all(self) -> Sequence[Callable[[], Write]]:
        """The kinds."""
        return (
            self.file, self.file_deletion, self.dataset, self.dataset_version, self.dataset_version_deletion,
            self.dataset_deletion, self.batch, self.evaluation,
        )  # fmt: skip

    def file(self) -> Write:
        """An upload of a document."""
        path = self._bench.file("assistants")
        return Write(
            lambda: self._client.files.create(path, purpose="assistants"),
            lambda before, answer: {**created(("file", answer["id"])), **audited(before, "file.create")},
        )

    def file_deletion(self) -> Write:
        """A file that nothing holds."""
        file_id = self._bench.upload("assistants")
        return Write(
            lambda: self._client.files.delete(file_id),
            lambda before, _: {("file", file_id): GONE, **audited(before, "file.delete")},
        )

    def _push(self, name: str) -> Write:
        file_id = self._bench.upload("fine-tune")
        return Write(
            lambda: self._client.datasets.create(name, file_id),
            lambda before, answer: {
                ("dataset", f"{name}@{answer['version']}"): file_id,
                **audited(before, "dataset.push"),
            },
        )

    def dataset(self) -> Write:
        """The first version of a dataset."""
        return self._push(self._bench.name("dataset"))

    def dataset_version(self) -> Write:
        """A further one."""
        return self._push("examples")

    def dataset_version_deletion(self) -> Write:
        """A version that goes."""
        self._push("examples").send()
        label = f"examples@{self._push('examples').send()['version']}"
        return Write(
            lambda: self._client.datasets.delete(label),
            lambda before, _: {("dataset", label): GONE, **audited(before, "dataset.delete")},
        )

    def dataset_deletion(self) -> Write:
        """A dataset that goes."""
        name = self._bench.name("dataset")
        self._push(name).send()
        return Write(
            lambda: self._client.datasets.delete(name),
            lambda before, _: {("dataset", f"{name}@1"): GONE, **audited(before, "dataset.delete")},
        )

    def batch(self) -> Write:
        """A batch of requests."""
        return Write(
            lambda: self._client.batches.create(self._requests, "/v1/chat/completions"),
            lambda before, answer: {
                ("batch", answer["id"]): "completed",
                **audited(before, "batch.create", "batch.end"),
            },
        )

    def evaluation(self) -> Write:
        """A run of the trainer's, with a key of its own; cancelled then, as it is not what is looked at."""
        arms: list[dict[str, Any]] = [
            {"label": "a", "model": self._bench.base_name},
            {"label": "b", "model": self._bench.base_name, "prompt": {"system": "Be brief."}},
        ]

        def cancel(answer: Any) -> None:
            with suppress(ClientError):
                self._client.evaluations.cancel(answer["id"])

        return Write(
            lambda: self._client.evaluations.create(self._examples, arms=arms, metric="token_f1", repeats=1, suites=[]),
            lambda _, answer: {**created(("evaluation", answer["id"])), **dict.fromkeys(RUN_AUDIT, UNCHECKED)},
            lambda _: dict.fromkeys(RUN_AUDIT, UNCHECKED),
            cancel,
        )


class StoreWrites:
    """Vector stores and their documents."""

    def __init__(self, bench: Workbench) -> None:
        self._bench, self._stores = bench, bench.client.vector_stores
        self._document, self._store = bench.upload("assistants"), self._stores.create("documents")["id"]

    def all(self) -> Sequence[Callable[[], Write]]:
        """The kinds."""
        return (
            self.store, self.store_with_files, self.store_update, self.store_deletion, self.document, self.documents,
            self.document_update, self.document_removal,
        )  # fmt: skip

    def store(self) -> Write:
        """An empty store."""
        name = self._bench.name("store")
        return Write(
            lambda: self._stores.create(name),
            lambda before, answer: {("store", answer["id"]): name, **audited(before, "store.create")},
        )

    def _filled(self) -> tuple[Callable[[], dict[str, Any]], str]:
        name = self._bench.name("filled")
        body = {"name": name, "file_ids": [self._document]}
        for store in list(self._stores.list()):  # of the request before
            if (store["name"] or "").startswith("filled"):
                self._stores.delete(store["id"])
        return lambda: self._bench.put("POST", "vector_stores", body=body), name

    def store_with_files(self) -> Write:
        """A store that has a document from the start."""
        send, name = self._filled()
        return Write(
            send,
            lambda before, answer: {
                ("store", answer["id"]): name,
                ("document", f"{answer['id']}/{self._document}"): ("completed", {}),
                **audited(before, "store.create", "store.add"),
            },
        )

    def store_update(self) -> Write:
        """Another name."""
        name = self._bench.name("store")
        return Write(
            lambda: self._bench.put("POST", "vector_stores", self._store, body={"name": name}),
            lambda before, _: {("store", self._store): name, **audited(before, "store.update")},
        )

    def store_deletion(self) -> Write:
        """A store with a document."""
        store = self._filled()[0]()["id"]
        return Write(
            lambda: self._stores.delete(store),
            lambda before, _: {
                ("store", store): GONE,
                ("document", f"{store}/{self._document}"): GONE,
                **audited(before, "store.delete"),
            },
        )

    def document(self) -> Write:
        """One document."""
        file_id = self._bench.upload("assistants")
        return Write(
            lambda: self._bench.put("POST", "vector_stores", self._store, "files", body={"file_id": file_id}),
            lambda before, _: {
                ("document", f"{self._store}/{file_id}"): ("completed", {}),
                **audited(before, "store.add"),
            },
        )

    def documents(self) -> Write:
        """Two documents at once."""
        files = [self._bench.upload("assistants") for _ in range(2)]
        return Write(
            lambda: self._stores.file_batches.create(self._store, {file_id: {"year": 2026.0} for file_id in files}),
            lambda before, _: {
                **{("document", f"{self._store}/{file_id}"): ("completed", {"year": 2026.0}) for file_id in files},
                **audited(before, "store.add"),
            },
        )

    def _indexed(self) -> str:
        """A document that the store has indexed, and opened its index for."""
        file_id = self._bench.upload("assistants")
        self._stores.file_batches.create(self._store, {file_id: {}})
        assert until(lambda: self._stores.files.retrieve(self._store, file_id)["status"] == "completed")
        self._stores.search(self._store, "parcel")
        return file_id

    def document_update(self) -> Write:
        """Other attributes."""
        file_id, number = self._indexed(), float(self._bench.number())
        body = {"attributes": {"number": number}}
        return Write(
            lambda: self._bench.put("POST", "vector_stores", self._store, "files", file_id, body=body),
            lambda _before, _: {("document", f"{self._store}/{file_id}"): ("completed", {"number": number})},
        )

    def document_removal(self) -> Write:
        """A document that goes, while its file is deleted already."""
        file_id = self._indexed()
        self._bench.client.files.delete(file_id)
        return Write(
            lambda: self._stores.files.delete(self._store, file_id),
            lambda before, _: {("document", f"{self._store}/{file_id}"): GONE, **audited(before, "store.remove")},
        )
