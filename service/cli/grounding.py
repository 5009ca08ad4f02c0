"""Options that say how a version is grounded, and which versions a store serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import typer

from adapters.wording import counted
from service.cli import terminal
from service.client import ClientError, HatrackClient

FORBIDDEN: Final = 403

InsertAs = Annotated[
    Literal["passages", "turns"] | None,
    typer.Option("--kb-as", help="turns: show a store's examples as earlier turns. [default: passages, quoted]"),
]
RequiredFilters = Annotated[
    list[str] | None,
    typer.Option(
        "--required-filter", metavar="NAME", help="Refuse requests that give no value of this attribute. Repeatable."
    ),
]


def set_grounding(
    fields: dict[str, Any],
    client: HatrackClient,
    stores: Sequence[str] | None,
    insert_as: str | None,
    required_filters: Sequence[str] | None = None,
) -> None:
    """Put what options say into the member `grounding` of ``fields``; what they leave open stays as it is.

    ``stores`` are names or ids. Raises ClientError if there is no such store.
    """
    given: dict[str, Any] = {}
    if stores:
        given["vector_store_ids"] = [str(client.vector_stores.find(store)["id"]) for store in stores]
    if insert_as is not None:
        given["insert_as"] = insert_as
    if required_filters:
        given["required_filters"] = list(required_filters)
    if given:
        fields["grounding"] = {**(fields.get("grounding") or {}), **given}


def versions_served_with(client: HatrackClient, store_id: str) -> list[str]:
    """The versions whose settings search a store, such as `support@4 (live)`, of the adapters that the key may see.

    Raises ClientError, also where the key may not list adapters.
    """
    return [
        f"{adapter['name']}@{version['version']}{_shown_aliases(version['aliases'])}"
        for adapter in client.adapters.list()
        for version in adapter["versions"]
        if store_id in ((version["settings"].get("grounding") or {}).get("vector_store_ids") or ())
    ]


def store_users(client: HatrackClient, store_id: str) -> str:
    """What the deletion of a store breaks, as a sentence, or that the key may not see it. Raises ClientError."""
    try:
        return what_breaks(versions_served_with(client, store_id))
    except ClientError as error:
        if error.status != FORBIDDEN:
            raise
        return "This key may not see which versions use this store."


def _shown_aliases(aliases: Sequence[str]) -> str:
    return f" ({', '.join(aliases)})" if aliases else ""


def what_breaks(versions: Sequence[str]) -> str:
    """What the deletion of a store breaks that these versions are served with, as a sentence."""
    if not versions:
        return "No version is served with it."
    number = counted(len(versions), "version is", "versions are")
    return (
        f"{number} served with it, and will answer 404 (`vector_store_not_found`) unless a request says "
        f"`grounding: false`: {', '.join(map(terminal.clean, versions))}."
    )
