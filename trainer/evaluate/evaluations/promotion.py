"""Promotion: `live` moves to a version that passed, if it still points to the version it was compared with."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import chain
from typing import Any, Final, Literal

from adapters.authorization import StoreNames
from trainer.errors import GatewayRefused
from trainer.evaluate.evaluations.spec import VerdictRecord
from trainer.runs.gateway import Gateway
from trainer.runs.protocol import Frozen

LIVE: Final = "live"
MOVED: Final = "alias_moved"
HELD_BACK: Final = "version_held_back"


class LivePointer(Frozen):
    """Where `live` points: ``version`` (None: nowhere); for a split, the version with the largest share.

    A split is an experiment, so it is never replaced automatically. ``compared``: the live version could be compared
    with, or need not be; one that could not is never replaced automatically either.
    """

    version: int | None
    is_split: bool = False
    compared: bool = True


def live_pointer(gateway: Gateway, adapter: str) -> LivePointer:
    """Read where an adapter's `live` points now. Raises GatewayUnreachable, GatewayRefused."""
    adapter_object = gateway.adapter(adapter)
    split: dict[str, Any] | None = adapter_object["splits"].get(LIVE)
    if split:
        return LivePointer(version=int(max(split, key=lambda number: int(split[number]))), is_split=True)
    return LivePointer(version=adapter_object["aliases"].get(LIVE))


def live_to_compare(
    gateway: Gateway, name: str, warn: Callable[[str], None], stores: Collection[StoreNames] | None = None
) -> tuple[LivePointer, str | None]:
    """Where `live` points, and the live version to compare `name@version` with (None if there is none that serves).

    Args:
        warn: Called with the reason if the version was not compared with the live one.
        stores: Those whose passages the run may show; None: any that its key may read. `live` may have moved since.

    Raises:
        GatewayUnreachable, GatewayRefused: The gateway could not be read.
    """
    adapter, _, number = name.partition("@")
    pointer = live_pointer(gateway, adapter)
    live = f"{adapter}@{pointer.version}"
    if pointer.version in (None, int(number)) or not gateway.is_servable(live):
        return pointer, None
    grounding = gateway.settings(live).get("grounding")
    undeclared = grounding and stores is not None and set(grounding.get("vector_store_ids") or ()) - set(chain(*stores))
    if undeclared or (grounding and not gateway.can_read_stores(live)):
        warn(live_moved_note(live) if undeclared else live_unreadable_note(live))
        return pointer.model_copy(update={"compared": False}), None
    return pointer, live


def live_moved_note(live: str) -> str:
    """The note that there was no comparison with a version that has gone live since the run was created, and why."""
    return (
        f"there was no comparison with {live}, which has gone live since this run was created: it uses another vector "
        "store, and who may see the run does not depend on that one. Evaluate the version to compare them"
    )


def live_unreadable_note(live: str) -> str:
    """The note that there was no comparison with the live version, and why."""
    return f"there was no comparison with {live}, which is live: the API key may not read a vector store that it uses"


def promote(
    gateway: Gateway,
    name: str,
    record: VerdictRecord,
    mode: Literal["auto", "never"],
    expected: LivePointer | None,
    emit: Callable[..., None],
    *,
    unchecked: bool = False,
) -> bool:
    """Move `live` if the verdict and ``mode`` allow it, and emit an event about the result.

    Args:
        gateway: The gateway's client.
        name: `name@version`.
        record: The verdict.
        mode: The request's `promote`.
        expected: Where `live` pointed when the version was compared with it; None if it was compared with nothing.
        emit: Called with an event's message and its `level`.
        unchecked: Whether the version has training data with which the held-out examples could not be compared.

    Returns:
        Whether the version is live now.

    Raises:
        GatewayUnreachable, GatewayRefused: The gateway could not be read.
    """
    adapter, _, number = name.partition("@")
    by_hand = f"`hatrack promote {name}` makes it live"
    current = live_pointer(gateway, adapter)
    unchanged = (
        f"{adapter} still answers with @{current.version}"
        if current.version is not None
        else f"{adapter} has no live version"
    )
    if current == LivePointer(version=int(number)):
        emit(f"{name} is live")
        return True
    if record.verdict != "pass" or expected is None:
        emit(f"not promoted because it did not pass: {unchanged}. {by_hand} anyway")
    elif mode == "never":
        emit(f"not promoted, as requested (promote: never): {unchanged}. {by_hand}")
    elif unchecked:
        emit(
            f"not promoted: {unchanged}, and {name} may have been trained on held-out examples, since its training "
            f"data could not be compared with them. {by_hand}",
            level="warn",
        )
    elif not expected.compared:
        emit(f"not promoted: {unchanged}, and no comparison with it was possible. {by_hand}", level="warn")
    elif current.is_split or expected.is_split:
        emit(f"not promoted: {adapter} is split over several versions. {by_hand}", level="warn")
    elif current != expected:
        emit(_moved_message(adapter, by_hand), level="warn")
    else:
        return _move(gateway, name, current.version, emit)
    return False


def _move(gateway: Gateway, name: str, expected: int | None, emit: Callable[..., None]) -> bool:
    adapter = name.partition("@")[0]
    by_hand = f"`hatrack promote {name}` makes it live"
    try:
        gateway.set_alias(name, LIVE, expected)
    except GatewayRefused as error:
        if error.gateway_code == MOVED:
            emit(_moved_message(adapter, by_hand), level="warn")
        elif error.gateway_code == HELD_BACK:
            emit(f"it passed but is not live: {error.message}", level="warn")
        else:
            emit(f"it passed but could not be made live: {error.message}. {by_hand}", level="error")
        return False
    replaced = "" if expected is None else f" instead of @{expected}; `hatrack rollback {adapter}` goes back"
    emit(f"{name} is live{replaced}")
    return True


def _moved_message(adapter: str, by_hand: str) -> str:
    return f"not promoted: {adapter} now points to another version, which it was not compared with. {by_hand}"
