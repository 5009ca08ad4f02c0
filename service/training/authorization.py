"""What the checks of jobs, evaluations and ladders share before they are forwarded to the trainer.

The trainer trusts what it receives: that the caller may use every object in the body, and that the run's key has no
more rights than the caller's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import sqlalchemy as sa

from adapters.authorization import StoreNames
from adapters.errors import AdapterError
from adapters.names import DEFAULT_ALIAS, parse_name
from adapters.protocol.runs import FileRef
from service.access.audit import SYSTEM_ID
from service.access.caller import Caller, Scope
from service.access.records import KeyDraft
from service.database import Database
from service.datasets.service import NamedFile
from service.errors import BadRequest, Forbidden
from service.files.records import FileRow
from service.files.tables import stores
from service.grounding.config import EMBEDDED
from service.registry.catalog import Catalog
from service.registry.split import AliasTarget

JOB_SCOPES: Final = frozenset({Scope.INFER, Scope.ADAPTERS, Scope.TRAIN})
MAX_KEY_NAME: Final = 100


def refuse_run_key(caller: Caller, runs: str) -> None:
    """Refuse a run's own key. ``runs``: what it may not create. Raises Forbidden."""
    if caller.background:
        raise Forbidden(f"a job's own key cannot create {runs}", code="job_key")


async def stores_of(
    database: Database, project: str, groundings: Iterable[Mapping[str, Any] | bool | None]
) -> tuple[StoreNames, ...]:
    """The vector stores whose passages a run shows that is grounded in these ways.

    Args:
        groundings: Of versions, or of requests: their members as JSON.
    """
    ids: set[str] = set()
    providers: set[str] = set()
    for grounding in groundings:
        if isinstance(grounding, Mapping):
            ids.update(store for store in grounding.get("vector_store_ids") or () if isinstance(store, str))
            providers.add(str(grounding.get("provider") or EMBEDDED))
    chosen = sa.select(stores.c.id, stores.c.name).where(stores.c.project == project, stores.c.id.in_(ids))
    named = await database.run(lambda db: {row.id: row.name for row in db.execute(chosen)}) if ids else {}
    found = [tuple(filter(None, (store, named.get(store)))) for store in sorted(ids)]
    # as the hook does: a provider without named stores is one itself
    return (*found, *((provider,) for provider in sorted(providers - {EMBEDDED})))


def live_grounding(catalog: Catalog, project: str, adapter: str) -> dict[str, Any] | None:
    """How the version is grounded that an adapter's `live` points to now; None if there is none, or it is not."""
    entry = catalog.snapshot.adapters.get((project, adapter))
    number = None if entry is None else heaviest(entry.aliases.get(DEFAULT_ALIAS))
    version = None if entry is None or number is None else entry.versions.get(number)
    grounding: dict[str, Any] | None = None if version is None else version.settings.stored().get("grounding")
    return grounding


def heaviest(target: AliasTarget | None) -> int | None:
    """The version that an alias points to; for a split, the one with the largest share."""
    if target is None or isinstance(target, int):
        return target
    shares: Mapping[str, int] = target.shown()
    return int(max(shares, key=lambda number: shares[number]))


def run_key(
    caller: Caller, name: str, scopes: Collection[Scope], adapters: Collection[str], stores: tuple[StoreNames, ...]
) -> KeyDraft:
    """The key that a run uses at the gateway.

    Args:
        name: What it is for.
        adapters: The names that it may use.
        stores: From `stores_of`.
    """
    return KeyDraft(
        name=name[:MAX_KEY_NAME],
        project=caller.project,
        scopes=frozenset(scopes),
        adapters=tuple(sorted(adapters)),
        stores=None,  # the caller's: versions are evaluated with their own grounding
        run_stores=stores,
        background=True,
        parent_key_id=None if caller.key_id == SYSTEM_ID else caller.key_id,
    )


def adapter_name(caller: Caller, name: str, param: str, *, catalog: Catalog, action: str) -> str:
    """The name of the adapter that a run makes versions of.

    Args:
        param: The field that names it.
        catalog: Whose names the base and the embedder keep.
        action: What the caller wants of it, such as "train", for the message.

    Raises:
        BadRequest: The name is not allowed.
        Forbidden: The key's globs do not match it, whether or not that adapter exists.
    """
    try:
        for_embedder = catalog.name_for_embedder(caller.project, name)
        name = parse_name(name, base_names=catalog.bases, embedder_name=for_embedder)
    except AdapterError as error:
        raise BadRequest(error.message, param=param, code=error.code) from None
    if not caller.may_use(name):
        globs = ", ".join(f"`{glob}`" for glob in caller.adapters or ()) or "none"
        raise Forbidden(
            f"the API key may only {action} adapters whose names match {globs}; got `{name}`",
            param=param,
            code="adapter_not_allowed",
        )
    return name


def datasets_in(files: Mapping[str, NamedFile]) -> dict[str, str]:
    """The `name@version` of each file that was named by a dataset, by the request's field."""
    return {param: named.dataset for param, named in files.items() if named.dataset is not None}


def datasets_detail(files: Mapping[str, NamedFile]) -> dict[str, Any]:
    """The same as an entry of the audit's detail; empty if no dataset was named."""
    datasets = datasets_in(files)
    return {"datasets": datasets} if datasets else {}


def reference(row: FileRow) -> FileRef:
    """The reference to a file that is sent to the trainer."""
    return FileRef(id=row.id, filename=row.filename, bytes=row.bytes, sha256=row.sha256)
