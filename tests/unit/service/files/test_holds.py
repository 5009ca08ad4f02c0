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
from tests.unit.service.files.cabinet import LINE, Cabinet, bearer


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


async def push(cabinet: Cabinet, name: str, draft: VersionDraft, project: str = "default") -> None:
    await cabinet.database.run(lambda db: registry.add_version(db, project, name, draft, actor=SYSTEM))


async def adapter_id(cabinet: Cabinet, name: str) -> int:
    found = await cabinet.database.run(lambda db: registry.find(db, "default", name))
    assert found is not None
    return found.row.id


async def test_what_a_version_was_trained_on_is_kept_as_long_as_the_version(cabinet: Cabinet) -> None:
    training, held_out, other = [await cabinet.made(LINE * n) for n in (1, 2, 3)]
    await push(cabinet, "voice", version(training, held_out))
    await push(cabinet, "voice", version(held_out))
    for file_id in (training, held_out, other):
        await cabinet.http.delete(f"/v1/files/{file_id}")
    assert await cabinet.listed() == []
    assert cabinet.on_disk() == {training, held_out}
    assert (await cabinet.http.get(f"/v1/files/{training}/content")).status_code == 404

    voice = await adapter_id(cabinet, "voice")
    await cabinet.database.run(lambda db: registry.delete_version(db, voice, 1))
    assert await cabinet.files.collect() == [training]
    assert cabinet.on_disk() == {held_out}
    await cabinet.database.run(lambda db: registry.delete_adapter(db, voice))
    await cabinet.files.collect()
    assert cabinet.on_disk() == set()


async def test_a_file_that_is_on_the_list_outlives_its_versions(cabinet: Cabinet) -> None:
    file_id = await cabinet.made()
    await push(cabinet, "voice", version(file_id))
    voice = await adapter_id(cabinet, "voice")
    await cabinet.database.run(lambda db: registry.delete_adapter(db, voice))
    assert await cabinet.files.collect() == []
    assert (await cabinet.http.get(f"/v1/files/{file_id}/content")).content == LINE


async def test_a_version_s_hold_is_its_own_project_s_and_its_own_name_s(cabinet: Cabinet) -> None:
    other = await cabinet.key("train", project="other")
    theirs, ours = await cabinet.made(key=other), await cabinet.made()
    await push(cabinet, "voice", version(ours), "default")
    await push(cabinet, "voice", version(theirs, ours), "other")
    await push(cabinet, "voices", version(), "default")
    await push(cabinet, "stranger", version(theirs), "default")
    await cabinet.http.delete(f"/v1/files/{theirs}", headers=bearer(other))
    await cabinet.http.delete(f"/v1/files/{ours}")
    voice = await adapter_id(cabinet, "voice")
    await cabinet.database.run(lambda db: registry.delete_adapter(db, voice))
    await cabinet.files.collect()
    assert cabinet.on_disk() == {theirs}


@pytest.mark.parametrize(
    "given",
    [{}, {"lineage": None}, {"lineage": []}, {"lineage": {"files": "file-1"}}, {"lineage": {"files": [1, None]}}],
)
def test_a_lineage_that_names_no_files_holds_none(given: dict[str, Any]) -> None:
    assert holds.lineage_files(given) == []


async def test_a_job_reads_its_data_though_it_is_off_the_list_and_lets_go_when_its_key_dies(cabinet: Cabinet) -> None:
    training, other = await cabinet.made(LINE * 2), await cabinet.made(LINE * 3)
    key_id, key = await cabinet.job_key()
    await cabinet.files.hold("default", key_id, {"training_file": training})
    for file_id in (training, other):
        await cabinet.http.delete(f"/v1/files/{file_id}")
    assert cabinet.on_disk() == {training}
    path = f"/v1/files/{training}/content"
    assert (await cabinet.http.get(path, headers=bearer(key))).content == LINE * 2
    assert (await cabinet.http.get(path, headers=bearer((await cabinet.job_key())[1]))).status_code == 404
    assert (await cabinet.http.delete("/v1/keys/current", headers=bearer(key))).status_code == 200
    assert await cabinet.files.collect() == [training]
    assert cabinet.on_disk() == set()


async def test_a_hold_for_what_is_not_there_holds_nothing(cabinet: Cabinet) -> None:
    training, theirs = await cabinet.made(), await cabinet.made(key=await cabinet.key("train", project="other"))
    key_id, _ = await cabinet.job_key()
    for missing in ("file-0", theirs):
        with pytest.raises(NotFound) as refused:
            await cabinet.files.hold("default", key_id, {"training_file": training, "validation_file": missing})
        assert refused.value.param == "validation_file"
    await cabinet.http.delete(f"/v1/files/{training}")
    assert cabinet.on_disk() == {theirs}


async def test_bytes_that_are_given_up_cannot_be_held_again(cabinet: Cabinet) -> None:
    file_id = await cabinet.made()
    await cabinet.http.delete(f"/v1/files/{file_id}")
    await push(cabinet, "voice", version(file_id))
    assert await cabinet.database.run(lambda db: db.scalar(sa.text("SELECT count(*) FROM file_holds"))) == 0


async def test_the_migration_makes_the_tables_that_the_code_uses(cabinet: Cabinet) -> None:
    ours = ("projects", "files", "file_holds")

    def differences(db: sa.Connection) -> list[object]:
        context = MigrationContext.configure(
            db, opts={"include_name": lambda name, kind, _: kind != "table" or name in ours, "compare_type": True}
        )
        subset = sa.MetaData(naming_convention=metadata.naming_convention)
        for name in ours:
            metadata.tables[name].to_metadata(subset)
        return list(compare_metadata(context, subset))

    assert await cabinet.database.run(differences) == []


async def test_a_job_reads_what_a_version_that_it_may_use_was_trained_on_though_it_is_off_the_list(
    cabinet: Cabinet,
) -> None:
    """What it is compared with, or trained on from, must be known for what it was taught."""
    training = await cabinet.made()
    await push(cabinet, "voice", version(training))
    await cabinet.http.delete(f"/v1/files/{training}")
    path = f"/v1/files/{training}/content"
    _, key = await cabinet.job_key(adapters=("voice",))
    assert (await cabinet.http.get(path, headers=bearer(key))).content == LINE
    _, another = await cabinet.job_key(adapters=("voices",))
    assert (await cabinet.http.get(path, headers=bearer(another))).status_code == 404
    callers = await cabinet.key("train", "infer", "adapters")
    assert (await cabinet.http.get(path, headers=bearer(callers))).status_code == 404
