"""Going live: `live` moves to a version that has passed, if it still points to what that was compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

from trainer.errors import GatewayRefused
from trainer.evaluate.arms import Frozen
from trainer.evaluate.evaluations.spec import Judged
from trainer.runs.gateway import Gateway

LIVE: Final = "live"
MOVED: Final = "alias_moved"
HELD_BACK: Final = "version_held_back"


class Pointer(Frozen):
    """Where `live` points: to ``version`` (None: nowhere), of a split to the one with the largest share.

    A split is somebody's experiment: nobody but a person ends it. ``compared``: it could be compared with, or need not
    be; what serves and could not be is replaced by nobody but a person, too.
    """

    version: int | None
    is_split: bool = False
    compared: bool = True


def where(gateway: Gateway, adapter: str) -> Pointer:
    """Where an adapter's `live` points now. Raises GatewayUnreachable, GatewayRefused."""
    found = gateway.adapter(adapter)
    split: dict[str, Any] | None = found["splits"].get(LIVE)
    if split:
        return Pointer(version=int(max(split, key=lambda number: int(split[number]))), is_split=True)
    return Pointer(version=found["aliases"].get(LIVE))


def opponent(gateway: Gateway, name: str, say: Callable[[str], None]) -> tuple[Pointer, str | None]:
    """Where `live` points, and what there is to compare `name@version` with (None: nothing that could answer).

    Args:
        say: Hears why what serves is not compared with.

    Raises:
        GatewayUnreachable, GatewayRefused: It cannot be known.
    """
    adapter, _, number = name.partition("@")
    pointer = where(gateway, adapter)
    live = f"{adapter}@{pointer.version}"
    if pointer.version in (None, int(number)) or not gateway.is_servable(live):
        return pointer, None
    if gateway.settings(live).get("grounding") and not gateway.can_read_stores(live):
        say(unread(live))
        return pointer.model_copy(update={"compared": False}), None
    return pointer, live


def unread(live: str) -> str:
    """Why what serves is not compared with."""
    return f"{live}, which is live, is not compared with: the key that asked may not read a store that it answers from"


def promote(
    gateway: Gateway,
    name: str,
    judged: Judged,
    wanted: Literal["auto", "never"],
    expected: Pointer | None,
    say: Callable[..., None],
) -> bool:
    """Move `live` where the verdict and the wish allow it, and say what became of it.

    Args:
        name: `name@version`.
        expected: Where `live` pointed when the version was compared with it; None: it was compared with nothing.
        say: Takes an event's message and its `level`.

    Returns:
        Whether the version is live now.

    Raises:
        GatewayUnreachable, GatewayRefused: It cannot be known where `live` points.
    """
    adapter, _, number = name.partition("@")
    by_hand = f"`hatrack promote {name}` makes it live"
    now = where(gateway, adapter)
    stands = (
        f"{adapter} still answers with @{now.version}" if now.version is not None else f"{adapter} has no live version"
    )
    if now == Pointer(version=int(number)):
        say(f"{name} is live")
        return True
    if judged.verdict != "pass" or expected is None:
        say(f"nothing was moved, for it did not pass: {stands}. {by_hand} all the same")
    elif wanted == "never":
        say(f"nothing was moved, as was asked for (promote: never): {stands}. {by_hand}")
    elif not expected.compared:
        say(f"nothing was moved: {stands}, and could not be compared with. {by_hand}", level="warn")
    elif now.is_split or expected.is_split:
        say(f"nothing was moved: {adapter} is split over several versions. {by_hand}", level="warn")
    elif now != expected:
        say(_moved(adapter, by_hand), level="warn")
    else:
        return _move(gateway, name, now.version, say)
    return False


def _move(gateway: Gateway, name: str, expected: int | None, say: Callable[..., None]) -> bool:
    adapter = name.partition("@")[0]
    by_hand = f"`hatrack promote {name}` makes it live"
    try:
        gateway.set_alias(name, LIVE, expected)
    except GatewayRefused as refused:
        if refused.gateway_code == MOVED:
            say(_moved(adapter, by_hand), level="warn")
        elif refused.gateway_code == HELD_BACK:
            say(f"it passed and is not live: {refused.message}", level="warn")
        else:
            say(f"it passed and could not be made live: {refused.message}. {by_hand}", level="error")
        return False
    instead = "" if expected is None else f" instead of @{expected}; `hatrack rollback {adapter}` goes back"
    say(f"{name} is live{instead}")
    return True


def _moved(adapter: str, by_hand: str) -> str:
    return f"nothing was moved: {adapter} points to another version since, which it was not compared with. {by_hand}"
