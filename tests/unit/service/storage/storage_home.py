"""A home with one of everything, written by the product's own parts; no process runs in it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from adapters.database.database import Database as BaseDatabase
from adapters.manifest import Manifest
from adapters.store import Store
from service.access.audit import SYSTEM
from service.access.keys import write_secret
from service.access.tables import keys
from service.config import Settings
from service.database import Database
from service.files import records as file_records
from service.files.blob_store import BlobStore
from service.files.purposes import Purpose
from service.files.records import NewFile
from service.files.tables import files
from service.knowledge.index.passage_records import PassageFile
from service.knowledge.index.tables import store_files, stores
from service.registry import records
from service.registry.records import VersionDraft
from tests.support.adapters import describe_base, make_adapter
from trainer.database import Database as TrainerDatabase
from trainer.runs.protocol import WorkerEvent
from trainer.runs.tables import runs

T = TypeVar("T")
FILE = "file-handbook"
STORE = "vs_handbook"
GENERATION = "generation-1"
RUN, RUN_KEY = "ftjob-1", "key_run"
ADMIN_KEY = "hk_an-admin-key-of-this-home"


@dataclass
class StorageHome:
    """The home's settings, and what is in it."""

    settings: Settings
    digest: str = ""

    @property
    def path(self) -> Path:
        return self.settings.home

    def at(self, home: Path) -> StorageHome:
        """Another home with the same settings."""
        return StorageHome(self.settings.model_copy(update={"home": home}), self.digest)

    # reading and writing

    def gateway(self, *works: Callable[[sa.Connection], Any]) -> list[Any]:
        """Do something in the gateway's database."""
        return asyncio.run(_run(Database(self.path / "hatrack.db"), works))

    def trainer(self, *works: Callable[[sa.Connection], Any]) -> list[Any]:
        """Do something in the trainer's database."""
        return asyncio.run(_run(TrainerDatabase(self.path / "trainer" / "jobs.db"), works))

    def put_file(self, file_id: str, content: bytes) -> Callable[[sa.Connection], Any]:
        """Store a file's bytes; returns what lists it."""
        blobs = BlobStore(self.path / "files")
        blobs.incoming.mkdir(parents=True, exist_ok=True)
        incoming = blobs.receive(max_bytes=1 << 20)
        incoming.write(content)
        incoming.keep(file_id)
        new_file = NewFile(file_id, "default", "handbook.md", Purpose.ASSISTANTS, len(content), incoming.sha256, None)
        return lambda db: file_records.add(db, new_file)

    def remove_file(self, file_id: str) -> Callable[[sa.Connection], Any]:
        """What takes a file off the list; its bytes go afterwards, as a sweep removes them."""

        def work(db: sa.Connection) -> None:
            db.execute(files.update().where(files.c.id == file_id).values(deleted_at=1, gone_at=1))

        return work

    def stored_files(self) -> dict[str, str]:
        """SHA-256 by the id of each file that the database names."""
        named = sa.select(files.c.id, files.c.sha256).where(files.c.gone_at.is_(None))
        return {row.id: row.sha256 for row in self.gateway(lambda db: db.execute(named).all())[0]}

    def content(self) -> dict[str, bytes]:
        """All files of the home but databases, locks and sockets, by their places."""
        return {
            path.relative_to(self.path).as_posix(): path.read_bytes()
            for path in sorted(self.path.rglob("*"))
            if path.is_file() and ".db" not in path.name and not path.name.endswith(".lock")
        }


async def _run(database: BaseDatabase, works: tuple[Callable[[sa.Connection], T], ...]) -> list[T]:
    await database.open()
    try:
        return [await database.run(work) for work in works]
    finally:
        await database.close()


def make_home(path: Path, base_dir: Path) -> StorageHome:
    """Keys, an adapter, a file in a vector store, a batch's answers, and a job that runs."""
    settings = Settings(home=path, base_model=str(base_dir), engine_device="cpu", engine_url="unix:/nonexistent.sock")
    home = StorageHome(settings)
    path.mkdir(mode=0o700)
    write_secret(path / "admin.key", ADMIN_KEY + "\n")
    write_secret(path / "key.secret", "ab" * 32 + "\n")
    home.digest, draft = _adapter(path, base_dir)
    grounding = path / "grounding"
    grounding.mkdir(mode=0o700)
    passages = PassageFile(grounding / f"{STORE}.db")
    passages.begin(GENERATION)
    passages.close()
    batch = path / "batches" / "batch_1"
    batch.mkdir(parents=True)
    (batch / "output.jsonl").write_text('{"id": "batch_req_1_0"}\n')
    home.gateway(
        lambda db: records.add_version(db, "default", "voice", draft, actor=SYSTEM),
        home.put_file(FILE, b"# Parcels\nThey are carried by ship.\n"),
        _add_store,
        _add_key,
    )
    home.trainer(_add_run)
    run = path / "trainer" / "jobs" / RUN
    (run / "checkpoints" / "step-00000003").mkdir(parents=True)
    (run / "spec.json").write_text(json.dumps({"id": RUN, "gateway": "http://127.0.0.1:8000"}))
    write_secret(run / "key", "hk_of-the-run\n")
    event = WorkerEvent(at=1.0, message="step 1")
    (run / "events.jsonl").write_text(event.model_dump_json() + "\n")
    (run / "checkpoints" / "step-00000003" / "state.pt").write_bytes(os.urandom(300_000))
    (run / "worker.lock").write_text("123\n")
    (path / "engine").mkdir()
    (path / "engine" / "engine.log").write_text("not in a backup")
    return home


def _adapter(home: Path, base_dir: Path) -> tuple[str, VersionDraft]:
    made = make_adapter(home / "made", describe_base(base_dir))
    manifest = Manifest.parse(made.config, max_rank=64)
    with Store(home / "adapters").stage() as staging:
        staging.weights.write(made.weights)
        digest = staging.commit(manifest)
    draft = VersionDraft(
        digest=digest, settings={}, metadata={}, rank=4, alpha=8.0, target_modules=["q_proj"], bytes=len(made.weights),
        zero_effect=False, base={}, config=made.config, readme=None, warnings=[], wanted_alias=None,
    )  # fmt: skip
    shutil.rmtree(home / "made")
    return digest, draft


def _add_store(db: sa.Connection) -> None:
    seq = db.scalar(
        stores.insert()
        .values(id=STORE, project="default", name="handbook", metadata={}, created_at=1, last_active_at=1)
        .returning(stores.c.seq)
    )
    db.execute(
        store_files.insert().values(
            store=seq,
            file_id=FILE,
            filename="handbook.md",
            created_at=1,
            status="completed",
            attributes={},
            chunk_size=800,
            chunk_overlap=400,
            passages=1,
            usage_bytes=100,
            generation=GENERATION,
            model="words",
        )
    )


def _add_key(db: sa.Connection) -> None:
    db.execute(
        keys.insert().values(
            id=RUN_KEY,
            hmac=b"h" * 32,
            hint="hk_ofth…",
            name="run",
            project="default",
            scopes=["infer"],
            limits={},
            background=True,
            created_at=1,
        )
    )


def _add_run(db: sa.Connection) -> None:
    db.execute(
        runs.insert().values(
            id=RUN,
            kind="finetune",
            project="default",
            key_id="admin",
            run_key_id=RUN_KEY,
            created_at=1,
            body={},
            adapters=["voice"],
            details={},
            status="running",
            wanted="run",
            queued_at=1.0,
        )
    )


def end_run(home: StorageHome) -> None:
    """The job succeeds, and its key is revoked, as the trainer and the gateway do it."""
    home.trainer(lambda db: db.execute(runs.update().values(status="succeeded", finished_at=2)))
    (home.path / "trainer" / "jobs" / RUN / "result.json").write_text('{"status": "succeeded"}')
    home.gateway(lambda db: db.execute(keys.update().values(revoked_at=2, hmac=None)))


def in_child(work: Callable[[], object], refused: type[Exception]) -> int:
    """Do something in a forked process: 0, 3 if it raised ``refused``, or minus the signal that killed it."""
    child = os.fork()
    if child == 0:  # no coverage: another process
        code = 1
        try:
            work()
            code = 0
        except refused:
            code = 3
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
