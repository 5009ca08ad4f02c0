"""`GET /v1/models`: the base, and what a caller may ask for beside it."""

from __future__ import annotations

from typing import Any

from service.access.caller import Caller
from service.registry.catalog import Catalog

OWNER = "hatrack"


def list_models(catalog: Catalog, caller: Caller) -> dict[str, Any]:
    """OpenAI's list: the base first, then an entry for each adapter with a live version, oldest first."""
    cards = [_base(catalog)]
    for entry in catalog.served(caller.project):
        root = f"{entry.name}@{entry.aliases['live']}"
        cards.append(_card(entry.name, entry.created_at, root=root, parent=catalog.base_name))
    return {"object": "list", "data": cards}


def show_model(catalog: Catalog, caller: Caller, model: str) -> dict[str, Any]:
    """OpenAI's model object for the base, `name`, `name@2` or `name:alias`.

    Raises:
        ModelNotFound, NoLiveVersion, Conflict: As for an inference request that asks for it.
    """
    target = catalog.resolve(caller.project, model)
    if target.adapter is None or target.version is None:
        return _base(catalog)
    entry = catalog.snapshot.adapters[(caller.project, target.adapter)]
    created = entry.created_at if model == entry.name else entry.versions[target.version].created_at
    return _card(model, created, root=target.name, parent=catalog.base_name)


def _base(catalog: Catalog) -> dict[str, Any]:
    return _card(catalog.base_name, catalog.base_created_at, root=catalog.base_name, parent=None)


def _card(name: str, created: int, *, root: str, parent: str | None) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": OWNER, "root": root, "parent": parent}
