"""`GET /v1/models`: the base, and what a caller may ask for beside it; `type` says what for."""

from __future__ import annotations

from typing import Any

from adapters.names import DEFAULT_ALIAS
from service.access.caller import Caller
from service.errors import Conflict
from service.registry.catalog import AdapterEntry, Catalog, ResolvedName, Servable
from service.registry.split import versions_of

OWNER = "hatrack"
CHAT, EMBEDDING = "chat", "embedding"
"""What a model is for: everything that generates, or `/v1/embeddings` alone."""


def list_models(catalog: Catalog, caller: Caller) -> dict[str, Any]:
    """OpenAI's list of models: the bases, then the adapters with a live version, oldest first, then the embedder."""
    cards = [_base(catalog, name) for name in catalog.bases]
    for entry in catalog.served(caller):
        live = ResolvedName(entry, DEFAULT_ALIAS, entry.aliases[DEFAULT_ALIAS])
        cards.append(_card(entry.name, entry.created_at, root=_root(live), parent=_parent(catalog, live)))
    if catalog.embedder_name is not None and catalog.is_embedder(caller, catalog.embedder_name):
        cards.append(_embedder(catalog, catalog.embedder_name))
    return {"object": "list", "data": cards}


def show_model(catalog: Catalog, caller: Caller, model: str) -> dict[str, Any]:
    """OpenAI's model object for the base, the embedder, `name`, `name@2` or `name:alias`.

    Raises:
        ModelNotFound, NoLiveVersion, Conflict: As for an inference request that asks for it. A split alias is shown as
            long as one of its versions can serve.
    """
    if model in catalog.bases:
        return _base(catalog, model)
    if catalog.is_embedder(caller, model):
        return _embedder(catalog, model)
    resolved = catalog.find(caller, model)
    entry, target = resolved.entry, resolved.target
    if isinstance(target, int):
        catalog.resolve(caller, model)  # one that cannot serve is refused here as it is there
        created = entry.created_at if model == entry.name else entry.versions[target].created_at
    else:
        _check_servable(entry, target.versions, model)
        created = entry.created_at
    return _card(model, created, root=_root(resolved), parent=_parent(catalog, resolved))


def _check_servable(entry: AdapterEntry, numbers: tuple[int, ...], model: str) -> None:
    states = [entry.versions[number].servable for number in numbers]
    if Servable.OK not in states:
        raise Conflict(
            f"no version of `{model}` can serve at the moment: {', '.join(state.value for state in states)}",
            param="model",
            code=f"version_{states[0].value}",
        )


def _root(resolved: ResolvedName) -> str:
    """The version behind a name; of a split, which has several, the alias."""
    name, target = resolved.entry.name, resolved.target
    return f"{name}@{target}" if isinstance(target, int) else f"{name}:{resolved.alias}"


def _parent(catalog: Catalog, resolved: ResolvedName) -> str | None:
    """The base of the version behind a name; of a split's first. None: it is not served now."""
    first = resolved.entry.versions[versions_of(resolved.target)[0]]
    return None if first.servable is Servable.OTHER_BASE else first.base or catalog.base_name


def _base(catalog: Catalog, name: str) -> dict[str, Any]:
    return _card(name, catalog.bases[name], root=name, parent=None)


def _embedder(catalog: Catalog, name: str) -> dict[str, Any]:
    """It has no date of its own: the base's stands for when this installation was made."""
    return _card(name, catalog.bases[catalog.base_name], root=name, parent=None, kind=EMBEDDING)


def _card(name: str, created: int, *, root: str, parent: str | None, kind: str = CHAT) -> dict[str, Any]:
    card = {"id": name, "object": "model", "created": created, "owned_by": OWNER, "root": root, "parent": parent}
    return {**card, "type": kind}
