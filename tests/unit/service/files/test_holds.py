"""The bytes of a file that is off the list: kept for versions that were trained on it and for jobs, else collected."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from service.access.audit import SYSTEM
from service.database import metadata
from service.errors import NotFound
from service.files import holds
from service.registry import records as registry
from service.registry.records import VersionDraft
from tests.unit.service.files.files_app import LINE, FilesApp, bearer


def version(*files: str, **lineage: Any) -> VersionDraft:
    """A version as an upload leaves it, with these files in its lineage."""
    return VersionDraft(
        digest="a" * 64,
        settings={},
        metadata={"lineage": {"files": list(files), **lineage}},
        rank=8,
        alpha=16,
        target_modules=[],
        bytes=1,
        zero_effect=False,
        base={},
        config=b"{}",
        readme=None,
        warnings=[],
        wanted_alias=None,
    )


async def push(files_app: FilesApp, name: str, draft: VersionDraft, project: str = "default") -> None:
    await files_app.database.run(lambda db: registry.add_version(db, project, name, draft, actor=SYSTEM))


async def adapter_id(files_app: FilesApp, name: str) -> int:
    found = await files_app.database.run(lambda db: registry.find(db, "default", name))
    assert found is not None
    return found.row.id


async def test_what_a_version_was_trained_on_is_kept_as_long_as_the_version(files_app: FilesApp) -> None:
    training, held_out, other = [await files_app.made(LINE * n) for n in (1, 2, 3)]
    await push(files_app, "voice", version(training, held_out))
    await push(files_app, "voice", version(held_out))
    for file_id in (training, held_out, other):
        await files_app.http.delete(f"/v1/files/{file_id}")
    assert await files_app.listed() == []
    assert files_app.on_disk() == {training, held_out}
    assert (await files_app.http.get(f"/v1/files/{training}/content")).status_code == 404

    voice = await adapter_id(files_app, "voice")
    await files_app.database.run(lambda db: registry.delete_version(db, voice, 1))
    assert await files_app.files.collect() == [training]
    assert files_app.on_disk() == {held_out}
    await files_app.database.run(lambda db: registry.delete_adapter(db, voice))
    await files_app.files.collect()
    assert files_app.on_disk() == set()


async def test_a_file_that_is_on_the_list_outlives_its_versions(files_app: FilesApp) -> None:
    file_id = await files_app.made()
    await push(files_app, "voice", version(file_id))
    voice = await adapter_id(files_app, "voice")
    await files_app.database.run(lambda db: registry.delete_adapter(db, voice))
    assert await files_app.files.collect() == []
    assert (await files_app.http.get(f"/v1/files/{file_id}/content")).content == LINE


async def test_a_version_s_hold_is_its_own_project_s_and_its_own_name_s(files_app: FilesApp) -> None:
    other = await files_app.key("train", project="other")
    theirs, ours = await files_app.made(key=other), await files_app.made()
    await push(files_app, "voice", version(ours), "default")
    await push(files_app, "voice", version(theirs, ours), "other")
    await push(files_app, "voices", version(), "default")
    await push(files_app, "stranger", version(theirs), "default")
    await files_app.http.delete(f"/v1/files/{theirs}", headers=bearer(other))
    await files_app.http.delete(f"/v1/files/{ours}")
    voice = await adapter_id(files_app, "voice")
    await files_app.database.run(lambda db: registry.delete_adapter(db, voice))
    await files_app.files.collect()
    assert files_app.on_disk() == {theirs}


@pytest.mark.parametrize(
    "given",
    [{}, {"lineage": None}, {"lineage": []}, {"lineage": {"files": "file-1"}}, {"lineage": {"files": [1, None]}}],
)
def test_a_lineage_that_names_no_files_holds_none(given: dict[str, Any]) -> None:
    assert holds.lineage_files(given) == []


async def test_a_job_reads_its_data_though_it_is_off_the_list_and_lets_go_when_its_key_dies(
    files_app: FilesApp,
) -> None:
    training, other = await files_app.made(LINE * 2), await files_app.made(LINE * 3)
    key_id, key = await files_app.job_key()
    await files_app.files.hold("default", key_id, {"training_file": training})
    for file_id in (training, other):
        await files_app.http.delete(f"/v1/files/{file_id}")
    assert files_app.on_disk() == {training}
    path = f"/v1/files/{training}/content"
    assert (await files_app.http.get(path, headers=bearer(key))).content == LINE * 2
    assert (await files_app.http.get(path, headers=bearer((await files_app.job_key())[1]))).status_code == 404
    assert (await files_app.http.delete("/v1/keys/current", headers=bearer(key))).status_code == 200
    assert await files_app.files.collect() == [training]
    assert files_app.on_disk() == set()


async def test_a_hold_for_what_is_not_there_holds_nothing(files_app: FilesApp) -> None:
    training, theirs = await files_app.made(), await files_app.made(key=await files_app.key("train", project="other"))
    key_id, _ = await files_app.job_key()
    for missing in ("file-0", theirs):
        with pytest.raises(NotFound) as refused:
            await files_app.files.hold("default", key_id, {"training_file": training, "validation_file": missing})
        assert refused.value.param == "validation_file"
    await files_app.http.delete(f"/v1/files/{training}")
    assert files_app.on_disk() == {theirs}


async def test_bytes_that_are_given_up_cannot_be_held_again(files_app: FilesApp) -> None:
    file_id = await files_app.made()
    await files_app.http.delete(f"/v1/files/{file_id}")
    await push(files_app, "voice", version(file_id))
    assert await files_app.database.run(lambda db: db.scalar(sa.text("SELECT count(*) FROM file_holds"))) == 0


async def test_the_migration_makes_the_tables_that_the_code_uses(files_app: FilesApp) -> None:
    ours = ("projects", "files", "file_holds")

    def differences(db: sa.Connection) -> list[object]:
        context = MigrationContext.configure(
            db, opts={"include_name": lambda name, kind, _: kind != "table" or name in ours, "compare_type": True}
        )
        subset = sa.MetaData(naming_convention=metadata.naming_convention)
        for name in ours:
            metadata.tables[name].to_metadata(subset)
        return list(compare_metadata(context, subset))

    assert await files_app.database.run(differences) == []


async def test_a_job_reads_what_a_version_that_it_may_use_was_trained_on_though_it_is_off_the_list(
    files_app: FilesApp,
) -> None:
    """What it is compared with, or trained on from, must be known for what it was taught."""
    training = await files_app.made()
    await push(files_app, "voice", version(training))
    await files_app.http.delete(f"/v1/files/{training}")
    path = f"/v1/files/{training}/content"
    _, key = await files_app.job_key(adapters=("voice",))
    assert (await files_app.http.get(path, headers=bearer(key))).content == LINE
    _, another = await files_app.job_key(adapters=("voices",))
    assert (await files_app.http.get(path, headers=bearer(another))).status_code == 404
    callers = await files_app.key("train", "infer", "adapters")
    assert (await files_app.http.get(path, headers=bearer(callers))).status_code == 404
