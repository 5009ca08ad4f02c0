"""The SQL of datasets: units of work over one connection, run by ``service.database`` in a transaction of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from service.datasets.tables import dataset_versions, datasets
from service.files.holds import hold_for_dataset, release_dataset
from service.files.records import FileRow, now
from service.files.tables import files


@dataclass(frozen=True, slots=True)
class DatasetVersionRow:
    """A version as it is stored, with the size and SHA-256 of its file."""

    id: int
    number: int
    file_id: str
    sha256: str
    bytes: int
    rows: int
    note: str | None
    key_id: str
    created_at: int


@dataclass(frozen=True, slots=True)
class DatasetRow:
    """A dataset with its versions, oldest first; it has at least one."""

    id: int
    name: str
    created_at: int
    versions: tuple[DatasetVersionRow, ...]

    @property
    def latest(self) -> DatasetVersionRow:
        return self.versions[-1]

    def version(self, number: int) -> DatasetVersionRow | None:
        return next((row for row in self.versions if row.number == number), None)


def find(db: sa.Connection, project: str, name: str) -> DatasetRow | None:
    """The dataset; None if it has no versions."""
    row = _named(db, project, name)
    rows = [] if row is None else _with_versions(db, [row.id])
    return rows[0] if rows else None


def listed(
    db: sa.Connection, project: str, after: str | None, limit: int, visible: Callable[[str], bool]
) -> list[DatasetRow] | None:
    """Up to ``limit`` of the project's datasets whose name is ``visible``, oldest first.

    None where ``after`` is the name of no such dataset; one that was deleted still marks its place.
    """
    has_versions = sa.exists().where(dataset_versions.c.dataset_id == datasets.c.id)
    query = sa.select(datasets.c.id, datasets.c.name).where(datasets.c.project == project, has_versions)
    if after is not None:
        cursor = _named(db, project, after)
        if cursor is None or not visible(after):
            return None
        query = query.where(datasets.c.id > cursor.id)
    chosen: list[int] = []
    with db.execute(query.order_by(datasets.c.id)) as rows:
        for row in rows:
            if visible(row.name):
                chosen.append(row.id)
            if len(chosen) == limit:
                break
    return _with_versions(db, chosen)


def add_version(
    db: sa.Connection, file: FileRow, name: str, *, rows: int, note: str | None, key_id: str
) -> tuple[DatasetRow, bool] | None:
    """Add a file to a dataset of its project, which the first version creates.

    Returns:
        The dataset, and whether it has a new version: it has none if the latest one has the same bytes. None if the
        file is not on the list any more.
    """
    known = find(db, file.project, name)
    if known is not None and known.latest.sha256 == file.sha256:
        return known, False
    created_at = now()
    row = _named(db, file.project, name)
    number = 1 if row is None else row.next_version
    if not hold_for_dataset(db, file.project, f"{name}@{number}", file.id):
        return None
    if row is None:
        values = {"project": file.project, "name": name, "next_version": 2, "created_at": created_at}
        dataset_id = db.execute(datasets.insert().values(values).returning(datasets.c.id)).scalar_one()
    else:
        dataset_id = row.id
        changed = {"next_version": number + 1} | ({} if known is not None else {"created_at": created_at})
        db.execute(datasets.update().where(datasets.c.id == dataset_id).values(changed))
    db.execute(
        dataset_versions.insert().values(
            dataset_id=dataset_id,
            number=number,
            file_id=file.id,
            rows=rows,
            note=note,
            key_id=key_id,
            created_at=created_at,
        )
    )
    return _with_versions(db, [dataset_id])[0], True


def delete_versions(db: sa.Connection, dataset: DatasetRow, versions: Sequence[DatasetVersionRow]) -> None:
    """Delete versions and release their files, which stay on the list. A dataset without versions is gone."""
    for version in versions:
        db.execute(dataset_versions.delete().where(dataset_versions.c.id == version.id))
        release_dataset(db, f"{dataset.name}@{version.number}", version.file_id)


def _named(db: sa.Connection, project: str, name: str) -> sa.Row[int, int] | None:
    """The id and the next version's number of a name, whether or not it has versions now."""
    return db.execute(
        sa.select(datasets.c.id, datasets.c.next_version).where(datasets.c.project == project, datasets.c.name == name)
    ).one_or_none()


def _with_versions(db: sa.Connection, ids: Sequence[int]) -> list[DatasetRow]:
    """The datasets of these ids that have versions, oldest first."""
    columns = [column for column in dataset_versions.c if column.name != "dataset_id"]
    versions: dict[int, list[DatasetVersionRow]] = {}
    for row in db.execute(
        sa.select(dataset_versions.c.dataset_id, *columns, files.c.sha256, files.c.bytes)
        .join(files, files.c.id == dataset_versions.c.file_id)
        .where(dataset_versions.c.dataset_id.in_(ids))
        .order_by(dataset_versions.c.number)
    ):
        fields = {name: getattr(row, name) for name in DatasetVersionRow.__dataclass_fields__}
        versions.setdefault(row.dataset_id, []).append(DatasetVersionRow(**fields))
    chosen = sa.select(datasets.c.id, datasets.c.name, datasets.c.created_at).where(datasets.c.id.in_(ids))
    return [
        DatasetRow(row.id, row.name, row.created_at, tuple(versions[row.id]))
        for row in db.execute(chosen.order_by(datasets.c.id))
        if row.id in versions
    ]
